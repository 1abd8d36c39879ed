package worker_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// usePools has the manager adopt a pool file.
func (s *system) usePools(file string) {
	s.t.Helper()
	before := s.log.lines("pool file adopted")
	write(s.t, s.pools, file)
	workertest.Eventually(s.t, "the pool file is adopted", func() bool { return s.log.lines("pool file adopted") > before })
}

const pools = `{default: %s, other: {template: {spec: {containers: [{name: agent}]}}}, unbound: {pendingLimit: 2s, retries: {infrastructure: 1, backoff: 10ms}, template: {spec: {schedulerName: nobody, containers: [{name: agent}]}}}}`

func (s *system) useRules(limits, rules string) {
	s.t.Helper()
	s.usePools("limits: {" + limits + "}\npools: " + fmt.Sprintf(pools, "{"+rules+"template: {spec: {containers: [{name: agent}]}}}") + "\n")
}

// waiting returns how many workers of each task wait for a place, and how many do not.
func (s *system) waiting() (waiting, started map[string]int) {
	s.t.Helper()
	waiting, started = map[string]int{}, map[string]int{}
	for _, p := range s.Workers() {
		task := p.Annotations[pod.AnnotationTaskID]
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded:
		case len(p.Spec.SchedulingGates) == 0:
			started[task]++
		default:
			waiting[task]++
		}
	}
	return waiting, started
}

// finishOne has a worker of a task that has its place come to its end.
func (s *system) finishOne(task string) {
	s.t.Helper()
	for _, p := range s.Workers() {
		if p.Annotations[pod.AnnotationTaskID] == task && len(p.Spec.SchedulingGates) == 0 && p.Status.Phase != corev1.PodSucceeded {
			s.Set(p.Name, corev1.PodSucceeded, 0)
			return
		}
	}
	s.t.Fatalf("task %s has no worker that could finish", task)
}

func TestWorkersOverTheCapWaitAndStartInTurn(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("", "maxWorkers: 3, ")
	s.done(up("first", 5), 1)
	if waiting, started := s.waiting(); waiting["first"] != 2 || started["first"] != 3 {
		t.Fatalf("waiting %v, started %v", waiting, started)
	}
	for _, p := range s.Workers() {
		if why, gated := p.Annotations[pod.AnnotationWaiting], len(p.Spec.SchedulingGates) > 0; gated != strings.Contains(why, "of at most 3 workers") && !strings.Contains(why, "wait before it") {
			t.Errorf("worker %s, gated %v, waits because %q", p.Name, gated, why)
		}
	}
	s.done(up("second", 2), 1)
	urgent := up("urgent", 1)
	urgent.Priority = 10
	s.done(urgent, 1)

	// The urgent one comes first though it came last; then second, which has fewer
	// workers than first. Where the two are even, first is older.
	for i, want := range []struct{ finishes, starts string }{
		{"first", "urgent"}, {"urgent", "second"}, {"first", "first"}, {"second", "second"}, {"second", "first"},
	} {
		_, before := s.waiting()
		s.finishOne(want.finishes)
		workertest.Eventually(t, fmt.Sprintf("step %d: one more of %s starts", i, want.starts), func() bool {
			_, started := s.waiting()
			n := before[want.starts]
			if want.starts == want.finishes {
				n--
			}
			return started[want.starts] == n+1
		})
		if waiting, started := s.waiting(); started["first"]+started["second"]+started["urgent"] != 3 && len(waiting) > 0 {
			t.Fatalf("step %d: started %v", i, started)
		}
	}
	for _, p := range s.Workers() {
		if len(p.Spec.SchedulingGates) == 0 && p.Annotations[pod.AnnotationWaiting] != "" {
			t.Errorf("worker %s has started and says that it waits because %q", p.Name, p.Annotations[pod.AnnotationWaiting])
		}
	}
}

func TestCapsOfTasksAndInTotalHoldAndMayBeRaised(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("maxWorkers: 5", "maxWorkersPerTask: 2, ")
	s.done(up("a", 3), 1)
	s.done(up("b", 3), 1)
	other := up("c", 3)
	other.Pool = "other"
	s.done(other, 1)
	is := func(a, b, c int) func() bool {
		return func() bool {
			_, started := s.waiting()
			return started["a"] == a && started["b"] == b && started["c"] == c
		}
	}
	workertest.Eventually(t, "two of a, two of b and one of c start", is(2, 2, 1))
	s.finishOne("a")
	workertest.Eventually(t, "the last of a has its place", is(2, 2, 1))
	s.finishOne("a")
	workertest.Eventually(t, "one of c has it", is(1, 2, 2))
	s.useRules("maxWorkers: 6", "maxWorkersPerTask: 3, ")
	workertest.Eventually(t, "one more has a place", func() bool {
		_, started := s.waiting()
		return started["a"]+started["b"]+started["c"] == 6
	})
	s.useRules("", "")
	workertest.Eventually(t, "all have a place", is(1, 3, 3))
}

func TestPlacesSurviveARestartAndWorkersThatWaitAreCancelledFirst(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("", "maxWorkers: 2, ")
	s.done(up("task", 4), 1)
	s = start(t, time.Hour, s, nil)
	s.done(up("late", 2), 1)
	if waiting, started := s.waiting(); waiting["late"] != 2 || started["task"] != 2 {
		t.Fatalf("waiting %v, started %v", waiting, started)
	}
	v := s.done(down("task", 2), 1)
	if waiting, started := s.waiting(); waiting["task"] != 0 || started["task"] != 2 {
		t.Errorf("after %+v: waiting %v, started %v: those that wait should have gone", v, waiting, started)
	}
	v = s.done(down("late", 5), 1)
	if v.Details["count"] != "2" || !strings.Contains(v.Message, "2 workers removed, of 5 asked for") {
		t.Errorf("verdict %+v", v)
	}
}

func TestEventsWaitWhereTooManyWorkersDo(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("maxWaiting: 2", "maxWorkers: 1, ")
	s.done(up("task", 3), 1)
	e := up("another", 1)
	v := s.deliver(e, 1)
	if v.Status != 0 || v.After <= 0 || !strings.Contains(v.Message, "limits.maxWaiting is 2") {
		t.Fatalf("verdict %+v, want a retry", v)
	}
	s.mustHave(3)
	s.done(down("task", 1), 1)
	workertest.Eventually(t, "there is room", func() bool { return s.deliver(e, 2).Status == queue.Done })
}

func TestAnEventThatEndsShortOfItsAimLeavesNothingUnseen(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("maxWaiting: 2", "maxWorkers: 1, ")
	s.done(up("another", 2), 1)
	e := up("task", 3)
	all := scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TaskID: "task"}
	thaw := s.Faults.Freeze()
	defer thaw()
	verdicts := make(chan queue.Verdict, 1)
	go func() {
		verdicts <- s.manager.Scale(t.Context(), queue.Delivery[*scaleevent.Event]{
			Item: itemOf(e), Attempt: 1, Behind: []queue.Item[*scaleevent.Event]{itemOf(all)},
		})
	}()
	workertest.Eventually(t, "one of its workers is there", func() bool { return len(s.names()) == 3 })
	select {
	case v := <-verdicts:
		t.Fatalf("it ended before its worker was seen: %+v", v)
	case <-time.After(200 * time.Millisecond):
	}
	thaw()
	if v := <-verdicts; v.Status != queue.Done {
		t.Fatalf("verdict %+v", v)
	}
	s.done(all, 1)
	s.mustHave(2)
}

func TestNoEventIsRejectedWhileAWorkerOfItMayAppear(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	thaw := s.Faults.Freeze()
	defer thaw()
	s.Faults.Break("POST", workertest.ReplyLost, 0, 1)
	s.Faults.Break("POST", workertest.NotDone, 0, -1)
	e := up("task", 2)
	if v := s.deliver(e, 1); v.Status != 0 {
		t.Fatalf("verdict %+v, want a retry", v)
	}
	e.ExpiresAt = time.Now().Add(-time.Minute)
	if v := s.deliver(e, 2); v.Status != 0 || !strings.Contains(v.Message, "the event expired") {
		t.Fatalf("verdict %+v, want a retry", v)
	}
	s.Faults.Repair()
	thaw()
	e.ExpiresAt = time.Time{}
	s.done(e, 3)
	s.mustHave(2)
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TaskID: "task"}, 1)
	s.mustHave(0)
}

// auditor watches the workers from beside, and notes the most that had a place at once.
type auditor struct {
	mu   sync.Mutex
	live map[types.UID]bool
	most int
	done chan struct{}
}

func audit(t *testing.T, s *system) *auditor {
	t.Helper()
	list, err := s.Client.Pods(s.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Client.Pods(s.Namespace).Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	a := &auditor{live: map[types.UID]bool{}, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		for e := range w.ResultChan() {
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			a.mu.Lock()
			if e.Type == watch.Deleted || p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || len(p.Spec.SchedulingGates) > 0 {
				delete(a.live, p.UID)
			} else {
				a.live[p.UID] = true
			}
			a.most = max(a.most, len(a.live))
			a.mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); w.Stop(); <-a.done })
	return a
}

func (a *auditor) now() (live, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.live), a.most
}

func TestNoCapIsExceededUnderConcurrencyFaultsAndRestarts(t *testing.T) {
	const most = 7
	s := start(t, time.Hour, nil, nil)
	s.useRules("", "maxWorkers: 7, ")
	a := audit(t, s)
	for round := range 3 {
		var group sync.WaitGroup
		for _, fault := range []workertest.Fault{workertest.ReplyLost, workertest.NotDone, workertest.Unavailable} {
			s.Faults.Break("POST", fault, 3, 2)
			s.Faults.Break("PATCH", fault, 3, 2)
		}
		for i := range 6 {
			e := up(fmt.Sprint("task-", round, "-", i), 1+rand.N(3))
			group.Go(func() {
				for attempt := 1; attempt < 10; attempt++ {
					if s.deliver(e, attempt).Status == queue.Done {
						return
					}
				}
				t.Errorf("event %s was not carried out", e.ID)
			})
		}
		group.Go(func() {
			for range 5 {
				for _, p := range s.Workers() {
					if len(p.Spec.SchedulingGates) == 0 && p.Status.Phase == corev1.PodPending {
						s.Set(p.Name, corev1.PodSucceeded, 0)
						break
					}
				}
			}
		})
		group.Wait()
		s.Faults.Repair()
		s = start(t, time.Hour, s, nil)
	}
	all := len(slices.DeleteFunc(s.Workers(), func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded }))
	workertest.Eventually(t, "every place is taken", func() bool { live, _ := a.now(); return live == min(most, all) })
	if _, n := a.now(); n > most {
		t.Errorf("%d workers had a place at once, of at most %d", n, most)
	}
}

func TestAScaleDownDoesNotWaitBehindScaleUps(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 2), 1)
	release := s.Faults.Hang("POST")
	var ups sync.WaitGroup
	for i := range 8 { // more creates than may be under way at once
		e := up(fmt.Sprint("crowd-", i), 20)
		ups.Go(func() { s.deliver(e, 1) })
	}
	workertest.Eventually(t, "creates hang", func() bool { return s.Faults.Hanging() >= 96 })
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TaskID: "task"}, 1)
	release()
	ups.Wait()
}
