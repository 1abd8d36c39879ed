package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// ErrNoLetter says that there is no such dead letter, or not any more.
var ErrNoLetter = errors.New("there is no such dead letter")

// Letters are the dead letters of an installation, for those who look after them.
type Letters struct {
	// Redis that they are in.
	Redis redis.UniversalClient
	// Events and Dead are the keys of the streams.
	Events, Dead string
}

// A Letter is an event that was rejected.
type Letter struct {
	// ID of the dead letter itself.
	ID string `json:"id"`
	// EventID is the ID that the event had.
	EventID string `json:"event_id"`
	// Reason and Message say why it was rejected.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Attempts is how often it was tried.
	Attempts int `json:"attempts"`
	// Time at which it was rejected.
	Time time.Time `json:"time"`
	// Fields of the event, as they were sent.
	Fields map[string]string `json:"fields"`
}

// Each calls f for every dead letter, the oldest first, page by page: there may be many.
func (l Letters) Each(ctx context.Context, f func(Letter) error) error {
	for start := "-"; ; {
		entries, err := l.Redis.XRangeN(ctx, l.Dead, start, "+", page).Result()
		if err != nil {
			return fmt.Errorf("reading dead letters: %w", err)
		}
		for _, entry := range entries {
			if err := f(letterOf(entry)); err != nil {
				return err
			}
		}
		if len(entries) < page {
			return nil
		}
		start = "(" + entries[len(entries)-1].ID
	}
}

// Find returns the dead letter that has an ID, its own or that of its event; of
// several with one event, the newest.
func (l Letters) Find(ctx context.Context, id string) (Letter, error) {
	if _, ok := parseID(id); !ok {
		return Letter{}, fmt.Errorf("dead letter %s: %w", id, ErrNoLetter)
	}
	entries, err := l.Redis.XRange(ctx, l.Dead, id, id).Result()
	if err != nil {
		return Letter{}, fmt.Errorf("reading dead letter %s: %w", id, err)
	}
	if len(entries) > 0 {
		return letterOf(entries[0]), nil
	}
	var found Letter
	err = l.Each(ctx, func(letter Letter) error {
		if letter.EventID == id {
			found = letter
		}
		return nil
	})
	if err == nil && found.ID == "" {
		err = fmt.Errorf("dead letter %s: %w", id, ErrNoLetter)
	}
	return found, err
}

// Replay sends the event of a dead letter again and removes the letter, both or
// neither, and returns the ID that the event has now. If somebody else was quicker,
// it returns [ErrNoLetter].
func (l Letters) Replay(ctx context.Context, letter Letter) (id string, err error) {
	if len(letter.Fields) == 0 {
		return "", fmt.Errorf("replaying dead letter %s: nothing of the event is left: send it again yourself", letter.ID)
	}
	replay := func(tx *redis.Tx) error {
		there, err := tx.XRange(ctx, l.Dead, letter.ID, letter.ID).Result()
		if err != nil {
			return err
		}
		if len(there) == 0 {
			return ErrNoLetter
		}
		var added *redis.StringCmd
		_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
			added = p.XAdd(ctx, &redis.XAddArgs{Stream: l.Events, Values: flat(letter.Fields)})
			p.XDel(ctx, l.Dead, letter.ID)
			return nil
		})
		id = added.Val()
		return err
	}
	for range (backoff.Policy{Initial: 5 * time.Millisecond, Max: time.Second}).Attempts(ctx) {
		// Another letter that comes meanwhile is no reason to give up.
		if err = l.Redis.Watch(ctx, replay, l.Dead); !errors.Is(err, redis.TxFailedErr) {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("replaying dead letter %s: %w", letter.ID, err)
	}
	return id, nil
}

// Drop removes a dead letter for good.
func (l Letters) Drop(ctx context.Context, letter Letter) error {
	n, err := l.Redis.XDel(ctx, l.Dead, letter.ID).Result()
	if err == nil && n == 0 {
		err = ErrNoLetter
	}
	if err != nil {
		return fmt.Errorf("dropping dead letter %s: %w", letter.ID, err)
	}
	return nil
}

func letterOf(entry redis.XMessage) Letter {
	fields := fieldsOf(entry)
	letter := Letter{
		ID: entry.ID, EventID: fields[scaleevent.FieldDeadEventID],
		Reason: fields[scaleevent.FieldDeadReason], Message: fields[scaleevent.FieldDeadMessage],
	}
	letter.Attempts, _ = strconv.Atoi(fields[scaleevent.FieldDeadAttempts])         // none in an older letter
	letter.Time, _ = time.Parse(time.RFC3339Nano, fields[scaleevent.FieldDeadTime]) // as above
	letter.Fields = maps.Clone(fields)
	for _, name := range []string{
		scaleevent.FieldDeadEventID, scaleevent.FieldDeadReason, scaleevent.FieldDeadMessage, scaleevent.FieldDeadAttempts, scaleevent.FieldDeadTime,
	} {
		delete(letter.Fields, name)
	}
	return letter
}
