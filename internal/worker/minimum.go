package worker

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// minimumEvent stands for the event, and the task, of workers that exist because
// their pool has a minimum.
const minimumEvent = "minimum"

// minimumPause is the least time between two looks: a worker that ends as soon as
// it has started must not be made again as fast as the API server can.
const minimumPause = time.Second

// keepMinimum keeps every pool at its minimum, until ctx is done.
func (m *Manager) keepMinimum(ctx context.Context) error {
	pause := time.NewTicker(minimumPause)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.below:
		}
		for attempt := range backoff.Default.Attempts(ctx) {
			err := m.fillUp(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			if attempt.Number == 1 {
				m.log.WarnContext(ctx, "a pool is below its minimum, trying again", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}

// changed has the pools' minimums looked at.
func (m *Manager) changed() {
	select {
	case m.below <- struct{}{}:
	default:
	}
}

func (m *Manager) fillUp(ctx context.Context) error {
	pools := m.pools.Current()
	for _, name := range pools.Names() {
		if pool := pools.Get(name); pool.MinWorkers > 0 {
			if err := m.fillUpOne(ctx, pool); err != nil {
				return fmt.Errorf("pool %s: %w", name, err)
			}
		}
	}
	return nil
}

// fillUpOne creates as many workers as a pool lacks. Their names are numbered and
// a number is free when its pod is gone, so that a repeated create meets its pod.
func (m *Manager) fillUpOne(ctx context.Context, pool *Pool) error {
	least := pool.MinWorkers
	e := scaleevent.Event{Type: scaleevent.ScaleUp, ID: minimumEvent, TaskID: minimumEvent, Pool: pool.Name, TargetReplicas: &least}
	defer m.locks.lock(scaleevent.Event{Pool: pool.Name}.OrderingKey())() // against targets of the pool
	seen := m.cluster.seen(scope{pool: pool.Name})
	missing := least
	for _, p := range seen {
		if p.Annotations[pod.AnnotationScaledDownBy] == releaseEvent {
			return nil // the installation is about to go
		}
		if counts(p, seen) {
			missing--
		}
	}
	if missing <= 0 {
		return nil
	}
	b, err := newBuilder(e, pool, m.cluster.namespace, m.cluster.instance)
	if err != nil {
		return err
	}
	a := &action{Manager: m, event: e, log: m.log.With("pool", pool.Name), attempt: 1, started: time.Now()}
	var made []*corev1.Pod
	for index := 0; missing > 0; index++ {
		if m.cluster.get(b.name(index)) != nil {
			continue
		}
		p, _, err := a.createOne(ctx, b, index)
		if err != nil {
			return err
		}
		made = append(made, p)
		missing--
	}
	a.log.InfoContext(ctx, "workers created up to the pool's minimum", "count", len(made), "min", least)
	return m.cluster.awaitSeen(ctx, made, func(wrote, seen *corev1.Pod) bool { return seen != nil && seen.UID == wrote.UID })
}
