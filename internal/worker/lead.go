package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// ErrLeadershipLost says that another scaler of the installation may lead by now.
var ErrLeadershipLost = errors.New("leadership lost")

// LeadershipOptions are what a [Leadership] is made of. All are required.
type LeadershipOptions struct {
	// Leases is where the installation's Lease is, in Namespace.
	Leases coordinationv1client.LeasesGetter
	// Namespace of the workers.
	Namespace string
	// Instance is the ID of the installation.
	Instance string
	// Identity tells this scaler from the installation's others. One that comes back
	// under the same identity, as a container of the same pod does, leads again at
	// once.
	Identity string
	// Duration is how long a Lease that is not renewed keeps others from leading. A
	// leader that could not renew it for two thirds of that stops.
	Duration time.Duration
	// Standby is told whenever another scaler leads.
	Standby func(leader string)
	// Registerer takes the metrics.
	Registerer prometheus.Registerer
	// Log is the logger.
	Log *slog.Logger
}

// A Leadership sees to it that one scaler of an installation acts at a time.
type Leadership struct {
	elector *leaderelection.LeaderElector
	begun   chan context.Context // the context of the leadership, once
	leads   atomic.Bool
	margin  time.Duration
	log     *slog.Logger
}

// NewLeadership returns a Leadership. It starts nothing.
func NewLeadership(opts LeadershipOptions) (*Leadership, error) {
	l := &Leadership{begun: make(chan context.Context, 1), margin: opts.Duration / 6, log: opts.Log}
	opts.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ottoscaler_worker_leading",
		Help: "Whether this scaler leads its installation (1) or stands by (0).",
	}, func() float64 {
		if l.leads.Load() {
			return 1
		}
		return 0
	}))
	var err error
	l.elector, err = leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: opts.Namespace, Name: pod.LeaderLease(opts.Instance)},
			Client:     opts.Leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: opts.Identity},
		},
		Name:            pod.LeaderLease(opts.Instance),
		LeaseDuration:   opts.Duration,
		RenewDeadline:   opts.Duration * 2 / 3,
		RetryPeriod:     opts.Duration / 8,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { l.begun <- ctx },
			OnStoppedLeading: func() { l.leads.Store(false) },
			OnNewLeader: func(leader string) {
				if leader != opts.Identity && leader != "" {
					opts.Log.Info("standing by", "leader", leader)
					opts.Standby(leader)
				}
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the election of a leader: %w", err)
	}
	return l, nil
}

// Run waits until this scaler leads, runs lead, and hands the Lease over when it
// has returned. It returns nil if ctx ends before.
//
// When ctx ends, the Lease is kept until lead has finished what it began. When the
// Lease is lost, halt is called at once, then the context of lead ends, and Run
// returns [ErrLeadershipLost].
func (l *Leadership) Run(ctx context.Context, halt func(), lead func(ctx context.Context) error) error {
	electionCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	election := make(chan struct{})
	go func() { defer close(election); l.elector.Run(electionCtx) }()
	defer func() { stop(); <-election }()

	var leading context.Context
	select {
	case <-ctx.Done():
		return nil
	case leading = <-l.begun:
	}
	l.leads.Store(true)
	l.log.InfoContext(ctx, "leading")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	keep := context.AfterFunc(leading, func() {
		l.leads.Store(false)
		halt()
		cancel(ErrLeadershipLost)
	})
	err := lead(ctx)
	if !keep() {
		return ErrLeadershipLost
	}
	return err
}

// Check returns an error unless this scaler leads for certain. A process that was
// frozen may wake up and not know yet that its time has passed.
func (l *Leadership) Check() error {
	if !l.leads.Load() {
		return ErrLeadershipLost
	}
	if err := l.elector.Check(-l.margin); err != nil {
		return fmt.Errorf("%w: %w", ErrLeadershipLost, err)
	}
	return nil
}

// ForgetLeader removes the Lease of an installation that is gone.
func ForgetLeader(ctx context.Context, leases coordinationv1client.LeasesGetter, namespace, instance string) error {
	err := leases.Leases(namespace).Delete(ctx, pod.LeaderLease(instance), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing the lease of the leader: %w", err)
	}
	return nil
}
