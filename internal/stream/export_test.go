package stream

import (
	"context"
	"time"
)

// Sample sets the gauges now, instead of within ten seconds.
func (c *Consumer) Sample(ctx context.Context) error { return c.sample(ctx) }

// SetVanished has consumers count as gone after d, without the net of reclaiming
// single entries, which depends on ReclaimAfter. It is called before Run.
func (c *Consumer) SetVanished(d time.Duration) {
	reclaim, refresh := c.pace.reclaim, c.pace.refresh
	c.pace = paceFor(d)
	c.pace.reclaim, c.pace.refresh = reclaim, refresh
}
