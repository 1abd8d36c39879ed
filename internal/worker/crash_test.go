package worker_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const crashPools = `
pools:
  default:
    maxWorkers: 3
    retries: {failures: 1, backoff: 1ms}
    template: {spec: {schedulerName: nobody, containers: [{name: agent}]}}
`

// births notes every pod that was ever made in a namespace.
type births struct {
	mu   sync.Mutex
	uids map[string]map[types.UID]bool // by name
}

func recordBirths(t testing.TB, s *workertest.Space) *births {
	t.Helper()
	b := &births{uids: map[string]map[types.UID]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	list, err := s.Client.Pods(s.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Client.Pods(s.Namespace).Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok && e.Type == watch.Added {
				b.mu.Lock()
				if b.uids[p.Name] == nil {
					b.uids[p.Name] = map[types.UID]bool{}
				}
				b.uids[p.Name][p.UID] = true
				b.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { cancel(); w.Stop(); <-done })
	return b
}

// names returns how often a pod of each name was made.
func (b *births) names() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]int{}
	for name, uids := range b.uids {
		all[name] = len(uids)
	}
	return all
}

// A story is a life of workers, told to a manager that is broken at some call.
type story struct {
	*system
	t *testing.T
}

// revive starts a new manager if the last one was killed.
func (s *story) revive() (died bool) {
	if !s.Faults.Killed() {
		return false
	}
	s.system = startWith(s.t, crashPools, time.Millisecond, s.system, nil)
	return true
}

// carry delivers an event until it is done, as the queue would.
func (s *story) carry(e scaleevent.Event) {
	s.t.Helper()
	s.events.set(e.ID, true)
	for attempt, deadline := 1, time.Now().Add(30*time.Second); ; attempt++ {
		v := s.deliver(e, attempt)
		if s.revive() {
			attempt = 0 // the verdict, if any, died with the manager
			continue
		}
		if v.Status == queue.Done {
			break
		}
		if v.Status == queue.Rejected || time.Now().After(deadline) {
			s.t.Fatalf("event %s: %+v", e.ID, v)
		}
	}
	s.events.set(e.ID, false)
}

// until waits for something to come true, with whatever managers that takes.
func (s *story) until(what string, cond func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		s.revive()
		if time.Now().After(deadline) {
			s.t.Fatalf("after half a minute, still not: %s", what)
		}
	}
}

// live returns the pods that have neither ended nor are on their way out.
func (s *story) live() (placed, gated int) {
	for _, p := range s.Workers() {
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodPending:
		case len(p.Spec.SchedulingGates) > 0:
			gated++
		default:
			placed++
		}
	}
	return placed, gated
}

// tell tells the story to its end and returns the names of all pods in it.
func (s *story) tell(born *births) map[string]int {
	up, target := up("task", 4), 5
	up.ID = fmt.Sprintf("%d-0", time.Now().Add(time.Hour).UnixMilli())
	s.carry(up)
	named := func(index int) string { return pod.Name(instance, "default", up.ID, index) }
	s.until("three have a place, one waits", func() bool { placed, gated := s.live(); return placed == 3 && gated == 1 })

	first := slices.IndexFunc([]int{0, 1, 2, 3}, func(i int) bool { return len(s.get(named(i)).Spec.SchedulingGates) == 0 })
	s.Set(named(first), corev1.PodSucceeded, 0)
	s.until("the finished one is gone, the one that waited has its place", func() bool {
		placed, gated := s.live()
		return placed == 3 && gated == 0 && s.get(named(first)) == nil
	})

	fails := named((first + 1) % 4)
	s.Set(fails, corev1.PodFailed, 1)
	s.until("the failed one is tried again and gone", func() bool { placed, _ := s.live(); return placed == 3 && s.get(fails) == nil })

	s.carry(down("task", 1))
	s.until("there are two", func() bool { placed, gated := s.live(); return placed+gated == 2 && len(s.Workers()) == 2 })

	e := scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TaskID: "task", TargetReplicas: &target}
	s.carry(e)
	s.until("there are five, as far as there are places", func() bool { placed, gated := s.live(); return placed == 3 && gated == 2 })

	s.carry(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TaskID: "task"})
	s.until("nothing is left", func() bool { return len(s.Workers()) == 0 })

	names := map[string]int{}
	for name, n := range born.names() { // whichever was chosen, and whatever the IDs are
		switch {
		case name == fails+"-a2":
			names["second attempt"] = n
		case strings.HasPrefix(name, strings.TrimSuffix(named(0), "0")):
			names["of the event, "+name[len(name)-1:]] = n
		default:
			names["of the target, "+name[len(name)-1:]] = n
		}
	}
	return names
}

// TestEveryCallMayFailOrBeTheLast breaks each call of a story in turn: it fails and
// did nothing, it fails and was done, the process dies before it, and the process
// dies after it. The story must have the same end each time, and no pod in it may
// be made twice.
func TestEveryCallMayFailOrBeTheLast(t *testing.T) {
	tell := func(t *testing.T, arm func(f *workertest.Faults)) (names map[string]int, calls int) {
		t.Helper()
		s := &story{t: t, system: startWith(t, crashPools, time.Millisecond, nil, nil)}
		born := recordBirths(t, s.Space)
		arm(s.Faults)
		before := s.Faults.Calls()
		names = s.tell(born)
		calls = s.Faults.Calls() - before
		s.stop()
		return names, calls
	}
	want, calls := tell(t, func(*workertest.Faults) {})
	for name, n := range want {
		if n != 1 {
			t.Fatalf("without any fault, %s was made %d times", name, n)
		}
	}
	t.Logf("the story makes %d calls and these pods: %v", calls, slices.Sorted(maps.Keys(want)))
	for _, c := range []struct {
		name  string
		fault workertest.Fault
		kills bool
	}{
		{"fails and did nothing", workertest.NotDone, false},
		{"fails and was done", workertest.ReplyLost, false},
		{"the process dies before it", workertest.NotDone, true},
		{"the process dies after it", workertest.ReplyLost, true},
	} {
		for n := 1; n <= calls; n++ {
			t.Run(fmt.Sprintf("call %d, %s", n, c.name), func(t *testing.T) {
				t.Parallel()
				got, _ := tell(t, func(f *workertest.Faults) { f.At(n, c.fault, c.kills) })
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("how often each pod was made (-without fault +now):\n%s", diff)
				}
			})
		}
	}
}
