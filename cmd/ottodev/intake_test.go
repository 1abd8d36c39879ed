package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// say runs ottodev and returns what it prints.
func say(t *testing.T, args ...string) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	said := make(chan string)
	go func() {
		text, _ := io.ReadAll(r) // a pipe that breaks is seen by who reads the text
		said <- string(text)
	}()
	parser, err := kong.New(new(commands), kong.Name("ottodev"), kong.BindTo(t.Context(), (*context.Context)(nil)))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(args)
	if err == nil {
		err = parsed.Run()
	}
	os.Stdout = stdout
	_ = w.Close() // the text shows what is missing
	return <-said, err
}

func TestDeadLettersAreListedShownReplayedAndDropped(t *testing.T) {
	server := redistest.ForTest(t, redis.Options{})
	file := filepath.Join(t.TempDir(), "any.env")
	text := fmt.Sprintf("REDIS_HOST=%s\nREDIS_PORT=%d\nREDIS_PASSWORD=%s\nREDIS_STREAM=events\nREDIS_DEAD_STREAM=dead\n", server.Host, server.Port, server.Password)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ENV_FILE", file)
	for _, name := range []string{"REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_DB", "REDIS_STREAM", "REDIS_CONSUMER_GROUP", "OTTODEV_USER"} {
		t.Setenv(name, "")
	}
	rdb := server.Client()
	defer rdb.Close() //nolint:errcheck // the server ends anyway
	bury := func(event, reason string) string {
		t.Helper()
		id, err := rdb.XAdd(t.Context(), &goredis.XAddArgs{Stream: "dead", Values: []string{
			"type", "scale_up", "task_id", event, "dead_event_id", event, "dead_reason", reason,
			"dead_message", "because", "dead_attempts", "3", "dead_time", "2026-11-22T21:00:00Z",
		}}).Result()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	if said, err := say(t, "dead-letters"); err != nil || !strings.Contains(said, "no dead letters") {
		t.Errorf("without any it says %q, %v", said, err)
	}
	first, second, third, fourth := bury("1-1", "poison"), bury("1-2", "expired"), bury("1-3", "expired"), bury("1-4", "poison")

	said, err := say(t, "dead-letters", "list", "--reason", "expired")
	if err != nil || !strings.Contains(said, second) || !strings.Contains(said, third) || strings.Contains(said, first) {
		t.Errorf("the list of the expired says %q, %v", said, err)
	}
	said, err = say(t, "dead-letters", "show", "1-4") // by the event's ID
	var letter stream.Letter
	if err != nil || json.Unmarshal([]byte(said), &letter) != nil || letter.ID != fourth || letter.Attempts != 3 || letter.Fields["task_id"] != "1-4" || letter.Fields["dead_reason"] != "" {
		t.Errorf("show says %q, %v", said, err)
	}
	if _, err := say(t, "dead-letters", "replay"); err == nil {
		t.Error("replay does not ask which")
	}
	if _, err := say(t, "dead-letters", "drop", first, "--all"); err == nil {
		t.Error("drop does not ask which")
	}
	if _, err := say(t, "dead-letters", "replay", "9-9"); err == nil {
		t.Error("replay of nothing is no error")
	}
	if said, err = say(t, "dead-letters", "replay", first); err != nil || !strings.Contains(said, "replayed") {
		t.Errorf("replay says %q, %v", said, err)
	}
	if said, err = say(t, "dead-letters", "replay", "--reason", "expired"); err != nil || strings.Count(said, "replayed") != 2 {
		t.Errorf("replay of the expired says %q, %v", said, err)
	}
	events, err := rdb.XRange(t.Context(), "events", "-", "+").Result()
	var tasks []string
	for _, e := range events {
		tasks = append(tasks, fmt.Sprint(e.Values["task_id"]))
		if len(e.Values) != 2 {
			t.Errorf("replayed with the fields %v, want those of the event", e.Values)
		}
	}
	if err != nil || !slices.Equal(tasks, []string{"1-1", "1-2", "1-3"}) {
		t.Errorf("events = %v, %v", tasks, err)
	}
	if said, err = say(t, "dead-letters", "drop", "--all"); err != nil || !strings.Contains(said, fourth) {
		t.Errorf("drop says %q, %v", said, err)
	}
	if n := rdb.XLen(t.Context(), "dead").Val(); n != 0 {
		t.Errorf("%d dead letters are left", n)
	}
}

func TestPauseAndResumeSetWhatTheConsumerLooksFor(t *testing.T) {
	server := redistest.ForTest(t, redis.Options{})
	t.Setenv("ENV_FILE", "")
	t.Setenv("OTTODEV_USER", "")
	t.Setenv("REDIS_HOST", server.Host)
	t.Setenv("REDIS_PORT", fmt.Sprint(server.Port))
	t.Setenv("REDIS_PASSWORD", server.Password)
	rdb := server.Client()
	defer rdb.Close() //nolint:errcheck // the server ends anyway
	key := stream.PauseKey("otto:scale:events", "ottoscaler")
	if said, err := say(t, "pause", "--reason", "a migration"); err != nil || rdb.Get(t.Context(), key).Val() != "a migration" {
		t.Errorf("pause says %q, %v", said, err)
	}
	for _, want := range []string{"resumed", "it was not paused"} {
		if said, err := say(t, "resume"); err != nil || !strings.Contains(said, want) {
			t.Errorf("resume says %q, %v, want %q", said, err, want)
		}
	}
	if n := rdb.Exists(t.Context(), key).Val(); n != 0 {
		t.Error("it is still paused")
	}
}
