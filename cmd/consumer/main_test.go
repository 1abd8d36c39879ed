package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/internal/stream"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent/publisher"
)

func valid() Config {
	return Config{
		Environment: stream.Environment{
			RedisHost: "127.0.0.1", RedisPort: 6379,
			RedisStream: "otto:scale:events", RedisResultsStream: "otto:scale:results", RedisDeadStream: "otto:scale:dead", RedisConsumerGroup: "ottoscaler",
		},
		InstanceID: "ottoscaler", RedisConsumer: "test",
		ReclaimAfter: time.Minute, MaxEventBytes: 262144, ResultsMaxLen: 10000,
		QueueAddr: "127.0.0.1:7070", HealthAddr: ":8081", DrainTimeout: 20 * time.Second,
	}
}

func TestValidateNamesEveryVariableThatIsWrong(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatalf("a valid configuration: %v", err)
	}
	for name, spoil := range map[string]func(*Config){
		"REDIS_HOST":           func(c *Config) { c.RedisHost = "" },
		"REDIS_PORT":           func(c *Config) { c.RedisPort = 70000 },
		"REDIS_DB":             func(c *Config) { c.RedisDB = -1 },
		"INSTANCE_ID":          func(c *Config) { c.InstanceID = "" },
		"REDIS_STREAM":         func(c *Config) { c.RedisStream = "" },
		"REDIS_CONSUMER_GROUP": func(c *Config) { c.RedisConsumerGroup = "" },
		"REDIS_RESULTS_STREAM": func(c *Config) { c.RedisResultsStream = c.RedisStream },
		"REDIS_DEAD_STREAM":    func(c *Config) { c.RedisDeadStream = c.RedisResultsStream },
		"RECLAIM_AFTER":        func(c *Config) { c.ReclaimAfter = time.Millisecond },
		"MAX_EVENT_BYTES":      func(c *Config) { c.MaxEventBytes = 10 << 20 },
		"RESULTS_MAX_LEN":      func(c *Config) { c.ResultsMaxLen = 0 },
		"EVENTS_MAX_AGE":       func(c *Config) { c.EventsMaxAge = -1 },
		"EVENTS_MAX_LEN":       func(c *Config) { c.EventsMaxLen = -1 },
		"POISON_AFTER":         func(c *Config) { c.PoisonAfter = -1 },
		"REDIS_WAIT_REPLICAS":  func(c *Config) { c.RedisWaitReplicas = -2 },
		"REDIS_WAIT_TIMEOUT":   func(c *Config) { c.RedisWaitTimeout = -1 },
		"DRAIN_TIMEOUT":        func(c *Config) { c.DrainTimeout = -1 },
		"HEALTH_ADDR":          func(c *Config) { c.HealthAddr = "8081" },
		"QUEUE_ADDR":           func(c *Config) { c.QueueAddr = "0.0.0.0:7070" },
	} {
		t.Run(name, func(t *testing.T) {
			c := valid()
			spoil(&c)
			if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Validate() = %v, want one line that begins with %s", err, name)
			}
		})
	}
}

func TestValidateKnowsEachKindOfRedis(t *testing.T) {
	cluster := func(c *Config) {
		c.RedisHost, c.RedisAddrs, c.RedisCluster = "", []string{"a:1", "b:2"}, true
		c.RedisStream, c.RedisResultsStream, c.RedisDeadStream = "{otto}:events", "{otto}:results", "{otto}:dead"
	}
	for name, row := range map[string]struct {
		change func(*Config)
		want   string // the beginning of the complaint
	}{
		"a cluster":   {cluster, ""},
		"sentinels":   {func(c *Config) { c.RedisHost, c.RedisAddrs, c.RedisSentinelMaster = "", []string{"a:1", "b:2"}, "otto" }, ""},
		"one address": {func(c *Config) { c.RedisHost, c.RedisAddrs = "", []string{"a:1"} }, ""},
		"TLS with everything": {func(c *Config) {
			c.RedisTLS, c.RedisTLSCAFile, c.RedisTLSCertFile, c.RedisTLSKeyFile = true, "ca", "cert", "key"
		}, ""},
		"an address without a port":       {func(c *Config) { c.RedisAddrs = []string{"a"} }, "REDIS_ADDRS"},
		"addresses of nobody knows what":  {func(c *Config) { c.RedisAddrs = []string{"a:1", "b:2"} }, "REDIS_ADDRS"},
		"sentinels that are nowhere":      {func(c *Config) { c.RedisSentinelMaster = "otto" }, "REDIS_ADDRS"},
		"a cluster with sentinels":        {func(c *Config) { cluster(c); c.RedisSentinelMaster = "otto" }, "REDIS_CLUSTER"},
		"another database of a cluster":   {func(c *Config) { cluster(c); c.RedisDB = 1 }, "REDIS_DB"},
		"keys of a cluster without a tag": {func(c *Config) { cluster(c); c.RedisStream = "events" }, "REDIS_STREAM"},
		"keys of a cluster with an empty tag": {func(c *Config) {
			cluster(c)
			c.RedisStream, c.RedisResultsStream, c.RedisDeadStream = "{}e", "{}r", "{}d"
		}, "REDIS_STREAM"},
		"keys of a cluster with two tags": {func(c *Config) { cluster(c); c.RedisDeadStream = "{dead}" }, "REDIS_STREAM"},
		"half a certificate":              {func(c *Config) { c.RedisTLS, c.RedisTLSCertFile = true, "cert" }, "REDIS_TLS_CERT_FILE"},
		"a certificate for no TLS":        {func(c *Config) { c.RedisTLSCAFile = "ca" }, "REDIS_TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			c := valid()
			row.change(&c)
			err := c.Validate()
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.HasPrefix(err.Error(), row.want)) {
				t.Errorf("Validate() = %v, want it to begin with %q", err, row.want)
			}
		})
	}
}

func TestAnOutcomeWaitsForAReplicaWhereThereIsAFailover(t *testing.T) {
	for name, row := range map[string]struct {
		config Config
		want   int
	}{
		"a single server":             {Config{RedisWaitReplicas: -1}, 0},
		"a single server, as told":    {Config{RedisWaitReplicas: 1}, 1},
		"sentinels":                   {Config{RedisWaitReplicas: -1, Environment: stream.Environment{RedisSentinelMaster: "otto"}}, 1},
		"sentinels, as told":          {Config{Environment: stream.Environment{RedisSentinelMaster: "otto"}}, 0},
		"a cluster":                   {Config{RedisWaitReplicas: -1, Environment: stream.Environment{RedisCluster: true}}, 1},
		"a cluster with two replicas": {Config{RedisWaitReplicas: 2, Environment: stream.Environment{RedisCluster: true}}, 2},
	} {
		row.config.RedisWaitTimeout = time.Second
		if got := row.config.Replication(); got != (stream.Replication{Replicas: row.want, Timeout: time.Second}) {
			t.Errorf("%s: Replication() = %+v, want %d replicas", name, got, row.want)
		}
	}
}

func TestTheQueueListensOnLoopbackOnly(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:7070": true, "127.8.8.8:1": true, "[::1]:7070": true, "localhost:7070": true,
		":7070": false, "0.0.0.0:7070": false, "[::]:7070": false, "10.0.0.1:7070": false, "example.org:7070": false, "127.0.0.1": false, "127.0.0.1:": false,
	} {
		c := valid()
		c.QueueAddr = addr
		if got := c.Validate() == nil; got != want {
			t.Errorf("QUEUE_ADDR=%s accepted: %t, want %t", addr, got, want)
		}
	}
}

func TestAMisconfiguredConsumerExitsWithTwoAndAllThatIsWrong(t *testing.T) {
	for _, name := range []string{"REDIS_HOST", "QUEUE_ADDR", "REDIS_PORT"} {
		t.Setenv(name, "")
	}
	t.Setenv("QUEUE_ADDR", "0.0.0.0:7070")
	t.Setenv("REDIS_PORT", "many")
	var stderr bytes.Buffer
	if code := daemon.Main(&stderr, nil, run); code != 2 {
		t.Errorf("exit code = %d, want 2", code)
	}
	for _, name := range []string{"REDIS_HOST", "QUEUE_ADDR", "REDIS_PORT"} {
		if !strings.Contains(stderr.String(), name) {
			t.Errorf("%s is not named in:\n%s", name, stderr.String())
		}
	}
}

func TestAGroupOfSomebodyElseIsExitCodeTwoAndOneLine(t *testing.T) {
	server := redistest.ForTest(t, redis.Options{})
	rdb := server.Client()
	defer rdb.Close() //nolint:errcheck // the server ends anyway
	const key = "otto:scale:events:owner:ottoscaler"
	if err := rdb.Set(t.Context(), key, `{"user":"jinwoo","instance":"ottoscaler","namespace":"ottoscaler-jinwoo","since":"2026-01-02T03:04:05Z"}`, 0).Err(); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"REDIS_HOST": server.Host, "REDIS_PORT": fmt.Sprint(server.Port), "REDIS_PASSWORD": server.Password, "INSTANCE_USER": "minji",
		"QUEUE_ADDR": freeAddr(t), "HEALTH_ADDR": freeAddr(t), "LOG_LEVEL": "error",
	} {
		t.Setenv(name, value)
	}
	var stderr bytes.Buffer
	if code := daemon.Main(&stderr, nil, run); code != 2 {
		t.Errorf("exit code = %d, want 2", code)
	}
	said := stderr.String()
	for _, want := range []string{"user jinwoo, instance ottoscaler in namespace ottoscaler-jinwoo, since 2026-01-02T03:04:05Z", "REDIS_CONSUMER_GROUP", "DEL " + key} {
		if !strings.Contains(said, want) || strings.Count(said, "\n") != 1 {
			t.Errorf("it says %q, want one line with %q", said, want)
		}
	}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	return l.Addr().String()
}

func TestAPortThatIsTakenIsOneClearError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	cfg := valid()
	cfg.QueueAddr, cfg.HealthAddr = l.Addr().String(), freeAddr(t)
	err = run(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "QUEUE_ADDR") {
		t.Errorf("run() = %v, want an error about QUEUE_ADDR", err)
	}
	cfg.QueueAddr, cfg.HealthAddr = freeAddr(t), l.Addr().String()
	if err := run(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "health") {
		t.Errorf("run() = %v, want an error about health", err)
	}
}

func TestAnEventTravelsFromRedisThroughTheQueueAndBack(t *testing.T) {
	server := redistest.ForTest(t, redis.Options{})
	cfg := valid()
	cfg.RedisPort, cfg.RedisPassword = server.Port, server.Password
	cfg.QueueAddr, cfg.HealthAddr = freeAddr(t), freeAddr(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil))) }()

	awaitReady(t, cfg.HealthAddr)
	client, err := queuerpc.Dial(cfg.QueueAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // the server has ended then
	serving, stopServing := context.WithCancel(t.Context())
	served := make(chan error, 1)
	started, release := make(chan struct{}), make(chan struct{})
	go func() {
		served <- queue.Serve(serving, client.Events(), queue.SubscribeOptions{Name: "test", Credits: 4}, slog.New(slog.DiscardHandler),
			func(_ context.Context, d queue.Delivery[*scaleevent.Event]) queue.Verdict {
				close(started) // a second delivery would panic
				<-release
				return queue.Finish("did "+d.Value.TaskID, nil)
			})
	}()
	rdb := server.Client()
	id, err := publisher.Publish(t.Context(), rdb, cfg.RedisStream, scaleevent.Event{Type: scaleevent.ScaleUp, TaskID: "한진우"})
	if err != nil {
		t.Fatal(err)
	}
	awaitPending(t, rdb, cfg, 1)
	select {
	case <-started: // it may be pending a moment before it is offered
	case <-time.After(15 * time.Second):
		t.Fatal("the event does not arrive")
	}

	awaitResult(t, rdb, cfg) // that it is in work
	code := 137
	end := queue.WorkerEnd{
		ID: "uid-1", Worker: queue.Worker{Name: "w-1", EventID: id, TaskID: "한진우", Pool: "default"}, Status: scaleevent.StatusFailed, Reason: "oom_killed", Message: "container agent needed more memory than its limit", Attempt: 2, ExitCode: &code,
	}
	for range 3 { // as a scaler does that restarts
		if err := client.ReportWorkerEnd(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	cancel() // told to stop while the event is in work
	time.Sleep(100 * time.Millisecond)
	close(release)
	if err := <-done; err != nil {
		t.Errorf("run() = %v, want nil when told to stop", err)
	}
	stopServing()
	if err := <-served; err != nil {
		t.Error(err)
	}
	entries, err := rdb.XRange(t.Context(), cfg.RedisResultsStream, "-", "+").Result()
	if err != nil || len(entries) != 3 || entries[0].Values["status"] != "accepted" || entries[2].Values["event_id"] != id || entries[2].Values["message"] != "did 한진우" {
		t.Errorf("results = %v, %v", entries, err)
	} else if end := entries[1].Values; end["event_id"] != id || end["status"] != "failed" || end["worker"] != "w-1" || end["reason"] != "oom_killed" || end["exit_code"] != "137" || end["attempt"] != "2" || end["message"] == "" {
		t.Errorf("the end of a worker = %v", end)
	}
	awaitPending(t, rdb, cfg, 0)
}

func awaitResult(t *testing.T, rdb *goredis.Client, cfg Config) {
	t.Helper()
	eventually(t, func() error {
		if rdb.XLen(t.Context(), cfg.RedisResultsStream).Val() == 0 {
			return errors.New("there is no result")
		}
		return nil
	})
}

func awaitReady(t testing.TB, addr string) {
	t.Helper()
	eventually(t, func() error {
		res, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			err = errors.New("it does not become ready: " + res.Status)
		}
		return errors.Join(err, res.Body.Close())
	})
}

func awaitPending(t *testing.T, rdb *goredis.Client, cfg Config, want int64) {
	t.Helper()
	eventually(t, func() error {
		p, err := rdb.XPending(t.Context(), cfg.RedisStream, cfg.RedisConsumerGroup).Result()
		if err == nil && p.Count != want {
			err = fmt.Errorf("pending = %d, want %d", p.Count, want)
		}
		return err
	})
}

// eventually waits until there is nothing wrong any more.
func eventually(t testing.TB, wrong func() error) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := wrong()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
