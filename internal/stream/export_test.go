package stream

import (
	"context"
	"time"
)

// Sample sets the gauges now, instead of at the next look.
func (c *Consumer) Sample(ctx context.Context) error {
	_, err := c.sample(ctx)
	return err
}

// SetVanished has consumers count as gone after d, without the net of reclaiming
// single entries, which depends on ReclaimAfter. It is called before Run.
func (c *Consumer) SetVanished(d time.Duration) {
	was := c.pace
	c.pace = paceFor(d)
	c.pace.reclaim, c.pace.refresh, c.pace.forget = was.reclaim, was.refresh, was.forget
	c.pace.look, c.pace.idle = d/2, d
}

// SetForget has the names of silent consumers without entries be removed after d.
// It is called before Run.
func (c *Consumer) SetForget(d time.Duration) { c.pace.forget, c.pace.look, c.pace.idle = d, d, d }

// SetTrim has the stream trimmed every d. It is called before Run.
func (c *Consumer) SetTrim(d time.Duration) { c.pace.trim, c.pace.look, c.pace.idle = d, d, d }

// SetBlock has reads block for d. It is called before Run.
func (c *Consumer) SetBlock(d time.Duration) { c.pace.block = d }

// MaxInFlight is how many events a consumer holds at most.
const MaxInFlight = maxInFlight
