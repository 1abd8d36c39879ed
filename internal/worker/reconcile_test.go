package worker_test

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuetest"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// relay plays the log-relay.
type relay struct {
	t   testing.TB
	sub queue.Subscription[queue.Worker]
}

func newRelay(s *system) *relay {
	s.t.Helper()
	sub, err := s.workers.Subscribe(s.t.Context(), queue.SubscribeOptions{Name: "relay", Credits: 100})
	if err != nil {
		s.t.Fatal(err)
	}
	return &relay{t: s.t, sub: sub}
}

func (r *relay) next() queue.Delivery[queue.Worker] {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	d, err := r.sub.Next(ctx)
	if err != nil {
		r.t.Fatalf("leasing a worker: %v", err)
	}
	return d
}

func (r *relay) finish(d queue.Delivery[queue.Worker]) {
	r.t.Helper()
	if err := r.sub.Resolve(r.t.Context(), d, queue.Finish("", nil)); err != nil {
		r.t.Fatalf("finishing a worker: %v", err)
	}
}

func TestFinishedWorkerIsCollectedOnceItsLogsAndItsEventAreSettled(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	e := up("task", 1)
	s.events.set(e.ID, true)
	s.done(e, 1)
	name := s.names()[0]
	d := r.next()
	if d.Value != (queue.Worker{Namespace: s.Namespace, Name: name, TaskID: "task", Pool: "default", EventID: e.ID}) || d.ID != string(s.get(name).UID) {
		t.Fatalf("offered %+v", d)
	}
	s.Set(name, corev1.PodRunning, 0)
	s.Set(name, corev1.PodSucceeded, 0)
	workertest.Eventually(t, "its end is logged", func() bool { return s.log.lines("worker finished", "pod="+name, "exit_code=0", "task=task") == 1 })
	stays := func(why string) {
		t.Helper()
		time.Sleep(300 * time.Millisecond)
		if p := s.get(name); p == nil || p.DeletionTimestamp != nil || len(p.Finalizers) != 1 {
			t.Fatalf("%s, but the worker is let go of: %+v", why, p)
		}
	}
	stays("its logs are not stored")
	r.finish(d)
	stays("its event is not settled")
	s.done(e, 2) // a second delivery finds its trace
	s.events.set(e.ID, false)
	workertest.Eventually(t, "the worker is gone", func() bool { return s.get(name) == nil })
	if s.log.lines("worker released", "pod="+name, "event="+e.ID) != 1 {
		t.Error("its release is not logged once")
	}
	workertest.Eventually(t, "the queue has forgotten it", func() bool {
		stats, err := s.workers.Stats(t.Context())
		return err == nil && stats.Unsettled == 0 && stats.Leased == 0
	})
	if got, _ := s.ends.of(name); len(got) != 1 || got[0].Event != e.ID || got[0].Class != worker.ClassSucceeded || *got[0].ExitCode != 0 {
		t.Errorf("its end was told as %+v, want once, succeeded with 0", got)
	}
	if n := s.metric("ottoscaler_worker_event_to_running_seconds"); n != 1 {
		t.Errorf("%v observations of the time to running, want 1", n)
	}
}

func TestNobodyAwaitsTheSettlementForWorkersThatAreGone(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	e := up("task", 2)
	s.events.set(e.ID, true)
	s.done(e, 1)
	names := s.names()
	waits := func(how string, want ...string) {
		t.Helper()
		workertest.Eventually(t, how, func() bool { return slices.Equal(s.events.waiting(), want) })
	}
	patch := func(name, metadata string) {
		t.Helper()
		all := []byte(`{"metadata":` + metadata + `}`)
		if _, err := s.Client.Pods(s.Namespace).Patch(t.Context(), name, types.MergePatchType, all, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	takeAway := func(name string) {
		t.Helper()
		patch(name, `{"finalizers":null}`)
		if err := s.Client.Pods(s.Namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil && !apierrors.IsNotFound(err) { // it is collected as well
			t.Fatal(err)
		}
	}
	for range names {
		d := r.next()
		s.Set(d.Value.Name, corev1.PodSucceeded, 0)
		r.finish(d)
	}
	waits("one wait for both", e.ID)
	d := down("task", 1)
	s.events.set(d.ID, true)
	patch(names[0], `{"annotations":{"`+pod.AnnotationScaledDownBy+`":"`+d.ID+`"}}`)
	waits("one wait for each", e.ID, e.ID+" "+d.ID)
	takeAway(names[1])
	waits("one wait less", e.ID+" "+d.ID)
	takeAway(names[0])
	waits("no wait")
}

func TestVictimStaysUntilItsLastLineIsStored(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	s.done(up("task", 1), 1)
	name := s.names()[0]
	d := r.next()
	e := down("task", 1)
	s.events.set(e.ID, true)
	s.done(e, 1)
	workertest.Eventually(t, "its end is logged", func() bool { return s.log.lines("worker finished", "pod="+name, "end=removed") == 1 })
	r.finish(d)
	time.Sleep(300 * time.Millisecond)
	if s.get(name) == nil {
		t.Fatal("it is gone before the scale-down is settled")
	}
	s.events.set(e.ID, false)
	workertest.Eventually(t, "the worker is gone", func() bool { return s.get(name) == nil })
	if got, _ := s.ends.of(name); len(got) != 1 || got[0].Class != worker.ClassRemoved {
		t.Errorf("its end was told as %+v, want once, removed", got)
	}
}

// mustSay checks the one Event about a worker's lost lines.
func (s *system) mustSay(name, message string) {
	s.t.Helper()
	_, events := s.ends.of(name)
	events = slices.DeleteFunc(events, func(e string) bool { return !strings.Contains(e, " LogsLost: ") })
	if want := name + " LogsLost: " + message; len(events) != 1 || events[0] != want {
		s.t.Errorf("events about %s: %q, want one: %q", name, events, want)
	}
}

func TestLinesThatTheRelayGaveUpAreSaidAndCounted(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	for _, tc := range []struct {
		details map[string]string
		message string
	}{
		{
			map[string]string{queue.DetailLostLines: "17", queue.DetailAbandoned: "true", queue.DetailUnread: "true"},
			"17 log lines will never be at the log server, and what had not been read yet: the drain deadline has passed",
		},
		{
			map[string]string{queue.DetailLostLines: "3"},
			"3 log lines will never be at the log server: they were dropped because it had not taken them in time",
		},
	} {
		e := up("task", 1)
		s.done(e, 1)
		d := r.next()
		s.Set(d.Value.Name, corev1.PodSucceeded, 0)
		if err := r.sub.Resolve(t.Context(), d, queue.Finish("", tc.details)); err != nil {
			t.Fatalf("finishing a worker: %v", err)
		}
		workertest.Eventually(t, "the worker is gone", func() bool { return s.get(d.Value.Name) == nil })
		s.mustSay(d.Value.Name, tc.message)
		// What the producer is told last has it, and it is still a success.
		ends, _ := s.ends.of(d.Value.Name)
		if last := ends[len(ends)-1]; last.Reason != "the worker has done its work; "+tc.message || last.Class != worker.ClassSucceeded {
			t.Errorf("the end of %s was told as %+v, want %q", d.Value.Name, ends, tc.message)
		}
	}
	if n := s.metric("ottoscaler_worker_lost_log_lines_total"); n != 20 {
		t.Errorf("%v lines counted as lost, want 20", n)
	}
	if n := s.metric("ottoscaler_worker_logs_abandoned_total"); n != 1 {
		t.Errorf("%v workers counted as abandoned, want 1", n)
	}
}

func TestWorkerIsReleasedAtTheDrainDeadline(t *testing.T) {
	s := start(t, 500*time.Millisecond, nil, nil)
	s.done(up("task", 2), 1)
	name := s.names()[0]
	s.Set(name, corev1.PodFailed, 3)
	workertest.Eventually(t, "the worker is gone", func() bool { return s.get(name) == nil })
	s.mustHave(1)
	if n := s.metric("ottoscaler_worker_logs_abandoned_total"); n != 1 {
		t.Errorf("%v workers counted as abandoned, want 1", n)
	}
	if s.log.lines("level=WARN", "pod="+name, "before the log server has acknowledged") != 1 {
		t.Error("the log does not say it once")
	}
	s.mustSay(name, "an unknown number of log lines will never be at the log server: the drain deadline has passed")
}

func TestEveryWorkerIsOfferedAgainToANewQueueAndByANewScaler(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 3), 1)
	leaseAll := func() (last queue.Delivery[queue.Worker], r *relay) {
		t.Helper()
		r = newRelay(s)
		for range 3 {
			last = r.next()
		}
		return last, r
	}
	leaseAll()
	s.workers.Break()
	leaseAll()

	// The consumer was restarted: its queue knows nothing.
	s.workers.Queue = queue.NewMemory[queue.Worker]()
	s.workers.Break()
	leaseAll()

	// Consumer and scaler were.
	s.stop()
	s.workers = queuetest.NewFaulty(queue.NewMemory[queue.Worker]())
	s = start(t, time.Hour, s, nil)
	d, r := leaseAll()
	s.Set(d.Value.Name, corev1.PodSucceeded, 0)
	r.finish(d)
	workertest.Eventually(t, "the finished one is gone", func() bool { return s.get(d.Value.Name) == nil })
	s.mustHave(2)
}

func TestOutcomeThatAScalerDidNotLiveToHearIsHeardByTheNext(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	s.done(up("task", 1), 1)
	d := r.next()
	s.Faults.Break("PATCH", workertest.NotDone, 0, -1) // the finalizer cannot be taken off
	s.Set(d.Value.Name, corev1.PodSucceeded, 0)
	r.finish(d)
	workertest.Eventually(t, "it was tried", func() bool { return s.log.lines("worker is stuck", d.Value.Name) > 0 })
	before, _ := s.ends.of(d.Value.Name)
	s = start(t, time.Hour, s, nil)
	workertest.Eventually(t, "the worker is gone", func() bool { return s.get(d.Value.Name) == nil })
	after, _ := s.ends.of(d.Value.Name)
	if len(before) != 1 || len(after) != 1 || before[0].ID() != after[0].ID() || before[0].ID() != d.ID {
		t.Errorf("told %+v, then %+v: want the same, or it cannot be told once", before, after)
	}
}

func TestReleaseSurvivesALostReply(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	s.done(up("task", 1), 1)
	d := r.next()
	s.Faults.Break("PATCH", workertest.ReplyLost, 0, 1)
	s.Faults.Break("DELETE", workertest.ReplyLost, 0, 1)
	s.Set(d.Value.Name, corev1.PodSucceeded, 0)
	r.finish(d)
	workertest.Eventually(t, "the worker is gone", func() bool { return s.get(d.Value.Name) == nil })
}

func TestMarkedWorkerWhoseEventHasEndedIsRemoved(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	s.done(up("task", 1), 1)
	d := r.next()
	patch := []byte(`{"metadata":{"annotations":{"` + pod.AnnotationScaledDownBy + `":"gone-0"}}}`)
	if _, err := s.Client.Pods(s.Namespace).Patch(t.Context(), d.Value.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	workertest.Eventually(t, "it is deleted", func() bool { p := s.get(d.Value.Name); return p != nil && p.DeletionTimestamp != nil })
	r.finish(d)
	workertest.Eventually(t, "it is gone", func() bool { return s.get(d.Value.Name) == nil })
}

func TestChangedPoolFileIsAdoptedAndABadOneIsNot(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	write(t, s.pools, smallPools+"  fresh:\n    template: {spec: {containers: [{name: agent}]}}\n")
	workertest.Eventually(t, "the new pool is there", func() bool { return s.log.lines("pool file adopted", "fresh") == 1 })
	e := up("task", 1)
	e.Pool = "fresh"
	s.done(e, 1)

	write(t, s.pools, "pools: {fresh: {template: {spec: {}}}, other: {template: 7}}")
	workertest.Eventually(t, "the bad file is refused", func() bool { return s.log.lines("level=ERROR", "pool file refused") == 1 })
	if n := s.metric("ottoscaler_worker_pool_file_refused"); n != 1 {
		t.Errorf("the metric says %v, want 1", n)
	}
	if _, events := s.ends.of("scaler-pod"); len(events) != 1 || !strings.Contains(events[0], "PoolFileRefused: the one before stays in force") {
		t.Errorf("Kubernetes Events: %q", events)
	}
	write(t, s.pools, smallPools+"  fresh:\n    template: {spec: {activeDeadlineSeconds: -5, containers: [{name: agent}]}}\n")
	workertest.Eventually(t, "what the API server refuses is refused", func() bool {
		return s.log.lines("level=ERROR", "pool file refused", "pools.fresh.template.spec.activeDeadlineSeconds: ") == 1
	})
	e = up("task", 1)
	e.Pool = "fresh"
	s.done(e, 1)
	s.mustHave(2)
	if n := s.metric("ottoscaler_worker_pool_reloads_total"); n != 3 {
		t.Errorf("%v readings counted, want 3", n)
	}
}

func TestPoolThatTheAPIServerRefusesIsReported(t *testing.T) {
	s := start(t, time.Hour, nil, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	s.manager.CheckPools(t.Context())
	for path, want := range map[string]int{
		"pools.default.": 0, "pools.bound.": 0, "pools.invalid.template.spec.activeDeadlineSeconds: ": 1, "pools.unsafe.template: ": 1,
	} {
		if got := s.log.lines("pools are refused by the API server", path); got != want {
			t.Errorf("%s: %d reports, want %d", path, got, want)
		}
	}
	s.mustHave(0)
}

func TestReleaseAllLeavesNothing(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	s.done(up("task", 3), 1)
	two := 2
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TaskID: "held", TargetReplicas: &two}, 1)
	go func() { // the relay still runs, and finishes what it is given
		for {
			d, err := r.sub.Next(t.Context())
			if err != nil || r.sub.Resolve(t.Context(), d, queue.Finish("", nil)) != nil {
				return
			}
		}
	}()
	begun := time.Now()
	log := slog.New(slog.NewTextHandler(io.MultiWriter(s.log, t.Output()), nil))
	if err := worker.ReleaseAll(t.Context(), s.Client, s.Namespace, instance, 10*time.Minute, log); err != nil {
		t.Fatal(err)
	}
	if left := s.Workers(); len(left) != 0 {
		t.Errorf("%d workers are left", len(left))
	}
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("it took %v, though every last line was stored at once", took)
	}
}

func TestReleaseRestWaitsForTheMainPodAndReleasesWhatItMadeLast(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	main, err := s.Client.Pods(s.Namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "main", Labels: map[string]string{"is": "main"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "scaler", Image: "scaler:test"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := worker.ReleaseRest(t.Context(), s.Client, s.Namespace, instance, "is=main", time.Second, log); err == nil || !strings.Contains(err.Error(), "left: main") {
		t.Errorf("the main pod stays, but the error is %v", err)
	}

	released := make(chan error, 1)
	go func() {
		released <- worker.ReleaseRest(t.Context(), s.Client, s.Namespace, instance, "is=main", 30*time.Second, log)
	}()
	s.done(up("late", 2), 1) // by a scaler that still drains
	select {
	case err := <-released:
		t.Fatalf("it returned %v beside a main pod", err)
	case <-time.After(2 * time.Second):
	}
	s.mustHave(3) // the main pod among them
	s.stop()
	if err := s.Client.Pods(s.Namespace).Delete(t.Context(), main.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	if left := s.Workers(); len(left) != 0 {
		t.Errorf("%d pods are left", len(left))
	}
}

func TestReleaseAllDoesNotHangWithoutScalerAndRelay(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.done(up("task", 2), 1)
	bound := up("bound", 1)
	bound.Pool = "bound"
	s.done(bound, 1)
	s.stop()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := worker.ReleaseAll(t.Context(), s.Client, s.Namespace, "another", 8*time.Second, log); err != nil {
		t.Fatal(err)
	}
	s.mustHave(3)
	if err := worker.ReleaseAll(t.Context(), s.Client, s.Namespace, instance, 8*time.Second, log); err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Workers() {
		if len(p.Finalizers) != 0 || p.DeletionTimestamp == nil {
			t.Errorf("worker %s is held: finalizers %v, deleted %v", p.Name, p.Finalizers, p.DeletionTimestamp)
		}
	}
	if n := len(s.Workers()); n != 1 { // the kubelet would finish the one that is on a node
		t.Errorf("%d workers are left, want 1", n)
	}
}
