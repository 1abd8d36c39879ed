package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/workqueue"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

const (
	// reconcilers is how many workers are taken a step further at once.
	reconcilers = 16
	// sweepEvery is how often every worker is looked at again. Nothing should
	// depend on it: it catches what events missed.
	sweepEvery = 5 * time.Minute
)

// Names under which a [Manager] reports how it is.
const (
	PartKubernetes = "kubernetes"
	PartQueue      = "queue"
	PartPools      = "pools"
)

// Settlements tells when events can no longer be delivered again. Both kinds of
// queue provide it.
type Settlements interface {
	AwaitSettled(ctx context.Context, ids ...string) error
}

// A Recorder writes Kubernetes Events; those of client-go's record package do. It
// must not block.
type Recorder interface {
	Eventf(object runtime.Object, eventtype, reason, messageFmt string, args ...any)
}

// Options are what a [Manager] is made of. All fields are required, except
// where they say what nil means.
type Options struct {
	// Pods is where workers live, in Namespace.
	Pods corev1client.PodsGetter
	// Namespace of the workers.
	Namespace string
	// Instance is the ID of this installation. It owns the workers that carry it.
	Instance string
	// LogDrainTimeout is how long a worker that has ended waits for its last line
	// to be acknowledged. The log-relay, if there is one, gives up a little earlier: it
	// knows what was lost.
	LogDrainTimeout time.Duration
	// MaxWrites is how many writes may be under way at once; 0 means
	// [DefaultMaxWrites]. A quarter of them is for whatever frees places, so that no
	// scale_down waits behind scale_ups.
	MaxWrites int
	// Pools is the pool file, loaded.
	Pools *PoolFile
	// Events tells when the events that touched a worker are settled.
	Events Settlements
	// Workers is where workers are offered to be followed.
	Workers queue.Queue[queue.Worker]
	// MayWrite is asked before each write, which is not done if it returns an error;
	// see [Leadership.Check]. Nil means always.
	MayWrite func() error
	// Ended is told how each worker ended, before its pod is let go of. It is told
	// again after an error and after a restart, with the same [End.ID]. Nil means nobody.
	Ended func(ctx context.Context, end End) error
	// Recorder writes Kubernetes Events about workers. Nil means none.
	Recorder Recorder
	// Self is the pod that this is, which Kubernetes Events about the pool file are
	// about. Nil means that there are none.
	Self *corev1.ObjectReference
	// Registerer takes the metrics.
	Registerer prometheus.Registerer
	// Report is told how a part is; nil means well.
	Report func(part string, err error)
	// Log is the logger.
	Log *slog.Logger
}

// A Manager is the life of all workers of one installation.
//
// [Manager.Scale] creates and removes them, as events ask; [Manager.Run] takes
// each to its end. Both need the cache, which [Manager.Watch] fills.
type Manager struct {
	cluster         *cluster
	pools           *PoolFile
	events          Settlements
	offers          queue.Queue[queue.Worker]
	logDrainTimeout time.Duration
	metrics         *metrics
	report          func(part string, err error)
	log             *slog.Logger
	begun           time.Time     // when this manager began to act; set before running is closed
	running         chan struct{} // closed when Run has caught up
	work            workqueue.TypedRateLimitingInterface[ref]
	capacity        *capacity
	below           chan struct{} // one element while a pool may be below its minimum
	locks           locks
	retries         locks // by pod: whether there is another attempt is decided by one at a time
	ended           func(ctx context.Context, end End) error
	recorder        Recorder
	self            *corev1.ObjectReference

	mu         sync.Mutex
	lives      map[types.UID]*life    // guarded by mu
	awaited    map[string]*settlement // by its events; guarded by mu
	producer   queue.Producer[queue.Worker]
	session    int // counts producers; guarded by mu, as is producer
	unsettled  map[types.UID]struct{}
	kubeBroken bool
	waits      sync.WaitGroup
}

// New returns a Manager. It starts nothing.
func New(opts Options) (*Manager, error) {
	if opts.Report == nil {
		opts.Report = func(string, error) {}
	}
	if opts.Ended == nil {
		opts.Ended = func(context.Context, End) error { return nil }
	}
	if opts.Recorder == nil {
		opts.Recorder = silent{}
	}
	m := &Manager{
		pools:           opts.Pools,
		events:          opts.Events,
		offers:          opts.Workers,
		logDrainTimeout: opts.LogDrainTimeout,
		ended:           opts.Ended,
		recorder:        opts.Recorder,
		self:            opts.Self,
		metrics:         newMetrics(opts.Registerer),
		report:          opts.Report,
		log:             opts.Log,
		running:         make(chan struct{}),
		below:           make(chan struct{}, 1),
		capacity:        newCapacity(opts.Pools.Current),
		lives:           make(map[types.UID]*life),
		awaited:         make(map[string]*settlement),
		unsettled:       make(map[types.UID]struct{}),
		work: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[ref](50*time.Millisecond, 30*time.Second)),
	}
	var err error
	m.cluster, err = newCluster(opts.Pods, opts.Namespace, opts.Instance, m.reportKubernetes, m)
	if err != nil {
		return nil, fmt.Errorf("preparing the watch on pods: %w", err)
	}
	m.cluster.allow(cmp.Or(opts.MaxWrites, DefaultMaxWrites))
	if opts.MayWrite != nil {
		m.cluster.mayWrite = opts.MayWrite
	}
	opts.Registerer.MustRegister(newPhases(m.cluster.all), newPlaces(m.capacity))
	opts.Pools.manager.Store(m)
	return m, nil
}

// silent is a [Recorder] that writes nothing.
type silent struct{}

func (silent) Eventf(runtime.Object, string, string, string, ...any) {}

// observe implements [observer].
func (m *Manager) observe(p *corev1.Pod) {
	m.capacity.observe(p)
	m.changed()
	m.work.Add(refOf(p))
}

// gone implements [observer].
func (m *Manager) gone(r ref) {
	m.capacity.gone(r)
	m.changed()
	m.work.Add(r)
}

// reportKubernetes logs when the API server is lost and found, and not each of
// the attempts between.
func (m *Manager) reportKubernetes(err error) {
	if errors.Is(err, context.Canceled) {
		return // told to stop
	}
	m.report(PartKubernetes, err)
	m.mu.Lock()
	was := m.kubeBroken
	m.kubeBroken = err != nil
	m.mu.Unlock()
	switch {
	case err != nil && !was:
		m.log.Warn("cannot watch pods, trying again", "namespace", m.cluster.namespace, "err", err)
	case err == nil && was:
		m.log.Info("watching pods again", "namespace", m.cluster.namespace)
	}
}

// Watch fills the cache and keeps it up to date, until ctx is done. It writes
// nothing: a scaler that stands by does it too, so as to be quick when it leads.
func (m *Manager) Watch(ctx context.Context) { m.cluster.run(ctx) }

// Synced blocks until Run has begun and the cache shows what was done before.
// Before that, no event may be taken: an empty cache is not an empty cluster.
func (m *Manager) Synced(ctx context.Context) error {
	select {
	case <-m.running:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Halt stops all writes at once, those under way included. There is no way back.
func (m *Manager) Halt() { m.cluster.halt() }

// Run takes workers from their creation to their end, until ctx is done. It is
// called once. It should outlive the last call of [Manager.Scale], and
// [Manager.Watch] should outlive it.
func (m *Manager) Run(ctx context.Context) error {
	if err := errors.Join(m.cluster.synced(ctx), m.cluster.catchUp(ctx)); err != nil {
		return nil //nolint:nilerr // told to stop before it began
	}
	m.begun = time.Now()
	close(m.running)
	m.changed()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.follow(ctx) })
	group.Go(func() error { return m.sweep(ctx) })
	group.Go(func() error { return m.admit(ctx) })
	group.Go(func() error { return m.keepMinimum(ctx) })
	group.Go(func() error { return m.resolveDoubts(ctx) })
	for range reconcilers {
		group.Go(func() error {
			for m.step(ctx) {
			}
			return nil
		})
	}
	group.Go(func() error { <-ctx.Done(); m.work.ShutDown(); return nil })
	err := group.Wait()
	m.waits.Wait()
	return err
}

// sweep looks at every worker now and then.
func (m *Manager) sweep(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			m.enqueueAll()
		}
	}
}

// enqueueAll has every worker looked at: those in the cache, and those of which
// only we still know.
func (m *Manager) enqueueAll() {
	for _, p := range m.cluster.all() {
		m.work.Add(refOf(p))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, l := range m.lives {
		m.work.Add(ref{name: l.name, uid: uid})
	}
}
