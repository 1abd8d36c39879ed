package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// runReclaimer takes over entries that others have left, for as long as the queue
// has a subscriber. It only makes them ours; the reader reads them then, in order.
func (c *Consumer) runReclaimer(ctx context.Context) error {
	lastSweep := time.Now()
	every(ctx, c.pace.beat, func() {
		stats, err := c.queue.Stats(ctx)
		if err != nil || stats.Subscribers == 0 {
			return
		}
		claimed, err := c.claimVanished(ctx)
		if err == nil && time.Since(lastSweep) >= c.pace.reclaim {
			var swept int
			swept, err = c.sweep(ctx)
			claimed += swept
			lastSweep = time.Now()
		}
		if claimed > 0 {
			c.requestReplay()
		}
		switch {
		case ctx.Err() != nil, isNoGroup(err), isNoStream(err): // the reader heals that
		case err != nil:
			c.link.failed("reclaiming entries", err)
		default:
			c.link.works("reclaiming entries")
		}
	})
	return nil
}

// adopt takes over the entries of vanished consumers before we read anything new.
// One that was alive just now gets the time to show that it still is.
func (c *Consumer) adopt(ctx context.Context) error {
	deadline := time.Now().Add(c.pace.vanished + c.pace.beat)
	wait := backoff.Policy{Initial: c.pace.beat / 2, Max: c.pace.beat}
	for range wait.Attempts(ctx) {
		claimed, err := c.claimVanished(ctx)
		if err != nil {
			return c.heal(ctx, err)
		}
		if claimed > 0 {
			c.requestReplay()
		}
		others, err := c.others(ctx)
		if err != nil {
			return c.heal(ctx, err)
		}
		undecided := false
		for _, other := range others {
			undecided = undecided || (other.Pending > 0 && other.Idle < c.pace.vanished)
		}
		if !undecided || time.Now().After(deadline) {
			return nil
		}
	}
	return ctx.Err()
}

func (c *Consumer) others(ctx context.Context) ([]redis.XInfoConsumer, error) {
	consumers, err := c.rdb.XInfoConsumers(ctx, c.cfg.Stream, c.cfg.Group).Result()
	if err != nil {
		return nil, fmt.Errorf("reading the consumers of group %s: %w", c.cfg.Group, err)
	}
	others := consumers[:0]
	for _, consumer := range consumers {
		if consumer.Name != c.cfg.Consumer {
			others = append(others, consumer)
		}
	}
	return others, nil
}

// claimVanished takes over all entries of consumers that give no sign of life. It
// returns how many.
func (c *Consumer) claimVanished(ctx context.Context) (int, error) {
	others, err := c.others(ctx)
	if err != nil {
		return 0, err
	}
	total := 0
	for _, other := range others {
		switch {
		case other.Pending > 0 && other.Idle >= c.pace.vanished:
			n, err := c.claimAllOf(ctx, other.Name)
			total += n
			if err != nil {
				return total, err
			}
			if n > 0 {
				c.log.InfoContext(ctx, "took over from a vanished consumer", "consumer", other.Name, "entries", n, "silent_for", other.Idle)
			}
		case other.Pending == 0 && other.Idle >= c.pace.forget:
			if err := c.forget(ctx, other.Name); err != nil {
				return total, err
			}
		}
	}
	return total, nil
}

// claimAllOf claims the entries of one consumer. The minimal idle time has Redis
// decide between two consumers that do this at once: the second finds the entries
// fresh, and gets none.
func (c *Consumer) claimAllOf(ctx context.Context, consumer string) (int, error) {
	total := 0
	for start := "-"; ; {
		entries, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: consumer, Start: start, End: "+", Count: page,
		}).Result()
		if err != nil {
			return total, fmt.Errorf("reading what consumer %s has left: %w", consumer, err)
		}
		if len(entries) == 0 {
			return total, nil
		}
		ids := make([]string, len(entries))
		for i, e := range entries {
			ids[i] = e.ID
		}
		// Without JUSTID, which would hide that an entry is gone from the stream:
		// Redis leaves it out of the reply and out of the PEL.
		claimed, err := c.rdb.XClaim(ctx, &redis.XClaimArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer, MinIdle: c.pace.vanished, Messages: ids,
		}).Result()
		if err != nil {
			return total, fmt.Errorf("claiming entries of consumer %s: %w", consumer, err)
		}
		total += len(claimed)
		c.metrics.reclaimed.Add(float64(len(claimed)))
		if len(claimed) < len(ids) {
			if err := c.reportTrimmed(ctx, ids); err != nil {
				return total, err
			}
		}
		start = "(" + ids[len(ids)-1]
	}
}

// sweep claims every entry that is idle for too long, whoever has it. This is the
// net under everything else.
func (c *Consumer) sweep(ctx context.Context) (int, error) {
	total := 0
	for start := "0-0"; ; {
		claimed, next, deleted, err := c.rdb.XAutoClaimWithDeleted(ctx, &redis.XAutoClaimArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer,
			MinIdle: c.cfg.ReclaimAfter, Start: start, Count: page,
		}).Result()
		if err != nil {
			return total, fmt.Errorf("reclaiming entries: %w", err)
		}
		c.metrics.reclaimed.Add(float64(len(claimed)))
		total += len(claimed)
		if err := c.reportTrimmed(ctx, deleted); err != nil {
			return total, err
		}
		if next == "0-0" {
			return total, nil
		}
		start = next
	}
}

// reportTrimmed writes results for those entries that are neither pending nor in
// the stream any more: nobody else will.
func (c *Consumer) reportTrimmed(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if c.look(id) != nil {
			continue // its event is in flight, and its outcome will be stored
		}
		pending, err := c.pending(ctx, id)
		if err != nil {
			return fmt.Errorf("reading whether entry %s is pending: %w", id, err)
		}
		entries, err := c.rdb.XRange(ctx, c.cfg.Stream, id, id).Result()
		if err != nil {
			return fmt.Errorf("reading entry %s: %w", id, err)
		}
		if pending || len(entries) > 0 {
			continue // someone has it, or had it
		}
		_, trimmed := c.parse(id, nil)
		if err := c.reject(ctx, id, nil, trimmed); err != nil {
			return err
		}
	}
	return nil
}

// forgetScript removes a consumer that has nothing pending, in one step: removing a
// consumer drops what it has pending, and it may come back at any moment.
const forgetScript = `
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
	return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
`

// forget removes the name of a consumer that has been silent for long. It may be
// that of a standby, which is silent too: its next read enters it again.
func (c *Consumer) forget(ctx context.Context, consumer string) error {
	if err := c.rdb.Eval(ctx, forgetScript, []string{c.cfg.Stream}, c.cfg.Group, consumer).Err(); err != nil {
		return fmt.Errorf("removing consumer %s: %w", consumer, err)
	}
	return nil
}
