package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// afterAll is an entry ID behind all others. Reading our pending entries from
// there reads none, but tells the group that we live. (One less than the highest,
// because Redis begins with the next.)
const afterAll = "18446744073709551615-18446744073709551614"

// runPresence shows the group that we live, and that entries in flight are cared
// for, for as long as the queue has a subscriber. When it has had none for a
// while, it takes our events out of the queue: whoever has a subscriber takes them
// over from the PEL, and they must not act here later as well.
func (c *Consumer) runPresence(ctx context.Context, producer queue.Producer[scaleevent.Event]) error {
	lastServed := time.Now()
	every(ctx, c.pace.beat, func() {
		stats, err := c.queue.Stats(ctx)
		if err != nil {
			return
		}
		if stats.Subscribers > 0 {
			lastServed = time.Now()
		}
		switch {
		case stats.Subscribers > 0:
			err = c.showPresence(ctx)
		case time.Since(lastServed) >= c.pace.standby:
			err = c.standBy(ctx, producer)
		default:
			err = c.rdb.Ping(ctx).Err()
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
	return c.refresh(ctx)
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
func (c *Consumer) standBy(ctx context.Context, producer queue.Producer[scaleevent.Event]) error {
	c.offering.Lock()
	defer c.offering.Unlock()
	c.stoodBy.Store(true)
	c.requestReplay()
	released := 0
	ids := c.flyingIDs()
	// Newest first, so that no event becomes ready because the one before it left.
	slices.Reverse(ids)
	for _, id := range ids {
		if c.isSettling(id) {
			continue // it has ended, and is stored as soon as Redis lets us
		}
		// Settle has the queue forget the item, whatever has become of it.
		if err := producer.Settle(ctx, id); err != nil {
			return fmt.Errorf("taking event %s out of the queue: %w", id, err)
		}
		c.land(id)
		released++
	}
	if released > 0 {
		c.log.InfoContext(ctx, "nobody takes events, letting go of them", "events", released)
	}
	return c.rdb.Ping(ctx).Err()
}

func (c *Consumer) isSettling(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.inFlight[id]
	return f != nil && f.settling
}
