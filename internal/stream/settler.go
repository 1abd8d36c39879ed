package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// runSettler stores outcomes until ctx ends, those that have come together in one
// transaction. Several of them may run.
func (c *Consumer) runSettler(ctx context.Context, producer queue.Producer[scaleevent.Event]) error {
	for {
		outcomes, err := producer.Outcomes(ctx, 2*page)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // told to stop; the outcomes come again with the entries
			}
			return fmt.Errorf("waiting for outcomes: %w", err)
		}
		batch, restored := c.beginSettling(outcomes)
		if !c.settle(ctx, batch) {
			return nil
		}
		for _, outcome := range outcomes {
			if err := producer.Settle(ctx, outcome.ItemID); err != nil && ctx.Err() == nil {
				return fmt.Errorf("settling event %s: %w", outcome.ItemID, err)
			}
		}
		if c.landAll(outcomes, restored) {
			c.acknowledgeAgain(ctx, outcomes)
		}
	}
}

// acknowledgeAgain is for events whose group was made again meanwhile: they were
// put back into the PEL, perhaps after they had been acknowledged.
func (c *Consumer) acknowledgeAgain(ctx context.Context, outcomes []queue.Outcome) {
	ids := make([]string, len(outcomes))
	for i, o := range outcomes {
		ids[i] = o.ItemID
	}
	for range backoff.Default.Attempts(ctx) {
		err := c.rdb.XAck(ctx, c.cfg.Stream, c.cfg.Group, ids...).Err()
		if err == nil {
			c.link.works("acknowledging events again")
			return
		}
		if ctx.Err() == nil {
			c.link.failed("acknowledging events again", err)
		}
	}
}

// A settlement is an outcome on its way into Redis.
type settlement struct {
	outcome queue.Outcome
	flight  *flight // nil if the event was let go of before
	result  scaleevent.Result
	fields  map[string]string // of the event, if it was rejected

	buried, recorded, acked bool // what is stored of it already
}

// beginSettling marks events, so that they are not let go of now. It returns how
// often entries were restored before.
func (c *Consumer) beginSettling(outcomes []queue.Outcome) (batch []*settlement, restored int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch = make([]*settlement, len(outcomes))
	for i, o := range outcomes {
		s := &settlement{outcome: o, flight: c.inFlight[o.ItemID], result: scaleevent.Result{
			EventID: o.ItemID, Status: o.Status.String(), Reason: o.Reason, Message: o.Message, Attempts: o.Attempts, Details: o.Details,
		}}
		if s.flight != nil {
			s.flight.settling = true
			e := &s.flight.event
			s.result.Type, s.result.TaskID, s.result.Pool = string(e.Type), e.TaskID, e.Pool
		}
		batch[i] = s
	}
	return batch, c.restored
}

// settle stores outcomes, however long Redis stays away. It returns false if ctx
// ended before; then the entries stay pending, and their events are delivered again.
func (c *Consumer) settle(ctx context.Context, batch []*settlement) bool {
	for attempt := range backoff.Default.Attempts(ctx) {
		err := c.tryToSettle(ctx, batch, attempt.Number > 1)
		if err == nil {
			c.link.works("storing outcomes")
			for _, s := range batch {
				c.noteSettled(ctx, s)
			}
			return true
		}
		if ctx.Err() == nil {
			c.link.failed("storing outcomes", err)
		}
	}
	return false
}

func (c *Consumer) tryToSettle(ctx context.Context, batch []*settlement, again bool) error {
	if again {
		// The try before may have succeeded, and its reply got lost.
		if err := c.findStored(ctx, batch); err != nil {
			return err
		}
	}
	for _, s := range batch {
		if s.outcome.Status != queue.Rejected || s.buried || s.fields != nil {
			continue
		}
		var err error
		if s.fields, err = c.original(ctx, s.outcome.ItemID, s.flight); err != nil {
			return err
		}
	}
	return c.store(ctx, batch)
}

// findStored marks what is not pending any more as stored.
func (c *Consumer) findStored(ctx context.Context, batch []*settlement) error {
	for _, s := range batch {
		if s.acked {
			continue
		}
		pending, err := c.pending(ctx, s.outcome.ItemID)
		if isNoGroup(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading whether event %s is pending: %w", s.outcome.ItemID, err)
		}
		if !pending {
			s.buried, s.recorded, s.acked = true, true, true
		}
	}
	return nil
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

// store writes results, with the dead letters of rejected events, and acknowledges
// the entries, in one transaction. A command of it that Redis refuses while it
// carries out the others, because a key is no stream, is found and done later.
func (c *Consumer) store(ctx context.Context, batch []*settlement) error {
	var ids []string
	dead, results := map[*settlement]*redis.StringCmd{}, map[*settlement]*redis.StringCmd{}
	var ack *redis.IntCmd
	cmds, err := c.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		for _, s := range batch {
			if !s.buried && s.result.Status == scaleevent.StatusRejected {
				dead[s] = tx.XAdd(ctx, &redis.XAddArgs{Stream: c.cfg.Dead, Values: flat(deadLetter(s.result, s.fields))})
			}
			if !s.recorded {
				results[s] = c.addResult(ctx, tx, s.result)
			}
			if !s.acked {
				ids = append(ids, s.result.EventID)
			}
		}
		if len(ids) > 0 {
			ack = tx.XAck(ctx, c.cfg.Stream, c.cfg.Group, ids...)
		}
		return nil
	})
	if err == nil {
		return nil
	}
	carriedOut := false // else nothing was done, or nobody knows
	for _, s := range batch {
		s.buried = s.buried || dead[s] != nil && dead[s].Val() != ""
		s.recorded = s.recorded || results[s] != nil && results[s].Val() != ""
		carriedOut = carriedOut || dead[s] != nil && dead[s].Val() != "" || results[s] != nil && results[s].Val() != ""
	}
	for _, s := range batch {
		s.acked = s.acked || carriedOut && ack != nil && ack.Err() == nil
	}
	return fmt.Errorf("storing the outcomes of %d events: %w", len(batch), cause(cmds, err))
}

// ReportWorkerEnd stores how a worker ended, for the producer of its event, unless
// that end is stored already.
func (c *Consumer) ReportWorkerEnd(ctx context.Context, end queue.WorkerEnd) error {
	details := map[string]string{scaleevent.ResultWorker: end.Name}
	if end.Attempt > 0 {
		details[scaleevent.ResultAttempt] = strconv.Itoa(end.Attempt)
	}
	if end.ExitCode != nil {
		details[scaleevent.ResultExitCode] = strconv.Itoa(*end.ExitCode)
	}
	stored, err := c.addEnd(ctx, end.ID, scaleevent.Result{
		EventID: end.EventID, Status: end.Status, Reason: end.Reason, Message: end.Message, TaskID: end.TaskID, Pool: end.Pool, Details: details,
	})
	if err != nil {
		return fmt.Errorf("storing the end of worker %s: %w", end.Name, err)
	}
	if !stored {
		return nil
	}
	c.metrics.ends.WithLabelValues(end.Status).Inc()
	return nil
}

// resultValues lays out the fields of a result as XADD wants them, in a fixed order.
// It is what [scaleevent.Result.Fields] has, without a map: there are many of them.
func resultValues(r scaleevent.Result) []any {
	values := make([]any, 0, 16+2*len(r.Details))
	values = append(values,
		scaleevent.ResultEventID, r.EventID, scaleevent.ResultStatus, r.Status, scaleevent.ResultReason, r.Reason,
		scaleevent.ResultMessage, r.Message, scaleevent.ResultType, r.Type, scaleevent.ResultTaskID, r.TaskID,
		scaleevent.ResultPool, r.Pool, scaleevent.ResultAttempts, r.Attempts)
	for _, name := range slices.Sorted(maps.Keys(r.Details)) {
		values = append(values, name, r.Details[name])
	}
	return values
}

// cause returns why a transaction was discarded: Redis only says that it was.
func cause(cmds []redis.Cmder, err error) error {
	if !redis.HasErrorPrefix(err, "EXECABORT") {
		return err
	}
	for _, cmd := range cmds {
		if why := cmd.Err(); why != nil && !redis.HasErrorPrefix(why, "EXECABORT") {
			return why
		}
	}
	return err
}

func (c *Consumer) addResult(ctx context.Context, to redis.Cmdable, result scaleevent.Result) *redis.StringCmd {
	return to.XAdd(ctx, &redis.XAddArgs{Stream: c.cfg.Results, MaxLen: c.cfg.ResultsMaxLen, Approx: true, Values: resultValues(result)})
}

// reportAccepted tells producers that their events are in work. It is a courtesy:
// that it fails stops nothing.
func (c *Consumer) reportAccepted(ctx context.Context, events []scaleevent.Event) {
	if len(events) == 0 {
		return
	}
	_, err := c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := range events {
			e := &events[i]
			c.addResult(ctx, p, scaleevent.Result{EventID: e.ID, Status: scaleevent.StatusAccepted, Type: string(e.Type), TaskID: e.TaskID, Pool: e.Pool})
		}
		return nil
	})
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.link.failed("reporting accepted events", err)
		return
	}
	c.link.works("reporting accepted events")
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
	letter[scaleevent.FieldDeadAttempts] = strconv.Itoa(result.Attempts)
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
func (c *Consumer) rejectUnread(ctx context.Context, id string, fields map[string]string, attempts int, why *scaleevent.Error) error {
	err := c.reject(ctx, id, fields, attempts, why)
	if err != nil && ctx.Err() == nil && isReply(err) {
		c.link.failed("writing dead letters", err)
		return nil
	}
	if err == nil {
		c.link.works("writing dead letters")
	}
	return err
}

func (c *Consumer) reject(ctx context.Context, id string, fields map[string]string, attempts int, why error) error {
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
		Pool:   first(scaleevent.FieldPool, scaleevent.AliasTargetDeployment), Attempts: attempts,
	}
	if rejected.Field != "" {
		result.Details = map[string]string{"field": rejected.Field}
	}
	if err := c.store(ctx, []*settlement{{result: result, fields: fields}}); err != nil {
		return err
	}
	c.metrics.rejected.WithLabelValues(rejected.Reason).Inc()
	c.metrics.settled.WithLabelValues(scaleevent.StatusRejected).Inc()
	c.log.WarnContext(ctx, "event rejected", "event", id, "task", result.TaskID, "pool", result.Pool,
		"reason", rejected.Reason, "field", rejected.Field, "err", rejected.Message)
	return nil
}

func (c *Consumer) noteSettled(ctx context.Context, s *settlement) {
	outcome, f := s.outcome, s.flight
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
