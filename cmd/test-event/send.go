package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent/publisher"
)

// errRejected says that at least one event was rejected, which was shown.
var errRejected = errors.New("rejected")

// A sender sends events and shows what becomes of them.
type sender struct {
	cli *CLI
	rdb *redis.Client
	out io.Writer
}

func newSender(cli *CLI, out io.Writer) *sender {
	redis.SetLogger(quiet{}) // it returns its faults as well
	return &sender{cli: cli, rdb: cli.client(), out: out}
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func (s *sender) send(ctx context.Context) error {
	defer s.rdb.Close() //nolint:errcheck // every write was answered
	fields := s.cli.fields()
	if !s.cli.Raw {
		if _, err := scaleevent.Parse("", fields); err != nil {
			return err
		}
	}
	if len(fields) == 0 {
		return &scaleevent.Error{Reason: scaleevent.ReasonMissingField, Message: "Redis has no entries without fields: give at least one"}
	}
	// Results that are there already are not ours. Look before we send, or the
	// result could be quicker.
	last, err := s.lastResult(ctx)
	if err != nil {
		return s.explain(err)
	}
	sent := map[string]time.Time{}
	for range s.cli.Events {
		id, err := publisher.Send(ctx, s.rdb, s.cli.RedisStream, fields)
		if err != nil {
			return s.explain(err)
		}
		sent[id] = time.Now()
		if err := s.show(record{Event: id, Status: "sent", Stream: s.cli.RedisStream, Fields: withoutSecrets(fields)}); err != nil {
			return err
		}
	}
	if s.cli.Wait {
		err = s.await(ctx, last, sent)
	}
	if s.cli.ShowBacklog {
		err = errors.Join(err, s.showBacklog(ctx))
	}
	return err
}

// explain adds where we looked for Redis.
func (s *sender) explain(err error) error {
	hint := "is REDIS_HOST right, and does the server run?"
	if redis.HasErrorPrefix(err, "WRONGPASS") || redis.HasErrorPrefix(err, "NOAUTH") {
		hint = "check REDIS_USERNAME and REDIS_PASSWORD"
	}
	return fmt.Errorf("Redis at %s: %w (%s)", s.rdb.Options().Addr, err, hint) //nolint:staticcheck // Redis is a name
}

func (s *sender) lastResult(ctx context.Context) (string, error) {
	entries, err := s.rdb.XRevRangeN(ctx, s.cli.RedisResultsStream, "+", "-", 1).Result()
	if err != nil || len(entries) == 0 {
		return "0", err
	}
	return entries[0].ID, nil
}

// await reads results until every event has one.
func (s *sender) await(ctx context.Context, last string, sent map[string]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, s.cli.Timeout)
	defer cancel()
	var rejected error
	for len(sent) > 0 {
		streams, err := s.rdb.XRead(ctx, &redis.XReadArgs{
			Streams: []string{s.cli.RedisResultsStream, last}, Count: 1000, Block: time.Second,
		}).Result()
		// The connection has the deadline of ctx, and may notice it a moment earlier.
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return s.stillOpen(ctx, sent)
		}
		if err != nil && !errors.Is(err, redis.Nil) {
			return s.explain(err)
		}
		for _, entry := range entriesOf(streams) {
			last = entry.ID
			fields := make(map[string]string, len(entry.Values))
			for name, value := range entry.Values {
				fields[name] = fmt.Sprint(value)
			}
			result := scaleevent.ParseResult(fields)
			at, ours := sent[result.EventID]
			if !ours || !result.Final() {
				continue
			}
			delete(sent, result.EventID)
			if result.Status == scaleevent.StatusRejected {
				rejected = errRejected
			}
			if err := s.show(recordOf(result, time.Since(at))); err != nil {
				return err
			}
		}
	}
	return rejected
}

func entriesOf(streams []redis.XStream) []redis.XMessage {
	if len(streams) == 0 {
		return nil
	}
	return streams[0].Messages
}

func (s *sender) stillOpen(ctx context.Context, sent map[string]time.Time) error {
	ids := slices.Sorted(maps.Keys(sent))
	more := ""
	if len(ids) > 3 {
		more = fmt.Sprintf(" and %d more", len(ids)-3)
		ids = ids[:3]
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("interrupted while waiting for event %s%s, which may still be carried out", strings.Join(ids, ", "), more)
	}
	return fmt.Errorf("no outcome of event %s%s within %s: is the main pod ready? the consumer's log says what it does with an event",
		strings.Join(ids, ", "), more, s.cli.Timeout)
}

func (s *sender) showBacklog(ctx context.Context) error {
	groups, err := s.rdb.XInfoGroups(ctx, s.cli.RedisStream).Result()
	if err != nil {
		return s.explain(err)
	}
	for _, g := range groups {
		if g.Name == s.cli.RedisConsumerGroup {
			return s.show(backlog{Group: g.Name, Unread: g.Lag, Pending: g.Pending, Consumers: g.Consumers})
		}
	}
	return fmt.Errorf("stream %s has no group %s: no consumer was ever there", s.cli.RedisStream, s.cli.RedisConsumerGroup)
}

// A record is one line of output.
type record struct {
	Event    string            `json:"event"`
	Status   string            `json:"status"`
	Stream   string            `json:"stream,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	Message  string            `json:"message,omitempty"`
	Type     string            `json:"type,omitempty"`
	Task     string            `json:"task,omitempty"`
	Pool     string            `json:"pool,omitempty"`
	Attempts int               `json:"attempts,omitempty"`
	Seconds  float64           `json:"seconds,omitempty"`
	Details  map[string]string `json:"details,omitempty"`
	Fields   map[string]string `json:"fields,omitempty"`
}

func recordOf(r scaleevent.Result, took time.Duration) record {
	return record{
		Event: r.EventID, Status: r.Status, Reason: r.Reason, Message: r.Message, Type: r.Type, Task: r.TaskID, Pool: r.Pool,
		Attempts: r.Attempts, Seconds: took.Round(time.Millisecond).Seconds(), Details: r.Details,
	}
}

// String is the line for people.
func (r record) String() string {
	if r.Status == "sent" {
		return fmt.Sprintf("sent      %s to %s: %s", r.Event, r.Stream, list(r.Fields))
	}
	line := fmt.Sprintf("%-9s %s after %.3fs", r.Status, r.Event, r.Seconds)
	if r.Reason != "" {
		line += " (" + r.Reason + ")"
	}
	if r.Message != "" {
		line += ": " + r.Message
	}
	if len(r.Details) > 0 {
		line += " [" + list(r.Details) + "]"
	}
	return line
}

type backlog struct {
	Group     string `json:"group"`
	Unread    int64  `json:"unread"` // -1: Redis does not know
	Pending   int64  `json:"pending"`
	Consumers int64  `json:"consumers"`
}

func (b backlog) String() string {
	unread := fmt.Sprint(b.Unread)
	if b.Unread < 0 {
		unread = "an unknown number"
	}
	return fmt.Sprintf("backlog   group %s: %s unread, %d in work or waiting for a consumer, %d consumers", b.Group, unread, b.Pending, b.Consumers)
}

// withoutSecrets hides the variables of the worker, as the logs do: what we print
// often ends up in the log of a CI job.
func withoutSecrets(fields map[string]string) map[string]string {
	shown := maps.Clone(fields)
	for name := range shown {
		if strings.HasPrefix(name, "env.") {
			shown[name] = "***"
		}
	}
	return shown
}

// list shows fields on one line, each cut to a readable length.
func list(fields map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		if len(value) > 80 {
			value = fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(value[:60], ""), len(value))
		}
		parts = append(parts, name+"="+value)
	}
	return strings.Join(parts, " ")
}

func (s *sender) show(line fmt.Stringer) error {
	if s.cli.Output == "json" {
		return json.NewEncoder(s.out).Encode(line)
	}
	_, err := fmt.Fprintln(s.out, line)
	return err
}
