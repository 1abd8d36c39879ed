package stream

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// GivenKey is the key of a hash that tells, by event, what earlier ones have given to
// it; see [queue.Verdict.Gives]. A value is, for each of those, a space, its ID, "=" and the
// number. recordScript writes it in one step with the acknowledgement of the event that
// gives, and removes it with that of the event that was given something: a crash finds
// either event with all of its work, or with what is left of it.
func GivenKey(stream, group string) string { return stream + ":given:" + group }

// given returns what was given to events, by their IDs and those of who gave it. Only one
// that was read before can have been given anything.
func (c *Consumer) given(ctx context.Context, ids []string) (map[string]map[string]int, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	key := GivenKey(c.cfg.Stream, c.cfg.Group)
	values, err := c.rdb.HMGet(ctx, key, ids...).Result()
	if slices.ContainsFunc(values, func(value any) bool { return value != nil }) {
		// A new master that lacks this has the event that gave it, with all of its work.
		err = c.replicated(ctx, func(rdb redis.Cmdable) (wrote bool, err error) {
			values, err = rdb.HMGet(ctx, key, ids...).Result()
			return false, err //nolint:wrapcheck // done below
		})
	}
	if err != nil {
		return nil, fmt.Errorf("reading what events were given: %w", err)
	}
	var given map[string]map[string]int
	for i, value := range values {
		text, ok := value.(string)
		if !ok {
			continue // nothing
		}
		if given == nil {
			given = make(map[string]map[string]int)
		}
		given[ids[i]] = make(map[string]int)
		for _, pair := range strings.Fields(text) {
			from, number, _ := strings.Cut(pair, "=")
			n, err := strconv.Atoi(number)
			if err != nil {
				return nil, fmt.Errorf("reading what event %s was given: field %s of %s holds %q: %w", ids[i], ids[i], key, text, err)
			}
			given[ids[i]][from] = n
		}
	}
	return given, nil
}

func gives(o queue.Outcome) bool { return len(o.Gives) > 0 }

// begin is beginSettling for outcomes that still stand, which it returns. An event that was
// let go of and offered again meanwhile will be carried out once more. For any other
// that is the same, but one that gives something would then do what it has given away.
func (c *Consumer) begin(outcomes []queue.Outcome) (standing []queue.Outcome, batch []settlement, restored int) {
	if slices.ContainsFunc(outcomes, gives) {
		c.offering.Lock() // nothing is let go of meanwhile
		defer c.offering.Unlock()
		outcomes = slices.DeleteFunc(outcomes, func(o queue.Outcome) bool { return gives(o) && !c.queue.Ended(o.ItemID) })
	}
	batch, restored = c.beginSettling(outcomes)
	return outcomes, batch, restored
}

// handOn has the queue forget events whose outcomes are stored. What they give is handed
// on there to those that it holds. None is offered meanwhile: we might have looked into
// Redis before it was stored, and the queue would have it too late.
func (c *Consumer) handOn(ctx context.Context, producer queue.Producer[*scaleevent.Event], outcomes []queue.Outcome, ids []string) error {
	if slices.ContainsFunc(outcomes, gives) {
		c.offering.Lock()
		defer c.offering.Unlock()
	}
	if err := producer.Settle(ctx, ids...); err != nil && ctx.Err() == nil {
		return fmt.Errorf("settling events: %w", err)
	}
	return nil
}
