package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// settledAtOnce bounds how many outcomes are stored in one transaction, which Redis
// does nothing else beside: about a millisecond.
const settledAtOnce = 256

// runSettler stores outcomes until ctx ends, those that have come together in one
// transaction. Several of them may run.
func (c *Consumer) runSettler(ctx context.Context, producer queue.Producer[*scaleevent.Event]) error {
	for {
		outcomes, err := producer.Outcomes(ctx, settledAtOnce)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // told to stop; the outcomes come again with the entries
			}
			return fmt.Errorf("waiting for outcomes: %w", err)
		}
		outcomes, batch, restored := c.begin(outcomes)
		if len(outcomes) == 0 {
			continue
		}
		if !c.settle(ctx, batch) {
			return nil
		}
		ids := make([]string, len(outcomes))
		for i := range outcomes {
			ids[i] = outcomes[i].ItemID
		}
		if err := c.handOn(ctx, producer, outcomes, ids); err != nil {
			return err
		}
		if c.landAll(ids, restored) {
			c.acknowledgeAgain(ctx, ids)
		}
	}
}

// acknowledgeAgain is for events whose group was made again meanwhile: they were
// put back into the PEL, perhaps after they had been acknowledged.
func (c *Consumer) acknowledgeAgain(ctx context.Context, ids []string) {
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
	outcome *queue.Outcome
	flight  *flight // nil if the event was let go of before
	result  scaleevent.Result
	fields  map[string]string // of the event, if it was rejected
	gives   map[string]int    // to later events

	buried, recorded, acked bool   // what is stored of it already
	where                   string // at which master, see leader
	unreported              bool   // that it was accepted is stored with its outcome
}

// beginSettling marks events, so that they are not let go of now, and finds out which
// of them are not reported as accepted yet. It returns how often entries were restored
// before.
func (c *Consumer) beginSettling(outcomes []queue.Outcome) (batch []settlement, restored int) {
	batch = make([]settlement, len(outcomes))
	c.mu.Lock()
	defer c.mu.Unlock()
	reporting := false
	for i := range outcomes {
		s := &batch[i]
		s.outcome = &outcomes[i]
		if s.flight = c.inFlight[s.outcome.ItemID]; s.flight != nil {
			s.flight.settling = true
			reporting = reporting || s.flight.reporting
		}
	}
	restored = c.restored
	if reporting { // that they were accepted is told first
		c.mu.Unlock()
		c.reporting.Lock()
		c.mu.Lock()
		c.reporting.Unlock()
	}
	for i := range batch {
		s := &batch[i]
		s.unreported = s.flight == nil || !s.flight.reported
		s.describe()
	}
	return batch, restored
}

// describe makes the result of the outcome.
func (s *settlement) describe() {
	o := s.outcome
	s.gives = o.Gives
	s.result = scaleevent.Result{
		EventID: o.ItemID, Status: o.Status.String(), Reason: o.Reason, Message: o.Message, Attempts: o.Attempts, Details: o.Details,
	}
	if s.flight != nil {
		e := &s.flight.event
		s.result.Type, s.result.TaskID, s.result.Pool = string(e.Type), e.TaskID, e.Pool
	}
}

// settle stores outcomes, however long Redis stays away. It returns false if ctx
// ended before; then the entries stay pending, and their events are delivered again.
func (c *Consumer) settle(ctx context.Context, batch []settlement) bool {
	for attempt := range backoff.Default.Attempts(ctx) {
		err := c.replicated(ctx, func(rdb redis.Cmdable) (bool, error) { return c.tryToSettle(ctx, rdb, batch, attempt.Number > 1) })
		if err == nil {
			c.link.works("storing outcomes")
			c.noteSettled(ctx, batch)
			return true
		}
		if ctx.Err() == nil {
			c.link.failed("storing outcomes", err)
		}
	}
	return false
}

// tryToSettle stores outcomes, and reports whether there was something to write.
func (c *Consumer) tryToSettle(ctx context.Context, rdb redis.Cmdable, batch []settlement, again bool) (wrote bool, err error) {
	if again {
		// The try before may have succeeded, and its reply got lost.
		if err := c.findStored(ctx, rdb, batch); err != nil {
			return false, err
		}
	}
	for i := range batch {
		s := &batch[i]
		if s.outcome.Status != queue.Rejected || s.buried || s.fields != nil {
			continue
		}
		if s.fields, err = c.original(ctx, rdb, s.outcome.ItemID, s.flight); err != nil {
			return false, err
		}
	}
	return c.store(ctx, rdb, batch)
}

// findStored marks what is not pending any more as stored, and takes back what was marked
// at a master that is not the one any more: this one may not know of it.
func (c *Consumer) findStored(ctx context.Context, rdb redis.Cmdable, batch []settlement) error {
	leader, err := c.leader(ctx, rdb)
	if err != nil {
		return err
	}
	for i := range batch {
		if s := &batch[i]; s.where != leader {
			s.buried, s.recorded, s.acked, s.where = false, false, false, leader
		}
	}
	group, err := c.group(ctx, rdb)
	if errors.Is(err, errNoGroup) || isNoStream(err) {
		return nil
	}
	if err != nil {
		return err
	}
	entries := make([]*redis.XPendingExtCmd, len(batch))
	_, err = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i := range batch {
			entries[i] = c.pending(ctx, pipe, batch[i].outcome.ItemID)
		}
		return nil
	})
	if isNoGroup(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading whether %d events are pending: %w", len(batch), err)
	}
	for i := range batch {
		if s := &batch[i]; len(entries[i].Val()) == 0 && compareIDs(s.outcome.ItemID, group.LastDeliveredID) <= 0 {
			s.buried, s.recorded, s.acked = true, true, true
		}
	}
	return nil
}

// original returns the fields of an event as they were sent or, if the entry is
// gone, as we understood them.
func (c *Consumer) original(ctx context.Context, rdb redis.Cmdable, id string, f *flight) (map[string]string, error) {
	entries, err := rdb.XRange(ctx, c.cfg.Stream, id, id).Result()
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
// the entries, in one transaction. It marks what is stored if not all is, and reports
// whether there was something to write.
func (c *Consumer) store(ctx context.Context, rdb redis.Cmdable, batch []settlement) (wrote bool, err error) {
	r := record{results: make([]told, 0, len(batch)), acks: make([]*string, 0, len(batch))}
	for i := range batch {
		s := &batch[i]
		if !s.buried && s.result.Status == scaleevent.StatusRejected {
			r.letters = append(r.letters, flat(deadLetter(s.result, s.fields)))
		}
		if !s.recorded {
			r.results = append(r.results, told{&s.result, s.unreported})
		}
		switch {
		case s.acked:
		case len(s.gives) > 0:
			r.givers = append(r.givers, giver{&s.result.EventID, s.gives})
		default:
			r.acks = append(r.acks, &s.result.EventID)
		}
	}
	if len(r.acks)+len(r.givers) == 0 {
		return false, nil
	}
	done, err := c.write(ctx, rdb, r)
	if err == nil && done.acks < len(r.acks)+len(r.givers) {
		err = c.acknowledgeUnread(ctx, rdb, record{acks: r.acks, givers: r.givers})
	}
	if err == nil {
		return true, nil
	}
	// What is not known is taken for stored nowhere.
	leader, _ := c.leader(ctx, rdb)
	for i := range batch {
		s := &batch[i]
		s.where = leader
		if !s.buried && s.result.Status == scaleevent.StatusRejected {
			s.buried = done.letters > 0
			done.letters--
		}
		if !s.recorded {
			s.recorded = done.results > 0
			done.results--
		}
	}
	return true, fmt.Errorf("storing the outcomes of %d events: %w", len(batch), err)
}

// acknowledgeUnread acknowledges entries of which some were not pending. That may be
// because this Redis has not given them to the group yet: it became the master, and had
// not heard that the one before did. They are read, or the group would get them again.
func (c *Consumer) acknowledgeUnread(ctx context.Context, rdb redis.Cmdable, r record) error {
	ids := slices.Clone(r.acks)
	for _, g := range r.givers {
		ids = append(ids, g.id)
	}
	last := *slices.MaxFunc(ids, func(a, b *string) int { return compareIDs(*a, *b) })
	for n := 1; n > 0; {
		var err error
		n, err = rdb.Eval(ctx, readScript, []string{c.cfg.Stream}, c.cfg.Group, c.cfg.Consumer, last, page).Int()
		if isNoGroup(err) || isNoStream(err) {
			return nil // it is made again from where we had got to
		}
		if err != nil {
			return fmt.Errorf("reading what a new master has not given to the group yet: %w", err)
		}
		if n > 0 {
			c.requestReplay() // for those among them that are not in flight
		}
	}
	// The reader may have been quicker, so this is needed also if nothing was read here.
	if _, err := c.write(ctx, rdb, r); err != nil {
		return fmt.Errorf("acknowledging events at a new master: %w", err)
	}
	return nil
}

// readScript gives a consumer those of the next entries that are not behind an ID, and
// returns how many.
const readScript = `
local last
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
	local of = {}
	for i = 1, #group, 2 do of[group[i]] = group[i + 1] end
	if of['name'] == ARGV[1] then last = of['last-delivered-id'] end
end
if not last then
	return redis.error_reply('NOGROUP ' .. ARGV[1])
end
local n = #redis.call('XRANGE', KEYS[1], '(' .. last, ARGV[3], 'COUNT', ARGV[4])
if n > 0 then
	redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', n, 'STREAMS', KEYS[1], '>')
end
return n
`

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

func (c *Consumer) addResult(ctx context.Context, to redis.Cmdable, result scaleevent.Result) *redis.StringCmd {
	return to.XAdd(ctx, &redis.XAddArgs{Stream: c.cfg.Results, MaxLen: c.cfg.ResultsMaxLen, Approx: true, Values: resultValues(result)})
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
	batch := []settlement{{result: result, fields: fields}}
	c.mu.Lock()
	if before, ok := c.halfRejected[id]; ok {
		batch[0].buried, batch[0].recorded = before.buried, before.recorded
	}
	c.mu.Unlock()
	_, err := c.store(ctx, c.rdb, batch)
	c.mu.Lock()
	if err != nil && (batch[0].buried || batch[0].recorded) {
		c.halfRejected[id] = batch[0]
	} else if err == nil {
		delete(c.halfRejected, id)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.metrics.rejected.WithLabelValues(rejected.Reason).Inc()
	c.metrics.settled.WithLabelValues(scaleevent.StatusRejected).Inc()
	c.log.WarnContext(ctx, "event rejected", "event", id, "task", result.TaskID, "pool", result.Pool,
		"reason", rejected.Reason, "field", rejected.Field, "err", rejected.Message)
	return nil
}

// linesAtOnce is how many events are logged one by one. Of more that come together
// there is one line: their results tell of each.
const linesAtOnce = 16

func (c *Consumer) noteSettled(ctx context.Context, batch []settlement) {
	done, now := 0, time.Now()
	each := len(batch) <= linesAtOnce || c.log.Enabled(ctx, slog.LevelDebug)
	for i := range batch {
		s := &batch[i]
		if s.outcome.Status == queue.Done {
			done++
		} else {
			c.metrics.rejected.WithLabelValues(s.outcome.Reason).Inc()
		}
		if s.flight != nil {
			c.metrics.duration.Observe(now.Sub(s.flight.accepted).Seconds())
		}
		if each || s.outcome.Status != queue.Done {
			c.log.LogAttrs(ctx, slog.LevelInfo, "event settled", s.attrs(now)...)
		}
	}
	c.metrics.settled.WithLabelValues(scaleevent.StatusDone).Add(float64(done))
	c.metrics.settled.WithLabelValues(scaleevent.StatusRejected).Add(float64(len(batch) - done))
	if !each && done > 0 {
		c.log.InfoContext(ctx, "events settled", "events", len(batch), "done", done,
			"first", batch[0].result.EventID, "last", batch[len(batch)-1].result.EventID)
	}
}

func (s *settlement) attrs(now time.Time) []slog.Attr {
	attrs := make([]slog.Attr, 1, 8)
	attrs[0] = slog.String("event", s.outcome.ItemID)
	if s.flight != nil {
		attrs = append(attrs, slog.String("task", s.flight.event.TaskID), slog.String("pool", s.flight.event.Pool),
			slog.Duration("duration", now.Sub(s.flight.accepted).Round(time.Microsecond)))
	}
	return append(attrs, slog.String("status", s.result.Status), slog.String("reason", s.result.Reason),
		slog.Int("attempts", s.result.Attempts), slog.String("message", s.result.Message))
}
