package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// limitPods has a resource quota allow so many pods.
func (s *system) limitPods(n int) {
	s.t.Helper()
	quotas := s.Client.ResourceQuotas(s.Namespace)
	_, err := quotas.Create(s.t.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "quota"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse(fmt.Sprint(n))}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	workertest.Eventually(s.t, "the quota is in force", func() bool {
		quota, err := quotas.Get(s.t.Context(), "quota", metav1.GetOptions{})
		return err == nil && quota.Status.Hard != nil
	})
}

func (s *system) raiseLimit(n int) {
	s.t.Helper()
	more := fmt.Appendf(nil, `{"spec":{"hard":{"pods":"%d"}}}`, n)
	if _, err := s.Client.ResourceQuotas(s.Namespace).Patch(s.t.Context(), "quota", types.MergePatchType, more, metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// A lane is events on their way through a real queue to a manager, and what became of them.
type lane struct {
	t        *testing.T
	producer queue.Producer[*scaleevent.Event]

	mu       sync.Mutex
	outcomes map[string]queue.Outcome
}

// serve has the manager carry out events of a queue, and settles them.
func (s *system) serve(t *testing.T) *lane {
	t.Helper()
	q := queue.NewMemory[*scaleevent.Event]()
	producer, err := q.Produce(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	l := &lane{t: t, producer: producer, outcomes: map[string]queue.Outcome{}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		err := queue.Serve(ctx, q, queue.SubscribeOptions{Name: "scaler", Credits: 8}, slog.New(slog.DiscardHandler), s.manager.Scale)
		if err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	running.Go(func() {
		for {
			o, err := producer.Outcome(ctx)
			if err != nil {
				return
			}
			l.mu.Lock()
			l.outcomes[o.ItemID] = o
			l.mu.Unlock()
			if err := producer.Settle(ctx, o.ItemID); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); _ = producer.Close() })
	return l
}

func (l *lane) send(events ...scaleevent.Event) {
	l.t.Helper()
	for _, e := range events {
		if err := l.producer.Offer(l.t.Context(), itemOf(e)); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *lane) outcome(e scaleevent.Event) (queue.Outcome, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, ok := l.outcomes[e.ID]
	return o, ok
}

func (l *lane) await(events ...scaleevent.Event) (last queue.Outcome) {
	l.t.Helper()
	for _, e := range events {
		workertest.Eventually(l.t, "the end of event "+e.ID, func() (ok bool) { last, ok = l.outcome(e); return ok })
		if last.Status != queue.Done {
			l.t.Fatalf("event %s: %+v", e.ID, last)
		}
	}
	return last
}

func downTo(n int) scaleevent.Event {
	return scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, TaskID: "task", Pool: "default", TargetReplicas: &n}
}

func downAll() scaleevent.Event {
	return scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, TaskID: "task", Pool: "default"}
}

func withKey(e scaleevent.Event) scaleevent.Event {
	e.IdempotencyKey = "key of " + e.ID
	return e
}

// Each row has a scale_up of five workers first, of which a resource quota lets two be made.
func TestAScaleDownDoesNotWaitBehindAScaleUpThatCannotBeCarriedOut(t *testing.T) {
	for name, c := range map[string]struct {
		behind  []scaleevent.Event
		before  int    // workers, before there is room for all
		after   int    // workers in the end
		message string // of the last event
	}{
		"it takes less than is not made":   {[]scaleevent.Event{down("task", 2)}, -1, 3, "2 workers removed"},
		"it takes what is not made":        {[]scaleevent.Event{down("task", 3)}, 2, 2, "0 workers removed, and 3 not made"},
		"it takes more":                    {[]scaleevent.Event{down("task", 4)}, 1, 1, "1 worker removed, and 3 not made"},
		"it takes more than there is":      {[]scaleevent.Event{down("task", 9)}, 0, 0, "2 workers removed, and 3 not made, of 9 asked for"},
		"it takes all":                     {[]scaleevent.Event{downAll()}, 0, 0, "2 workers removed, and 3 not made"},
		"its target is above what is made": {[]scaleevent.Event{downTo(3)}, -1, 3, "2 workers removed"},
		"its target is what is made":       {[]scaleevent.Event{downTo(2)}, 2, 2, "0 workers removed, and 3 not made"},
		"its target is below":              {[]scaleevent.Event{downTo(1)}, 1, 1, "1 worker removed, and 3 not made"},
		"two of them":                      {[]scaleevent.Event{down("task", 1), down("task", 3)}, 1, 1, "1 worker removed, and 2 not made"},
		"another scale_up between":         {[]scaleevent.Event{up("task", 1), down("task", 5)}, 1, 1, "1 worker removed, and 4 not made"},
		"another that takes its place":     {[]scaleevent.Event{down("task", 4), up("task", 1)}, 2, 2, "1 worker created"},
		"with a key it waits":              {[]scaleevent.Event{withKey(down("task", 3))}, -1, 2, "3 workers removed"},
		"with a key, and takes more":       {[]scaleevent.Event{withKey(down("task", 4))}, 1, 1, "1 worker removed, and 3 not made"},
		"all of them have keys":            {[]scaleevent.Event{withKey(up("task", 1)), withKey(downTo(1))}, 1, 1, "1 worker removed, and 4 not made"},
		"all of them with a key":           {[]scaleevent.Event{withKey(downAll())}, 0, 0, "2 workers removed, and 3 not made"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, time.Hour, nil, nil)
			s.limitPods(2)
			first := up("task", 5)
			first.ID = fmt.Sprintf("%d-0", time.Now().Add(30*time.Minute).UnixMilli()) // before those of the row
			l := s.serve(t)
			l.send(first)
			workertest.Eventually(t, "two workers are there", func() bool { return len(s.names()) == 2 })
			l.send(c.behind...)
			if c.before >= 0 {
				o := l.await(append([]scaleevent.Event{first}, c.behind...)...)
				if !strings.HasPrefix(o.Message, c.message) {
					t.Errorf("the last one says %q, want %q", o.Message, c.message)
				}
				if o, _ := l.outcome(first); !strings.HasPrefix(o.Message, "2 of 5 workers created, and later events remove the others") || o.Details["count"] != "2" {
					t.Errorf("the first one says %q, %v", o.Message, o.Details)
				}
				s.mustHave(c.before)
			} else {
				workertest.Eventually(t, "it is known that it has to wait", func() bool {
					return s.log.lines("scale event will be tried again", first.ID) > 2
				})
			}
			s.raiseLimit(20)
			if o := l.await(append([]scaleevent.Event{first}, c.behind...)...); !strings.HasPrefix(o.Message, c.message) {
				t.Errorf("the last one says %q, want %q", o.Message, c.message)
			}
			s.mustHave(c.after)
		})
	}
}

func TestAScaleDownDoesNotWaitBehindAScaleUpForWhoseWorkersThereIsNoRoomToWait(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("maxWaiting: 2", "maxWorkers: 1, ")
	l := s.serve(t)
	first, second := up("task", 5), down("task", 3)
	l.send(first)
	workertest.Eventually(t, "one has a place and two wait", func() bool { return len(s.names()) == 3 })
	l.send(second)
	if o := l.await(first, second); o.Message != "1 worker removed, and 2 not made" || o.Details["not_made"] != "2" {
		t.Errorf("it says %q, %v", o.Message, o.Details)
	}
	if waiting, started := s.waiting(); waiting["task"] != 1 || started["task"] != 1 {
		t.Errorf("waiting %v, started %v; want one of each", waiting, started)
	}
	s.useRules("maxWaiting: 2", "maxWorkers: 10, ")
	s.mustHave(2)
}

// A scale_up to a target that gives way holds what there is, as if it had been carried out.
func TestATargetThatGivesWayHolds(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 1), 1)
	s.limitPods(2)
	four := 4
	target := scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TaskID: "task", TargetReplicas: &four}
	l := s.serve(t)
	remove := down("task", 2)
	l.send(target, remove)
	l.await(target, remove)
	s.mustHave(2)
	for _, p := range s.Workers() {
		if p.Annotations["ottoscaler.dev/target"] == "" {
			t.Errorf("worker %s holds no target: %v", p.Name, p.Annotations)
		}
	}
}

// blocked returns a scale_up of five workers, of which two are made, that gives way to one
// that removes four.
func (s *system) blocked() (first, second scaleevent.Event, v queue.Verdict) {
	s.t.Helper()
	s.limitPods(2)
	first, second = up("task", 5), down("task", 4)
	v = s.manager.Scale(s.t.Context(), queue.Delivery[*scaleevent.Event]{
		Item: itemOf(first), Attempt: 2, Behind: []queue.Item[*scaleevent.Event]{itemOf(second)},
	})
	if v.Status != queue.Done || len(v.Gives) != 1 || v.Gives[second.ID] != 3 {
		s.t.Fatalf("verdict %+v, want done and three given", v)
	}
	return first, second, v
}

func TestAnEventThatGaveWayIsWholeAgainIfACrashComesBeforeThatIsStored(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	first, second, _ := s.blocked()
	s.raiseLimit(10)
	s = start(t, time.Hour, s, nil)
	workertest.Eventually(t, "it is carried out", func() bool { return s.deliver(first, 1).Status == queue.Done })
	s.mustHave(5)
	if v := s.done(second, 1); v.Message != "4 workers removed" {
		t.Errorf("it says %q", v.Message)
	}
	s.mustHave(1)
}

func TestAScaleDownThatWasGivenSomethingRemovesTheRestHoweverOftenItIsDelivered(t *testing.T) {
	for name, breakAt := range map[string]func(f *workertest.Faults){
		"before it has begun":       func(*workertest.Faults) {},
		"before the mark":           func(f *workertest.Faults) { f.Break("PATCH", workertest.NotDone, 0, -1) },
		"between mark and deletion": func(f *workertest.Faults) { f.Break("DELETE", workertest.NotDone, 0, -1) },
		"after the deletion":        func(f *workertest.Faults) { f.Break("DELETE", workertest.ReplyLost, 0, -1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, time.Hour, nil, nil)
			first, second, v := s.blocked()
			second.ExpiresAt = time.Now().Add(-time.Minute) // meanwhile, but it has begun
			s.events.set(second.ID, true)                   // so that its traces stay
			s.raiseLimit(10)
			deliver := func(attempt int) queue.Verdict {
				t.Helper()
				item := itemOf(second)
				item.Given = map[string]int{first.ID: v.Gives[second.ID]}
				return s.manager.Scale(t.Context(), queue.Delivery[*scaleevent.Event]{Item: item, Attempt: attempt})
			}
			breakAt(s.Faults)
			deliver(1)
			s = start(t, time.Hour, s, nil)
			for attempt := 1; attempt <= 2; attempt++ {
				if v := deliver(attempt); v.Status != queue.Done || v.Message != "1 worker removed, and 3 not made" || v.Details["not_made"] != "3" {
					t.Errorf("verdict %+v", v)
				}
			}
			s.mustHave(1)
		})
	}
}

// What it was given would be lost if it counted as a duplicate now.
func TestAScaleDownThatWasGivenSomethingIsNoDuplicateAnyMore(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 2), 1)
	s.done(up("other", 1), 1)
	all, other := downAll(), down("other", 1)
	all.IdempotencyKey, other.IdempotencyKey = "key", "key"
	s.events.set(other.ID, true)
	s.done(other, 1)
	item := itemOf(all)
	if v := s.deliver(all, 1); v.Details["duplicate_of"] != other.ID {
		t.Errorf("given nothing: verdict %+v", v)
	}
	item.Given = map[string]int{"0-1": 1}
	if v := s.manager.Scale(t.Context(), queue.Delivery[*scaleevent.Event]{Item: item, Attempt: 1}); v.Details["count"] != "2" {
		t.Errorf("given something: verdict %+v", v)
	}
	s.mustHave(0)
}

// A worker whose creation has no answer may still appear.
func TestNoEventGivesWayWhileAWorkerOfItMayAppear(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.limitPods(1)
	first, second := up("task", 1), down("task", 1)
	deliver := func(attempt int) queue.Verdict {
		t.Helper()
		return s.manager.Scale(t.Context(), queue.Delivery[*scaleevent.Event]{
			Item: itemOf(first), Attempt: attempt, Behind: []queue.Item[*scaleevent.Event]{itemOf(second)},
		})
	}
	thaw := s.Faults.Freeze()
	defer thaw()
	s.Faults.Break("POST", workertest.ReplyLost, 0, 1)
	for attempt := 2; attempt < 5; attempt++ { // from the second on, the quota refuses it
		if v := deliver(attempt); v.Status != 0 {
			t.Fatalf("verdict %+v, want a retry", v)
		}
	}
	s.Faults.Repair()
	thaw()
	workertest.Eventually(t, "it is carried out", func() bool { return deliver(5).Status == queue.Done })
	if v := s.done(second, 1); v.Message != "1 worker removed" {
		t.Errorf("the other says %q", v.Message)
	}
}
