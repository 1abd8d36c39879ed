package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// isNoGroup reports whether the group or the whole stream is gone: FLUSHALL, DEL,
// XGROUP DESTROY, or a failover to a replica that never had it.
func isNoGroup(err error) bool { return redis.HasErrorPrefix(err, "NOGROUP") }

// isNoStream reports whether XINFO found no such key.
func isNoStream(err error) bool { return redis.HasErrorPrefix(err, "no such key") }

// ensureGroup makes the group if it does not exist, and checks that the other
// keys can be written: in a transaction, a key of another type would be found
// only when it is too late.
func (c *Consumer) ensureGroup(ctx context.Context) error {
	if err := c.claimGroup(ctx); err != nil {
		return err
	}
	given := GivenKey(c.cfg.Stream, c.cfg.Group)
	for _, key := range []string{c.cfg.Stream, c.cfg.Results, c.cfg.Dead, given} {
		want := "stream"
		if key == given {
			want = "hash"
		}
		kind, err := c.rdb.Type(ctx, key).Result()
		if err != nil {
			return fmt.Errorf("looking at key %s: %w", key, err)
		}
		if kind != "none" && kind != want {
			return &wrongKeyError{key: key, kind: kind, want: want}
		}
	}
	if err := c.checkReplication(ctx); err != nil {
		return err
	}
	start, err := c.start(ctx)
	if err != nil {
		return err
	}
	err = c.rdb.XGroupCreateMkStream(ctx, c.cfg.Stream, c.cfg.Group, start).Err()
	switch {
	case redis.HasErrorPrefix(err, "BUSYGROUP"):
		return nil // it was there, or someone else was quicker
	case err != nil:
		return fmt.Errorf("creating consumer group %s: %w", c.cfg.Group, err)
	}
	c.log.InfoContext(ctx, "consumer group created", "stream", c.cfg.Stream, "group", c.cfg.Group, "start", start)
	if start == "0" {
		// All events are carried out in full, whatever they had given to each other.
		if err := c.rdb.Del(ctx, given).Err(); err != nil {
			return fmt.Errorf("removing what events of another group were given: %w", err)
		}
	}
	return c.restorePending(ctx)
}

// start returns where a group that has to be made begins: with the first entry of
// the stream, unless this process saw the group before and the stream is still
// the same. Then it goes on where we had got to, because everything up to there
// has been acted on.
func (c *Consumer) start(ctx context.Context) (string, error) {
	c.mu.Lock()
	last := c.lastRead
	c.mu.Unlock()
	if last == "" {
		return "0", nil
	}
	entries, err := c.rdb.XRevRangeN(ctx, c.cfg.Stream, "+", "-", 1).Result()
	if err != nil {
		return "", fmt.Errorf("looking at the end of stream %s: %w", c.cfg.Stream, err)
	}
	if len(entries) == 0 || compareIDs(entries[0].ID, last) < 0 {
		return "0", nil // another stream, or an empty one
	}
	oldest, err := c.rdb.XRangeN(ctx, c.cfg.Stream, "-", "+", 1).Result()
	if err != nil {
		return "", fmt.Errorf("looking at the beginning of stream %s: %w", c.cfg.Stream, err)
	}
	if len(oldest) == 0 || compareIDs(oldest[0].ID, last) > 0 {
		return "0", nil // nothing in it is anything we know
	}
	return last, nil
}

// restorePending puts what is in flight back into the PEL of a group that was made
// again, so that a crash from now on finds it there. What lands meanwhile was
// acknowledged when there was no such entry, so it is acknowledged once more: here,
// or by whoever lets it land; see [Consumer.landAll].
func (c *Consumer) restorePending(ctx context.Context) error {
	c.mu.Lock()
	c.restored++
	flying := c.sortedFlying()
	c.mu.Unlock()
	for ids := range slices.Chunk(flying, page) {
		args := []any{"XCLAIM", c.cfg.Stream, c.cfg.Group, c.cfg.Consumer, 0}
		for _, id := range ids {
			args = append(args, id)
		}
		if err := c.rdb.Do(ctx, append(args, "FORCE", "JUSTID")...).Err(); err != nil {
			return fmt.Errorf("restoring pending entries: %w", err)
		}
		landed := slices.DeleteFunc(ids, func(id string) bool { return c.look(id) != nil })
		if len(landed) == 0 {
			continue
		}
		if err := c.rdb.XAck(ctx, c.cfg.Stream, c.cfg.Group, landed...).Err(); err != nil {
			return fmt.Errorf("acknowledging restored entries: %w", err)
		}
	}
	return nil
}

func (c *Consumer) flyingIDs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sortedFlying()
}

// sortedFlying is called with mu held.
func (c *Consumer) sortedFlying() []string {
	ids := make([]string, 0, len(c.inFlight))
	for id := range c.inFlight {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, compareIDs)
	return ids
}

// heal makes the group again if err says that it is gone. It returns err in any
// case, for the loop to begin anew.
func (c *Consumer) heal(ctx context.Context, err error) error {
	if !isNoGroup(err) && !isNoStream(err) {
		return err
	}
	c.log.WarnContext(ctx, "the consumer group is gone, creating it again", "stream", c.cfg.Stream, "group", c.cfg.Group, "err", err)
	if herr := c.ensureGroup(ctx); herr != nil {
		return herr
	}
	return err
}

// pending asks for an entry in the PEL, of any consumer.
func (c *Consumer) pending(ctx context.Context, rdb redis.Cmdable, id string) *redis.XPendingExtCmd {
	return rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: c.cfg.Stream, Group: c.cfg.Group, Start: id, End: id, Count: 1,
	})
}

// Settled is the ledger for [queue.WithLedger]: it reports whether an event can
// never be delivered again. That is so when the group has read it and it is not
// pending, or when it is not in the stream.
func (c *Consumer) Settled(ctx context.Context, id string) (settled bool, err error) {
	if _, ok := parseID(id); !ok {
		return true, nil // no event of this stream
	}
	if c.look(id) != nil {
		return false, nil // also while its group is made again
	}
	settled, err = c.settled(ctx, c.rdb, id)
	if err != nil || !settled || c.cfg.Replication.Replicas == 0 {
		return settled && err == nil, err
	}
	return c.confirm(ctx, id)
}

func (c *Consumer) settled(ctx context.Context, rdb redis.Cmdable, id string) (bool, error) {
	pending, err := c.pending(ctx, rdb, id).Result()
	if len(pending) > 0 {
		return false, nil
	}
	groupGone := isNoGroup(err)
	if err != nil && !groupGone {
		return false, fmt.Errorf("reading whether event %s is pending: %w", id, err)
	}
	entries, err := rdb.XRange(ctx, c.cfg.Stream, id, id).Result()
	if err != nil {
		return false, fmt.Errorf("reading event %s: %w", id, err)
	}
	if len(entries) == 0 {
		return true, nil
	}
	if groupGone {
		return false, nil // it may be read again
	}
	group, err := c.group(ctx, rdb)
	if err != nil {
		return false, err
	}
	return compareIDs(id, group.LastDeliveredID) <= 0, nil
}

var errNoGroup = errors.New("there is no such consumer group")

// group returns what Redis knows of our group.
func (c *Consumer) group(ctx context.Context, rdb redis.Cmdable) (redis.XInfoGroup, error) {
	groups, err := rdb.XInfoGroups(ctx, c.cfg.Stream).Result()
	if err != nil {
		return redis.XInfoGroup{}, fmt.Errorf("reading the groups of stream %s: %w", c.cfg.Stream, err)
	}
	for _, g := range groups {
		if g.Name == c.cfg.Group {
			return g, nil
		}
	}
	return redis.XInfoGroup{}, fmt.Errorf("reading group %s: %w", c.cfg.Group, errNoGroup)
}

// An entryID is the ID of a stream entry: milliseconds since 1970, and a number.
type entryID struct{ ms, seq uint64 }

func parseID(id string) (entryID, bool) {
	ms, seq, _ := strings.Cut(id, "-")
	var parsed entryID
	var err error
	if parsed.ms, err = strconv.ParseUint(ms, 10, 64); err != nil {
		return entryID{}, false
	}
	if seq != "" {
		if parsed.seq, err = strconv.ParseUint(seq, 10, 64); err != nil {
			return entryID{}, false
		}
	}
	return parsed, true
}

// compareIDs orders entry IDs as Redis does. They come from Redis, so all parse.
func compareIDs(a, b string) int {
	x, _ := parseID(a)
	y, _ := parseID(b)
	return cmp.Or(cmp.Compare(x.ms, y.ms), cmp.Compare(x.seq, y.seq))
}

// age is how long ago Redis gave out an ID.
func age(id string, now time.Time) time.Duration {
	parsed, _ := parseID(id)
	return max(0, now.Sub(time.UnixMilli(int64(min(parsed.ms, 1<<62))))) //nolint:gosec // bounded
}
