package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// page is how many entries are looked at or written at once, and readAtOnce how many
// new ones are read: each read costs two round trips, whatever it brings.
const (
	page       = 128
	readAtOnce = 512
)

// runReader reads until ctx ends. It is the only one that offers events, so they
// are offered in the order in which it reads them.
func (c *Consumer) runReader(ctx context.Context, producer queue.Producer[*scaleevent.Event]) error {
	defer c.reads.Close()
	defer context.AfterFunc(ctx, c.reads.interrupt)()
	for attempt := range backoff.Default.Attempts(ctx) {
		err := c.follow(ctx, producer, attempt)
		if errors.Is(err, queue.ErrClosed) || isForeign(err) {
			return err
		}
		if ctx.Err() == nil && !isNoGroup(err) { // that one was reported, and healed
			c.link.failed("reading events", err)
		}
	}
	return nil
}

// follow reads until something fails. It always begins with our own pending
// entries: a read whose reply was lost has put entries there that we never saw.
func (c *Consumer) follow(ctx context.Context, producer queue.Producer[*scaleevent.Event], attempt *backoff.Attempt) error {
	if err := c.ensureGroup(ctx); err != nil {
		return err
	}
	if _, err := c.checkPause(ctx); err != nil {
		return err
	}
	c.link.works("reading events")
	attempt.Progress()

	c.requestReplay()
	first := true
	for {
		began := time.Now()
		credit, err := producer.Credit(ctx)
		if err != nil {
			return fmt.Errorf("waiting for the queue: %w", err)
		}
		// While we waited, the group may have been deleted and made again by somebody
		// else. Redis does not tell the one from the other.
		if time.Since(began) >= c.pace.beat {
			if err := c.claimGroup(ctx); err != nil {
				return err
			}
		}
		if err := c.awaitResume(ctx); err != nil {
			return err
		}
		stoodBy := c.stoodBy.Swap(false) // before we look, so that what happens meanwhile counts
		if turn, shut := c.queue.Gate(); shut || stoodBy || first {
			// Events of one task act in the order they were sent, so what others have
			// left comes before anything new.
			if err := c.takeOver(ctx); err != nil {
				return err
			}
			first = false
			c.queue.Open(turn)
			continue // the credit is another now
		}
		n, landed := c.flying()
		if n >= maxInFlight {
			select {
			case <-landed:
			case <-c.gateShut:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		select {
		case <-c.replay:
			c.own = "-"
		default:
		}
		if c.own != "" {
			if err := c.readOwn(ctx, producer); err != nil {
				return err
			}
			continue // the credit is another now
		}
		err = c.readNew(ctx, producer, min(credit, maxInFlight-n, readAtOnce))
		if errors.Is(err, errInterrupted) {
			c.requestReplay() // Redis may have answered just then
			continue
		}
		if err != nil {
			return err
		}
		c.link.works("reading events")
	}
}

// mayBlock reports whether the reader has nothing to do but wait for new entries.
func (c *Consumer) mayBlock(ctx context.Context) func() bool {
	return func() bool {
		_, shut := c.queue.Gate()
		return ctx.Err() == nil && len(c.replay) == 0 && !shut && !c.stoodBy.Load() && !c.paused.Load()
	}
}

// readNew reads entries that nobody has read.
func (c *Consumer) readNew(ctx context.Context, producer queue.Producer[*scaleevent.Event], count int) error {
	streams, err := c.reads.read(ctx, &redis.XReadGroupArgs{
		Group: c.cfg.Group, Consumer: c.cfg.Consumer, Streams: []string{c.cfg.Stream, ">"},
		Count: int64(count), Block: c.pace.block,
	}, c.mayBlock(ctx))
	if ctx.Err() != nil {
		return ctx.Err() // what was read stays in the PEL
	}
	if errors.Is(err, errInterrupted) {
		return err
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("reading stream %s: %w", c.cfg.Stream, c.heal(ctx, err))
	}
	if len(streams) == 0 {
		return nil
	}
	entries := streams[0].Messages
	c.metrics.read.Add(float64(len(entries)))
	if paused, err := c.pausedNow(ctx); paused || err != nil || c.hasRead(entries[0].ID) {
		// What was read waits in the PEL. What we had read before, from another master, may
		// be acknowledged by now: there it shows.
		c.requestReplay()
		return err
	}
	now := time.Now()
	for _, entry := range entries {
		c.metrics.latency.Observe(age(entry.ID, now).Seconds())
	}
	c.offering.Lock()
	defer c.offering.Unlock()
	if c.stoodBy.Load() {
		return nil // what was read stays in the PEL, behind what we let go of
	}
	return c.accept(ctx, producer, entries, nil)
}

// readOwn reads what is pending for us, page by page, and offers what is not in
// flight. It stops at the end, or when it may not offer more; c.own says which.
func (c *Consumer) readOwn(ctx context.Context, producer queue.Producer[*scaleevent.Event]) error {
	for c.own != "" {
		pending, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer, Start: c.own, End: "+", Count: page,
		}).Result()
		if err != nil {
			return fmt.Errorf("reading our pending entries of stream %s: %w", c.cfg.Stream, c.heal(ctx, err))
		}
		more, err := c.offerOwn(ctx, producer, pending)
		if err != nil || !more {
			return err
		}
		if len(pending) < page {
			c.own = ""
		}
	}
	return nil
}

// offerOwn offers a page of our own entries. It returns false if it had to stop.
func (c *Consumer) offerOwn(ctx context.Context, producer queue.Producer[*scaleevent.Event], pending []redis.XPendingExt) (more bool, err error) {
	c.offering.Lock()
	defer c.offering.Unlock()
	if c.stoodBy.Load() {
		return false, nil // all of it is read again
	}
	var ids []string
	next := ""
	more = true
	for _, p := range pending {
		if c.look(p.ID) != nil {
			next = "(" + p.ID
			continue
		}
		if n, _ := c.flying(); n+len(ids) >= maxInFlight {
			more = false
			break
		}
		next = "(" + p.ID
		if c.cfg.PoisonAfter > 0 && p.RetryCount >= int64(c.cfg.PoisonAfter) {
			if err := c.bury(ctx, p); err != nil {
				return false, err
			}
			continue
		}
		ids = append(ids, p.ID)
	}
	given, err := c.given(ctx, ids)
	if err != nil {
		return false, err
	}
	entries, err := c.claimOwn(ctx, ids)
	if err != nil {
		return false, err
	}
	c.metrics.redelivered.Add(float64(len(entries)))
	if err := c.accept(ctx, producer, entries, given); err != nil {
		return false, err
	}
	if next != "" {
		c.own = next
	}
	return more, nil
}

// claimOwn reads entries that are ours already. A claim counts as a delivery, which
// looking at them does not.
func (c *Consumer) claimOwn(ctx context.Context, ids []string) ([]redis.XMessage, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	entries, err := c.rdb.XClaim(ctx, &redis.XClaimArgs{
		Stream: c.cfg.Stream, Group: c.cfg.Group, Consumer: c.cfg.Consumer, Messages: ids,
	}).Result()
	if err != nil {
		return nil, fmt.Errorf("reading our pending entries of stream %s: %w", c.cfg.Stream, c.heal(ctx, err))
	}
	there := make([]redis.XMessage, 0, len(entries))
	for _, e := range entries {
		if e.Values != nil { // older servers tell so that it is gone
			there = append(there, e)
		}
	}
	if len(there) < len(ids) {
		return there, c.reportTrimmed(ctx, ids)
	}
	return there, nil
}

// bury makes a dead letter of an entry that was delivered again and again without
// a verdict: whoever reads it seems to die of it.
func (c *Consumer) bury(ctx context.Context, p redis.XPendingExt) error {
	entries, err := c.rdb.XRange(ctx, c.cfg.Stream, p.ID, p.ID).Result()
	if err != nil {
		return fmt.Errorf("reading event %s: %w", p.ID, err)
	}
	if len(entries) == 0 {
		return c.reportTrimmed(ctx, []string{p.ID})
	}
	return c.rejectUnread(ctx, p.ID, fieldsOf(entries[0]), int(p.RetryCount), &scaleevent.Error{
		Reason: queue.ReasonPoison, Message: fmt.Sprintf("the event was delivered %d times, and each time the main pod ended before its verdict", p.RetryCount),
	})
}

// accept offers entries, or rejects them, with what their events were given before. An
// error means that the stream or the queue is out of order; an entry that is out of
// order is none.
func (c *Consumer) accept(ctx context.Context, producer queue.Producer[*scaleevent.Event], entries []redis.XMessage, given map[string]map[string]int) error {
	if len(entries) == 0 {
		return nil
	}
	now := time.Now()
	flights := make([]*flight, 0, len(entries))
	for _, entry := range entries {
		event, err := c.parse(entry)
		if err == nil && event.Expired(now) && len(given[entry.ID]) == 0 { // else it has begun
			err = expired(event, now)
		}
		var rejected *scaleevent.Error
		if errors.As(err, &rejected) {
			err = c.rejectUnread(ctx, entry.ID, fieldsOf(entry), 0, rejected)
		} else if err == nil {
			flights = append(flights, &flight{event: event, accepted: now})
		}
		if err != nil {
			return err
		}
	}
	c.noteRead(entries[len(entries)-1].ID)
	flights = c.takeOff(flights)
	for _, f := range flights {
		c.items = append(c.items, queue.Item[*scaleevent.Event]{
			ID: f.event.ID, Key: f.event.OrderingKey(), Traceparent: f.event.Traceparent, Takes: f.event.Type == scaleevent.ScaleDown, Given: given[f.event.ID], Value: &f.event,
		})
	}
	err := producer.Offer(ctx, c.items...)
	clear(c.items)
	c.items = c.items[:0]
	if err != nil {
		for _, f := range flights {
			c.land(f.event.ID)
		}
		return fmt.Errorf("offering %d events: %w", len(flights), err)
	}
	return nil
}

// ReasonTrimmed says that the entry was removed from the stream before its event
// was settled, by XTRIM, XDEL or a MAXLEN of the producer. It stands beside the
// reasons of package scaleevent, which cannot see this.
const ReasonTrimmed = "trimmed"

func (c *Consumer) parse(entry redis.XMessage) (scaleevent.Event, error) {
	if entry.Values == nil {
		return scaleevent.Event{}, &scaleevent.Error{Reason: ReasonTrimmed, Message: fmt.Sprintf(
			"the entry was removed from stream %s before it was acknowledged: send the event again, and trim by age (XTRIM MINID), not by length", c.cfg.Stream)}
	}
	if size := scaleevent.Size(entry.Values); size > c.cfg.MaxEventBytes {
		// A field that is too large by itself is the better explanation.
		_, err := scaleevent.Parse(entry.ID, entry.Values)
		var rejected *scaleevent.Error
		if errors.As(err, &rejected) && rejected.Reason == scaleevent.ReasonFieldTooLarge {
			return scaleevent.Event{}, err
		}
		return scaleevent.Event{}, &scaleevent.Error{Reason: scaleevent.ReasonEventTooLarge, Message: fmt.Sprintf(
			"the entry has %d bytes, more than the %d that an event may have: send a reference to the data instead", size, c.cfg.MaxEventBytes)}
	}
	return scaleevent.Parse(entry.ID, entry.Values)
}

func expired(event scaleevent.Event, now time.Time) error {
	return &scaleevent.Error{Reason: scaleevent.ReasonExpired, Field: scaleevent.FieldExpiresAt, Message: fmt.Sprintf(
		"the event expired %s before it was read: send it again with a later expires_at", now.Sub(event.ExpiresAt).Round(time.Millisecond))}
}

// fieldsOf returns the fields of an entry: nil if there is no such entry any more.
func fieldsOf(entry redis.XMessage) map[string]string {
	if entry.Values == nil {
		return nil
	}
	fields := make(map[string]string, len(entry.Values))
	for name, value := range entry.Values {
		fields[name], _ = value.(string) // Redis has no other values
	}
	return fields
}

func (c *Consumer) hasRead(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastRead != "" && compareIDs(id, c.lastRead) <= 0
}

func (c *Consumer) noteRead(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastRead == "" || compareIDs(id, c.lastRead) > 0 {
		c.lastRead = strings.Clone(id)
	}
}
