package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// takeOver makes everything ours that is pending in the group, before we read
// anything new. It does not ask how long the others have been silent: whoever has
// the subscriber is the active main pod, and there is only one. What we hold that
// somebody else has meanwhile taken over from us is withdrawn from the queue.
func (c *Consumer) takeOver(ctx context.Context) error {
	if err := c.withdraw(ctx); err != nil {
		return c.heal(ctx, err)
	}
	claimed, err := c.claimOthers(ctx, 0)
	if err != nil {
		return c.heal(ctx, err)
	}
	if n, _ := c.flying(); claimed > 0 && n > 0 {
		// What we hold may have to come behind what we got: all is read again, in order.
		return c.standBy(ctx)
	}
	return nil
}

// runKeeper looks at the group now and then, for as long as ctx lasts: for the
// gauges that only Redis knows, for entries that nobody cares for, and for the names
// of consumers that are long gone. An idle consumer looks less often.
func (c *Consumer) runKeeper(ctx context.Context) error {
	k := &keeper{Consumer: c, swept: time.Now()}
	every(ctx, c.pace.look, func() {
		err := k.look(ctx)
		switch {
		case ctx.Err() != nil, isNoGroup(err), isNoStream(err), errors.Is(err, errNoGroup): // the reader heals that
		case err != nil:
			c.link.failed("looking after the group", err)
		default:
			c.link.works("looking after the group")
		}
	})
	return nil
}

type keeper struct {
	*Consumer
	looked, swept, forgot, trimmed time.Time
	quiet                          bool // there was nothing to be seen at the last look
	interrupted                    int  // reads, at the last look
}

func (k *keeper) look(ctx context.Context) error {
	flying, _ := k.flying()
	interrupted := k.reads.interrupted()
	if k.quiet && flying == 0 && interrupted == k.interrupted && time.Since(k.looked) < k.pace.idle {
		return nil
	}
	k.interrupted = interrupted
	group, err := k.sample(ctx)
	if err != nil {
		return err
	}
	k.looked = time.Now()
	k.quiet = group.Pending == 0 && group.Lag == 0
	stats, err := k.queue.Stats(ctx)
	if err != nil || stats.Subscribers == 0 {
		return nil //nolint:nilerr // the queue has ended, which others report
	}
	if k.cfg.Retention != (Retention{}) && time.Since(k.trimmed) >= k.pace.trim {
		k.trimmed = time.Now()
		if err := k.trim(ctx); err != nil {
			return err
		}
	}
	due := time.Since(k.swept) >= k.pace.reclaim
	if group.Pending > 0 && (group.Pending > int64(flying) || due) {
		// Something is pending that is not in flight here: a read that we gave up, or
		// one that another consumer had open when we took over.
		k.requestReplay()
		if _, err := k.claimOthers(ctx, k.pace.vanished); err != nil {
			return err
		}
		if due {
			k.swept = time.Now()
			if err := k.sweep(ctx); err != nil {
				return err
			}
		}
	}
	if group.Consumers > 1 && time.Since(k.forgot) >= min(k.pace.reclaim, k.pace.forget) {
		k.forgot = time.Now()
		return k.forgetSilent(ctx)
	}
	return nil
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

// claimOthers takes over all entries of consumers that have been silent for so
// long, and returns how many.
func (c *Consumer) claimOthers(ctx context.Context, silent time.Duration) (total int, err error) {
	others, err := c.others(ctx)
	if err != nil {
		return 0, err
	}
	for _, other := range others {
		if other.Pending == 0 || other.Idle < silent {
			continue
		}
		n, err := c.claimAllOf(ctx, other.Name, silent)
		total += n
		if n > 0 {
			c.requestReplay()
			c.log.InfoContext(ctx, "took over from another consumer", "consumer", other.Name, "entries", n, "silent_for", other.Idle)
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// claimAllOf claims the entries of one consumer, and returns how many. They do not
// count as delivered by that: the reader reads them then, in order.
func (c *Consumer) claimAllOf(ctx context.Context, consumer string, minIdle time.Duration) (int, error) {
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
		claimed, err := c.rdb.XClaimJustID(ctx, &redis.XClaimArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer, MinIdle: minIdle, Messages: ids,
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
// net under everything else. It begins at the beginning each time, so there is no
// cursor that a group which was made again could leave astray.
func (c *Consumer) sweep(ctx context.Context) error {
	for start := "0-0"; ; {
		claimed, next, deleted, err := c.rdb.XAutoClaimWithDeleted(ctx, &redis.XAutoClaimArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer,
			MinIdle: c.cfg.ReclaimAfter, Start: start, Count: page,
		}).Result()
		if err != nil {
			return fmt.Errorf("reclaiming entries: %w", err)
		}
		c.metrics.reclaimed.Add(float64(len(claimed)))
		if len(claimed) > 0 {
			c.requestReplay()
		}
		if err := c.reportTrimmed(ctx, deleted); err != nil {
			return err
		}
		if next == "0-0" {
			return nil
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
		pending, err := c.pending(ctx, c.rdb, id).Result()
		if err != nil {
			return fmt.Errorf("reading whether entry %s is pending: %w", id, err)
		}
		entries, err := c.rdb.XRange(ctx, c.cfg.Stream, id, id).Result()
		if err != nil {
			return fmt.Errorf("reading entry %s: %w", id, err)
		}
		if len(pending) > 0 || len(entries) > 0 {
			continue // someone has it, or had it
		}
		_, trimmed := c.parse(redis.XMessage{ID: id})
		if err := c.reject(ctx, id, nil, 0, trimmed); err != nil {
			return err
		}
	}
	return nil
}

// withdraw takes out of the queue what is in flight here and pending elsewhere, or
// settled elsewhere: somebody else has taken it over.
func (c *Consumer) withdraw(ctx context.Context) error {
	flying := c.flyingIDs()
	if len(flying) == 0 {
		return nil
	}
	ours := map[string]bool{}
	for start := "-"; ; {
		entries, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer, Start: start, End: "+", Count: page,
		}).Result()
		if err != nil {
			return fmt.Errorf("looking whether events in flight are ours: %w", err)
		}
		for _, e := range entries {
			ours[e.ID] = true
		}
		if len(entries) < page {
			break
		}
		start = "(" + entries[len(entries)-1].ID
	}
	withdrawn := 0
	for _, id := range flying {
		if ours[id] || c.isSettling(id) || c.look(id) == nil {
			continue
		}
		gone, err := c.settledElsewhere(ctx, id)
		if err != nil {
			return err
		}
		if !gone {
			continue
		}
		c.queue.Forget(id)
		c.land(id)
		withdrawn++
	}
	if withdrawn > 0 {
		c.log.WarnContext(ctx, "another main pod has taken over, withdrawing events", "events", withdrawn)
	}
	return nil
}

// settledElsewhere reports whether an event that is not pending for us is somebody
// else's now. One whose entry was trimmed is not: its outcome is still ours to tell.
func (c *Consumer) settledElsewhere(ctx context.Context, id string) (bool, error) {
	entries, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: c.cfg.Stream, Group: c.cfg.Group, Start: id, End: id, Count: 1,
	}).Result()
	if err != nil {
		return false, fmt.Errorf("reading whose event %s is: %w", id, err)
	}
	if len(entries) > 0 {
		return entries[0].Consumer != c.cfg.Consumer, nil
	}
	there, err := c.rdb.XRange(ctx, c.cfg.Stream, id, id).Result()
	if err != nil {
		return false, fmt.Errorf("reading event %s: %w", id, err)
	}
	group, err := c.group(ctx, c.rdb)
	if err != nil {
		return false, err
	}
	if compareIDs(id, group.LastDeliveredID) > 0 {
		return false, nil // a new master has not given it to the group yet
	}
	// It may have been settled here just now.
	return len(there) > 0 && c.look(id) != nil && !c.isSettling(id), nil
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

// forgetSilent removes the names of consumers that have been silent for long. One
// of them may be that of a standby, which is silent too: its next read enters it again.
func (c *Consumer) forgetSilent(ctx context.Context) error {
	others, err := c.others(ctx)
	if err != nil {
		return err
	}
	for _, other := range others {
		if other.Pending > 0 || other.Idle < c.pace.forget {
			continue
		}
		if err := c.rdb.Eval(ctx, forgetScript, []string{c.cfg.Stream}, c.cfg.Group, other.Name).Err(); err != nil {
			return fmt.Errorf("removing consumer %s: %w", other.Name, err)
		}
	}
	return nil
}
