package queue

import (
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"time"
)

// subscription is the leasing side of a [Memory]. What is guarded is guarded by
// the queue's mu.
type subscription[T any] struct {
	queue    *Memory[T]
	name     string
	credits  int
	duration time.Duration
	watched  bool

	done chan struct{} // closed by Close

	leases    map[uint64]*lease[T] // guarded
	lastLease uint64               // guarded
	waiters   *list.List           // of *waiter[T], guarded: calls of Deliveries
	inIdle    *list.Element        // guarded: set while an item could be leased to it

	// Only for watched ones.
	alive     time.Time     // guarded: the last sign of life
	suspended bool          // guarded: the signs stayed out for too long
	expiry    *time.Timer   // guarded: runs expire
	losses    []uint64      // guarded: not yet returned by Losses
	lossy     chan struct{} // holds one token while losses may hold something
}

// waiter is a call of Deliveries.
type waiter[T any] struct {
	sub    *subscription[T]
	most   int
	taken  []Delivery[T] // guarded until served is closed
	served chan struct{} // closed when taken is all that it gets
	place  *list.Element // among the waiters; nil once it has left them
}

// leave ends the wait. It is called with mu held.
func (w *waiter[T]) leave() {
	if w.place == nil {
		return
	}
	w.sub.waiters.Remove(w.place)
	w.place = nil
	w.sub.placeInIdle()
}

func newSubscription[T any](m *Memory[T], opts SubscribeOptions) *subscription[T] {
	s := &subscription[T]{
		queue:    m,
		name:     opts.Name,
		credits:  opts.Credits,
		duration: opts.LeaseDuration,
		watched:  opts.Watched,
		done:     make(chan struct{}),
		leases:   map[uint64]*lease[T]{},
		waiters:  list.New(),
		lossy:    make(chan struct{}, 1),
	}
	if s.watched {
		s.alive = time.Now()
		s.expiry = time.AfterFunc(s.duration, s.expire)
	}
	return s
}

func (s *subscription[T]) closed() bool { return isClosed(s.done) }

// placeInIdle keeps the queue's list of those who would take an item. It is
// called with mu held, after every change of what it depends on.
func (s *subscription[T]) placeInIdle() {
	wants := s.waiters.Len() > 0 && len(s.leases) < s.credits && !s.suspended && !s.closed()
	switch {
	case wants && s.inIdle == nil:
		s.inIdle = s.queue.idle.PushBack(s)
	case !wants && s.inIdle != nil:
		s.queue.idle.Remove(s.inIdle)
		s.inIdle = nil
	}
}

// Next implements [Subscription].
func (s *subscription[T]) Next(ctx context.Context) (Delivery[T], error) {
	deliveries, err := s.Deliveries(ctx, 1)
	if err != nil {
		return Delivery[T]{}, err
	}
	return deliveries[0], nil
}

// Deliveries implements [Subscription].
func (s *subscription[T]) Deliveries(ctx context.Context, most int) ([]Delivery[T], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := s.queue
	w := &waiter[T]{sub: s, most: most, served: make(chan struct{})}
	m.mu.Lock()
	if s.closed() {
		m.mu.Unlock()
		return nil, ErrClosed
	}
	w.taken = make([]Delivery[T], 0, min(most, max(1, m.ready.Len())))
	w.place = s.waiters.PushBack(w)
	s.placeInIdle()
	m.dispatch()
	m.creditMayHaveChanged()
	m.mu.Unlock()

	select {
	case <-w.served:
		return w.taken, nil
	case <-s.done:
		return nil, ErrClosed
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(w.taken) > 0 {
		return w.taken, nil // they came first
	}
	w.leave()
	return nil, ctx.Err()
}

// Resolve implements [Subscription].
func (s *subscription[T]) Resolve(ctx context.Context, d Delivery[T], v Verdict) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !v.Valid() {
		return fmt.Errorf("resolving item %s: status %d is no verdict", d.ID, v.Status)
	}
	m := s.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.closed() {
		return ErrClosed
	}
	l, ok := s.leases[d.Lease]
	if !ok {
		return ErrLeaseLost
	}
	m.resolve(l, v)
	m.dispatch()
	m.creditMayHaveChanged()
	return nil
}

// ResolveAll implements [WatchedSubscription].
func (s *subscription[T]) ResolveAll(ctx context.Context, resolutions []Resolution) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m := s.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.closed() {
		return ErrClosed
	}
	for _, r := range resolutions {
		if !r.Verdict.Valid() {
			return fmt.Errorf("resolving lease %d: status %d is no verdict", r.Lease, r.Verdict.Status)
		}
		if l, ok := s.leases[r.Lease]; ok {
			m.resolve(l, r.Verdict)
		}
	}
	m.dispatch()
	m.creditMayHaveChanged()
	return nil
}

// Close implements [Subscription].
func (s *subscription[T]) Close() error {
	s.end(slog.LevelInfo, "subscription closed")
	return nil
}

// Break implements [WatchedSubscription].
func (s *subscription[T]) Break(cause error) {
	s.end(slog.LevelWarn, fmt.Sprintf("subscription broken: %v", cause))
}

// end returns the leases, and logs that at a level.
func (s *subscription[T]) end(level slog.Level, why string) {
	m := s.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.closed() {
		return
	}
	close(s.done)
	s.placeInIdle()
	if s.expiry != nil {
		s.expiry.Stop()
	}
	delete(m.subs, s)
	if m.gated && len(m.subs) == 0 {
		m.shut = true
		m.turn++
	}
	m.credits -= s.credits
	m.lose(s, s.held(time.Time{}), level, why)
	m.creditMayHaveChanged()
}

// held returns the leases without a sign of life since the given time, or all
// for the zero time. It is called with mu held.
func (s *subscription[T]) held(since time.Time) []*lease[T] {
	held := make([]*lease[T], 0, len(s.leases))
	for _, l := range s.leases {
		if since.IsZero() || !l.since.After(since) && !s.alive.After(since) {
			held = append(held, l)
		}
	}
	return held
}

// Heartbeat implements [WatchedSubscription].
func (s *subscription[T]) Heartbeat() {
	m := s.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.closed() || !s.watched {
		return
	}
	s.alive = time.Now()
	if s.suspended {
		s.suspended = false
		s.expiry.Reset(s.duration)
		s.placeInIdle()
		m.dispatch()
	}
}

// expire is run by the timer, which is only set again when it has run: a
// heartbeat then costs nothing but its time.
func (s *subscription[T]) expire() {
	m := s.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.closed() {
		return
	}
	now := time.Now()
	if left := s.alive.Add(s.duration).Sub(now); left > 0 {
		s.expiry.Reset(left)
		return
	}
	s.suspended = true
	s.placeInIdle()
	m.lose(s, s.held(now.Add(-s.duration)), slog.LevelWarn, "no sign of life")
	// What was leased after the last sign of life has a little longer.
	var youngest time.Time
	for _, l := range s.leases {
		if youngest.IsZero() || l.since.Before(youngest) {
			youngest = l.since
		}
	}
	if !youngest.IsZero() {
		s.expiry.Reset(youngest.Add(s.duration).Sub(now))
	}
}

// noteLoss is called with mu held.
func (s *subscription[T]) noteLoss(id uint64) {
	if !s.watched || s.closed() {
		return
	}
	s.losses = append(s.losses, id)
	select {
	case s.lossy <- struct{}{}:
	default: // there is a token already
	}
}

// Losses implements [WatchedSubscription].
func (s *subscription[T]) Losses(ctx context.Context) ([]uint64, error) {
	for {
		select {
		case <-s.lossy:
			s.queue.mu.Lock()
			losses := s.losses
			s.losses = nil
			s.queue.mu.Unlock()
			if len(losses) > 0 {
				return losses, nil
			}
		case <-s.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
