package logs

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/mask"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/spool"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// Options are what a [Relay] works with. The zero values of the numbers mean
// their defaults.
type Options struct {
	// Workers is the queue of the workers to follow.
	Workers queue.Queue[queue.Worker]
	// Pods is the view of the cluster, which somebody runs.
	Pods *Pods
	// Open opens the log of a container.
	Open OpenFunc
	// Splits reports whether Open gives stdout and stderr by themselves, which takes two
	// more connections for each log. Nil leaves open where lines were written to.
	Splits func(ctx context.Context) bool
	// Kept has what nodes have kept of logs. Nil for a relay that marks what was rotated
	// away before it was read as a gap.
	Kept Keeper
	// Exists asks the cluster itself whether a pod exists.
	Exists func(ctx context.Context, name, uid string) (bool, error)
	// Mask returns what hides a worker's secrets, or nil; it may block until that is
	// known. Nil hides nothing.
	Mask func(ctx context.Context, worker *corev1.Pod) (func() *mask.Masker, error)
	// Server is the connection to the log server.
	Server grpc.ClientConnInterface
	// Spool keeps on disk what the log server does not take at once. Nil for a relay that
	// leaves these lines at the nodes, which remove them when they rotate a log.
	Spool *spool.Store
	// Registry receives the metrics.
	Registry prometheus.Registerer
	// Log receives the relay's own story.
	Log *slog.Logger

	// MaxWorkers is how many workers are followed at once. Default 5000.
	MaxWorkers int
	// BatchLines and BatchBytes bound a batch. Defaults 500 and 256 KiB, which is
	// also the most bytes.
	BatchLines, BatchBytes int
	// BatchLinger is how long a batch waits for more lines. Default 20 ms.
	BatchLinger time.Duration
	// WindowBytes bounds what one log may have in memory. Default 4 MiB.
	WindowBytes int
	// MemoryBytes bounds what all logs together have in memory; past it, each may
	// have one batch of 4 KiB, or of one line that is longer. Default 64 MiB.
	MemoryBytes int64
	// AckTimeout is how long the server may leave lines without an answer before
	// a new stream is opened. Default 30 s.
	AckTimeout time.Duration
	// DrainTimeout is how long Run waits for acknowledgements when it is told to
	// stop. Default [queue.DefaultDrainTimeout].
	DrainTimeout time.Duration
	// Policy paces reads and sessions that broke. Default [backoff.Default].
	Policy backoff.Policy
	// LogDrainTimeout is how long a worker that has ended waits for its last
	// acknowledgement. Then its lines are given up and counted. Default 10 min.
	LogDrainTimeout time.Duration
	// StreamAge is about how old a stream to the log server becomes before another one
	// takes its place. Default 30 min.
	StreamAge time.Duration
	// EndWait is how long an instance whose log has ended may still be called
	// running before its log is opened again. Default 5 s.
	EndWait time.Duration
}

// MaxBatchBytes is the most that a batch takes, by the protocol.
const MaxBatchBytes = 256 << 10

const (
	defaultMaxWorkers  = 5000
	defaultBatchLines  = 500
	defaultLinger      = 20 * time.Millisecond
	defaultWindow      = 32 // batches; the protocol's default
	defaultWindowBytes = 4 << 20
	defaultMemoryBytes = 64 << 20
	defaultAckTimeout  = 30 * time.Second
	closeWait          = 5 * time.Second
	defaultLogDrain    = 10 * time.Minute
	defaultStreamAge   = 30 * time.Minute
)

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// A Relay follows the workers that it leases from the queue.
type Relay struct {
	followerConfig
	options Options
	limits  windowLimits
	budget  *budget
	log     *slog.Logger
	late    *lateEnds
}

// NewRelay makes a relay.
func NewRelay(options Options) *Relay {
	total := &budget{limit: orElse(options.MemoryBytes, defaultMemoryBytes)}
	m := newMetrics(options.Registry, total, options.Spool)
	options.MaxWorkers = orElse(options.MaxWorkers, defaultMaxWorkers)
	options.LogDrainTimeout = orElse(options.LogDrainTimeout, defaultLogDrain)
	options.DrainTimeout = orElse(options.DrainTimeout, queue.DefaultDrainTimeout)
	return &Relay{
		followerConfig: followerConfig{
			open:       options.Open,
			splits:     options.Splits,
			kept:       options.Kept,
			client:     logsv1.NewLogServiceClient(options.Server),
			outage:     &outage{name: "log server", about: unavailable, log: options.Log, up: m.serverUp},
			sources:    &outage{name: "container logs", about: unreachable, log: options.Log, up: m.sourcesUp},
			metrics:    m,
			policy:     orElse(options.Policy, backoff.Default),
			endWait:    orElse(options.EndWait, endWait),
			startWait:  startWait,
			silence:    silenceTick,
			probeEvery: probeEvery,
			rotation:   orElse(options.StreamAge, defaultStreamAge),
			ackTimeout: orElse(options.AckTimeout, defaultAckTimeout),
			closeWait:  closeWait,
		},
		options: options,
		limits: windowLimits{
			lines:      orElse(options.BatchLines, defaultBatchLines),
			batchBytes: min(orElse(options.BatchBytes, MaxBatchBytes), MaxBatchBytes),
			batches:    defaultWindow,
			bytes:      orElse(options.WindowBytes, defaultWindowBytes),
			linger:     orElse(options.BatchLinger, defaultLinger),
		},
		budget: total,
		log:    options.Log,
		late:   newLateEnds(),
	}
}

// Run follows workers until ctx ends. It then takes no more, sends what is read,
// waits for its acknowledgement, and gives the workers back to the queue: the
// next relay goes on behind the last acknowledged line.
func (r *Relay) Run(ctx context.Context) error {
	if !r.options.Pods.WaitForSync(ctx) {
		return nil // told to stop before there was anything to do
	}
	subscription := queue.SubscribeOptions{
		Name:         "log-relay",
		Credits:      r.options.MaxWorkers,
		DrainTimeout: r.options.DrainTimeout,
	}
	if r.options.Spool != nil {
		sweeping, stop := context.WithCancel(ctx)
		swept := make(chan struct{})
		defer func() { stop(); <-swept }()
		go func() {
			defer close(swept)
			r.sweep(sweeping)
		}()
	}
	defer r.late.wait()
	return queue.Serve(ctx, r.options.Workers, subscription, r.log, func(leased context.Context, d queue.Delivery[queue.Worker]) queue.Verdict {
		return r.handle(leased, ctx, d)
	})
}

// orphanAge is how long a relay waits for somebody to lease a worker that an
// earlier relay has left lines of, although its pod is gone.
const orphanAge = 10 * time.Minute

// sweep removes from the spool, once, what an earlier relay has left of workers that
// nobody will follow any more.
func (r *Relay) sweep(ctx context.Context) {
	timer := time.NewTimer(orphanAge)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	names, err := r.options.Spool.Groups()
	if err != nil {
		r.log.WarnContext(ctx, "looking for old lines in the spool", "err", err)
	}
	for _, uid := range names {
		if r.options.Pods.has(types.UID(uid)) {
			continue
		}
		switch bytes, err := r.options.Spool.Remove(uid); {
		case err != nil:
			r.log.WarnContext(ctx, "removing old lines from the spool", "uid", uid, "err", err)
		case bytes > 0:
			r.log.ErrorContext(ctx, "lines of a worker that is gone were never sent", "uid", uid, "bytes", bytes)
		}
	}
}

// A worker is one leased worker while it is followed.
type worker struct {
	*Relay
	queue.Delivery[queue.Worker]
	uid types.UID
	// mask returns what hides the worker's secrets; nil for nothing.
	mask func() *mask.Masker
	log  *slog.Logger
	// allowed is what the server allows, once it knows the worker.
	allowed windowLimits
	// ended is when the worker was first seen to have ended, and overdue ends when
	// LogDrainTimeout has passed since.
	ended     time.Time
	deadline  *time.Timer
	overdue   context.Context //nolint:containedctx // it is a signal that costs no goroutine to wait for
	isOverdue context.CancelFunc
	// waited are the reasons that containers gave for not having begun.
	waited map[string]corev1.ContainerStateWaiting
}

// handle follows one worker to its end, or until ctx or the relay ends.
func (r *Relay) handle(ctx, drain context.Context, d queue.Delivery[queue.Worker]) queue.Verdict {
	r.metrics.workers.Inc()
	defer r.metrics.workers.Dec()
	w := &worker{
		Relay: r, Delivery: d, uid: types.UID(d.ID), waited: map[string]corev1.ContainerStateWaiting{},
		log: r.log.With("event", d.Value.EventID, "task", d.Value.TaskID, "pool", d.Value.Pool, "pod", d.Value.Name),
	}
	w.overdue, w.isOverdue = context.WithCancel(context.Background())
	defer w.isOverdue()
	defer r.options.Pods.forget(w.uid)
	start := time.Now()
	total, err := w.follow(ctx, drain)
	if w.deadline != nil {
		w.deadline.Stop()
	}
	if err != nil {
		// A lease that is lost takes no verdict; a drained one goes to the next relay.
		return queue.RetryAfter(0, err.Error())
	}
	if total.abandoned {
		w.log.ErrorContext(ctx, "giving up lines that the log server has not acknowledged in time", "lost_lines", total.lostLines,
			"lost_bytes", total.lostBytes, "unread", total.unread, "lines", total.lines, "waited", r.options.LogDrainTimeout.String())
		return queue.Finish("logs incomplete", total.details())
	}
	r.metrics.finished.Inc()
	w.log.InfoContext(ctx, "worker logs complete", "lines", total.lines, "bytes", total.bytes, "gaps", total.gaps,
		"containers", total.logs, "duration", time.Since(start).Round(time.Millisecond).String())
	return queue.Finish("logs complete", total.details())
}

// totals are what the log server holds of a worker, and what it will never hold.
type totals struct {
	lines, bytes         uint64
	gaps                 uint64
	lostLines, lostBytes uint64
	logs                 int
	// abandoned says that the drain deadline has passed, and unread that nobody knows
	// how much was lost, because a log was not read to its end.
	abandoned, unread bool
	incomplete        []*logsv1.IncompleteLog
}

// details are the totals as the scaler is told them; see [queue.DetailLostLines] and what follows it.
func (t totals) details() map[string]string {
	details := map[string]string{
		"lines": strconv.FormatUint(t.lines, 10),
		"bytes": strconv.FormatUint(t.bytes, 10),
	}
	if t.gaps > 0 {
		details["gaps"] = strconv.FormatUint(t.gaps, 10)
	}
	if t.lostLines > 0 || t.abandoned {
		details[queue.DetailLostLines] = strconv.FormatUint(t.lostLines, 10)
		details[queue.DetailLostBytes] = strconv.FormatUint(t.lostBytes, 10)
	}
	if t.abandoned {
		details[queue.DetailAbandoned] = "true"
	}
	if t.unread {
		details[queue.DetailUnread] = "true"
	}
	return details
}

// follow announces the worker, follows all of its logs, and announces its end.
func (w *worker) follow(ctx, drain context.Context) (totals, error) {
	// What isn't a log in motion need not outlive the relay's own end.
	calls, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(drain, cancel)()
	first, err := w.appear(calls)
	if err != nil {
		return totals{}, err
	}
	if first != nil && w.options.Mask != nil {
		if first, err = w.learnSecrets(calls, first); err != nil {
			return totals{}, err
		}
	}
	registered := make(chan struct{})
	go func() {
		// The logs do not wait for it: nodes rotate them, whether the server is there or not.
		if limits, err := w.register(calls, first); err == nil {
			w.allowed = limits
			close(registered)
		}
	}()
	w.log.InfoContext(ctx, "following worker", "attempt", w.Attempt)
	last, total, err := w.followAll(ctx, drain, first, registered)
	if err != nil {
		return total, err
	}
	if !total.abandoned {
		select {
		case <-registered:
			total, err = w.finish(calls, last, total)
		case <-calls.Done():
			return totals{}, calls.Err()
		case <-w.overdue.Done():
			total.abandoned = true
		}
	}
	if err == nil && total.abandoned {
		w.finishLate(drain, first, last, total)
	}
	return total, err
}

// appearWait is how long a worker that exists may stay out of the view before
// the cluster is asked again.
const appearWait = 10 * time.Second

// appear waits for the worker to be in the view. It returns nil if it does not exist
// any more.
func (w *worker) appear(ctx context.Context) (*corev1.Pod, error) {
	for attempt := range w.policy.Attempts(ctx) {
		seen, changed := w.look()
		if seen != nil {
			return seen, nil
		}
		exists, err := w.options.Exists(ctx, w.Value.Name, w.ID)
		switch {
		case apierrors.IsNotFound(err) || (err == nil && !exists):
			w.log.WarnContext(ctx, "the worker was gone before its logs were read")
			return nil, nil
		case err != nil:
			w.log.WarnContext(ctx, "looking for the worker again", "attempt", attempt.Number, "err", err)
			continue
		}
		timer := time.NewTimer(appearWait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil, ctx.Err()
}

func (w *worker) look() (*corev1.Pod, <-chan struct{}) {
	return w.options.Pods.look(w.Value.Namespace, w.Value.Name, w.uid)
}

// register announces the worker to the server and returns the limits of its logs.
func (w *worker) register(ctx context.Context, seen *corev1.Pod) (windowLimits, error) {
	request := &logsv1.RegisterWorkerRequest{Worker: &logsv1.Worker{
		Uid:         w.ID,
		Namespace:   w.Value.Namespace,
		Name:        w.Value.Name,
		TaskId:      w.Value.TaskID,
		Pool:        w.Value.Pool,
		EventId:     w.Value.EventID,
		Traceparent: w.Traceparent,
		Metadata:    map[string]string{},
	}}
	if seen != nil {
		request.Worker.Metadata = metadataOf(seen)
		if own := seen.Annotations[pod.AnnotationTraceparent]; own != "" {
			request.Worker.Traceparent = own
		}
	}
	answer, err := persist(ctx, w.policy, w.outage, w.log, "RegisterWorker", func(ctx context.Context) (*logsv1.RegisterWorkerResponse, error) {
		return w.client.RegisterWorker(ctx, request)
	})
	return limitsFor(w.limits, answer.GetLimits()), err
}

// eventFields are the fields of an event that are annotations of its workers.
var eventFields = []string{"repository", "commit_sha", "triggered_by", "reason", "timestamp"}

// metadataOf returns what the event said besides what the contract has a place for.
func metadataOf(seen *corev1.Pod) map[string]string {
	metadata := map[string]string{}
	for _, field := range eventFields {
		if value, ok := seen.Annotations[pod.AnnotationFieldPrefix+field]; ok {
			metadata[field] = value
		}
	}
	for name, value := range seen.Annotations {
		if field, ok := strings.CutPrefix(name, pod.AnnotationMetaPrefix); ok {
			metadata[field] = value
		}
	}
	return metadata
}

// ending is the worker's end, as the last sight of its pod tells it.
func (w *worker) ending(last *corev1.Pod, total totals) *logsv1.FinishWorkerRequest {
	request := &logsv1.FinishWorkerRequest{WorkerUid: w.ID, Incomplete: total.incomplete}
	if last != nil {
		request.Containers = endsOf(last, w.waited)
		request.Reason, request.Message = last.Status.Reason, last.Status.Message
		if w.mask != nil {
			hideEnds(w.mask(), request)
		}
	} else {
		request.Reason, request.Message = "Gone", "the pod was gone before its logs were read"
	}
	return request
}

// finish announces the worker's end.
func (w *worker) finish(ctx context.Context, last *corev1.Pod, total totals) (totals, error) {
	request := w.ending(last, total)
	calls, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.overdue, cancel)()
	_, err := persist(calls, w.policy, w.outage, w.log, "FinishWorker", func(ctx context.Context) (*logsv1.FinishWorkerResponse, error) {
		return w.client.FinishWorker(ctx, request)
	})
	if err != nil && ctx.Err() == nil {
		total.abandoned = true // no line is lost, but the server doesn't know the end
		return total, nil
	}
	return total, err
}

// sight takes note of what a look at the worker's pod shows that a later one may not.
func (w *worker) sight(seen *corev1.Pod) {
	eachStatus(seen, func(status *corev1.ContainerStatus, _ bool) {
		if waiting := status.State.Waiting; waiting != nil && !ordinary(waiting.Reason) {
			w.waited[status.Name] = *waiting
		}
	})
	if w.ended.IsZero() && over(seen) {
		w.ended = time.Now()
		w.deadline = time.AfterFunc(w.options.LogDrainTimeout, w.isOverdue)
	}
}

// A result is how the following of one instance has ended.
type result struct {
	err                  error
	incomplete           *logsv1.IncompleteLog // if it was given up
	end                  Cursor
	lostLines, lostBytes uint64
	unread               bool
}

// add adds what became of one instance.
func (t *totals) add(r result) {
	t.lines += r.end.Sequence - r.end.Gaps
	t.bytes += r.end.Bytes
	t.gaps += r.end.Gaps
	t.lostLines += r.lostLines
	t.lostBytes += r.lostBytes
	t.abandoned = t.abandoned || errors.Is(r.err, errOverdue)
	t.unread = t.unread || r.unread
	if r.incomplete != nil {
		t.incomplete = append(t.incomplete, r.incomplete)
	}
}

// followAll keeps a follower for each container instance until no more can
// begin and all are complete. It returns the last sight of the pod.
func (w *worker) followAll(ctx, drain context.Context, last *corev1.Pod, registered <-chan struct{}) (*corev1.Pod, totals, error) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		started = map[Instance]bool{}
		results = make(chan result)
		running int
		total   totals
		failure error
		group   sync.WaitGroup
	)
	defer group.Wait()
	defer cancel()
	begin := func(instances []Instance) {
		for _, in := range instances {
			if started[in] {
				continue
			}
			started[in] = true
			running++
			total.logs++
			group.Go(func() {
				select {
				case results <- w.followOne(ctx, drain, in, registered):
				case <-ctx.Done():
				}
			})
		}
	}
	// What an earlier relay has left in the spool is sent even if the pod is gone.
	begin(w.spooled())
	for {
		seen, changed := w.look()
		if seen != nil {
			last = seen
			w.sight(seen)
		}
		if failure == nil && seen != nil {
			begin(instancesOf(seen))
		}
		if running == 0 && (failure != nil || seen == nil || over(seen)) {
			return last, total, failure
		}
		if running == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
				return last, total, ctx.Err()
			case <-drain.Done():
				return last, total, errDraining
			}
			continue
		}
		select {
		case <-changed:
		case r := <-results:
			running--
			total.add(r)
			if !errors.Is(r.err, errOverdue) {
				failure = errors.Join(failure, r.err)
			}
		case <-ctx.Done():
			return last, total, ctx.Err()
		}
	}
}

// spooled lists the instances of which the spool has lines.
func (w *worker) spooled() []Instance {
	if w.options.Spool == nil {
		return nil
	}
	names, err := w.options.Spool.Logs(w.ID)
	if err != nil {
		w.log.Warn("looking into the spool", "err", err)
	}
	var all []Instance
	for _, name := range names {
		if in, ok := spooled(Instance{PodUID: w.uid, Namespace: w.Value.Namespace, Pod: w.Value.Name}, name); ok {
			all = append(all, in)
		}
	}
	return all
}

// followOne follows one instance to its end.
func (w *worker) followOne(ctx, drain context.Context, in Instance, registered <-chan struct{}) result {
	f := &follower{
		followerConfig: w.followerConfig,
		instance:       in,
		window:         newWindow(w.limits, w.budget),
		mask:           w.mask,
		log:            w.log.With("container", in),
		registered:     registered,
		allowed:        func() windowLimits { return w.allowed },
		overdue:        w.overdue,
		state: func() (State, <-chan struct{}) {
			seen, changed := w.look()
			return stateOf(seen, in), changed
		},
	}
	var disk *backlog
	if w.options.Spool != nil {
		disk = f.openSpool(w.options.Spool)
	}
	r := result{err: f.run(ctx, drain)}
	r.end = f.acked
	if disk != nil {
		r.lostLines, r.lostBytes = disk.lostLines.Load(), disk.lostBytes.Load()
	}
	if errors.Is(r.err, errOverdue) {
		r.lostLines += f.left.lines
		r.lostBytes += f.left.bytes
		r.unread = !f.left.all
		r.incomplete = &logsv1.IncompleteLog{
			Container: in.Container, RestartCount: uint32(in.RestartCount), Init: in.Init, //nolint:gosec // Kubernetes counts up from 0
			LostLines: f.left.lines, LostBytes: f.left.bytes, Unread: r.unread,
		}
	}
	return r
}
