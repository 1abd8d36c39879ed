package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	corev1 "k8s.io/api/core/v1"
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
}

func newSite(ctx context.Context, l *lab.Lab) (*site, error) {
	ns, err := l.Namespace(ctx, "chaos")
	if err != nil {
		return nil, err
	}
	p, err := l.Processes(ctx, filepath.Join(os.TempDir(), "ottoscaler-"+ns), ns, "127.0.0.1:1") // no relay, no log server
	if err != nil {
		return nil, err
	}
	s := &site{Processes: p, events: l.Events(ns), pods: l.Core.Pods(ns)}
	if err := s.Start(lab.Consumer, lab.Scaler); err != nil {
		return nil, err
	}
	return s, s.AwaitReady(ctx, lab.Consumer, lab.Scaler)
}

func (s *site) close() error {
	err := s.Stop(lab.Scaler, lab.Consumer)
	return errors.Join(err, s.clear(context.Background()))
}

// killBetweenCreates kills programs as soon as the first worker of an event
// appears, starts them again, and counts the workers once the event is settled.
func killBetweenCreates(victims ...string) func(context.Context, *site, int) (harm, error) {
	return func(ctx context.Context, s *site, run int) (harm, error) {
		task := "chaos-" + strconv.Itoa(run)
		id, killed, err := s.strike(ctx, watch.Added, scaleUp(task), victims)
		if err != nil {
			return harm{}, err
		}
		h, err := s.recover(ctx, id, killed, victims)
		if err != nil {
			return h, err
		}
		seen, err := s.indices(ctx, id)
		if err != nil {
			return h, err
		}
		h.count(seen, workers)
		return h, s.clear(ctx)
	}
}

// killBetweenDeletes kills programs as soon as the first victim of a scale-down
// disappears; half of the task must be left once the event is settled.
func killBetweenDeletes(victims ...string) func(context.Context, *site, int) (harm, error) {
	return func(ctx context.Context, s *site, run int) (harm, error) {
		task := "chaos-" + strconv.Itoa(run)
		up, err := s.events.Publish(ctx, scaleUp(task))
		if err != nil {
			return harm{}, err
		}
		if _, err := s.events.Await(ctx, up); err != nil {
			return harm{}, err
		}
		half := workers / 2
		down := scaleevent.Event{Type: scaleevent.ScaleDown, TaskID: task, PodCount: &half}
		id, killed, err := s.strike(ctx, watch.Modified, down, victims)
		if err != nil {
			return harm{}, err
		}
		h, err := s.recover(ctx, id, killed, victims)
		if err != nil {
			return h, err
		}
		seen, err := s.indices(ctx, up)
		if err != nil {
			return h, err
		}
		// A worker too many was not deleted; one too few was deleted twice over.
		if left := len(seen); left > workers-half {
			h.lost = left - (workers - half)
		} else {
			h.duplicated = workers - half - left
		}
		return h, s.clear(ctx)
	}
}

func scaleUp(task string) scaleevent.Event {
	n := workers
	return scaleevent.Event{Type: scaleevent.ScaleUp, TaskID: task, PodCount: &n}
}

// strike publishes an event and kills the victims at its first effect.
func (s *site) strike(ctx context.Context, first watch.EventType, e scaleevent.Event, victims []string) (id string, killed time.Time, err error) {
	list, err := s.pods.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return "", killed, fmt.Errorf("listing workers: %w", err)
	}
	effects, err := s.pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return "", killed, fmt.Errorf("watching workers: %w", err)
	}
	defer effects.Stop()
	if id, err = s.events.Publish(ctx, e); err != nil {
		return "", killed, err
	}
	for effect := range effects.ResultChan() {
		worker, ok := effect.Object.(*corev1.Pod)
		if !ok || effect.Type != first || first == watch.Modified && worker.Annotations[pod.AnnotationScaledDownBy] != id {
			continue
		}
		return id, time.Now(), s.Kill(victims...)
	}
	return "", killed, fmt.Errorf("event %s had no effect: %w", id, ctx.Err())
}

// recover starts the victims again and waits until the event is settled.
func (s *site) recover(ctx context.Context, id string, killed time.Time, victims []string) (harm, error) {
	if err := s.Start(victims...); err != nil {
		return harm{}, err
	}
	result, err := s.events.Await(ctx, id)
	if err != nil {
		return harm{}, err
	}
	if result.Status != "done" {
		return harm{}, fmt.Errorf("event %s: %s: %s", id, result.Status, result.Message)
	}
	h := harm{recovery: time.Since(killed)}
	return h, s.AwaitReady(ctx, victims...)
}

// indices counts the live workers of an event by their number within it.
func (s *site) indices(ctx context.Context, event string) (map[string]int, error) {
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

func (h *harm) count(seen map[string]int, want int) {
	h.lost = want - len(seen)
	for _, n := range seen {
		h.duplicated += n - 1
	}
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
			if _, err := s.pods.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
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
