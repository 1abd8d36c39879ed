package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// afterAll is an entry ID behind all others. Reading our pending entries from
// there reads none, but tells the group that we live. (One less than the highest,
// because Redis begins with the next.)
const afterAll = "18446744073709551615-18446744073709551614"

// runSubscribers watches whether the queue has a subscriber. Without one, nothing
// new may be read: a read that is under way is interrupted, so that an event which
// is sent now waits for whoever has a subscriber.
func (c *Consumer) runSubscribers(ctx context.Context) error {
	every(ctx, c.pace.watch, func() {
		if _, shut := c.queue.Gate(); shut {
			c.reads.interrupt()
			select {
			case c.gateShut <- struct{}{}:
			default: // it was told already
			}
		}
	})
	return nil
}

// runPresence shows the group that entries in flight are cared for, for as long as
// the queue has a subscriber. When it has had none for a while, it takes our events
// out of the queue: whoever has a subscriber takes them over from the PEL, and they
// must not act here later as well. With nothing in flight it asks Redis nothing.
func (c *Consumer) runPresence(ctx context.Context) error {
	lastServed := time.Now()
	every(ctx, c.pace.beat, func() {
		stats, err := c.queue.Stats(ctx)
		if err != nil {
			return
		}
		if stats.Subscribers > 0 {
			lastServed = time.Now()
		}
		n, _ := c.flying()
		switch {
		case n == 0:
			return
		case stats.Subscribers > 0:
			err = c.showPresence(ctx)
		case time.Since(lastServed) >= c.pace.standby:
			err = c.standBy(ctx)
		}
		switch {
		case ctx.Err() != nil, isNoGroup(err): // the reader heals that
		case err != nil:
			c.link.failed("staying in touch", err)
		default:
			c.link.works("staying in touch")
		}
	})
	return nil
}

func (c *Consumer) showPresence(ctx context.Context) error {
	err := c.rdb.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: c.cfg.Group, Consumer: c.cfg.Consumer, Streams: []string{c.cfg.Stream, afterAll}, Count: 1, Block: -1,
	}).Err()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("showing presence: %w", err)
	}
	summary, err := c.rdb.XPending(ctx, c.cfg.Stream, c.cfg.Group).Result()
	if err != nil {
		return fmt.Errorf("looking whether events in flight are ours: %w", err)
	}
	if summary.Consumers[c.cfg.Consumer] < int64(c.unsettled()) {
		if err := c.withdraw(ctx); err != nil {
			return err
		}
	}
	return c.refresh(ctx)
}

// unsettled returns how many events are in flight whose outcome is still to come.
func (c *Consumer) unsettled() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, f := range c.inFlight {
		if !f.settling {
			n++
		}
	}
	return n
}

// refresh resets the idle time of entries that are in flight, so that nobody
// reclaims them. It looks first whether they are still ours: a claim would take
// them back from a consumer that has them now.
func (c *Consumer) refresh(ctx context.Context) error {
	for start := "-"; ; {
		entries, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer,
			Idle: c.pace.refresh, Start: start, End: "+", Count: page,
		}).Result()
		if err != nil {
			return fmt.Errorf("looking for entries to refresh: %w", err)
		}
		var ids []string
		for _, e := range entries {
			if c.look(e.ID) != nil {
				ids = append(ids, e.ID)
			}
		}
		if len(ids) > 0 {
			err := c.rdb.XClaimJustID(ctx, &redis.XClaimArgs{
				Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer, Messages: ids,
			}).Err()
			if err != nil {
				return fmt.Errorf("refreshing entries: %w", err)
			}
		}
		if len(entries) < page {
			return nil
		}
		start = "(" + entries[len(entries)-1].ID
	}
}

// standBy lets go of what is in flight. The entries stay pending: whoever serves
// the group next takes them over, be it this consumer. A subscriber may return in
// the middle of this; the reader offers nothing until it is over, or newer events
// would act before those that are let go of, and then reads all of them again.
func (c *Consumer) standBy(ctx context.Context) error {
	c.offering.Lock()
	defer c.offering.Unlock()
	c.stoodBy.Store(true)
	c.requestReplay()
	n := 0
	var innocent []string
	ids := c.flyingIDs()
	// Newest first, so that no event becomes ready because the one before it left.
	slices.Reverse(ids)
	for _, id := range ids {
		if c.isSettling(id) {
			continue // it has ended, and is stored as soon as Redis lets us
		}
		if c.queue.Losses(id) == 0 {
			innocent = append(innocent, id)
		}
		c.queue.Forget(id) // whatever has become of it
		c.land(id)
		n++
	}
	if n > 0 {
		c.log.InfoContext(ctx, "letting go of events", "events", n)
	}
	return c.takeBack(ctx, innocent)
}

// takeBack has deliveries that end in good order not count: only those that end
// with a crash make an event a suspect; see [Config.PoisonAfter]. It touches only
// entries that are still ours.
func (c *Consumer) takeBack(ctx context.Context, ids []string) error {
	for ids := range slices.Chunk(ids, page) {
		args := []any{c.cfg.Group, c.cfg.Consumer}
		for _, id := range ids {
			args = append(args, id)
		}
		if err := c.rdb.Eval(ctx, takeBackScript, []string{c.cfg.Stream}, args...).Err(); err != nil {
			return fmt.Errorf("taking back deliveries: %w", err)
		}
	}
	return nil
}

// takeBackScript looks and claims in one step, as forgetScript does.
const takeBackScript = `
for i = 3, #ARGV do
	if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) > 0 then
		redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', 0, 'JUSTID')
	end
end
return 1
`

func (c *Consumer) isSettling(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.inFlight[id]
	return f != nil && f.settling
}
