package stream

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// A confirming holds the confirmation that those join who ask now. Replicas are waited for
// once for all of them: thousands may ask when a scaler comes back, and each wait
// takes a connection.
type confirming struct {
	turn sync.Mutex // held by the confirmation that is under way
	mu   sync.Mutex
	next *confirmation // that has not begun; guarded by mu
}

// A confirmation finds out which events are settled, also as replicas know it.
type confirmation struct {
	ids     []string // until it begins, guarded by confirming.mu
	settled map[string]bool
	err     error
	done    chan struct{} // closed when the answer is there
}

// confirm reports whether an event is settled, and stays so after a failover.
func (c *Consumer) confirm(ctx context.Context, id string) (bool, error) {
	c.confirming.mu.Lock()
	next := c.confirming.next
	if next == nil {
		next = &confirmation{settled: map[string]bool{}, done: make(chan struct{})}
		c.confirming.next = next
		go c.confirmAll(context.WithoutCancel(ctx), next) // also for those who join
	}
	next.ids = append(next.ids, id)
	c.confirming.mu.Unlock()
	select {
	case <-next.done:
		return next.settled[id], next.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (c *Consumer) confirmAll(ctx context.Context, this *confirmation) {
	c.confirming.turn.Lock()
	defer c.confirming.turn.Unlock()
	c.confirming.mu.Lock()
	c.confirming.next = nil
	c.confirming.mu.Unlock()
	defer close(this.done)
	// Longer than replicas are waited for: that ends by itself.
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Replication.Timeout+time.Minute)
	defer cancel()
	this.err = c.replicated(ctx, func(rdb redis.Cmdable) (wrote bool, err error) {
		for _, id := range this.ids {
			if this.settled[id], err = c.settled(ctx, rdb, id); err != nil {
				return false, err
			}
		}
		return false, nil
	})
}
