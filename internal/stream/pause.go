package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// PauseKey is the key that, while it exists, has a group's consumers offer no
// events. Its value says who paused it, and why. It is in Redis, so a pause outlives
// every restart; events wait in the stream, or in the PEL if they had been read.
func PauseKey(stream, group string) string { return stream + ":paused:" + group }

// pauseCheck is how old what we know of a pause may be when events have been read.
const pauseCheck = 100 * time.Millisecond

// checkPause asks Redis whether the group is paused.
func (c *Consumer) checkPause(ctx context.Context) (bool, error) {
	why, err := c.rdb.Get(ctx, PauseKey(c.cfg.Stream, c.cfg.Group)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("reading whether group %s is paused: %w", c.cfg.Group, err)
	}
	paused := err == nil
	c.pauseChecked.Store(time.Now().UnixNano())
	if was := c.paused.Swap(paused); was != paused {
		if paused {
			c.metrics.paused.Set(1)
			c.log.WarnContext(ctx, "paused, events wait in Redis", "why", why)
			c.reads.interrupt()
		} else {
			c.metrics.paused.Set(0)
			c.log.InfoContext(ctx, "resumed")
		}
	}
	return paused, nil
}

// pausedNow is checkPause for the reader, which need not ask for each event.
func (c *Consumer) pausedNow(ctx context.Context) (bool, error) {
	if time.Since(time.Unix(0, c.pauseChecked.Load())) < pauseCheck {
		return c.paused.Load(), nil
	}
	return c.checkPause(ctx)
}

// awaitResume returns once the group is not paused. It asks only if it was.
func (c *Consumer) awaitResume(ctx context.Context) error {
	if !c.paused.Load() {
		return nil
	}
	for range (backoff.Policy{Initial: time.Second / 2, Max: time.Second}).Attempts(ctx) {
		paused, err := c.checkPause(ctx)
		if err != nil {
			return err
		}
		if !paused {
			c.requestReplay() // what was read before the pause was known
			return nil
		}
	}
	return ctx.Err()
}

// Pause has the consumers of a group begin no more events, for a reason that they
// log, until [Resume]. Pausing again replaces the reason.
func Pause(ctx context.Context, rdb redis.UniversalClient, stream, group, why string) error {
	if err := rdb.Set(ctx, PauseKey(stream, group), why, 0).Err(); err != nil {
		return fmt.Errorf("pausing group %s: %w", group, err)
	}
	return nil
}

// Resume ends a pause. It returns false if there was none.
func Resume(ctx context.Context, rdb redis.UniversalClient, stream, group string) (bool, error) {
	n, err := rdb.Del(ctx, PauseKey(stream, group)).Result()
	if err != nil {
		return false, fmt.Errorf("resuming group %s: %w", group, err)
	}
	return n > 0, nil
}
