package worker_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func TestScaleUpCreatesEachWorkerOnceHoweverOftenItIsDelivered(t *testing.T) {
	s := start(t, time.Hour, nil, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	e := up("task", 3)
	first := s.done(e, 1)
	want := s.names()
	if len(want) != 3 || first.Details["workers"] != strings.Join(want, ",") || first.Details["count"] != "3" {
		t.Fatalf("workers %v, details %v", want, first.Details)
	}
	s.done(e, 2)
	s = start(t, time.Hour, s, nil)
	s.done(e, 1)
	if diff := cmp.Diff(want, s.names()); diff != "" {
		t.Errorf("workers after more deliveries (-first +now):\n%s", diff)
	}
}

func TestScaleUpSurvivesFaultsOfTheAPIServer(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	for name, fault := range map[string]workertest.Fault{
		"failed and did nothing": workertest.NotDone,
		"done but reply lost":    workertest.ReplyLost,
		"throttled":              workertest.Throttled,
		"unavailable":            workertest.Unavailable,
	} {
		e := up(name, 4)
		s.Faults.Break("POST", fault, 1, 2)
		v := s.deliver(e, 1)
		if v.Status != 0 || v.After <= 0 {
			t.Errorf("%s: verdict %+v, want a retry", name, v)
		}
		if fault == workertest.Throttled && v.After < 7*time.Second {
			t.Errorf("%s: to be tried again after %v, though the server asked for 7s", name, v.After)
		}
		s.Faults.Repair()
		s.done(e, 2)
		own := slices.DeleteFunc(s.Workers(), func(p corev1.Pod) bool { return p.Annotations[pod.AnnotationEventID] != e.ID })
		if len(own) != 4 {
			t.Errorf("%s: %d workers, want 4", name, len(own))
		}
	}
}

func TestCrashBetweenTwoCreatesLeavesNoWorkerTwice(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	e := up("task", 5)
	s.Faults.Break("POST", workertest.NotDone, 2, -1)
	if v := s.deliver(e, 1); v.Status != 0 {
		t.Fatalf("verdict %+v, want a retry", v)
	}
	if n := len(s.names()); n == 0 || n == 5 {
		t.Fatalf("%d workers before the crash; the test wants some, not all", n)
	}
	s = start(t, time.Hour, s, nil)
	s.done(e, 1)
	s.mustHave(5)
}

func TestUnreachableAPIServerIsNotAnEmptyCluster(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 3), 1)
	three := 3
	target := scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TaskID: "task", TargetReplicas: &three}
	s.Faults.Break("GET", workertest.NotDone, 0, -1)
	if v := s.deliver(target, 2); v.Status != 0 {
		t.Errorf("verdict %+v, want a retry", v)
	}
	s.Faults.Repair()
	s.done(target, 3)
	s.mustHave(3)
}

func TestTargetsOfAPoolThatArriveTogetherAddUpToOneTarget(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	five := 5
	var group sync.WaitGroup
	for range 4 {
		e := scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TargetReplicas: &five}
		group.Go(func() { s.done(e, 1) })
	}
	group.Wait()
	s.mustHave(5)
	two := 2
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TargetReplicas: &two}, 1)
	s.mustHave(2)
}

func TestEventsWithTheSameKeyCountOnce(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	first, second := up("task", 3), up("another", 5)
	first.IdempotencyKey, second.IdempotencyKey = "key", "key"

	var group sync.WaitGroup
	verdicts := make([]queue.Verdict, 2)
	for i, e := range []scaleevent.Event{first, second} {
		group.Go(func() { verdicts[i] = s.done(e, 1) })
	}
	group.Wait()
	won := slices.IndexFunc(verdicts, func(v queue.Verdict) bool { return v.Details["duplicate_of"] == "" })
	if won < 0 {
		t.Fatalf("both are duplicates: %+v", verdicts)
	}
	winner, loser := []scaleevent.Event{first, second}[won], []scaleevent.Event{first, second}[1-won]
	if got := verdicts[1-won].Details["duplicate_of"]; got != winner.ID {
		t.Errorf("the loser is a duplicate of %q, want %s", got, winner.ID)
	}
	s.mustHave(*winner.PodCount)
	s.done(winner, 2)
	s.done(loser, 2)
	s.mustHave(*winner.PodCount)

	remove, again := down(winner.TaskID, 1), down(winner.TaskID, 1)
	remove.IdempotencyKey, again.IdempotencyKey = "down", "down"
	s.done(remove, 1)
	s.done(again, 1)
	s.mustHave(*winner.PodCount - 1)
}

func TestFinalFaultsAreRejectedWithTheirReason(t *testing.T) {
	s := start(t, time.Hour, nil, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	foreign := up("conflict", 1)
	_, err := s.Client.Pods(s.Namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name(instance, "default", foreign.ID, 0)},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{Name: "c", Image: "c", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	in := func(pool string) scaleevent.Event { e := up("task", 2); e.Pool = pool; return e }
	expired := up("task", 1)
	expired.ExpiresAt = time.Now().Add(-time.Second)
	override := up("task", 1)
	override.Image = "evil"
	everything := down("", 1)
	everything.PodCount = nil
	for want, e := range map[string]scaleevent.Event{
		worker.ReasonUnknownPool:        in("nowhere"),
		worker.ReasonInvalidPod:         in("invalid"),
		worker.ReasonPolicyViolation:    in("unsafe"),
		worker.ReasonNameConflict:       foreign,
		worker.ReasonOverrideNotAllowed: override,
		scaleevent.ReasonExpired:        expired,
		scaleevent.ReasonMissingField:   everything,
	} {
		v := s.deliver(e, 1)
		if v.Status != queue.Rejected || v.Reason != want || v.Message == "" {
			t.Errorf("%s: verdict %+v", want, v)
		}
		if s.log.lines("scale event rejected", "reason="+want, "event="+e.ID) != 1 {
			t.Errorf("%s: the log does not say it once", want)
		}
	}
	s.mustHave(1) // the foreign one
}

func TestExceededQuotaIsWaitedFor(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	quotas := s.Client.ResourceQuotas(s.Namespace)
	_, err := quotas.Create(t.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "quota"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	workertest.Eventually(t, "the quota is in force", func() bool {
		quota, err := quotas.Get(t.Context(), "quota", metav1.GetOptions{})
		return err == nil && quota.Status.Hard != nil
	})
	e := up("task", 3)
	v := s.deliver(e, 1)
	if v.Status != 0 || !strings.Contains(v.Message, "exceeded quota") {
		t.Fatalf("verdict %+v, want a retry because of the quota", v)
	}
	more := []byte(`{"spec":{"hard":{"pods":"10"}}}`)
	if _, err := quotas.Patch(t.Context(), "quota", types.MergePatchType, more, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	workertest.Eventually(t, "all workers are there", func() bool { return s.deliver(e, 2).Status == queue.Done })
	s.mustHave(3)
}

func TestWorkersGetTheDefaultResourcesAndNoMoreThanTheMost(t *testing.T) {
	s := startWith(t, `
pools:
  default:
    resources: {default: {cpu: 500m, memory: 1Gi}, max: {cpu: "2", memory: 4Gi}}
    overrides: {cpu: true, memory: true}
    template: {spec: {containers: [{name: agent, resources: {requests: {cpu: 100m}}}]}}
`, time.Hour, nil, nil)
	resources := func(e scaleevent.Event) (text string) {
		r := s.get(s.done(e, 1).Details["workers"]).Spec.Containers[0].Resources
		return fmt.Sprintf("%s-%s, %s-%s", r.Requests.Cpu(), r.Limits.Cpu(), r.Requests.Memory(), r.Limits.Memory())
	}
	if got := resources(up("task", 1)); got != "100m-0, 1Gi-1Gi" {
		t.Errorf("by default: %s; the template has a request for cpu, and nothing of memory", got)
	}
	most := up("task", 1)
	most.CPU, most.Memory = "2", "4Gi"
	if got := resources(most); got != "2-2, 4Gi-4Gi" {
		t.Errorf("at most: %s", got)
	}
	more := up("task", 1)
	more.Memory = "4097Mi"
	if v := s.deliver(more, 1); v.Status != queue.Rejected || v.Reason != worker.ReasonOverrideNotAllowed || v.Message != "memory 4097Mi is more than the 4Gi that pool default allows" {
		t.Errorf("more than that: %+v", v)
	}
	s.mustHave(2)
}

func TestScaleDownRemovesAsManyAsItSaysAndNoMoreOnRedelivery(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	create := up("task", 5)
	create.Pool = "bound"
	s.done(create, 1)
	s.done(up("another", 2), 1)
	e := down("task", 2)
	e.Pool = "bound"
	v := s.done(e, 1)
	s.mustHave(5)
	for name := range strings.SplitSeq(v.Details["workers"], ",") {
		p := s.get(name)
		if p == nil || p.DeletionTimestamp == nil || markedBy(p) != e.ID || *p.DeletionGracePeriodSeconds != 17 {
			t.Errorf("victim %s: %+v", name, p)
		}
	}
	s.done(e, 2)
	s = start(t, time.Hour, s, nil)
	s.done(e, 1)
	s.mustHave(5)
}

func TestScaleDownSurvivesFaultsOfTheAPIServer(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	for _, method := range []string{"PATCH", "DELETE"} {
		for name, fault := range map[string]workertest.Fault{"did nothing": workertest.NotDone, "reply lost": workertest.ReplyLost} {
			for _, crash := range []bool{false, true} {
				what := fmt.Sprintf("%s, %s, crash %v", method, name, crash)
				create := up(what, 5)
				create.ID = fmt.Sprintf("%d-0", time.Now().UnixMilli()-1) // before that of the scale_down
				s.done(create, 1)
				before := len(s.names())
				e := down(what, 3)
				e.ID = fmt.Sprintf("%d-%d", time.Now().UnixMilli(), before) // so recent that an earlier process may have begun it
				s.events.set(e.ID, true)                                    // and so it would be
				s.Faults.Break(method, fault, 1, 1)
				if v := s.deliver(e, 1); v.Status != 0 {
					t.Errorf("%s: verdict %+v, want a retry", what, v)
				}
				s.Faults.Repair()
				attempt := 2
				if crash {
					s, attempt = start(t, time.Hour, s, nil), 1
				}
				s.done(e, attempt)
				if removed := before - len(s.names()); removed != 3 {
					t.Errorf("%s: %d removed, want 3", what, removed)
				}
			}
		}
	}
}

func TestScaleDownLeavesNewVictimsToThoseWhoHaveThem(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 6), 1)
	var group sync.WaitGroup
	for range 3 {
		e := down("task", 2)
		group.Go(func() { s.done(e, 1) })
	}
	group.Wait()
	s.mustHave(0)
	if v := s.done(down("task", 1), 1); v.Details["count"] != "0" {
		t.Errorf("nothing was left, but: %+v", v)
	}
}

func TestAllWorkersOfATaskAreRemovedAndNoOthers(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 3), 1)
	s.done(up("task/with a long name that is no label value, for it has spaces and is far too long", 2), 1)
	e := down("task/with a long name that is no label value, for it has spaces and is far too long", 1)
	e.PodCount = nil
	s.done(e, 2) // from the API server
	s.mustHave(3)
	e = down("task", 1)
	e.PodCount = nil
	s.done(e, 1) // from the cache
	s.mustHave(0)
}
