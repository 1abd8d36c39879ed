package worker

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

const (
	// doubtAfter is how long a write may be missing in the cache before the API
	// server is asked about it. It is longer than the minute for which the API
	// server may still work on a call whose client has gone.
	doubtAfter = 90 * time.Second
	// doubtEvery is how often such writes are looked for.
	doubtEvery = 15 * time.Second
)

// admit gives places to workers that wait, whenever one may be free, until ctx is
// done.
func (m *Manager) admit(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.capacity.wake:
		}
		for attempt := range backoff.Default.Attempts(ctx) {
			err := m.admitAll(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			if attempt.Number == 1 {
				m.log.WarnContext(ctx, "cannot let a worker start whose turn it is, trying again", "err", err)
			}
		}
	}
}

// admitAll takes the gate off every worker for which there is a place.
func (m *Manager) admitAll(ctx context.Context) error {
	chosen := m.capacity.admit(m.cluster.indexed(byGate, waits))
	var group errgroup.Group
	group.SetLimit(writesPerEvent)
	for _, p := range chosen {
		group.Go(func() error {
			err := m.cluster.ungate(ctx, p)
			m.capacity.ungated(refOf(p), err == nil)
			if err == nil {
				m.metrics.ungated.Inc()
			}
			return err
		})
	}
	return group.Wait()
}

// resolveDoubts asks the API server about writes that the cache does not show.
func (m *Manager) resolveDoubts(ctx context.Context) error {
	ticker := time.NewTicker(doubtEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for _, name := range m.capacity.doubtful(doubtAfter) {
			p, err := m.cluster.fetch(ctx, name)
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					m.log.WarnContext(ctx, "a worker may or may not be there, and keeps its place until that is known", "pod", name, "err", err)
				}
				break
			}
			m.capacity.resolve(name, p)
		}
	}
}
