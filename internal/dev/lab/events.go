package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent/publisher"
)

// Events is the producer's view of an installation: it sends events and reads results.
type Events struct {
	rdb     *goredis.Client
	streams StreamNames
}

// Events returns the producer's view of the installation in a namespace; see [Streams].
func (l *Lab) Events(namespace string) *Events {
	return &Events{rdb: l.Redis.Client(), streams: Streams(namespace)}
}

// Publish sends an event and returns its ID.
func (e *Events) Publish(ctx context.Context, event scaleevent.Event) (string, error) {
	return publisher.Publish(ctx, e.rdb, e.streams.Events, event)
}

// Send sends the fields of an event as they are, malformed or not.
func (e *Events) Send(ctx context.Context, fields map[string]string) (string, error) {
	return publisher.Send(ctx, e.rdb, e.streams.Events, fields)
}

// Await waits for the result of an event.
func (e *Events) Await(ctx context.Context, id string) (scaleevent.Result, error) {
	results, err := e.AwaitAll(ctx, id)
	if err != nil {
		return scaleevent.Result{}, err
	}
	return results[0], nil
}

// AwaitAll waits for the first final result of each event and returns them in the order
// in which they came.
func (e *Events) AwaitAll(ctx context.Context, ids ...string) ([]scaleevent.Result, error) {
	var results []scaleevent.Result
	missing := slices.Clone(ids)
	for last := "0"; len(missing) > 0; {
		entries, err := e.read(ctx, e.streams.Results, last)
		if err != nil {
			return nil, fmt.Errorf("waiting for the results of events %s: %w", strings.Join(missing, ", "), err)
		}
		for _, entry := range entries {
			last = entry.ID
			result := scaleevent.ParseResult(fields(entry))
			if i := slices.Index(missing, result.EventID); i >= 0 && result.Final() {
				missing = slices.Delete(missing, i, i+1)
				results = append(results, result)
			}
		}
	}
	return results, nil
}

// AwaitDead waits for the dead letter of an event and returns its fields.
func (e *Events) AwaitDead(ctx context.Context, id string) (map[string]string, error) {
	for last := "0"; ; {
		entries, err := e.read(ctx, e.streams.Dead, last)
		if err != nil {
			return nil, fmt.Errorf("waiting for the dead letter of event %s: %w", id, err)
		}
		for _, entry := range entries {
			last = entry.ID
			if letter := fields(entry); letter["dead_event_id"] == id {
				return letter, nil
			}
		}
	}
}

// read returns the entries behind last, once there are any.
func (e *Events) read(ctx context.Context, stream, last string) ([]goredis.XMessage, error) {
	for {
		// A short block, because go-redis does not interrupt one when ctx ends.
		res, err := e.rdb.XRead(ctx, &goredis.XReadArgs{Streams: []string{stream, last}, Block: time.Second}).Result()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // the client saw the end of ctx before ctx did
			return nil, context.DeadlineExceeded
		}
		if errors.Is(err, goredis.Nil) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading stream %s: %w", stream, err)
		}
		return res[0].Messages, nil
	}
}

func fields(entry goredis.XMessage) map[string]string {
	f := make(map[string]string, len(entry.Values))
	for name, value := range entry.Values {
		f[name] = fmt.Sprint(value)
	}
	return f
}
