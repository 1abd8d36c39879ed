package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// workers is how many workers each event of the matrix makes. The API server
// takes some hundred milliseconds for them, so that a kill falls in between.
const workers = 60

// site is a consumer and a scaler at work on a namespace of their own.
type site struct {
	*lab.Processes
	events *lab.Events
	pods   corev1client.PodInterface
	quotas corev1client.ResourceQuotaInterface
}

func newSite(ctx context.Context, l *lab.Lab) (*site, error) {
	ns, err := l.Namespace(ctx, "chaos")
	if err != nil {
		return nil, err
	}
	p, err := l.Processes(ctx, ns, "127.0.0.1:1") // no relay, no log server
	if err != nil {
		return nil, err
	}
	s := &site{Processes: p, events: l.Events(ns), pods: l.Core.Pods(ns), quotas: l.Core.ResourceQuotas(ns)}
	err = s.Start(lab.Consumer, lab.Scaler)
	if err == nil {
		err = s.AwaitReady(ctx, lab.Consumer, lab.Scaler)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// errMissed says that a fault came too late: all was done when it struck. The run
// proves nothing and is repeated.
var errMissed = errors.New("the fault came too late")

// killBetweenCreates kills programs as soon as the first worker of an event
// appears, starts them again, and counts the workers once the event is settled.
func killBetweenCreates(victims ...string) func(context.Context, *site, string) (harm, error) {
	return func(ctx context.Context, s *site, task string) (harm, error) {
		b, err := s.strike(ctx, watch.Added, scaleUp(task, workers), victims)
		if err != nil {
			return harm{}, err
		}
		if seen, err := s.workers(ctx, b.event); err != nil || len(seen) == workers {
			return harm{}, cmp.Or(err, errMissed)
		}
		h, err := s.recover(ctx, b, victims)
		if err != nil {
			return h, err
		}
		seen, err := s.workers(ctx, b.event)
		h.lost, h.duplicated = missingAndSurplus(seen, workers)
		return h, err
	}
}

// killBetweenDeletes kills programs as soon as the first victim of a scale-down is
// marked; half of the task must be left once the event is settled.
func killBetweenDeletes(victims ...string) func(context.Context, *site, string) (harm, error) {
	return func(ctx context.Context, s *site, task string) (harm, error) {
		up, err := s.events.Publish(ctx, scaleUp(task, workers))
		if err != nil {
			return harm{}, err
		}
		if _, err := s.events.Await(ctx, up); err != nil {
			return harm{}, err
		}
		const half = workers / 2
		n := half
		b, err := s.strike(ctx, watch.Modified, scaleevent.Event{Type: scaleevent.ScaleDown, TaskID: task, PodCount: &n}, victims)
		if err != nil {
			return harm{}, err
		}
		if left, err := s.workers(ctx, up); err != nil || len(left) == workers-half {
			return harm{}, cmp.Or(err, errMissed)
		}
		h, err := s.recover(ctx, b, victims)
		if err != nil {
			return h, err
		}
		left, err := s.workers(ctx, up)
		// A worker that is left over is a deletion lost; one too few is one made twice.
		h.lost = max(0, len(left)-(workers-half))
		h.duplicated = max(0, workers-half-len(left))
		return h, err
	}
}

func scaleUp(task string, n int) scaleevent.Event {
	return scaleevent.Event{Type: scaleevent.ScaleUp, TaskID: task, PodCount: &n}
}

// blow is a fault that struck while an event was carried out. The event behind it
// is of the same task and must not overtake it.
type blow struct {
	event, behind string
	at            time.Time
}

// strike publishes an event and one behind it, and kills the victims at the first
// effect of the former.
func (s *site) strike(ctx context.Context, first watch.EventType, e scaleevent.Event, victims []string) (b blow, err error) {
	list, err := s.pods.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return b, fmt.Errorf("listing workers: %w", err)
	}
	effects, err := s.pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return b, fmt.Errorf("watching workers: %w", err)
	}
	defer effects.Stop()
	if b.event, err = s.events.Publish(ctx, e); err != nil {
		return b, err
	}
	if b.behind, err = s.events.Publish(ctx, scaleUp(e.TaskID, 1)); err != nil {
		return b, err
	}
	for effect := range effects.ResultChan() {
		worker, ok := effect.Object.(*corev1.Pod)
		if !ok || effect.Type != first || first == watch.Modified && worker.Annotations[pod.AnnotationScaledDownBy] != b.event {
			continue
		}
		b.at = time.Now()
		return b, s.Kill(victims...)
	}
	return b, fmt.Errorf("event %s had no effect: %w", b.event, ctx.Err())
}

// recover starts the victims again and waits until both events are settled.
func (s *site) recover(ctx context.Context, b blow, victims []string) (h harm, err error) {
	if err := s.Start(victims...); err != nil {
		return h, err
	}
	result, err := s.events.Await(ctx, b.event)
	if err != nil {
		return h, err
	}
	h.recovery = time.Since(b.at)
	if result.Status != scaleevent.StatusDone {
		return h, fmt.Errorf("event %s: %s: %s", b.event, result.Status, result.Message)
	}
	order, err := s.events.AwaitAll(ctx, b.event, b.behind)
	if err != nil {
		return h, err
	}
	if order[0].EventID != b.event {
		h.reordered++
	}
	return h, s.AwaitReady(ctx, victims...)
}

// workers counts the live workers of an event by their number within it.
func (s *site) workers(ctx context.Context, event string) (map[string]int, error) {
	list, err := s.pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing workers: %w", err)
	}
	seen := map[string]int{}
	for i := range list.Items {
		worker := &list.Items[i]
		if worker.DeletionTimestamp == nil && worker.Annotations[pod.AnnotationEventID] == event {
			seen[worker.Annotations[pod.AnnotationEventIndex]]++
		}
	}
	return seen, nil
}

// missingAndSurplus compares workers with the numbers 0 to want-1, each once.
func missingAndSurplus(seen map[string]int, want int) (missing, surplus int) {
	for i := range want {
		if n := seen[strconv.Itoa(i)]; n == 0 {
			missing++
		} else {
			surplus += n - 1
		}
	}
	for index, n := range seen {
		if i, err := strconv.Atoi(index); err != nil || i < 0 || i >= want {
			surplus += n
		}
	}
	return missing, surplus
}

// revive starts whatever does not run.
func (s *site) revive(ctx context.Context) error {
	for _, name := range []string{lab.Consumer, lab.Scaler} {
		if s.Running(name) {
			continue
		}
		if err := s.Start(name); err != nil {
			return err
		}
	}
	return s.AwaitReady(ctx, lab.Consumer, lab.Scaler)
}

// clear removes every worker, held back by its finalizer or not.
func (s *site) clear(ctx context.Context) error {
	list, err := s.pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing workers: %w", err)
	}
	for i := range list.Items {
		name := list.Items[i].Name
		if len(list.Items[i].Finalizers) > 0 {
			_, err := s.pods.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("letting go of worker %s: %w", name, err)
			}
		}
	}
	now := int64(0)
	if err := s.pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("deleting workers: %w", err)
	}
	return nil
}
