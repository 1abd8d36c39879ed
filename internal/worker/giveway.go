package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// mayGiveWay reports whether a scale_up that could not be carried out may be ended for
// later events that take what is left of it.
func (a *action) mayGiveWay(err error) bool {
	f, _ := faultOf(err)
	return (f == faultQuota || errors.Is(err, errWaitingFull)) && !a.unanswered()
}

// unanswered reports whether a worker of the event's task may or may not be there.
// Then the event must not end short of its aim: later ones would not find a worker that
// appears afterwards.
func (a *action) unanswered() bool {
	return a.capacity.uncertain(scope{pool: a.event.Pool, task: taskOf(a.event)})
}

// giveWay ends a scale_up that could not be carried out, of n workers, if later events
// take all that are left to be made; else it returns why it could not be.
func (a *action) giveWay(ctx context.Context, n int, others []*corev1.Pod, why error) (string, error) {
	seen, err := a.seen(ctx)
	if err == nil {
		err = decided(seen)
	}
	if err != nil {
		return "", err
	}
	made := make(map[int]string) // the name of one with that number: there may be two attempts at it
	live := 0
	for _, p := range seen {
		index, err := strconv.Atoi(p.Annotations[pod.AnnotationEventIndex])
		if p.Annotations[pod.AnnotationEventID] == a.event.ID && err == nil && index < n {
			made[index] = p.Name
		}
		if counts(p, seen) {
			live++
		}
	}
	gives, left := planGiveWay(a.event, n-len(made), live, a.behind, time.Now(), func(e scaleevent.Event) bool {
		return duplicateOf(e, a.cluster.indexed(byKey, e.IdempotencyKey)) != ""
	})
	if left > 0 {
		return "", why
	}
	if err := a.hold(ctx, others); err != nil {
		return "", err
	}
	a.mu.Lock()
	a.gives, a.workers = gives, slices.Collect(maps.Values(made))
	a.mu.Unlock()
	a.log.InfoContext(ctx, "scale event gives way to later ones that remove what is left of it", "count", len(made), "of", n, "err", why)
	return fmt.Sprintf("%d of %d %s created, and later events remove the others: %s", len(made), n, plural(n), why), nil
}
