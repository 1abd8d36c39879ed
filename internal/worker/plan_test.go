package worker

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
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
		got := names(planScaleDown(scaleevent.Event{ID: "1-0", PodCount: count(n)}, shuffled, 0))
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
		given int
		want  []string
	}{
		"all of the task":                 {scaleevent.Event{}, 0, []string{"mine", "mine, not deleted yet", "c", "b", "a"}},
		"one more than the last delivery": {scaleevent.Event{PodCount: count(3)}, 0, []string{"mine", "mine, not deleted yet", "c"}},
		"what the last delivery took":     {scaleevent.Event{PodCount: count(2)}, 0, []string{"mine", "mine, not deleted yet"}},
		"more than there are":             {scaleevent.Event{PodCount: count(50)}, 0, []string{"mine", "mine, not deleted yet", "c", "b", "a"}},
		"down to a target":                {scaleevent.Event{TargetReplicas: count(2)}, 0, []string{"mine", "mine, not deleted yet", "c"}},
		"down to more than there are":     {scaleevent.Event{TargetReplicas: count(4)}, 0, []string{"mine", "mine, not deleted yet"}},
		"less what was not made":          {scaleevent.Event{PodCount: count(5)}, 2, []string{"mine", "mine, not deleted yet", "c"}},
		"nothing that was not made":       {scaleevent.Event{PodCount: count(5)}, 5, []string{"mine", "mine, not deleted yet"}},
		"all of what was made":            {scaleevent.Event{}, 2, []string{"mine", "mine, not deleted yet", "c", "b", "a"}},
		"what was made, to a target":      {scaleevent.Event{TargetReplicas: count(2)}, 1, []string{"mine", "mine, not deleted yet", "c"}},
	} {
		c.event.ID = "1-0"
		if diff := cmp.Diff(c.want, names(planScaleDown(c.event, seen(), c.given))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// later returns an event of the lane, as it comes behind another.
func later(id string, kind scaleevent.Type, change ...func(*queue.Item[*scaleevent.Event])) queue.Item[*scaleevent.Event] {
	item := queue.Item[*scaleevent.Event]{ID: id, Value: &scaleevent.Event{ID: id, Type: kind, TaskID: "t"}}
	for _, c := range change {
		c(&item)
	}
	return item
}

func by(n int) func(*queue.Item[*scaleevent.Event]) {
	return func(item *queue.Item[*scaleevent.Event]) { item.Value.PodCount = &n }
}

func to(n int) func(*queue.Item[*scaleevent.Event]) {
	return func(item *queue.Item[*scaleevent.Event]) { item.Value.TargetReplicas = &n }
}

func keyed(key string) func(*queue.Item[*scaleevent.Event]) {
	return func(item *queue.Item[*scaleevent.Event]) { item.Value.IdempotencyKey = key }
}

func given(n int) func(*queue.Item[*scaleevent.Event]) {
	return func(item *queue.Item[*scaleevent.Event]) { item.Given = map[string]int{"an earlier one": n} }
}

func expired(item *queue.Item[*scaleevent.Event]) { item.Value.ExpiresAt = epoch.Add(-time.Second) }

func TestAnEventGivesWayOnceLaterOnesTakeAllThatIsLeft(t *testing.T) {
	const up, down = scaleevent.ScaleUp, scaleevent.ScaleDown
	type items = []queue.Item[*scaleevent.Event]
	type numbers = map[string]int
	for name, c := range map[string]struct {
		unmade, live int
		behind       items
		gives        numbers
		left         int
	}{
		"to none":                           {3, 2, nil, nil, 3},
		"not to one that takes less":        {3, 2, items{later("d", down, by(2))}, nil, 1},
		"to one that takes as much":         {3, 2, items{later("d", down, by(3))}, numbers{"d": 3}, 0},
		"to one that takes more":            {3, 2, items{later("d", down, by(9))}, numbers{"d": 3}, 0},
		"to two together":                   {3, 2, items{later("d", down, by(1)), later("e", down, by(4))}, numbers{"d": 1, "e": 2}, 0},
		"to one that removes all":           {3, 2, items{later("d", down)}, numbers{"d": 3}, 0},
		"to a target of none":               {3, 2, items{later("d", down, to(0))}, numbers{"d": 3}, 0},
		"to a target that is there":         {3, 2, items{later("d", down, to(2))}, numbers{"d": 3}, 0},
		"to a target below":                 {3, 2, items{later("d", down, to(1))}, numbers{"d": 3}, 0},
		"not to a target above":             {3, 2, items{later("d", down, to(3))}, nil, 1},
		"not to a target beyond all":        {3, 2, items{later("d", down, to(9))}, nil, 3},
		"before what a later one adds":      {3, 2, items{later("u", up, by(2)), later("d", down, by(3))}, numbers{"d": 3}, 0},
		"not to a target that one may meet": {3, 2, items{later("u", up, by(2)), later("d", down, to(3))}, nil, 3},
		"but to one that is there anyway":   {3, 2, items{later("u", up, by(2)), later("d", down, to(2))}, numbers{"d": 3}, 0},
		"with more behind it":               {3, 2, items{later("d", down, by(3)), later("u", up, by(2)), later("e", down, by(2))}, numbers{"d": 3}, 0},
		"of a number that is one":           {1, 0, items{later("u", up), later("d", down, by(2))}, numbers{"d": 1}, 0},
		"to a target, of all that is left":  {3, 5, items{later("d", down, by(2)), later("u", up, by(2)), later("e", down, to(5))}, numbers{"d": 2, "e": 1}, 0},
		"to a target that was taken before": {2, 3, items{later("d", down, by(1)), later("e", down, to(4))}, nil, 1},
		"not to one that has expired":       {3, 2, items{later("d", down, by(3), expired)}, nil, 3},
		"not to all, if that has expired":   {3, 2, items{later("d", down, expired)}, nil, 3},
		"nor behind one that adds nothing":  {3, 2, items{later("u", up, by(2), expired), later("d", down, by(3))}, numbers{"d": 3}, 0},
		"to one that has begun":             {3, 2, items{later("d", down, by(5), given(2), expired)}, numbers{"d": 3}, 0},
		"less what it was given before":     {3, 2, items{later("d", down, by(5), given(3))}, nil, 1},
		"behind a target that is there":     {3, 2, items{later("u", up, to(2)), later("d", down, by(4))}, numbers{"d": 3}, 0},
		"not behind one that is not":        {3, 2, items{later("u", up, to(4)), later("d", down, by(9))}, nil, 3},
		"nor to a target behind one":        {3, 2, items{later("u", up, to(4)), later("d", down, to(1))}, nil, 3},
		"to all behind a target":            {3, 2, items{later("d", down, by(1)), later("u", up, to(4)), later("e", down)}, numbers{"d": 1, "e": 2}, 0},
		"not to a key, the last one":        {3, 2, items{later("d", down, by(3), keyed("k"))}, nil, 1},
		"that goes to another":              {3, 2, items{later("d", down, by(3), keyed("k")), later("e", down, by(1))}, numbers{"d": 2, "e": 1}, 0},
		"to a key that touches a worker":    {3, 2, items{later("d", down, by(4), keyed("k"))}, numbers{"d": 3}, 0},
		"not if there is none":              {3, 0, items{later("d", down, by(4), keyed("k")), later("e", down, by(4))}, nil, 3},
		"nor if another removes it":         {3, 1, items{later("d", down, by(2), keyed("k")), later("e", down, by(4), keyed("l"))}, nil, 2},
		"to a target with a key":            {3, 2, items{later("d", down, to(1), keyed("k"))}, numbers{"d": 3}, 0},
		"not to one that is there":          {3, 2, items{later("d", down, to(2), keyed("k")), later("e", down, by(4))}, nil, 3},
		"behind what a key adds":            {3, 2, items{later("u", up, by(3), keyed("k")), later("d", down, by(6))}, numbers{"d": 3}, 0},
		"also if it may have come before":   {3, 2, items{later("u", up, by(3), keyed("old")), later("d", down, by(6))}, numbers{"d": 3}, 0},
		"not behind its own key":            {3, 2, items{later("u", up, by(3), keyed("own")), later("d", down, by(9))}, nil, 3},
		"but to all behind it":              {3, 2, items{later("u", up, by(3), keyed("own")), later("d", down)}, numbers{"d": 3}, 0},
		"not to its own key":                {3, 2, items{later("d", down, keyed("own"))}, nil, 3},
		"not to a key that comes again":     {3, 2, items{later("u", up, by(1), keyed("k")), later("d", down, by(9), keyed("k"))}, nil, 3},
		"to all with a key":                 {3, 2, items{later("d", down, keyed("k"))}, numbers{"d": 3}, 0},
		"not to all with a key that is old": {3, 2, items{later("d", down, keyed("old"))}, nil, 3},
		"nor with one that comes before":    {3, 2, items{later("d", down, by(2), keyed("k")), later("e", down, keyed("k"))}, nil, 2},
		"to all with a key that has begun":  {3, 2, items{later("d", down, keyed("old"), given(1))}, numbers{"d": 3}, 0},
	} {
		gives, left := planGiveWay(scaleevent.Event{TaskID: "t", IdempotencyKey: "own"}, c.unmade, c.live, c.behind, epoch, func(e scaleevent.Event) bool { return e.IdempotencyKey == "old" })
		if diff := cmp.Diff(c.gives, gives); diff != "" || left != c.left {
			t.Errorf("%s: %d left, want %d; gives (-want +got):\n%s", name, left, c.left, diff)
		}
	}
}

// What there is of a whole pool, its tasks' events may change before a later one of the pool's looks.
func TestAnEventOfAPoolGivesWayToNoneThatGoesByWhatThereIs(t *testing.T) {
	for name, c := range map[string]struct {
		behind queue.Item[*scaleevent.Event]
		left   int
	}{
		"by number":     {later("d", scaleevent.ScaleDown, by(3)), 0},
		"to a target":   {later("d", scaleevent.ScaleDown, to(1)), 3},
		"with a key":    {later("d", scaleevent.ScaleDown, by(4), keyed("k")), 3},
		"to none":       {later("d", scaleevent.ScaleDown, to(0)), 0},
		"all, by a key": {later("d", scaleevent.ScaleDown, keyed("k")), 0},
	} {
		_, left := planGiveWay(scaleevent.Event{}, 3, 2, []queue.Item[*scaleevent.Event]{c.behind}, epoch, func(scaleevent.Event) bool { return false })
		if left != c.left {
			t.Errorf("%s: %d left, want %d", name, left, c.left)
		}
	}
}

// TestGivingWayEndsWithTheWorkersThatTheEventsAskFor has events of a task come while only
// some workers can be made, now and then, and some are rejected. Whichever give way: in the
// end there are as many workers as if all had been carried out in their order, and a
// scale_down that would have removed one has left the trace of its key.
func TestGivingWayEndsWithTheWorkersThatTheEventsAskFor(t *testing.T) {
	gaveWay := 0
	rapid.Check(t, func(t *rapid.T) {
		var events []queue.Item[*scaleevent.Event]
		for i := range rapid.IntRange(1, 12).Draw(t, "events") {
			kind := rapid.SampledFrom([]scaleevent.Type{scaleevent.ScaleUp, scaleevent.ScaleDown}).Draw(t, "type")
			size := rapid.SampledFrom([]func(int) func(*queue.Item[*scaleevent.Event]){by, by, to}).Draw(t, "size")
			item := later(fmt.Sprint(i), kind, size(rapid.IntRange(1, 4).Draw(t, "n")))
			if kind == scaleevent.ScaleDown && rapid.IntRange(0, 9).Draw(t, "all") == 9 {
				item = later(item.ID, kind)
			}
			item.Value.IdempotencyKey = rapid.SampledFrom([]string{"", "", "", "", "k", "l", "of " + item.ID}).Draw(t, "key")
			events = append(events, item)
		}
		live, want, arrived := 0, 0, 0
		swept := 0                  // the last one that removed all for whose sake another ended, and that one does not wait for a trace
		traces := map[string]bool{} // of keys
		duplicate := func(e scaleevent.Event) bool { return traces[e.IdempotencyKey] }
		for i := range events {
			e, took := *events[i].Value, sumOf(events[i].Given)
			arrived = max(arrived, i+1)
			if took == 0 && (duplicate(e) || rapid.IntRange(0, 5).Draw(t, "rejected") == 5) {
				continue
			}
			if e.Type == scaleevent.ScaleDown {
				removed := wantedOf(e, live)
				if e.PodCount != nil {
					removed = min(live, removed-took)
				}
				wanted := min(want, wantedOf(e, want))
				if e.IdempotencyKey != "" && wanted > 0 && removed == 0 && i >= swept {
					t.Fatalf("event %d leaves no trace: it removes none of %d, instead of %d of %d", i, live, wanted, want)
				}
				live, want = live-removed, want-wanted
				traces[e.IdempotencyKey] = e.IdempotencyKey != "" && (removed > 0 || traces[e.IdempotencyKey])
				continue
			}
			unmade := wantedOf(e, live)
			want += wantedOf(e, want)
			for unmade > 0 {
				made := min(unmade, rapid.IntRange(0, 2).Draw(t, "room"))
				unmade, live = unmade-made, live+made
				traces[e.IdempotencyKey] = e.IdempotencyKey != "" && (made > 0 || traces[e.IdempotencyKey])
				arrived = min(len(events), arrived+rapid.IntRange(0, 3).Draw(t, "more come"))
				if unmade == 0 {
					break
				}
				gives, left := planGiveWay(e, unmade, live, events[i+1:arrived], epoch, duplicate)
				if left > 0 {
					continue
				}
				gaveWay++
				for j := range events {
					if n := gives[events[j].ID]; n > 0 {
						given(n + sumOf(events[j].Given))(&events[j])
						unmade -= n
						if events[j].Value.RemovesAll() {
							swept = max(swept, j+1)
						}
					}
				}
				if unmade != 0 {
					t.Fatalf("%d are left, and %v are given away", unmade, gives)
				}
			}
		}
		if live != want {
			t.Fatalf("%d workers, want %d", live, want)
		}
	})
	if gaveWay == 0 {
		t.Error("no event gave way")
	}
}

// wantedOf returns how many workers an event makes or removes where there are some.
func wantedOf(e scaleevent.Event, live int) int {
	switch {
	case e.Type == scaleevent.ScaleUp && e.TargetReplicas != nil:
		return max(0, *e.TargetReplicas-live)
	case e.TargetReplicas != nil:
		return max(0, live-*e.TargetReplicas)
	case e.PodCount != nil:
		return *e.PodCount
	default:
		return live
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
