package worker

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// A settlement is that of some events while it is awaited, on behalf of all workers that
// they touched, which may be thousands. It is guarded by Manager.mu.
type settlement struct {
	workers map[ref]*life // never empty while it is in Manager.awaited
	giveUp  context.CancelFunc
}

// settled reports whether the events that touched a worker are settled: as long as
// one of them can be delivered again, it has to find the worker. If that is not
// known yet, a wait for it begins.
func (m *Manager) settled(ctx context.Context, p *corev1.Pod, l *life) bool {
	ids := slices.DeleteFunc([]string{
		p.Annotations[pod.AnnotationEventID],
		p.Annotations[pod.AnnotationScaledDownBy],
	}, func(id string) bool { return id == "" || id == minimumEvent || id == releaseEvent })
	events := strings.Join(ids, " ")

	m.mu.Lock()
	defer m.mu.Unlock()
	if events == "" || l.settledFor == events {
		return true
	}
	if l.awaiting == events {
		return false
	}
	m.leave(refOf(p), l) // another event has touched it meanwhile
	s := m.awaited[events]
	if s == nil {
		ctx, giveUp := context.WithCancel(ctx)
		s = &settlement{workers: map[ref]*life{}, giveUp: giveUp}
		m.awaited[events] = s
		m.waits.Go(func() {
			defer giveUp()
			m.awaitSettled(ctx, s, events, ids)
		})
	}
	s.workers[refOf(p)] = l
	l.awaiting = events
	return false
}

// leave ends a worker's wait, if it waits, and the wait itself if nobody else does. A
// worker may be taken away by force, and the queue may be away for long. The lock is held.
func (m *Manager) leave(r ref, l *life) {
	s := m.awaited[l.awaiting]
	if s == nil {
		return
	}
	delete(s.workers, r)
	if len(s.workers) == 0 {
		delete(m.awaited, l.awaiting)
		s.giveUp()
	}
	l.awaiting = ""
}

// awaitSettled waits for a settlement, until the last worker has left it.
func (m *Manager) awaitSettled(ctx context.Context, s *settlement, events string, ids []string) {
	for range backoff.Default.Attempts(ctx) {
		if err := m.events.AwaitSettled(ctx, ids...); err != nil {
			m.log.DebugContext(ctx, "cannot learn whether events are settled", "event", events, "err", err)
			continue
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.awaited[events] == s { // else all have left just now, and others may wait anew
			delete(m.awaited, events)
		}
		for r, l := range s.workers {
			l.settledFor, l.awaiting = events, ""
			m.work.Add(r)
		}
		return
	}
}
