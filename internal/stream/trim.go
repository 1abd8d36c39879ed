package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Retention is how much of the events stream is kept. The zero value keeps all.
// Whatever it says, no entry is removed that a group of the stream has not read and
// acknowledged.
type Retention struct {
	// Age is how long entries are kept; zero means without end.
	Age time.Duration
	// Length is how many entries are kept; zero means any number.
	Length int64
}

// trimAtOnce bounds how many entries one look at the group removes because of the
// stream's length, so that no command takes long.
const trimAtOnce = 10_000

// trim removes what Retention does not ask for.
func (c *Consumer) trim(ctx context.Context) error {
	first, err := c.firstWanted(ctx)
	if err != nil || first == "" {
		return err
	}
	n, err := c.trimAcknowledged(ctx, first)
	if err != nil {
		return err
	}
	if n > 0 {
		c.metrics.trimmed.Add(float64(n))
		c.log.DebugContext(ctx, "trimmed the stream", "entries", n, "first", first)
	}
	return nil
}

// firstWanted returns the ID before which entries are to go, or "" if none is.
func (c *Consumer) firstWanted(ctx context.Context) (string, error) {
	first := ""
	if age := c.cfg.Retention.Age; age > 0 {
		first = fmt.Sprintf("%d-0", time.Now().Add(-age).UnixMilli())
	}
	if c.cfg.Retention.Length > 0 {
		length, err := c.rdb.XLen(ctx, c.cfg.Stream).Result()
		if err != nil {
			return "", fmt.Errorf("reading the length of stream %s: %w", c.cfg.Stream, err)
		}
		surplus := min(length-c.cfg.Retention.Length, trimAtOnce)
		if surplus > 0 {
			entries, err := c.rdb.XRangeN(ctx, c.cfg.Stream, "-", "+", surplus+1).Result()
			if err != nil {
				return "", fmt.Errorf("reading the beginning of stream %s: %w", c.cfg.Stream, err)
			}
			if len(entries) > 0 && (first == "" || compareIDs(entries[len(entries)-1].ID, first) > 0) {
				first = entries[len(entries)-1].ID
			}
		}
	}
	return first, nil
}

// trimAcknowledged removes the entries before an ID, but for those that a group has
// not acknowledged. Redis 8.2 does so itself, and spares just these; before that,
// what is behind the first of them is spared as well.
func (c *Consumer) trimAcknowledged(ctx context.Context, first string) (int64, error) {
	if !c.noAcked {
		n, err := c.rdb.XTrimMinIDMode(ctx, c.cfg.Stream, first, "ACKED").Result()
		if err == nil {
			return n, nil
		}
		if !redis.HasErrorPrefix(err, "syntax error") {
			return 0, fmt.Errorf("trimming stream %s: %w", c.cfg.Stream, err)
		}
		c.noAcked = true
	}
	groups, err := c.rdb.XInfoGroups(ctx, c.cfg.Stream).Result()
	if err != nil {
		return 0, fmt.Errorf("reading the groups of stream %s: %w", c.cfg.Stream, err)
	}
	for _, g := range groups {
		spared, err := c.firstUnacknowledged(ctx, g)
		if err != nil {
			return 0, err
		}
		if compareIDs(spared, first) < 0 {
			first = spared
		}
	}
	n, err := c.rdb.XTrimMinID(ctx, c.cfg.Stream, first).Result()
	if err != nil {
		return 0, fmt.Errorf("trimming stream %s: %w", c.cfg.Stream, err)
	}
	return n, nil
}

// firstUnacknowledged returns an ID before which a group has acknowledged everything.
func (c *Consumer) firstUnacknowledged(ctx context.Context, g redis.XInfoGroup) (string, error) {
	pending, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: c.cfg.Stream, Group: g.Name, Start: "-", End: "+", Count: 1,
	}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", fmt.Errorf("reading the oldest pending entry of group %s: %w", g.Name, err)
	}
	if len(pending) > 0 && compareIDs(pending[0].ID, g.LastDeliveredID) < 0 {
		return pending[0].ID, nil
	}
	return g.LastDeliveredID, nil // which may stay
}
