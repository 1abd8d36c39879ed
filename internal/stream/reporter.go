package stream

import (
	"context"
	"log/slog"
	"time"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// runReporter tells producers, until ctx ends, which events are in work. It waits a
// moment first: of an event that has ended by then, the end says it all, and in a
// burst that spares Redis half of the results. It is a courtesy: that it fails stops
// nothing.
func (c *Consumer) runReporter(ctx context.Context) error {
	moment := time.NewTimer(0)
	defer moment.Stop()
	for {
		select {
		case <-c.unreportedMore:
		case <-ctx.Done():
			return nil
		}
		moment.Reset(c.pace.report)
		select {
		case <-moment.C:
		case <-ctx.Done():
			return nil
		}
		for more := true; more && ctx.Err() == nil; {
			more = c.reportAccepted(ctx)
		}
	}
}

// reportAccepted writes results for a batch of new events that are still in work. It
// returns false if there were no more.
func (c *Consumer) reportAccepted(ctx context.Context) (more bool) {
	c.reporting.Lock() // until they are written, for the settlers
	defer c.reporting.Unlock()
	flights, more := c.unreportedFlights()
	if len(flights) == 0 {
		return more
	}
	r := record{results: make([]*scaleevent.Result, len(flights))}
	for i, f := range flights {
		e := &f.event
		r.results[i] = &scaleevent.Result{EventID: e.ID, Status: scaleevent.StatusAccepted, Type: string(e.Type), TaskID: e.TaskID, Pool: e.Pool}
	}
	c.logAccepted(ctx, flights)
	switch _, _, err := c.write(ctx, r); {
	case ctx.Err() != nil:
	case err != nil:
		c.link.failed("reporting accepted events", err)
	default:
		c.link.works("reporting accepted events")
	}
	return more
}

// unreportedFlights takes the next new events, leaves out those that have ended or
// are about to, and marks the others.
func (c *Consumer) unreportedFlights() (flights []*flight, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.unreported), settledAtOnce)
	for _, f := range c.unreported[:n] {
		if c.inFlight[f.event.ID] == f && !f.settling {
			f.reported = true
			flights = append(flights, f)
		}
	}
	clear(c.unreported[:n])
	if c.unreported = c.unreported[n:]; len(c.unreported) == 0 {
		c.unreported = nil
	}
	return flights, c.unreported != nil
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
