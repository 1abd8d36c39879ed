package queue

import "context"

// Reporting returns q, whose report is called with nil whenever somebody has
// subscribed, and with the error whenever that failed or a subscription broke. It
// is not called for the end of a caller's own context.
func Reporting[T any](q Queue[T], report func(error)) Queue[T] {
	return reporting[T]{q, report}
}

type reporting[T any] struct {
	Queue[T]
	report func(error)
}

// Subscribe implements [Queue].
func (q reporting[T]) Subscribe(ctx context.Context, opts SubscribeOptions) (Subscription[T], error) {
	sub, err := q.Queue.Subscribe(ctx, opts)
	if ctx.Err() == nil { // not because the caller was told to stop
		q.report(err)
	}
	if err != nil {
		return nil, err
	}
	return reportingSubscription[T]{sub, q.report}, nil
}

type reportingSubscription[T any] struct {
	Subscription[T]
	report func(error)
}

// Next implements [Subscription].
func (s reportingSubscription[T]) Next(ctx context.Context) (Delivery[T], error) {
	d, err := s.Subscription.Next(ctx)
	if err != nil && ctx.Err() == nil {
		s.report(err)
	}
	return d, err
}

// Deliveries implements [Subscription].
func (s reportingSubscription[T]) Deliveries(ctx context.Context, most int) ([]Delivery[T], error) {
	deliveries, err := s.Subscription.Deliveries(ctx, most)
	if err != nil && ctx.Err() == nil {
		s.report(err)
	}
	return deliveries, err
}
