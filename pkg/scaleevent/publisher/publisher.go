// Package publisher puts scale events on the Redis stream.
package publisher

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// Publish checks the event, adds it to the stream, and returns the ID of the entry,
// which is the event's ID from now on. The error of a bad event is a
// [*scaleevent.Error]; nothing was sent then. On any other error the event may
// or may not be on the stream: a caller that sends again should give the event
// an idempotency key.
func Publish(ctx context.Context, rdb redis.Cmdable, stream string, e scaleevent.Event) (id string, err error) {
	e.ID = "" // the stream gives it
	if err := e.Validate(); err != nil {
		return "", fmt.Errorf("checking event: %w", err)
	}
	return Send(ctx, rdb, stream, e.Fields())
}

// Send adds an entry with the given fields to the stream, unchecked, and returns
// its ID. It is for tools that send malformed events on purpose, or dead letters again.
func Send(ctx context.Context, rdb redis.Cmdable, stream string, fields map[string]string) (id string, err error) {
	values := make(map[string]any, len(fields))
	for name, value := range fields {
		values[name] = value
	}
	id, err = rdb.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: values}).Result()
	if err != nil {
		return "", fmt.Errorf("adding event to stream %s: %w", stream, err)
	}
	return id, nil
}
