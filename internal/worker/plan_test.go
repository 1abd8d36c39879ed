package worker

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// worker returns a ready worker, changed as told.
func aWorker(name, event string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(epoch), Annotations: map[string]string{pod.AnnotationEventID: event}},
		Spec:       corev1.PodSpec{NodeName: "node"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue},
		}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func in(phase corev1.PodPhase) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.Phase = phase }
}

func deleted(p *corev1.Pod) { now := metav1.NewTime(epoch); p.DeletionTimestamp = &now }

func victimOf(event string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[pod.AnnotationScaledDownBy] = event }
}

func annotated(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[key] = value }
}

func count(n int) *int { return &n }

func TestScaleUpWantsWorkers(t *testing.T) {
	running := []*corev1.Pod{aWorker("a", "other"), aWorker("b", "other"), aWorker("c", "other")}
	for name, c := range map[string]struct {
		event scaleevent.Event
		seen  []*corev1.Pod
		want  int
	}{
		"as many as it says":                  {scaleevent.Event{PodCount: count(3)}, running, 3},
		"up to a target":                      {scaleevent.Event{TargetReplicas: count(5)}, running, 2},
		"none at the target":                  {scaleevent.Event{TargetReplicas: count(3)}, running, 0},
		"none beyond the target":              {scaleevent.Event{TargetReplicas: count(1)}, running, 0},
		"all of a target when there are none": {scaleevent.Event{TargetReplicas: count(2)}, nil, 2},
		"the same number on a second delivery": {
			scaleevent.Event{TargetReplicas: count(5)},
			append([]*corev1.Pod{aWorker("x", "1-0"), aWorker("y", "1-0")}, running...), 2,
		},
		"instead of those at their end": {scaleevent.Event{TargetReplicas: count(5)}, []*corev1.Pod{
			aWorker("a", "o", in(corev1.PodSucceeded)), aWorker("b", "o", in(corev1.PodFailed)), aWorker("c", "o", deleted),
			aWorker("d", "o", victimOf("0-9")), aWorker("e", "o", in(corev1.PodPending)), aWorker("f", "o", in(corev1.PodUnknown)),
		}, 3},
		"what it wanted before later events came": {scaleevent.Event{TargetReplicas: count(4)}, []*corev1.Pod{
			aWorker("a", "0-7"), aWorker("b", "0-7", victimOf("1-10"), deleted), aWorker("d", "1-0", victimOf("2-0")),
		}, 2},
	} {
		c.event.ID = "1-0"
		if got, _ := planScaleUp(c.event, c.seen); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestScaleDownTakesThoseFirstThatAreMissedLeast(t *testing.T) {
	// In the order in which they should go.
	order := []*corev1.Pod{
		aWorker("gated", "e", in(corev1.PodPending), func(p *corev1.Pod) {
			p.Spec.NodeName = ""
			p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "ottoscaler.dev/capacity"}}
		}, annotated(corev1.PodDeletionCost, "1000")),
		aWorker("unscheduled", "e", in(corev1.PodPending), func(p *corev1.Pod) { p.Spec.NodeName = "" }),
		aWorker("pending", "e", in(corev1.PodPending)),
		aWorker("not ready", "e", func(p *corev1.Pod) { p.Status.Conditions = nil }, annotated(corev1.PodDeletionCost, "7")),
		aWorker("cheap", "e", annotated(corev1.PodDeletionCost, "-7")),
		aWorker("newer", "e", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(epoch.Add(time.Second)) }),
		aWorker("older, cost is no number", "e", annotated(corev1.PodDeletionCost, "a lot")),
		aWorker("older", "e"),
		aWorker("dear", "e", annotated(corev1.PodDeletionCost, "1")),
	}
	var want []string
	for _, p := range order {
		want = append(want, p.Name)
	}
	shuffled := append([]*corev1.Pod(nil), order...)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for n := range len(order) + 1 {
		got := names(planScaleDown(scaleevent.Event{ID: "1-0", PodCount: count(n)}, shuffled))
		if diff := cmp.Diff(want[:n], got, cmp.Transformer("", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
			t.Errorf("victims of %d (-want +got):\n%s", n, diff)
		}
	}
}

func names(pods []*corev1.Pod) []string {
	var all []string
	for _, p := range pods {
		all = append(all, p.Name)
	}
	return all
}

func TestScaleDownRemovesNoMoreThanItMay(t *testing.T) {
	seen := func() []*corev1.Pod {
		return []*corev1.Pod{
			aWorker("a", "e"), aWorker("b", "e"), aWorker("c", "e"),
			aWorker("mine", "e", victimOf("1-0"), deleted), aWorker("mine, not deleted yet", "e", victimOf("1-0")),
			aWorker("of a later event", "1-2"), aWorker("of another", "e", victimOf("2-0")), aWorker("leaving", "e", deleted), aWorker("done", "e", in(corev1.PodSucceeded)),
		}
	}
	for name, c := range map[string]struct {
		event scaleevent.Event
		want  []string
	}{
		"all of the task":                 {scaleevent.Event{}, []string{"mine", "mine, not deleted yet", "c", "b", "a"}},
		"one more than the last delivery": {scaleevent.Event{PodCount: count(3)}, []string{"mine", "mine, not deleted yet", "c"}},
		"what the last delivery took":     {scaleevent.Event{PodCount: count(2)}, []string{"mine", "mine, not deleted yet"}},
		"more than there are":             {scaleevent.Event{PodCount: count(50)}, []string{"mine", "mine, not deleted yet", "c", "b", "a"}},
		"down to a target":                {scaleevent.Event{TargetReplicas: count(2)}, []string{"mine", "mine, not deleted yet", "c"}},
		"down to more than there are":     {scaleevent.Event{TargetReplicas: count(4)}, []string{"mine", "mine, not deleted yet"}},
	} {
		c.event.ID = "1-0"
		if diff := cmp.Diff(c.want, names(planScaleDown(c.event, seen()))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestWorkerHasEndedOnceItCannotPrintAnotherLine(t *testing.T) {
	grace := func(seconds int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.DeletionGracePeriodSeconds = &seconds }
	}
	containers := func(terminated ...bool) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			for _, over := range terminated {
				s := corev1.ContainerStatus{}
				if over {
					s.State.Terminated = &corev1.ContainerStateTerminated{}
				}
				p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, s)
			}
		}
	}
	for name, c := range map[string]struct {
		worker *corev1.Pod
		want   bool
	}{
		"running":                                  {aWorker("w", "e"), false},
		"succeeded":                                {aWorker("w", "e", in(corev1.PodSucceeded)), true},
		"failed":                                   {aWorker("w", "e", in(corev1.PodFailed)), true},
		"terminated, to be restarted":              {aWorker("w", "e", containers(true)), false},
		"deleted, within its grace":                {aWorker("w", "e", deleted, grace(30), containers(false)), false},
		"deleted, one of two terminated":           {aWorker("w", "e", deleted, grace(30), containers(true, false)), false},
		"deleted, all terminated":                  {aWorker("w", "e", deleted, grace(30), containers(true, true)), true},
		"deleted by force":                         {aWorker("w", "e", deleted, grace(0), containers(false)), true},
		"deleted before it was on a node":          {aWorker("w", "e", in(corev1.PodPending), deleted, grace(0)), true},
		"deleted before its containers were there": {aWorker("w", "e", in(corev1.PodPending), deleted, grace(30)), false},
	} {
		if got := ended(c.worker); got != c.want {
			t.Errorf("%s: ended = %v, want %v", name, got, c.want)
		}
	}
}

func TestDuplicatesAreFoundByTheirKey(t *testing.T) {
	created := aWorker("w", "first", annotated(pod.AnnotationIdempotencyKey, "k"))
	removed := aWorker("w", "x", annotated(pod.AnnotationScaledDownKey, "k"), victimOf("first"))
	for name, c := range map[string]struct {
		event string
		seen  []*corev1.Pod
		want  string
	}{
		"no trace":           {"second", nil, ""},
		"its own worker":     {"first", []*corev1.Pod{created}, ""},
		"another's worker":   {"second", []*corev1.Pod{created}, "first"},
		"its own victim":     {"first", []*corev1.Pod{removed}, ""},
		"another's victim":   {"second", []*corev1.Pod{removed}, "first"},
		"its own, another's": {"second", []*corev1.Pod{aWorker("v", "second", annotated(pod.AnnotationIdempotencyKey, "k")), created}, "first"},
	} {
		if got := duplicateOf(scaleevent.Event{ID: c.event, IdempotencyKey: "k"}, c.seen); got != c.want {
			t.Errorf("%s: duplicate of %q, want %q", name, got, c.want)
		}
	}
}
