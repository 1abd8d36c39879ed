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
	// Exists asks the cluster itself whether a pod exists.
	Exists func(ctx context.Context, name, uid string) (bool, error)
	// Mask returns what hides a worker's secrets, or nil; it may block until that is
	// known. Nil hides nothing.
	Mask func(ctx context.Context, worker *corev1.Pod) (func() *mask.Masker, error)
	// Server is the connection to the log server.
	Server grpc.ClientConnInterface
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
}

// NewRelay makes a relay.
func NewRelay(options Options) *Relay {
	total := &budget{limit: orElse(options.MemoryBytes, defaultMemoryBytes)}
	m := newMetrics(options.Registry, total)
	options.MaxWorkers = orElse(options.MaxWorkers, defaultMaxWorkers)
	options.DrainTimeout = orElse(options.DrainTimeout, queue.DefaultDrainTimeout)
	return &Relay{
		followerConfig: followerConfig{
			open:       options.Open,
			client:     logsv1.NewLogServiceClient(options.Server),
			outage:     &outage{name: "log server", about: unavailable, log: options.Log, up: m.serverUp},
			sources:    &outage{name: "container logs", about: unreachable, log: options.Log, up: m.sourcesUp},
			metrics:    m,
			policy:     orElse(options.Policy, backoff.Default),
			endWait:    orElse(options.EndWait, endWait),
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
	return queue.Serve(ctx, r.options.Workers, subscription, r.log, func(leased context.Context, d queue.Delivery[queue.Worker]) queue.Verdict {
		return r.handle(leased, ctx.Done(), d)
	})
}

// A worker is one leased worker while it is followed.
type worker struct {
	*Relay
	queue.Delivery[queue.Worker]
	uid types.UID
	// mask returns what hides the worker's secrets; nil for nothing.
	mask func() *mask.Masker
	log  *slog.Logger
}

// handle follows one worker to its end, or until ctx or the relay ends.
func (r *Relay) handle(ctx context.Context, drain <-chan struct{}, d queue.Delivery[queue.Worker]) queue.Verdict {
	r.metrics.workers.Inc()
	defer r.metrics.workers.Dec()
	w := &worker{
		Relay: r, Delivery: d, uid: types.UID(d.ID),
		log: r.log.With("event", d.Value.EventID, "task", d.Value.TaskID, "pool", d.Value.Pool, "pod", d.Value.Name),
	}
	defer r.options.Pods.forget(w.uid)
	start := time.Now()
	total, err := w.follow(ctx, drain)
	if err != nil {
		// A lease that is lost takes no verdict; a drained one goes to the next relay.
		return queue.RetryAfter(0, err.Error())
	}
	r.metrics.finished.Inc()
	w.log.InfoContext(ctx, "worker logs complete", "lines", total.lines, "bytes", total.bytes,
		"containers", total.logs, "duration", time.Since(start).Round(time.Millisecond).String())
	return queue.Finish("logs complete", map[string]string{
		"lines": strconv.FormatUint(total.lines, 10),
		"bytes": strconv.FormatUint(total.bytes, 10),
	})
}

// totals are what the log server holds of a worker.
type totals struct {
	lines, bytes uint64
	logs         int
}

// follow announces the worker, follows all of its logs, and announces its end.
func (w *worker) follow(ctx context.Context, drain <-chan struct{}) (totals, error) {
	// What isn't a log in motion need not outlive the relay's own end.
	calls, cancel := context.WithCancel(ctx)
	defer cancel()
	stopCalls := make(chan struct{})
	defer close(stopCalls)
	go func() {
		select {
		case <-drain:
			cancel()
		case <-stopCalls:
		}
	}()
	first, err := w.appear(calls)
	if err != nil {
		return totals{}, err
	}
	if first != nil && w.options.Mask != nil {
		if w.mask, err = w.options.Mask(calls, first); err != nil {
			return totals{}, err
		}
	}
	limits, err := w.register(calls, first)
	if err != nil {
		return totals{}, err
	}
	w.log.InfoContext(ctx, "following worker", "attempt", w.Attempt)
	last, total, err := w.followAll(ctx, drain, first, limits)
	if err != nil {
		return totals{}, err
	}
	return total, w.finish(calls, last)
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

// finish announces the worker's end, as the last sight of its pod tells it.
func (w *worker) finish(ctx context.Context, last *corev1.Pod) error {
	request := &logsv1.FinishWorkerRequest{WorkerUid: w.ID}
	if last != nil {
		request.Containers = endsOf(last)
		request.Reason, request.Message = last.Status.Reason, last.Status.Message
		if w.mask != nil {
			hideEnds(w.mask(), request)
		}
	} else {
		request.Reason, request.Message = "Gone", "the pod was gone before its logs were read"
	}
	_, err := persist(ctx, w.policy, w.outage, w.log, "FinishWorker", func(ctx context.Context) (*logsv1.FinishWorkerResponse, error) {
		return w.client.FinishWorker(ctx, request)
	})
	return err
}

// followAll keeps a follower for each container instance until no more can
// begin and all are complete. It returns the last sight of the pod.
func (w *worker) followAll(ctx context.Context, drain <-chan struct{}, last *corev1.Pod, limits windowLimits) (*corev1.Pod, totals, error) {
	if last == nil {
		return nil, totals{}, nil
	}
	type result struct {
		end Cursor
		err error
	}
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
	take := func(r result) {
		running--
		total.lines += r.end.Sequence
		total.bytes += r.end.Bytes
		failure = errors.Join(failure, r.err)
	}
	for {
		seen, changed := w.look()
		if seen != nil {
			last = seen
		}
		if failure == nil && seen != nil {
			for _, in := range instancesOf(seen) {
				if started[in] {
					continue
				}
				started[in] = true
				running++
				total.logs++
				group.Go(func() {
					f := w.follower(in, limits)
					err := f.run(ctx, drain)
					end, _ := f.window.settled()
					select {
					case results <- result{end, err}:
					case <-ctx.Done():
					}
				})
			}
		}
		if running == 0 && (failure != nil || seen == nil || over(seen)) {
			return last, total, failure
		}
		if running == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
				return last, total, ctx.Err()
			case <-drain:
				return last, total, errDraining
			}
			continue
		}
		select {
		case <-changed:
		case r := <-results:
			take(r)
		case <-ctx.Done():
			return last, total, ctx.Err()
		}
	}
}

// follower makes the follower of one instance.
func (w *worker) follower(in Instance, limits windowLimits) *follower {
	return &follower{
		followerConfig: w.followerConfig,
		instance:       in,
		window:         newWindow(limits, w.budget),
		mask:           w.mask,
		log:            w.log.With("container", in),
		state: func() (State, <-chan struct{}) {
			seen, changed := w.look()
			return stateOf(seen, in), changed
		},
	}
}
