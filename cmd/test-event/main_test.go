package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/stream"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// setUp starts a Redis and has the environment name it.
func setUp(t *testing.T) *redis.Server {
	t.Helper()
	server := redistest.ForTest(t, redis.Options{})
	for _, name := range []string{"ENV_FILE", "REDIS_USERNAME", "REDIS_DB", "REDIS_STREAM", "REDIS_RESULTS_STREAM", "REDIS_CONSUMER_GROUP"} {
		t.Setenv(name, "") // to restore it afterwards; empty counts as unset
	}
	t.Setenv("REDIS_HOST", server.Host)
	t.Setenv("REDIS_PORT", fmt.Sprint(server.Port))
	t.Setenv("REDIS_PASSWORD", server.Password)
	return server
}

// consume answers events: those of pool "bad" are rejected, all others done.
func consume(t *testing.T, server *redis.Server) {
	t.Helper()
	dial := func() goredis.UniversalClient {
		return stream.NewClient(stream.Server{Addrs: []string{server.Addr}, Password: server.Password}, "a")
	}
	rdb := dial()
	q := queue.NewMemory[*scaleevent.Event]()
	c := stream.New(stream.Config{
		Stream: "otto:scale:events", Results: "otto:scale:results", Dead: "otto:scale:dead", Group: "ottoscaler", Consumer: "a",
		ReclaimAfter: time.Minute, MaxEventBytes: 1 << 18, ResultsMaxLen: 1000,
	}, rdb, dial, q, func(error) {}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- c.Run(ctx) }()
	go func() {
		done <- queue.Serve(ctx, q, queue.SubscribeOptions{Name: "test", Credits: 4}, slog.New(slog.DiscardHandler),
			func(_ context.Context, d queue.Delivery[*scaleevent.Event]) queue.Verdict {
				if d.Value.Pool == "bad" {
					return queue.Reject("unknown_pool", "there is no pool bad", nil)
				}
				return queue.Finish("made workers", map[string]string{"workers": "w-1"})
			})
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

func sent(t *testing.T, server *redis.Server) []map[string]any {
	t.Helper()
	entries, err := server.Client().XRange(t.Context(), "otto:scale:events", "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for _, e := range entries {
		all = append(all, e.Values)
	}
	return all
}

func TestFlagsBecomeTheFieldsOfTheEvent(t *testing.T) {
	server := setUp(t)
	code, _, stderr := call(t, "--pool", "gpu", "-c", "3", "--task", "build 7", "--priority", "9",
		"--field", "env.CI_A=x=y;z,1", "--field", "branch=main")
	if code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	want := []map[string]any{{
		"type": "scale_up", "pool": "gpu", "pod_count": "3", "task_id": "build 7", "priority": "9", "env.CI_A": "x=y;z,1", "branch": "main",
	}}
	if diff := cmp.Diff(want, sent(t, server)); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
}

func TestAMalformedEventIsSentOnlyRaw(t *testing.T) {
	server := setUp(t)
	code, _, stderr := call(t, "--count", "-1")
	if code != exitUsage || !strings.Contains(stderr, "invalid_field") || !strings.Contains(stderr, "pod_count") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if got := sent(t, server); len(got) != 0 {
		t.Errorf("sent %v", got)
	}
	if code, _, stderr := call(t, "--raw", "--count=-1"); code != exitDone {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if diff := cmp.Diff([]map[string]any{{"pod_count": "-1"}}, sent(t, server)); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
}

func TestWaitTellsTheOutcomeByItsExitCode(t *testing.T) {
	server := setUp(t)
	consume(t, server)
	code, stdout, stderr := call(t, "--wait", "--events", "3")
	if code != exitDone || strings.Count(stdout, "done ") != 3 || !strings.Contains(stdout, "workers=w-1") {
		t.Errorf("exit %d:\n%s%s", code, stdout, stderr)
	}
	if code, stdout, _ := call(t, "--wait", "--pool", "bad"); code != exitRejected || !strings.Contains(stdout, "rejected") || !strings.Contains(stdout, "unknown_pool") {
		t.Errorf("exit %d:\n%s", code, stdout)
	}
	if code, stdout, _ := call(t, "--wait", "--raw", "--type", "explode"); code != exitRejected || !strings.Contains(stdout, "unknown_type") {
		t.Errorf("exit %d:\n%s", code, stdout)
	}
}

func TestWaitGivesUpWithAClearLine(t *testing.T) {
	setUp(t)
	code, _, stderr := call(t, "--wait", "--timeout", "300ms")
	if code != exitFailed || !strings.Contains(stderr, "no outcome of event") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit %d: %q", code, stderr)
	}
}

func TestJSONIsOneObjectOnALine(t *testing.T) {
	server := setUp(t)
	consume(t, server)
	code, stdout, stderr := call(t, "-w", "-o", "json", "--show-backlog")
	if code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var status []any
	for line := range strings.Lines(stdout) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		status = append(status, object["status"], object["group"])
	}
	if diff := cmp.Diff([]any{"sent", nil, "done", nil, nil, "ottoscaler"}, status); diff != "" {
		t.Errorf("statuses and groups (-want +got):\n%s", diff)
	}
}

func TestVariablesOfTheWorkerAreSentButNotShown(t *testing.T) {
	server := setUp(t)
	for _, output := range []string{"text", "json"} {
		code, stdout, stderr := call(t, "-o", output, "--field", "env.TOKEN=hunter2", "--field", "branch=main")
		if code != exitDone {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		if strings.Contains(stdout+stderr, "hunter2") || !strings.Contains(stdout, "env.TOKEN") || !strings.Contains(stdout, "main") {
			t.Errorf("-o %s shows %s%s", output, stdout, stderr)
		}
	}
	for _, fields := range sent(t, server) {
		if fields["env.TOKEN"] != "hunter2" {
			t.Errorf("sent %v", fields)
		}
	}
}

func TestTheEnvironmentFileFillsInWhatIsNotSet(t *testing.T) {
	server := setUp(t)
	file := filepath.Join(t.TempDir(), "jinwoo.env")
	text := fmt.Sprintf("REDIS_HOST=no.such.host\nREDIS_PASSWORD=%s\nREDIS_STREAM=from:file\n", server.Password)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REDIS_PASSWORD", "")
	t.Setenv("ENV_FILE", file)
	if code, _, stderr := call(t); code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if n, err := server.Client().XLen(t.Context(), "from:file").Result(); err != nil || n != 1 {
		t.Errorf("entries = %d, %v, want 1", n, err)
	}
}

func TestFaultsAreOneLineWithTheirExitCode(t *testing.T) {
	for name, row := range map[string]struct {
		args []string
		env  map[string]string
		code int
		says string
	}{
		"unknown flag":       {[]string{"--nonsense"}, nil, exitUsage, "nonsense"},
		"no events":          {[]string{"-n", "0"}, nil, exitUsage, "--events"},
		"missing file":       {[]string{"--env-file", "/no/such/file"}, nil, exitUsage, "/no/such/file"},
		"field without =":    {[]string{"--field", "x"}, nil, exitUsage, "x"},
		"port is no number":  {nil, map[string]string{"REDIS_PORT": "many"}, exitUsage, "many"},
		"nobody listens":     {nil, map[string]string{"REDIS_PORT": "1"}, exitFailed, "127.0.0.1:1"},
		"wrong password":     {nil, map[string]string{"REDIS_PASSWORD": "wrong"}, exitFailed, "check REDIS_USERNAME and REDIS_PASSWORD"},
		"raw, but no fields": {[]string{"--raw"}, nil, exitUsage, "fields"},
	} {
		t.Run(name, func(t *testing.T) {
			setUp(t)
			for name, value := range row.env {
				t.Setenv(name, value)
			}
			code, stdout, stderr := call(t, row.args...)
			if code != row.code || !strings.Contains(stderr, row.says) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit %d, want %d; stderr %q, want one line with %q; stdout %q", code, row.code, stderr, row.says, stdout)
			}
		})
	}
}

func TestHelpIsNoFault(t *testing.T) {
	code, stdout, stderr := call(t, "--help")
	if code != exitDone || !strings.Contains(stdout, "--field") || stderr != "" {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}
