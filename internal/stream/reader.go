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

// block is how long a read waits for new entries. It is short because go-redis
// does not interrupt a blocked read when its context is cancelled
// (github.com/redis/go-redis/issues/2276).
const block = time.Second

// page is how many entries are read at once of what is ours already.
const page = 100

// runReader reads until ctx ends. It is the only one that offers events, so they
// are offered in the order in which it reads them.
func (c *Consumer) runReader(ctx context.Context, producer queue.Producer[scaleevent.Event]) error {
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
func (c *Consumer) follow(ctx context.Context, producer queue.Producer[scaleevent.Event], attempt *backoff.Attempt) error {
	if err := c.ensureGroup(ctx); err != nil {
		return err
	}
	c.link.works("reading events")
	attempt.Progress()

	c.requestReplay()
	adopted, claimed := false, time.Now()
	for {
		credit, err := producer.Credit(ctx)
		if err != nil {
			return fmt.Errorf("waiting for the queue: %w", err)
		}
		// While we waited, the group may have been deleted and made again by somebody
		// else. Redis does not tell the one from the other.
		if time.Since(claimed) >= c.pace.beat {
			if err := c.claimGroup(ctx); err != nil {
				return err
			}
			claimed = time.Now()
		}
		if c.stoodBy.Swap(false) {
			adopted = false // someone else may have been at work
		}
		if !adopted {
			// Events of one task act in the order they were sent, so what a consumer
			// before us has left comes before anything new.
			if err := c.adopt(ctx); err != nil {
				return err
			}
			adopted = true
		}
		n, landed := c.flying()
		if n >= maxInFlight {
			select {
			case <-landed:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		select {
		case <-c.replay:
			c.own = "0"
		default:
		}
		if c.own != "" {
			if err := c.readOwn(ctx, producer); err != nil {
				return err
			}
			continue // the credit is another now
		}
		if err := c.readNew(ctx, producer, min(credit, maxInFlight-n)); err != nil {
			return err
		}
		c.link.works("reading events")
	}
}

// readNew reads entries that nobody has read.
func (c *Consumer) readNew(ctx context.Context, producer queue.Producer[scaleevent.Event], count int) error {
	// The reply to a read that we gave up would be lost, so it is not ctx that
	// ends it, but its own end or a connection that hangs.
	readCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), block+3*time.Second)
	defer cancel()
	streams, err := c.reads.XReadGroup(readCtx, &redis.XReadGroupArgs{
		Group: c.cfg.Group, Consumer: c.cfg.Consumer, Streams: []string{c.cfg.Stream, ">"},
		Count: int64(count), Block: block,
	}).Result()
	if ctx.Err() != nil {
		return ctx.Err() // what was read stays in the PEL
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("reading stream %s: %w", c.cfg.Stream, c.heal(ctx, err))
	}
	c.offering.Lock()
	defer c.offering.Unlock()
	if c.stoodBy.Load() {
		return nil // what was read stays in the PEL, behind what we let go of
	}
	for _, s := range streams {
		for _, entry := range s.Messages {
			c.metrics.read.Inc()
			if err := c.accept(ctx, producer, entry); err != nil {
				return err
			}
		}
	}
	return nil
}

// readOwn reads what is pending for us, page by page, and offers what is not in
// flight. It stops at the end, or when it may not offer more; c.own says which.
func (c *Consumer) readOwn(ctx context.Context, producer queue.Producer[scaleevent.Event]) error {
	for {
		streams, err := c.rdb.XReadGroup(ctx, &redis.XReadGroupArgs{
			Group: c.cfg.Group, Consumer: c.cfg.Consumer, Streams: []string{c.cfg.Stream, c.own},
			Count: page, Block: -1,
		}).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return fmt.Errorf("reading our pending entries of stream %s: %w", c.cfg.Stream, c.heal(ctx, err))
		}
		if len(streams) == 0 || len(streams[0].Messages) == 0 {
			c.own = ""
			return nil
		}
		more, err := c.offerOwn(ctx, producer, streams[0].Messages)
		if err != nil || !more {
			return err
		}
	}
}

// offerOwn offers a page of our own entries. It returns false if it had to stop.
func (c *Consumer) offerOwn(ctx context.Context, producer queue.Producer[scaleevent.Event], entries []redis.XMessage) (more bool, err error) {
	c.offering.Lock()
	defer c.offering.Unlock()
	if c.stoodBy.Load() {
		return false, nil // all of it is read again
	}
	for _, entry := range entries {
		if c.look(entry.ID) == nil {
			if n, _ := c.flying(); n >= maxInFlight {
				return false, nil
			}
			c.metrics.redelivered.Inc()
			if err := c.accept(ctx, producer, entry); err != nil {
				return false, err
			}
		}
		c.own = entry.ID
	}
	return true, nil
}

// accept offers an entry, or rejects it. An error means that the stream or the
// queue is out of order; an entry that is out of order is none.
func (c *Consumer) accept(ctx context.Context, producer queue.Producer[scaleevent.Event], entry redis.XMessage) error {
	c.noteRead(entry.ID)
	fields := fieldsOf(entry)
	event, err := c.parse(entry.ID, fields)
	var rejected *scaleevent.Error
	if errors.As(err, &rejected) {
		return c.rejectUnread(ctx, entry.ID, fields, rejected)
	}
	if err != nil {
		return err
	}
	if !c.takeOff(entry.ID, &flight{event: event, accepted: time.Now()}) {
		return nil
	}
	err = producer.Offer(ctx, queue.Item[scaleevent.Event]{
		ID: entry.ID, Key: event.OrderingKey(), Traceparent: event.Traceparent, Value: event,
	})
	if err != nil {
		c.land(entry.ID)
		return fmt.Errorf("offering event %s: %w", entry.ID, err)
	}
	c.log.InfoContext(ctx, "event accepted", "event", entry.ID, "task", event.TaskID, "pool", event.Pool, "type", string(event.Type))
	return nil
}

// ReasonTrimmed says that the entry was removed from the stream before its event
// was settled, by XTRIM, XDEL or a MAXLEN of the producer. It stands beside the
// reasons of package scaleevent, which cannot see this.
const ReasonTrimmed = "trimmed"

func (c *Consumer) parse(id string, fields map[string]string) (scaleevent.Event, error) {
	if fields == nil {
		return scaleevent.Event{}, &scaleevent.Error{Reason: ReasonTrimmed, Message: fmt.Sprintf(
			"the entry was removed from stream %s before it was acknowledged: send the event again, and trim by age (XTRIM MINID), not by length", c.cfg.Stream)}
	}
	if size := scaleevent.Size(fields); size > c.cfg.MaxEventBytes {
		// A field that is too large by itself is the better explanation.
		_, err := scaleevent.Parse(id, fields)
		var rejected *scaleevent.Error
		if errors.As(err, &rejected) && rejected.Reason == scaleevent.ReasonFieldTooLarge {
			return scaleevent.Event{}, err
		}
		return scaleevent.Event{}, &scaleevent.Error{Reason: scaleevent.ReasonEventTooLarge, Message: fmt.Sprintf(
			"the entry has %d bytes, more than the %d that an event may have: send a reference to the data instead", size, c.cfg.MaxEventBytes)}
	}
	event, err := scaleevent.Parse(id, fields)
	if err != nil {
		return scaleevent.Event{}, err
	}
	if now := time.Now(); event.Expired(now) {
		return scaleevent.Event{}, &scaleevent.Error{Reason: scaleevent.ReasonExpired, Field: scaleevent.FieldExpiresAt, Message: fmt.Sprintf(
			"the event expired %s before it was read: send it again with a later expires_at", now.Sub(event.ExpiresAt).Round(time.Millisecond))}
	}
	return event, nil
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

func (c *Consumer) noteRead(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastRead == "" || compareIDs(id, c.lastRead) > 0 {
		c.lastRead = strings.Clone(id)
	}
}
