package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// runSettler stores outcomes until ctx ends. Several of them may run.
func (c *Consumer) runSettler(ctx context.Context, producer queue.Producer[scaleevent.Event]) error {
	for {
		outcome, err := producer.Outcome(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // told to stop; the outcomes come again with the entries
			}
			return fmt.Errorf("waiting for outcomes: %w", err)
		}
		if !c.settle(ctx, outcome) {
			return nil
		}
		if err := producer.Settle(ctx, outcome.ItemID); err != nil && ctx.Err() == nil {
			return fmt.Errorf("settling event %s: %w", outcome.ItemID, err)
		}
		c.land(outcome.ItemID)
	}
}

// settle stores an outcome, however long Redis stays away. It returns false if ctx
// ended before; then the entry stays pending, and its event is delivered again.
func (c *Consumer) settle(ctx context.Context, outcome queue.Outcome) bool {
	f := c.beginSettling(outcome.ItemID)
	for attempt := range backoff.Default.Attempts(ctx) {
		err := c.tryToSettle(ctx, outcome, f, attempt.Number > 1)
		if err == nil {
			c.link.works("storing outcomes")
			c.noteSettled(ctx, outcome, f)
			return true
		}
		if ctx.Err() == nil {
			c.link.failed("storing outcomes", err)
		}
	}
	return false
}

// beginSettling marks an event, so that it is not let go of now. It returns nil if
// the event was let go of before.
func (c *Consumer) beginSettling(id string) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.inFlight[id]
	if f != nil {
		f.settling = true
	}
	return f
}

func (c *Consumer) tryToSettle(ctx context.Context, outcome queue.Outcome, f *flight, again bool) error {
	id := outcome.ItemID
	if again {
		// The try before may have succeeded, and its reply got lost.
		pending, err := c.pending(ctx, id)
		if err != nil && !isNoGroup(err) {
			return fmt.Errorf("reading whether event %s is pending: %w", id, err)
		}
		if err == nil && !pending {
			return nil
		}
	}
	result := scaleevent.Result{
		EventID: id, Status: outcome.Status.String(), Reason: outcome.Reason, Message: outcome.Message,
		Attempts: outcome.Attempts, Details: outcome.Details,
	}
	if f != nil {
		result.Type, result.TaskID, result.Pool = string(f.event.Type), f.event.TaskID, f.event.Pool
	}
	if outcome.Status != queue.Rejected {
		return c.store(ctx, result, nil)
	}
	fields, err := c.original(ctx, id, f)
	if err != nil {
		return err
	}
	return c.store(ctx, result, fields)
}

// original returns the fields of an event as they were sent or, if the entry is
// gone, as we understood them.
func (c *Consumer) original(ctx context.Context, id string, f *flight) (map[string]string, error) {
	entries, err := c.rdb.XRange(ctx, c.cfg.Stream, id, id).Result()
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading event %s: %w", id, err)
	case len(entries) > 0:
		return fieldsOf(entries[0]), nil
	case f != nil:
		return f.event.Fields(), nil
	default:
		return map[string]string{}, nil
	}
}

// store writes a result, with the dead letter of a rejected event, and acknowledges
// the entry: all of it or nothing.
func (c *Consumer) store(ctx context.Context, result scaleevent.Result, rejected map[string]string) error {
	_, err := c.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.XAdd(ctx, &redis.XAddArgs{Stream: c.cfg.Results, MaxLen: c.cfg.ResultsMaxLen, Approx: true, Values: flat(result.Fields())})
		if result.Status == scaleevent.StatusRejected {
			tx.XAdd(ctx, &redis.XAddArgs{Stream: c.cfg.Dead, Values: flat(deadLetter(result, rejected))})
		}
		tx.XAck(ctx, c.cfg.Stream, c.cfg.Group, result.EventID)
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing the outcome of event %s: %w", result.EventID, err)
	}
	return nil
}

// deadLetter is every field of the event, and why it is dead.
func deadLetter(result scaleevent.Result, fields map[string]string) map[string]string {
	letter := maps.Clone(fields)
	if letter == nil {
		letter = map[string]string{}
	}
	letter[scaleevent.FieldDeadEventID] = result.EventID
	letter[scaleevent.FieldDeadReason] = result.Reason
	letter[scaleevent.FieldDeadMessage] = result.Message
	letter[scaleevent.FieldDeadTime] = time.Now().UTC().Format(time.RFC3339Nano)
	return letter
}

// flat lays out fields as XADD wants them, in a fixed order.
func flat(fields map[string]string) []string {
	values := make([]string, 0, 2*len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		values = append(values, name, fields[name])
	}
	return values
}

// rejectUnread stores the rejection of an entry that never reaches the queue. If
// only that fails, the entry stays pending and is tried again by the next sweep:
// it must not stop those behind it.
func (c *Consumer) rejectUnread(ctx context.Context, id string, fields map[string]string, why *scaleevent.Error) error {
	err := c.reject(ctx, id, fields, why)
	if err != nil && ctx.Err() == nil && isReply(err) {
		c.link.failed("writing dead letters", err)
		return nil
	}
	if err == nil {
		c.link.works("writing dead letters")
	}
	return err
}

func (c *Consumer) reject(ctx context.Context, id string, fields map[string]string, why error) error {
	var rejected *scaleevent.Error
	if !errors.As(why, &rejected) {
		return why
	}
	first := func(names ...string) string {
		for _, name := range names {
			if value := fields[name]; value != "" {
				return value[:min(len(value), scaleevent.MaxNameBytes)]
			}
		}
		return ""
	}
	result := scaleevent.Result{
		EventID: id, Status: scaleevent.StatusRejected, Reason: rejected.Reason, Message: rejected.Message,
		Type:   first(scaleevent.FieldType),
		TaskID: first(scaleevent.FieldTaskID, scaleevent.AliasJobID),
		Pool:   first(scaleevent.FieldPool, scaleevent.AliasTargetDeployment),
	}
	if rejected.Field != "" {
		result.Details = map[string]string{"field": rejected.Field}
	}
	if err := c.store(ctx, result, fields); err != nil {
		return err
	}
	c.metrics.rejected.WithLabelValues(rejected.Reason).Inc()
	c.metrics.settled.WithLabelValues(scaleevent.StatusRejected).Inc()
	c.log.WarnContext(ctx, "event rejected", "event", id, "task", result.TaskID, "pool", result.Pool,
		"reason", rejected.Reason, "field", rejected.Field, "err", rejected.Message)
	return nil
}

func (c *Consumer) noteSettled(ctx context.Context, outcome queue.Outcome, f *flight) {
	c.metrics.settled.WithLabelValues(outcome.Status.String()).Inc()
	if outcome.Status == queue.Rejected {
		c.metrics.rejected.WithLabelValues(outcome.Reason).Inc()
	}
	attrs := []any{"event", outcome.ItemID}
	if f != nil {
		took := time.Since(f.accepted)
		c.metrics.duration.Observe(took.Seconds())
		attrs = append(attrs, "task", f.event.TaskID, "pool", f.event.Pool, "duration", took.Round(time.Microsecond))
	}
	attrs = append(attrs, "status", outcome.Status.String(), "reason", outcome.Reason, "attempts", outcome.Attempts, "message", outcome.Message)
	c.log.InfoContext(ctx, "event settled", attrs...)
}
