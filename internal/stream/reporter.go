package stream

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// runReporter tells producers, until ctx ends, which events are in work: the first at
// once, those of a burst together a moment later. Of an event that has ended by then the
// settler tells it, in the same breath as its end.
func (c *Consumer) runReporter(ctx context.Context) error {
	moment := time.NewTimer(0)
	defer moment.Stop()
	for {
		select {
		case <-c.unreportedMore:
		case <-ctx.Done():
			return nil
		}
		for more := true; more && ctx.Err() == nil; {
			for range backoff.Default.Attempts(ctx) {
				var ok bool
				if more, ok = c.reportAccepted(ctx); ok {
					break
				}
			}
		}
		moment.Reset(c.pace.report)
		select {
		case <-moment.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// reportAccepted writes results for a batch of events that are still in work. It
// returns whether there are more, and whether it could.
func (c *Consumer) reportAccepted(ctx context.Context) (more, ok bool) {
	c.reporting.Lock() // until they are written, for the settlers
	defer c.reporting.Unlock()
	flights, more := c.unreportedFlights()
	if len(flights) == 0 {
		return more, true
	}
	r := record{results: make([]told, len(flights))}
	for i, f := range flights {
		e := &f.event
		r.results[i].Result = &scaleevent.Result{EventID: e.ID, Status: scaleevent.StatusAccepted, Type: string(e.Type), TaskID: e.TaskID, Pool: e.Pool}
	}
	done, err := c.write(ctx, c.rdb, r)
	n := done.results
	c.noteReported(flights, n)
	c.logAccepted(ctx, flights[:n])
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.link.failed("reporting accepted events", err)
	default:
		c.link.works("reporting accepted events")
	}
	return more || n < len(flights), err == nil
}

// unreportedFlights takes the next events that are to be reported, leaves out those
// that have ended or are about to, and marks the others.
func (c *Consumer) unreportedFlights() (flights []*flight, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.unreported), settledAtOnce)
	for _, f := range c.unreported[:n] {
		if c.inFlight[f.event.ID] == f && !f.settling {
			f.reporting = true
			flights = append(flights, f)
		}
	}
	clear(c.unreported[:n])
	if c.unreported = c.unreported[n:]; len(c.unreported) == 0 {
		c.unreported = nil
	}
	return flights, c.unreported != nil
}

// noteReported marks the first n of some events as reported. The others stay to be so.
func (c *Consumer) noteReported(flights []*flight, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, f := range flights {
		f.reporting, f.reported = false, i < n
	}
	if n < len(flights) {
		c.unreported = append(slices.Clone(flights[n:]), c.unreported...)
	}
}

func (c *Consumer) logAccepted(ctx context.Context, flights []*flight) {
	if len(flights) > linesAtOnce && !c.log.Enabled(ctx, slog.LevelDebug) {
		c.log.InfoContext(ctx, "events accepted", "events", len(flights), "first", flights[0].event.ID, "last", flights[len(flights)-1].event.ID)
		return
	}
	for _, f := range flights {
		c.log.LogAttrs(ctx, slog.LevelInfo, "event accepted", slog.String("event", f.event.ID),
			slog.String("task", f.event.TaskID), slog.String("pool", f.event.Pool), slog.String("type", string(f.event.Type)))
	}
}
