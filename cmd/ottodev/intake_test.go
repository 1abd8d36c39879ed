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
	nowhere(t)
	t.Setenv("ENV_FILE", file)
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
	nowhere(t)
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

// nowhere unsets what says where Redis is, for the time of a test.
func nowhere(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"ENV_FILE", "OTTODEV_USER", "REDIS_HOST", "REDIS_PORT", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_DB", "REDIS_ADDRS", "REDIS_SENTINEL_MASTER", "REDIS_CLUSTER",
		"REDIS_TLS", "REDIS_TLS_CA_FILE", "REDIS_TLS_CERT_FILE", "REDIS_TLS_KEY_FILE", "REDIS_STREAM", "REDIS_RESULTS_STREAM", "REDIS_DEAD_STREAM", "REDIS_CONSUMER_GROUP",
	} {
		t.Setenv(name, "")
	}
}

func TestDeadLettersAreReachedHoweverTheConsumerReachesRedis(t *testing.T) {
	encrypted := func(t *testing.T) (variables []string, stop func() error) {
		t.Helper()
		e, err := redis.StartEncrypted(t.Context(), redis.Options{})
		if err != nil {
			t.Fatal(err)
		}
		rdb := e.Client()
		defer rdb.Close() //nolint:errcheck // every write was answered
		if err := rdb.Do(t.Context(), "ACL", "SETUSER", "keeper", "on", ">sesame", "~*", "+@all").Err(); err != nil {
			t.Fatal(err)
		}
		return []string{
			"REDIS_HOST=127.0.0.1", fmt.Sprintf("REDIS_PORT=%d", e.TLSPort), "REDIS_USERNAME=keeper", "REDIS_PASSWORD=sesame",
			"REDIS_TLS=true", "REDIS_TLS_CA_FILE=" + e.CAFile, "REDIS_TLS_CERT_FILE=" + e.CertFile, "REDIS_TLS_KEY_FILE=" + e.KeyFile,
		}, e.Stop
	}
	sentinel := func(t *testing.T) (variables []string, stop func() error) {
		t.Helper()
		w, err := redis.StartWatched(t.Context(), redis.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return []string{"REDIS_ADDRS=" + w.Addr, "REDIS_SENTINEL_MASTER=" + redis.MasterName, "REDIS_PASSWORD=" + w.Master.Password}, w.Stop
	}
	cluster := func(t *testing.T) (variables []string, stop func() error) {
		t.Helper()
		c, err := redis.StartCluster(t.Context(), 3, redis.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return []string{
			"REDIS_ADDRS=" + strings.Join(c.Addrs(), ","), "REDIS_CLUSTER=true", "REDIS_PASSWORD=" + c.Nodes[0].Password,
			"REDIS_STREAM={otto}:events", "REDIS_RESULTS_STREAM={otto}:results", "REDIS_DEAD_STREAM={otto}:dead",
		}, c.Stop
	}
	for name, start := range map[string]func(*testing.T) ([]string, func() error){"TLS and an ACL user": encrypted, "sentinel": sentinel, "cluster": cluster} {
		t.Run(name, func(t *testing.T) {
			nowhere(t)
			variables, stop := start(t)
			t.Cleanup(func() {
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
			file := filepath.Join(t.TempDir(), "any.env")
			if err := os.WriteFile(file, []byte(strings.Join(variables, "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("ENV_FILE", file)
			in, err := intakeOf{whose{EnvFile: file}}.open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer in.close()
			for _, reason := range []string{"poison", "expired"} {
				err := in.redis.XAdd(t.Context(), &goredis.XAddArgs{Stream: in.letters.Dead, Values: []string{"type", "scale_up", "dead_event_id", "1-1", "dead_reason", reason}}).Err()
				if err != nil {
					t.Fatal(err)
				}
			}
			for _, row := range []struct {
				args []string
				want string
			}{
				{[]string{"dead-letters"}, "expired"},
				{[]string{"dead-letters", "replay", "--reason", "poison"}, "replayed"},
				{[]string{"dead-letters", "drop", "--all"}, "dropped"},
				{[]string{"dead-letters"}, "no dead letters"},
				{[]string{"pause"}, "paused"},
				{[]string{"resume"}, "resumed"},
			} {
				if said, err := say(t, row.args...); err != nil || !strings.Contains(said, row.want) {
					t.Errorf("%v says %q, %v, want %q", row.args, said, err, row.want)
				}
			}
			if n := in.redis.XLen(t.Context(), in.letters.Events).Val(); n != 1 {
				t.Errorf("%d events, want the one that was replayed", n)
			}
		})
	}
}
