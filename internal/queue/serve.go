package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// reconnect paces the attempts to reach the queue again. It is on the same host.
var reconnect = backoff.Policy{Initial: 50 * time.Millisecond, Max: 2 * time.Second}

// Serve leases items from q and runs handle for each, in a goroutine of its own,
// at most opts.Credits at once. It subscribes again whenever the subscription
// breaks, and returns nil when ctx is done and the last handler has finished.
//
// The context of handle outlives ctx. It ends when the lease is lost, when the
// subscription breaks, or when the handler has not finished opts.DrainTimeout
// after the end of ctx. The handler's verdict is then dropped: someone else has
// the item, or will have it. An item that comes back while its handler still
// unwinds waits for it: no two handlers have the same item at once.
//
// A retry after the end of ctx is not resolved, because the item would be leased
// to this subscription again. It goes back to the queue with the subscription's end.
func Serve[T any](ctx context.Context, q Queue[T], opts SubscribeOptions, log *slog.Logger, handle func(ctx context.Context, d Delivery[T]) Verdict) error {
	if opts.Credits < 1 {
		return fmt.Errorf("subscribing with %d credits: at least 1 is needed", opts.Credits)
	}
	if opts.DrainTimeout <= 0 {
		opts.DrainTimeout = DefaultDrainTimeout
	}
	log = log.With("subscriber", opts.Name)
	connected := true // not to be mistaken for news
	for attempt := range reconnect.Attempts(ctx) {
		sub, err := q.Subscribe(ctx, opts)
		if err == nil {
			if connected {
				log.DebugContext(ctx, "connected to the queue")
			} else {
				log.InfoContext(ctx, "connected to the queue again")
			}
			connected = true
			attempt.Progress()
			err = serveOne(ctx, sub, opts, log, handle)
		}
		if ctx.Err() != nil {
			break
		}
		if connected {
			log.WarnContext(ctx, "queue is unreachable, trying again", "err", err)
			connected = false
		}
	}
	return nil
}

// serveOne serves one subscription until it breaks or ctx is done, and closes it.
// It returns when the last handler has, so that no handler runs beside the one
// that gets its item next, by a later subscription.
func serveOne[T any](ctx context.Context, sub Subscription[T], opts SubscribeOptions, log *slog.Logger, handle func(context.Context, Delivery[T]) Verdict) error {
	handlersCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var handlers sync.WaitGroup
	var items turns
	var err error
	for {
		var d Delivery[T]
		if d, err = sub.Next(ctx); err != nil {
			break
		}
		if err = ctx.Err(); err != nil {
			break // too late: it goes back when we close
		}
		previous, done := items.take(d.ID)
		handlers.Go(func() {
			defer done()
			select {
			case <-previous:
				handleOne(handlersCtx, ctx.Done(), sub, d, log, handle)
			case <-d.Lost: // again
			}
		})
	}
	if ctx.Err() != nil {
		drain := time.AfterFunc(opts.DrainTimeout, cancel)
		handlers.Wait()
		drain.Stop()
	}
	cancel()
	closeErr := sub.Close() // first, so that someone else has the items soon
	handlers.Wait()
	return errors.Join(err, closeErr)
}

// turns keep the handlers of one item apart.
type turns struct {
	mu   sync.Mutex
	last map[string]chan struct{} // closed at the end of the last turn, by item
}

// take returns what is closed when the turn of the caller comes, and what the
// caller calls at its end.
func (t *turns) take(id string) (previous <-chan struct{}, done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last, ok := t.last[id]
	if !ok {
		last = make(chan struct{})
		close(last)
	}
	if t.last == nil {
		t.last = map[string]chan struct{}{}
	}
	own := make(chan struct{})
	t.last[id] = own
	return last, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.last[id] == own {
			delete(t.last, id)
		}
		close(own)
	}
}

func handleOne[T any](ctx context.Context, stopping <-chan struct{}, sub Subscription[T], d Delivery[T], log *slog.Logger, handle func(context.Context, Delivery[T]) Verdict) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-d.Lost:
			cancel(ErrLeaseLost)
		case <-ctx.Done():
		}
	}()
	verdict := handle(ctx, d)
	if ctx.Err() != nil {
		log.WarnContext(ctx, "verdict dropped", "item", d.ID, "attempt", d.Attempt, "err", context.Cause(ctx))
		return
	}
	if verdict.Status == 0 && isClosed(stopping) {
		log.DebugContext(ctx, "left for the next subscriber", "item", d.ID, "attempt", d.Attempt, "reason", verdict.Message)
		return
	}
	if err := sub.Resolve(ctx, d, verdict); err != nil {
		log.WarnContext(ctx, "verdict dropped", "item", d.ID, "attempt", d.Attempt, "err", err)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
