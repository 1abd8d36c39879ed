package queuetest

import (
	"context"
	"sync"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// Faulty is a queue that breaks on command, as a connection does. Until then it
// is the queue that it was made from.
type Faulty[T any] struct {
	queue.Queue[T]

	mu       sync.Mutex
	refusal  error
	dropping bool
	closers  map[any]func() error // what Break closes
}

// NewFaulty returns a queue that breaks on command.
func NewFaulty[T any](q queue.Queue[T]) *Faulty[T] {
	return &Faulty[T]{Queue: q, closers: map[any]func() error{}}
}

// Break ends every producer and subscription that is open now.
func (f *Faulty[T]) Break() {
	f.mu.Lock()
	closers := f.closers
	f.closers = map[any]func() error{}
	f.mu.Unlock()
	for _, closeOne := range closers {
		_ = closeOne() // what is broken cannot be closed any worse
	}
}

// Refuse lets Produce, Subscribe, AwaitSettled and Stats fail with err, until it
// is called with nil.
func (f *Faulty[T]) Refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusal = err
}

// DropVerdicts has Resolve succeed without telling the queue, as when the
// connection breaks behind the sender. The lease lasts until a Break.
func (f *Faulty[T]) DropVerdicts(drop bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropping = drop
}

func (f *Faulty[T]) refused() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refusal
}

func (f *Faulty[T]) dropsVerdicts() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dropping
}

func (f *Faulty[T]) remember(side any, closeOne func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closers[side] = closeOne
}

func (f *Faulty[T]) forget(side any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.closers, side)
}

// Produce implements [queue.Queue].
func (f *Faulty[T]) Produce(ctx context.Context, name string) (queue.Producer[T], error) {
	if err := f.refused(); err != nil {
		return nil, err
	}
	p, err := f.Queue.Produce(ctx, name)
	if err != nil {
		return nil, err
	}
	f.remember(p, p.Close)
	return &faultyProducer[T]{Producer: p, faulty: f}, nil
}

// Subscribe implements [queue.Queue].
func (f *Faulty[T]) Subscribe(ctx context.Context, opts queue.SubscribeOptions) (queue.Subscription[T], error) {
	if err := f.refused(); err != nil {
		return nil, err
	}
	s, err := f.Queue.Subscribe(ctx, opts)
	if err != nil {
		return nil, err
	}
	f.remember(s, s.Close)
	return &faultySubscription[T]{Subscription: s, faulty: f}, nil
}

// AwaitSettled implements [queue.Queue].
func (f *Faulty[T]) AwaitSettled(ctx context.Context, ids ...string) error {
	if err := f.refused(); err != nil {
		return err
	}
	return f.Queue.AwaitSettled(ctx, ids...)
}

// Stats implements [queue.Queue].
func (f *Faulty[T]) Stats(ctx context.Context) (queue.Stats, error) {
	if err := f.refused(); err != nil {
		return queue.Stats{}, err
	}
	return f.Queue.Stats(ctx)
}

type faultyProducer[T any] struct {
	queue.Producer[T]
	faulty *Faulty[T]
}

// Close implements [queue.Producer].
func (p *faultyProducer[T]) Close() error {
	p.faulty.forget(p.Producer)
	return p.Producer.Close()
}

type faultySubscription[T any] struct {
	queue.Subscription[T]
	faulty *Faulty[T]
}

// Resolve implements [queue.Subscription].
func (s *faultySubscription[T]) Resolve(ctx context.Context, d queue.Delivery[T], v queue.Verdict) error {
	if s.faulty.dropsVerdicts() {
		return nil
	}
	return s.Subscription.Resolve(ctx, d, v)
}

// Close implements [queue.Subscription].
func (s *faultySubscription[T]) Close() error {
	s.faulty.forget(s.Subscription)
	return s.Subscription.Close()
}
