package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// reconnect paces the attempts to reach the queue. It is in the same pod.
var reconnect = backoff.Policy{Initial: 50 * time.Millisecond, Max: 5 * time.Second}

// follow keeps the set of workers on the queue equal to those that need to be
// followed. A queue that went away has forgotten all of them; every new
// connection offers them again.
func (m *Manager) follow(ctx context.Context) error {
	connected := true // not to be mistaken for news
	for attempt := range reconnect.Attempts(ctx) {
		producer, err := m.offers.Produce(ctx, "scaler")
		if err == nil {
			m.report(PartQueue, nil)
			if !connected {
				m.log.InfoContext(ctx, "connected to the queue again")
			}
			connected = true
			attempt.Progress()
			err = m.hear(ctx, producer)
		}
		if ctx.Err() != nil {
			return nil
		}
		m.report(PartQueue, err)
		if connected {
			m.log.WarnContext(ctx, "cannot offer workers to be followed, trying again", "err", err)
			connected = false
		}
	}
	return nil
}

// hear offers every worker on a new producer and hears the outcomes until it ends.
func (m *Manager) hear(ctx context.Context, producer queue.Producer[queue.Worker]) error {
	m.mu.Lock()
	m.producer = producer
	m.session++
	unsettled := make([]types.UID, 0, len(m.unsettled))
	for uid := range m.unsettled {
		unsettled = append(unsettled, uid)
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.producer = nil
		m.mu.Unlock()
	}()
	for _, uid := range unsettled {
		m.settle(ctx, uid)
	}
	m.enqueueAll()
	for {
		outcome, err := producer.Outcome(ctx)
		if err != nil {
			return errors.Join(err, producer.Close())
		}
		m.heard(ctx, outcome)
	}
}

// heard takes note that nothing more will be read of a worker's logs.
func (m *Manager) heard(ctx context.Context, o queue.Outcome) {
	uid := types.UID(o.ItemID)
	m.mu.Lock()
	l := m.lives[uid]
	if l != nil {
		l.logsDone = true
		l.lost = lossOf(o)
	}
	m.mu.Unlock()
	if l == nil { // it is gone, so nothing is left to do about it
		m.settle(ctx, uid)
		return
	}
	if o.Status == queue.Rejected {
		m.log.WarnContext(ctx, "logs of a worker are incomplete", "pod", l.name, "event", l.event, "task", l.task, "reason", o.Reason, "err", o.Message)
	}
	m.work.Add(ref{name: l.name, uid: uid})
}

// offer has a worker followed, once on each connection to the queue.
func (m *Manager) offer(ctx context.Context, p *corev1.Pod, l *life) error {
	m.mu.Lock()
	producer, session := m.producer, m.session
	wanted := producer != nil && l.offeredIn != session && !l.logsDone
	m.mu.Unlock()
	if !wanted {
		return nil
	}
	err := producer.Offer(ctx, queue.Item[queue.Worker]{
		ID:          string(p.UID),
		Traceparent: p.Annotations[pod.AnnotationTraceparent],
		Value: queue.Worker{
			Namespace: p.Namespace,
			Name:      p.Name,
			TaskID:    l.task,
			Pool:      p.Labels[pod.LabelPool],
			EventID:   l.event,
		},
	})
	switch {
	case errors.Is(err, queue.ErrClosed):
		return nil // the next connection offers all
	case err != nil:
		return fmt.Errorf("offering worker %s to be followed: %w", p.Name, err)
	}
	m.mu.Lock()
	l.offeredIn = session
	m.mu.Unlock()
	return nil
}

// settle has the queue forget a worker. If it cannot be reached, that is made up
// for on the next connection.
func (m *Manager) settle(ctx context.Context, uid types.UID) {
	m.mu.Lock()
	producer := m.producer
	m.unsettled[uid] = struct{}{}
	m.mu.Unlock()
	if producer == nil {
		return
	}
	if err := producer.Settle(ctx, string(uid)); err != nil {
		m.log.DebugContext(ctx, "worker is not settled yet", "worker", uid, "err", err)
		return
	}
	m.mu.Lock()
	delete(m.unsettled, uid)
	m.mu.Unlock()
}
