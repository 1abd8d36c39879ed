package logs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	"github.com/ottoscaler/ottoscaler/internal/mask"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/spool"
)

// A relayRig is a relay between a queue, a scripted cluster and a scripted server.
type relayRig struct {
	t        *testing.T
	queue    *queue.Memory[queue.Worker]
	producer queue.Producer[queue.Worker]
	cluster  *cachetesting.FakeControllerSource
	server   *serverRig
	registry *prometheus.Registry
	mask     func(context.Context, *corev1.Pod) (func() *mask.Masker, error)
	log      *slog.Logger
	stop     context.CancelFunc
	stopped  chan error

	// spool is the folder of the spool, or empty for none, and patience the drain deadline.
	spool    string
	store    *spool.Store
	patience time.Duration

	mu      sync.Mutex
	sources map[string]*logstest.Source // by container and, for a previous log, "-previous"
	away    func(Read) error            // why a log cannot be opened; nil if it can
}

func newRelayRig(t *testing.T) *relayRig {
	t.Helper()
	r := &relayRig{
		t: t, queue: queue.NewMemory[queue.Worker](), cluster: cachetesting.NewFakeControllerSource(),
		server: newServerRig(t), sources: map[string]*logstest.Source{}, log: slog.New(slog.DiscardHandler),
	}
	t.Cleanup(r.server.close)
	producer, err := r.queue.Produce(t.Context(), "scaler")
	if err != nil {
		t.Fatalf("producing: %v", err)
	}
	r.producer = producer
	return r
}

// start runs a relay, which stop ends.
func (r *relayRig) start() {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.t.Context())
	pods, err := NewPods(r.cluster)
	if err != nil {
		r.t.Fatalf("making the view: %v", err)
	}
	r.registry = prometheus.NewRegistry()
	if r.spool != "" {
		if r.store, err = spool.Open(r.spool, spool.Options{}); err != nil {
			r.t.Fatalf("opening the spool: %v", err)
		}
	}
	relay := NewRelay(Options{
		Spool: r.store, LogDrainTimeout: r.patience,
		Workers: r.queue, Pods: pods, Open: r.open, Exists: r.exists, Mask: r.mask, Server: r.server.conn, Registry: r.registry,
		Log: r.log, BatchLinger: time.Millisecond, DrainTimeout: 5 * time.Second, EndWait: 20 * time.Millisecond,
		Policy: backoff.Policy{Initial: time.Millisecond, Max: 20 * time.Millisecond},
	})
	support, release := context.WithCancel(context.Background())
	go pods.Run(support) //nolint:errcheck // returns nil
	r.stop, r.stopped = stop, make(chan error, 1)
	go func() {
		defer release()
		r.stopped <- relay.Run(ctx)
	}()
	r.t.Cleanup(stop)
}

// halt stops the relay and waits for it.
func (r *relayRig) halt() {
	r.t.Helper()
	r.stop()
	select {
	case err := <-r.stopped:
		if err != nil {
			r.t.Errorf("a relay that is told to stop: %v", err)
		}
	case <-time.After(patience):
		r.t.Fatal("the relay does not stop")
	}
}

func (r *relayRig) source(name string) *logstest.Source {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sources[name] == nil {
		r.sources[name] = logstest.NewSource()
	}
	return r.sources[name]
}

func (r *relayRig) open(ctx context.Context, read Read) (io.ReadCloser, error) {
	name := read.Container
	if read.Previous {
		name += "-previous"
	}
	r.mu.Lock()
	away := r.away
	r.mu.Unlock()
	if away != nil {
		return nil, away(read)
	}
	return r.source(name).Open(ctx, read.Since, read.Follow), nil
}

// exists asks the cluster, which may know more than the relay's view of it.
func (r *relayRig) exists(_ context.Context, name, uid string) (bool, error) {
	list, err := r.cluster.List(metav1.ListOptions{})
	if err != nil {
		return false, err
	}
	for _, item := range list.(*corev1.List).Items {
		if p, ok := item.Object.(*corev1.Pod); ok && p.Name == name && string(p.UID) == uid {
			return true, nil
		}
	}
	return false, nil
}

// offer puts a worker on the queue.
func (r *relayRig) offer(p *corev1.Pod) {
	r.t.Helper()
	err := r.producer.Offer(r.t.Context(), queue.Item[queue.Worker]{
		ID: string(p.UID), Traceparent: "from the queue",
		Value: queue.Worker{Namespace: p.Namespace, Name: p.Name, TaskID: "t-1", Pool: "default", EventID: "1-0"},
	})
	if err != nil {
		r.t.Fatalf("offering: %v", err)
	}
}

// outcome waits for the next worker's.
func (r *relayRig) outcome() queue.Outcome {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	outcome, err := r.producer.Outcome(ctx)
	if err != nil {
		r.t.Fatalf("waiting for an outcome: %v; the server has %+v, problems %v", err, r.server.backend.Workers(), r.server.backend.Problems())
	}
	return outcome
}

// holds waits until the server has a number of lines of a container.
func (r *relayRig) holds(key logstest.Key, lines int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	err := r.server.backend.Wait(ctx, func() bool {
		l, _ := r.server.backend.Log(key)
		return len(l.Lines) >= lines
	})
	if err != nil {
		r.t.Fatalf("the server has %+v, want %d lines of %v", r.server.backend.Workers(), lines, key)
	}
}

func (r *relayRig) worker() logstest.Worker {
	r.t.Helper()
	w, ok := r.server.backend.Worker("w-1")
	if !ok {
		r.t.Fatal("the server does not know the worker")
	}
	if problems := r.server.backend.Problems(); len(problems) > 0 {
		r.t.Errorf("the server complains: %v", problems)
	}
	return w
}

// workerPod is a pod with an init container and a main one, which have not begun.
func workerPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "otto", Name: "w-1", UID: "uid-1",
			Annotations: map[string]string{
				pod.AnnotationTraceparent:                 "00-1-2-01",
				pod.AnnotationFieldPrefix + "repository":  "git@example:otto",
				pod.AnnotationMetaPrefix + "build_number": "17",
				"example.org/other":                       "not ours",
			},
		},
		Spec: corev1.PodSpec{
			NodeName:       "node-1",
			InitContainers: []corev1.Container{{Name: "clone", Image: "git"}},
			Containers:     []corev1.Container{{Name: "agent", Image: "agent"}},
		},
		Status: corev1.PodStatus{
			Phase:                 corev1.PodPending,
			InitContainerStatuses: []corev1.ContainerStatus{{Name: "clone", State: waiting("PodInitializing")}},
			ContainerStatuses:     []corev1.ContainerStatus{{Name: "agent", State: waiting("PodInitializing")}},
		},
	}
}

func waiting(reason string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

func running() corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
}

func terminated(code int32, id string) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: "Completed", ContainerID: id}}
}

func TestWorkerIsFollowedThroughItsLife(t *testing.T) {
	r := newRelayRig(t)
	r.start()
	p := workerPod()
	r.cluster.Add(p.DeepCopy())
	r.offer(p)

	clone := r.source("clone")
	clone.Print(at(1)[0], "cloning")
	p.Status.InitContainerStatuses[0].State = running()
	r.cluster.Modify(p.DeepCopy())
	r.holds(logstest.Key{WorkerUID: "uid-1", Container: "clone"}, 1)
	clone.Print(at(2)[0], "cloned")
	clone.End()
	p.Status.InitContainerStatuses[0].State = terminated(0, "id-1")
	p.Status.ContainerStatuses[0].State = running()
	p.Status.Phase = corev1.PodRunning
	agent := r.source("agent")
	agent.Print(at(3)[0], "working")
	r.cluster.Modify(p.DeepCopy())
	r.holds(key, 1)
	agent.Print(at(4)[0], "last words")
	agent.End()
	p.Status.ContainerStatuses[0].State = terminated(7, "id-2")
	p.Status.Phase = corev1.PodFailed
	r.cluster.Modify(p.DeepCopy())

	outcome := r.outcome()
	want := queue.Outcome{ItemID: "uid-1", Status: queue.Done, Message: "logs complete", Attempts: 1, Details: map[string]string{"lines": "4", "bytes": "30"}}
	if diff := cmp.Diff(want, outcome); diff != "" {
		t.Errorf("outcome (-want +got):\n%s", diff)
	}
	w := r.worker()
	if got := w.Registration; got.GetTaskId() != "t-1" || got.GetTraceparent() != "00-1-2-01" || got.GetEventId() != "1-0" {
		t.Errorf("registered as %v", got)
	}
	if diff := cmp.Diff(map[string]string{"repository": "git@example:otto", "build_number": "17"}, w.Registration.GetMetadata()); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if len(w.Logs) != 2 || !w.Logs[0].Init || !w.Logs[0].Matches || !w.Logs[1].Matches {
		t.Errorf("logs: %+v", w.Logs)
	}
	if ends := w.End.GetContainers(); len(ends) != 2 || ends[0].ExitCode == nil || ends[0].GetExitCode() != 0 || ends[1].GetExitCode() != 7 {
		t.Errorf("ends: %v", ends)
	}
	r.halt()
	if problems, err := promlint.NewWithMetricFamilies(must(r.registry.Gather())).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestRestartedContainerHasALogForEachRun(t *testing.T) {
	r := newRelayRig(t)
	p := workerPod()
	p.Spec.InitContainers, p.Status.InitContainerStatuses = nil, nil
	first, second := r.source("agent-previous"), r.source("agent")
	first.Print(at(1)[0], "first run")
	first.End()
	second.Print(at(2)[0], "second run")
	// The relay sees the pod only now, in its second run.
	p.Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "agent", RestartCount: 1, State: running(), LastTerminationState: terminated(1, "id-1")}
	r.cluster.Add(p.DeepCopy())
	r.start()
	r.offer(p)
	again := logstest.Key{WorkerUID: "uid-1", Container: "agent", RestartCount: 1}
	r.holds(key, 1)
	r.holds(again, 1)
	second.End()
	p.Status.ContainerStatuses[0].State, p.Status.Phase = terminated(0, "id-2"), corev1.PodSucceeded
	r.cluster.Modify(p.DeepCopy())
	if got := r.outcome(); got.Status != queue.Done || got.Details["lines"] != "2" {
		t.Errorf("outcome: %+v", got)
	}
	for _, l := range r.worker().Logs {
		if want := []string{"first run", "second run"}[l.RestartCount]; len(l.Lines) != 1 || l.Lines[0] != want || !l.Matches {
			t.Errorf("log of run %d: %+v", l.RestartCount, l)
		}
	}
}

func TestWorkersWithoutLogsAreFinished(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		add    bool
	}{
		"deleted before it was scheduled": {add: true, change: func(p *corev1.Pod) {
			p.Spec.NodeName = ""
			p.DeletionTimestamp = &metav1.Time{Time: time.Now()}
			p.Status.InitContainerStatuses, p.Status.ContainerStatuses = nil, nil
		}},
		"never had its image": {add: true, change: func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodFailed
			p.Status.InitContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown"}}
			p.Status.ContainerStatuses[0].State = waiting("ImagePullBackOff")
		}},
		"gone before the relay saw it": {change: func(*corev1.Pod) {}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelayRig(t)
			p := workerPod()
			tc.change(p)
			if tc.add {
				r.cluster.Add(p.DeepCopy())
			}
			r.start()
			r.offer(p)
			if got := r.outcome(); got.Status != queue.Done || got.Details["lines"] != "0" {
				t.Errorf("outcome: %+v", got)
			}
			w := r.worker()
			if w.End == nil || len(w.Logs) != 0 {
				t.Fatalf("the server has %+v", w)
			}
			for _, end := range w.End.GetContainers() {
				if end.ExitCode != nil {
					t.Errorf("%s has exit code %d, although it never ran", end.GetContainer(), end.GetExitCode())
				}
			}
		})
	}
}

func TestPodThatIsDeletedBeforeItsEndWasSeenIsFinished(t *testing.T) {
	r := newRelayRig(t)
	p := workerPod()
	p.Status.ContainerStatuses[0].State, p.Status.Phase = running(), corev1.PodRunning
	p.Status.InitContainerStatuses[0].State = terminated(0, "id-1")
	r.source("clone").End()
	r.source("agent").Print(at(1)[0], "one line")
	r.cluster.Add(p.DeepCopy())
	r.start()
	r.offer(p)
	r.holds(key, 1)
	r.cluster.Delete(p.DeepCopy())
	r.source("agent").Cut(errBroken)
	if got := r.outcome(); got.Status != queue.Done || got.Details["lines"] != "1" {
		t.Errorf("outcome: %+v", got)
	}
	if ends := r.worker().End.GetContainers(); len(ends) != 2 || ends[1].ExitCode != nil {
		t.Errorf("ends: %v", ends)
	}
}

func TestNextRelayGoesOnWhereTheLastOneStopped(t *testing.T) {
	r := newRelayRig(t)
	p := workerPod()
	p.Spec.InitContainers, p.Status.InitContainerStatuses = nil, nil
	p.Status.ContainerStatuses[0].State, p.Status.Phase = running(), corev1.PodRunning
	r.cluster.Add(p.DeepCopy())
	r.offer(p)
	agent := r.source("agent")
	lines := 0
	for range 3 {
		r.start()
		for range 10 {
			agent.Print(at(float64(lines / 4))[0], fmt.Sprint(lines))
			lines++
		}
		r.holds(key, lines)
		r.halt()
	}
	r.start()
	agent.End()
	p.Status.ContainerStatuses[0].State, p.Status.Phase = terminated(0, "id-1"), corev1.PodSucceeded
	r.cluster.Modify(p.DeepCopy())
	if got := r.outcome(); got.Status != queue.Done || got.Details["lines"] != "30" {
		t.Errorf("outcome: %+v", got)
	}
	if l := r.worker().Logs[0]; len(l.Lines) != 30 || l.Duplicates != 0 || !l.Matches {
		t.Errorf("the server has %+v", l)
	}
}

// spooledLines runs a relay without its server until so many lines of the agent are on disk.
func (r *relayRig) spooledLines(n int) *corev1.Pod {
	r.t.Helper()
	p := workerPod()
	p.Spec.InitContainers, p.Status.InitContainerStatuses = nil, nil
	p.Status.ContainerStatuses[0].State, p.Status.Phase = running(), corev1.PodRunning
	for i := range n {
		r.source("agent").Print(at(float64(i))[0], fmt.Sprint(i))
	}
	r.cluster.Add(p.DeepCopy())
	r.spool = r.t.TempDir()
	r.server.stop()
	r.start()
	r.offer(p)
	for deadline := time.Now().Add(patience); r.store.Used() < int64(n); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatal("nothing is spooled while the server is away")
		}
	}
	return p
}

func TestWorkerIsReadWhileTheServerIsAway(t *testing.T) {
	r := newRelayRig(t)
	p := r.spooledLines(100)
	r.source("agent").End()
	p.Status.ContainerStatuses[0].State, p.Status.Phase = terminated(0, "id-1"), corev1.PodSucceeded
	r.cluster.Modify(p.DeepCopy())
	r.server.start()
	if got := r.outcome(); got.Status != queue.Done || got.Details["lines"] != "100" {
		t.Errorf("outcome: %+v", got)
	}
	if l := r.worker().Logs[0]; len(l.Lines) != 100 || !l.Matches {
		t.Errorf("the server has %+v", l)
	}
	if used := r.store.Used(); used != 0 {
		t.Errorf("%d bytes are left in the spool", used)
	}
}

func TestLinesOfAPodThatIsGoneAreSentFromTheSpool(t *testing.T) {
	r := newRelayRig(t)
	p := r.spooledLines(100)
	r.halt()
	r.cluster.Delete(p.DeepCopy())
	r.source("agent").Cut(errBroken)
	r.server.start()
	r.start()
	got := r.outcome()
	if got.Status != queue.Done || got.Details["lines"] != "100" || got.Details["gaps"] != "1" {
		t.Errorf("outcome: %+v", got)
	}
	if l := r.worker().Logs[0]; len(l.Lines) != 101 || !l.Matches || l.Gaps[0].GetReason() != reasonTruncated {
		t.Errorf("the server has %+v", l)
	}
}

func TestLinesThatTheServerDoesNotTakeInTimeAreCounted(t *testing.T) {
	r := newRelayRig(t)
	r.patience = 50 * time.Millisecond
	p := r.spooledLines(100)
	r.source("agent").End()
	p.Status.ContainerStatuses[0].State, p.Status.Phase = terminated(0, "id-1"), corev1.PodSucceeded
	r.cluster.Modify(p.DeepCopy())
	got := r.outcome()
	want := map[string]string{
		"lines": "0", "bytes": "0", queue.DetailLostLines: "100", queue.DetailLostBytes: "190", queue.DetailAbandoned: "true",
	}
	delete(got.Details, queue.DetailUnread) // it may have been about to look for more
	if diff := cmp.Diff(want, got.Details); diff != "" || got.Status != queue.Done {
		t.Errorf("outcome %v, details (-want +got):\n%s", got.Status, diff)
	}
	if used := r.store.Used(); used != 0 {
		t.Errorf("%d bytes are left in the spool", used)
	}

	// A server that comes back hears of it all the same.
	r.server.start()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var w logstest.Worker
	err := r.server.backend.Wait(ctx, func() bool {
		w, _ = r.server.backend.Worker(p.Name)
		return w.End != nil
	})
	if err != nil {
		t.Fatalf("the server is not told of the end: %v", err)
	}
	lost := w.End.GetIncomplete()
	if len(lost) != 1 || lost[0].GetContainer() != "agent" || lost[0].GetLostLines() != 100 || lost[0].GetLostBytes() != 190 {
		t.Errorf("the server was told that these logs are incomplete: %v", lost)
	}
	if len(w.End.GetContainers()) == 0 {
		t.Error("the server was not told how the containers ended")
	}
}

func TestContainerThatNeverRanHasItsReason(t *testing.T) {
	unknown := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown"}}
	for name, tc := range map[string]struct {
		seen []corev1.ContainerState
		want string
	}{
		"the image is not there":            {[]corev1.ContainerState{waiting("ContainerCreating"), waiting("ImagePullBackOff"), unknown}, "ImagePullBackOff"},
		"its configuration is not there":    {[]corev1.ContainerState{waiting("CreateContainerConfigError")}, "CreateContainerConfigError"},
		"it failed, and then was forgotten": {[]corev1.ContainerState{waiting("ErrImagePull"), waiting("ContainerCreating")}, "ErrImagePull"},
		"it ran after all":                  {[]corev1.ContainerState{waiting("ErrImagePull"), terminated(3, "id-1")}, "Completed"},
		"nobody knows":                      {[]corev1.ContainerState{waiting("ContainerCreating"), unknown}, "ContainerStatusUnknown"},
	} {
		w := &worker{Relay: &Relay{}, waited: map[string]corev1.ContainerStateWaiting{}}
		p := workerPod()
		for _, state := range tc.seen {
			p.Status.ContainerStatuses[0].State = state
			w.sight(p)
		}
		if got := endsOf(p, w.waited)[1].GetReason(); got != tc.want {
			t.Errorf("%s: the reason is %q, want %q", name, got, tc.want)
		}
	}
}

func TestInstancesAreReadFromAPodsStatus(t *testing.T) {
	type in struct {
		status corev1.ContainerStatus
		phase  corev1.PodPhase
	}
	for name, tc := range map[string]struct {
		in
		want []int32 // restart counts of instances
		// state of the instance with restart count 1
		state State
	}{
		"waiting for its first run":      {in: in{status: corev1.ContainerStatus{State: waiting("ContainerCreating")}}},
		"first run":                      {in: in{status: corev1.ContainerStatus{State: running()}}, want: []int32{0}},
		"first run has ended":            {in: in{status: corev1.ContainerStatus{State: terminated(0, "a")}}, want: []int32{0}},
		"second run":                     {in: in{status: corev1.ContainerStatus{State: running(), LastTerminationState: terminated(1, "a"), RestartCount: 1}}, want: []int32{0, 1}},
		"second run has ended":           {in: in{status: corev1.ContainerStatus{State: terminated(1, "b"), LastTerminationState: terminated(1, "a"), RestartCount: 1}}, want: []int32{0, 1}, state: State{Ended: true}},
		"second run has crashed":         {in: in{status: corev1.ContainerStatus{State: waiting("CrashLoopBackOff"), LastTerminationState: terminated(1, "b"), RestartCount: 1}}, want: []int32{1}, state: State{Ended: true}},
		"third run":                      {in: in{status: corev1.ContainerStatus{State: running(), LastTerminationState: terminated(1, "b"), RestartCount: 2}}, want: []int32{1, 2}, state: State{Ended: true, Previous: true}},
		"fourth run":                     {in: in{status: corev1.ContainerStatus{State: running(), LastTerminationState: terminated(1, "c"), RestartCount: 3}}, want: []int32{2, 3}, state: State{Ended: true, Gone: true}},
		"kubelet has lost its container": {in: in{status: corev1.ContainerStatus{State: terminated(137, ""), RestartCount: 1}}, state: State{Ended: true}},
		"kubelet has just begun":         {in: in{status: corev1.ContainerStatus{State: waiting("ContainerCreating"), RestartCount: 1}}},
		"node is lost":                   {in: in{status: corev1.ContainerStatus{State: running(), RestartCount: 1}, phase: corev1.PodFailed}, want: []int32{1}, state: State{Ended: true}},
	} {
		tc.status.Name = "agent"
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid-1"}, Status: corev1.PodStatus{Phase: tc.phase, ContainerStatuses: []corev1.ContainerStatus{tc.status}}}
		var got []int32
		for _, instance := range instancesOf(p) {
			got = append(got, instance.RestartCount)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: instances (-want +got):\n%s", name, diff)
		}
		second := Instance{PodUID: "uid-1", Container: "agent", RestartCount: 1}
		if tc.status.RestartCount > 0 {
			if diff := cmp.Diff(tc.state, stateOf(p, second)); diff != "" {
				t.Errorf("%s: state of the second run (-want +got):\n%s", name, diff)
			}
		}
	}
	if got, want := stateOf(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID("another")}}, Instance{PodUID: "uid-1"}), (State{Ended: true, Gone: true}); got != want {
		t.Errorf("state in another pod of the same name = %+v, want %+v", got, want)
	}
}
