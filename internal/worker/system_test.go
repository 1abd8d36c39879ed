package worker_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuetest"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const instance = "inst"

const poolFile = `
pools:
  default:
    template:
      spec:
        terminationGracePeriodSeconds: 17
        containers: [{name: agent}]
  bound: # to a node that is not there, so that nothing starts it and deleting it takes its grace
    template:
      spec:
        nodeName: nowhere
        terminationGracePeriodSeconds: 17
        containers: [{name: agent}]
  invalid:
    template: {spec: {terminationGracePeriodSeconds: -1, activeDeadlineSeconds: -5, containers: [{name: agent}]}}
  unsafe:
    template: {spec: {hostNetwork: true, containers: [{name: agent}]}}
`

// smallPools has none that the API server refuses.
const smallPools = `
pools:
  default: {template: {spec: {containers: [{name: agent}]}}}
`

// A system is a manager on a real API server, with the queues in memory.
type system struct {
	*workertest.Space
	manager  *worker.Manager
	registry *prometheus.Registry
	events   *settlements
	workers  *queuetest.Faulty[queue.Worker]
	pools    string // path
	drain    time.Duration
	log      *logs
	ends     *ends
	stop     func()

	t testing.TB
}

// start starts a manager in a namespace of its own. With before, it succeeds
// another one there, as after a crash.
func start(t testing.TB, drain time.Duration, before *system, labels map[string]string) *system {
	t.Helper()
	return startWith(t, poolFile, drain, before, labels)
}

// startWith is start with a pool file.
func startWith(t testing.TB, file string, drain time.Duration, before *system, labels map[string]string) *system {
	t.Helper()
	s := &system{t: t, drain: drain, registry: prometheus.NewRegistry(), log: &logs{}, ends: &ends{}}
	if before != nil {
		before.stop()
		s.Space, s.events, s.workers, s.pools = before.Space, before.events, before.workers, before.pools
		s.Faults.Repair()
	} else {
		s.Space = workertest.ControlPlane(t, labels)
		s.events = &settlements{open: map[string]bool{}, changed: make(chan struct{})}
		s.workers = queuetest.NewFaulty(queue.NewMemory[queue.Worker]())
		s.pools = filepath.Join(t.TempDir(), "pools.yaml")
		// The controller manager removes pods of nodes that have been missing for 40 s.
		write(t, s.pools, strings.ReplaceAll(file, "nowhere", s.Namespace))
	}
	s.run(instance)
	return s
}

// startAs starts a manager of another installation in a namespace.
func startAs(t testing.TB, instance string, space *workertest.Space, pools string) *system {
	t.Helper()
	s := &system{
		t: t, Space: space, pools: pools, registry: prometheus.NewRegistry(), log: &logs{}, ends: &ends{},
		events:  &settlements{open: map[string]bool{}, changed: make(chan struct{})},
		workers: queuetest.NewFaulty(queue.NewMemory[queue.Worker]()),
	}
	s.run(instance)
	return s
}

// run starts the manager.
func (s *system) run(instance string) {
	t := s.t
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.MultiWriter(s.log, t.Output()), &slog.HandlerOptions{Level: slog.LevelDebug}))
	pools, err := worker.LoadPoolFile(s.pools, "agent:test", func(error) {}, log)
	if err != nil {
		t.Fatal(err)
	}
	s.manager, err = worker.New(worker.Options{
		Pods: s.Faulty, Namespace: s.Namespace, Instance: instance, LogDrainTimeout: s.drain, Pools: pools,
		Events: s.events, Workers: s.workers, Registerer: s.registry, Log: log,
		Ended: s.ends.add, Recorder: s.ends, Self: &corev1.ObjectReference{Kind: "Pod", Name: "scaler-pod"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { s.manager.Watch(ctx) })
	running.Go(func() {
		if err := s.manager.Run(ctx); err != nil {
			t.Errorf("running: %v", err)
		}
	})
	running.Go(func() {
		if err := pools.Run(ctx); err != nil {
			t.Errorf("watching the pool file: %v", err)
		}
	})
	s.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(s.stop)
	if err := s.manager.Synced(ctx); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// deliver delivers an event once.
func (s *system) deliver(e scaleevent.Event, attempt int) queue.Verdict {
	s.t.Helper()
	return s.manager.Scale(s.t.Context(), queue.Delivery[*scaleevent.Event]{Item: itemOf(e), Attempt: attempt})
}

func itemOf(e scaleevent.Event) queue.Item[*scaleevent.Event] {
	return queue.Item[*scaleevent.Event]{ID: e.ID, Key: e.OrderingKey(), Takes: e.Type == scaleevent.ScaleDown, Value: &e}
}

// done delivers an event that must succeed.
func (s *system) done(e scaleevent.Event, attempt int) queue.Verdict {
	s.t.Helper()
	v := s.deliver(e, attempt)
	if v.Status != queue.Done {
		s.t.Fatalf("event %s, delivery %d: %+v, want done", e.ID, attempt, v)
	}
	return v
}

// names returns the names of all workers that are not on their way out.
func (s *system) names() []string {
	s.t.Helper()
	all := []string{}
	for _, p := range s.Workers() {
		if p.DeletionTimestamp == nil {
			all = append(all, p.Name)
		}
	}
	slices.Sort(all)
	return all
}

func (s *system) mustHave(n int) {
	s.t.Helper()
	if got := s.names(); len(got) != n {
		s.t.Fatalf("%d workers, want %d: %v", len(got), n, got)
	}
}

// get returns a worker as the API server has it, or nil.
func (s *system) get(name string) *corev1.Pod {
	s.t.Helper()
	for _, p := range s.Workers() {
		if p.Name == name {
			return &p
		}
	}
	return nil
}

// ends notes what is told of the workers' ends.
type ends struct {
	mu      sync.Mutex
	ends    []worker.End
	events  []string
	failing error
}

func (e *ends) add(_ context.Context, end worker.End) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failing != nil {
		return e.failing
	}
	e.ends = append(e.ends, end)
	return nil
}

// Eventf implements worker.Recorder.
func (e *ends) Eventf(object runtime.Object, _, reason, format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	name := "?"
	switch o := object.(type) {
	case *corev1.Pod:
		name = o.Name
	case *corev1.ObjectReference:
		name = o.Name
	}
	e.events = append(e.events, name+" "+reason+": "+fmt.Sprintf(format, args...))
}

// of returns what was told of a pod.
func (e *ends) of(name string) (ends []worker.End, events []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, end := range e.ends {
		if end.Name == name {
			ends = append(ends, end)
		}
	}
	for _, event := range e.events {
		if strings.HasPrefix(event, name+" ") {
			events = append(events, event)
		}
	}
	return ends, events
}

// settlements says which events are open.
type settlements struct {
	mu      sync.Mutex
	open    map[string]bool
	changed chan struct{}
	awaited []string // the events of each call that waits
}

// waiting returns the events of each call that waits, in order.
func (s *settlements) waiting() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.awaited))
}

func (s *settlements) set(id string, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[id] = open
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *settlements) AwaitSettled(ctx context.Context, ids ...string) error {
	call := strings.Join(ids, " ")
	s.mu.Lock()
	s.awaited = append(s.awaited, call)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.Index(s.awaited, call)
		s.awaited = slices.Delete(s.awaited, i, i+1)
	}()
	for {
		s.mu.Lock()
		changed := s.changed
		open := slices.ContainsFunc(ids, func(id string) bool { return s.open[id] })
		s.mu.Unlock()
		if !open {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns the lines that contain all words.
func (l *logs) lines(words ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.text.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			n++
		}
	}
	return n
}

// metric returns the sum of a metric over all its labels.
func (s *system) metric(name string) float64 {
	s.t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

var sequence struct {
	sync.Mutex
	n int
}

// newID returns the ID of an event that arrives well after the manager began, so
// that its first delivery is planned from the cache.
func newID() string {
	sequence.Lock()
	defer sequence.Unlock()
	sequence.n++
	return fmt.Sprintf("%d-%d", time.Now().Add(time.Hour).UnixMilli(), sequence.n)
}

func up(task string, n int) scaleevent.Event {
	return scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, TaskID: task, Pool: "default", PodCount: &n}
}

func down(task string, n int) scaleevent.Event {
	return scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, TaskID: task, Pool: "default", PodCount: &n}
}

func markedBy(p *corev1.Pod) string { return p.Annotations[pod.AnnotationScaledDownBy] }
