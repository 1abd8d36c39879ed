package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// ReleaseAll removes every worker of an installation that is about to go, and
// returns at the latest after timeout. It is for the chart's pre-delete hook:
// without it, finalizers that nobody takes off would keep the namespace from
// being deleted.
//
// Workers get the grace of their template, and the log-relay, if it still runs,
// gets three quarters of the time to send their last lines. Then our finalizer is
// taken off whatever is left, and Kubernetes finishes by itself. It is safe to
// call again.
func ReleaseAll(ctx context.Context, pods corev1client.PodsGetter, namespace, instance string, timeout time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := &releaser{log: log, metrics: newMetrics(prometheus.NewRegistry())}
	var err error
	r.cluster, err = newCluster(pods, namespace, instance, func(err error) {
		if err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "cannot watch pods, trying again", "err", err)
		}
	}, indifferent{})
	if err != nil {
		return fmt.Errorf("preparing the watch on pods: %w", err)
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	var watch errgroup.Group
	watch.Go(func() error { r.cluster.run(watchCtx); return nil })
	err = r.run(ctx, timeout)
	stopWatch()
	_ = watch.Wait() // it returns no error
	return err
}

// ReleaseRest is [ReleaseAll] for after the installation is gone: for the chart's
// post-delete hook. Until the main pod has ended it carries out events, and may
// have made workers since; so this waits until no pod that the label selector main
// matches is there. Nobody is left then to send a worker's last lines, and our
// finalizer is taken off at once.
//
// If the main pod is still there when most of the timeout has passed, workers are
// released all the same, and the error says so. It is safe to call again.
func ReleaseRest(ctx context.Context, pods corev1client.PodsGetter, namespace, instance, main string, timeout time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cluster, err := newCluster(pods, namespace, instance, func(error) {}, indifferent{})
	if err != nil {
		return fmt.Errorf("preparing to read pods: %w", err)
	}
	r := &releaser{cluster: cluster, metrics: newMetrics(prometheus.NewRegistry()), log: log}
	waitCtx, stopWait := context.WithTimeout(ctx, timeout*9/10)
	defer stopWait()
	waitErr := r.awaitNone(waitCtx, main)
	if waitErr != nil {
		log.WarnContext(ctx, "releasing workers though new ones may come", "err", waitErr)
	}
	return errors.Join(waitErr, r.strip(ctx))
}

// awaitNone blocks until no pod of that selector runs. One that has ended, such as
// an evicted one, does nothing any more.
func (r *releaser) awaitNone(ctx context.Context, selector string) error {
	left := "unknown"
	for range awaitMain.Attempts(ctx) {
		running, err := r.cluster.running(ctx, selector)
		switch {
		case err != nil:
			r.log.WarnContext(ctx, "trying again", "err", err)
		case len(running) == 0:
			return nil
		default:
			left = strings.Join(running, ", ")
		}
	}
	return fmt.Errorf("waiting for the main pod to be gone: %w, left: %s", ctx.Err(), left)
}

// releaseEvent stands for the event that removes workers of an installation that
// is about to go. Without a mark, the scaler would replace them.
const releaseEvent = "release-workers"

// awaitMain paces the looks at a main pod that drains.
var awaitMain = backoff.Policy{Initial: 100 * time.Millisecond, Max: time.Second}

// indifferent is an [observer] that does nothing.
type indifferent struct{}

func (indifferent) observe(*corev1.Pod) {}
func (indifferent) gone(ref)            {}

type releaser struct {
	cluster *cluster
	metrics *metrics
	log     *slog.Logger
}

func (r *releaser) run(ctx context.Context, timeout time.Duration) error {
	if err := r.cluster.synced(ctx); err != nil {
		return fmt.Errorf("reading the workers: %w", err)
	}
	graceCtx, cancel := context.WithTimeout(ctx, timeout*3/4)
	defer cancel()
	left, err := r.removeAll(graceCtx)
	if err != nil {
		r.log.WarnContext(ctx, "workers are left, taking the finalizer off them", "count", left, "err", err)
	}
	return r.strip(ctx)
}

// removeAll deletes workers until there are none. The scaler, which still runs,
// may make new ones meanwhile.
func (r *releaser) removeAll(ctx context.Context) (left int, err error) {
	for range backoff.Default.Attempts(ctx) {
		workers, err := r.cluster.listAll(ctx)
		if err != nil {
			r.log.WarnContext(ctx, "trying again", "err", err)
			continue
		}
		left = len(workers)
		if left == 0 {
			return 0, nil
		}
		if err := r.removeSome(ctx, workers); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "trying again", "err", err)
		}
	}
	return left, ctx.Err()
}

func (r *releaser) removeSome(ctx context.Context, workers []corev1.Pod) error {
	var group errgroup.Group
	group.SetLimit(writesPerEvent)
	removed := 0
	for i := range workers {
		if workers[i].DeletionTimestamp == nil {
			removed++
			group.Go(func() error {
				_, err := r.cluster.annotate(ctx, &workers[i], map[string]string{pod.AnnotationScaledDownBy: releaseEvent})
				if err != nil && !apierrors.IsNotFound(err) {
					return err
				}
				return r.cluster.remove(ctx, refOf(&workers[i]))
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if removed > 0 {
		r.log.InfoContext(ctx, "workers deleted, waiting for their last lines", "count", removed)
	}
	for i := range workers {
		if err := r.awaitGone(ctx, &workers[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *releaser) awaitGone(ctx context.Context, worker *corev1.Pod) error {
	gone, cancel := r.cluster.expect(worker.Name, func(seen *corev1.Pod) bool { return seen == nil || seen.UID != worker.UID })
	defer cancel()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// strip takes our finalizer off every worker, and sees to it that each is deleted.
func (r *releaser) strip(ctx context.Context) error {
	for range backoff.Default.Attempts(ctx) {
		workers, err := r.cluster.listAll(ctx)
		if err == nil {
			err = r.stripSome(ctx, workers)
		}
		if err == nil {
			r.log.InfoContext(ctx, "workers released", "left_to_kubernetes", len(workers))
			return nil
		}
		r.log.WarnContext(ctx, "trying again", "err", err)
	}
	return fmt.Errorf("releasing workers: %w", ctx.Err())
}

func (r *releaser) stripSome(ctx context.Context, workers []corev1.Pod) error {
	var group errgroup.Group
	group.SetLimit(writesPerEvent)
	for i := range workers {
		group.Go(func() error {
			if workers[i].DeletionTimestamp == nil {
				if err := r.cluster.remove(ctx, refOf(&workers[i])); err != nil {
					return err
				}
			}
			now, err := r.cluster.fetch(ctx, workers[i].Name)
			if err != nil || now == nil || !held(now) {
				return err
			}
			return r.cluster.release(ctx, now, nil)
		})
	}
	return group.Wait()
}
