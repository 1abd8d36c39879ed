package main

import (
	"context"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// partEvents is the subscription to the events. The workers are offered on another
// call, which may work while this one does not.
const partEvents = "events"

// A reportingQueue tells whether we are subscribed.
type reportingQueue struct {
	queue.Queue[scaleevent.Event]
	report func(error)
}

// Subscribe implements [queue.Queue].
func (q reportingQueue) Subscribe(ctx context.Context, opts queue.SubscribeOptions) (queue.Subscription[scaleevent.Event], error) {
	sub, err := q.Queue.Subscribe(ctx, opts)
	if ctx.Err() == nil { // not because we were told to stop
		q.report(err)
	}
	return subscription{sub, q.report}, err
}

type subscription struct {
	queue.Subscription[scaleevent.Event]
	report func(error)
}

// Next implements [queue.Subscription].
func (s subscription) Next(ctx context.Context) (queue.Delivery[scaleevent.Event], error) {
	d, err := s.Subscription.Next(ctx)
	if err != nil && ctx.Err() == nil {
		s.report(err)
	}
	return d, err
}
