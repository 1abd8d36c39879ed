package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func valid(t *testing.T) Config {
	t.Helper()
	pools := filepath.Join(t.TempDir(), "pools.yaml")
	if err := os.WriteFile(pools, []byte("pools: {default: {template: {spec: {containers: [{name: agent}]}}}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{
		Namespace: "ns", InstanceID: "inst", QueueAddr: freeAddr(t), PoolsFile: pools, OttoAgentImage: "agent:test",
		PodName: "scaler-0", LeaseDuration: 15 * time.Second, MaxWrites: 64, EventConcurrency: 8, LogDrainTimeout: time.Minute, HealthAddr: freeAddr(t), DrainTimeout: 5 * time.Second, ReleaseTimeout: 10 * time.Second,
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lis.Close(); err != nil {
			t.Error(err)
		}
	}()
	return lis.Addr().String()
}

type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) count(word string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), word)
}

// begin calls run and returns how to stop it, which checks that it returns nil.
func begin(t *testing.T, cfg Config) (_ *logs, stop func()) {
	t.Helper()
	l := &logs{}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(l, t.Output()), nil))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, cfg, log) }()
	return l, sync.OnceFunc(func() {
		t.Helper()
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("told to stop, it returned %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("told to stop, it still runs")
		}
	})
}

func readyz(t *testing.T, cfg Config) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+cfg.HealthAddr+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestEveryProblemOfTheConfigurationIsNamed(t *testing.T) {
	if err := valid(t).Validate(); err != nil {
		t.Errorf("a valid configuration: %v", err)
	}
	err := Config{InstanceID: "a b", QueueAddr: "here", HealthAddr: "there", LogDrainTimeout: -1, DrainTimeout: -1}.Validate()
	for _, name := range []string{"NAMESPACE", "INSTANCE_ID", "QUEUE_ADDR", "HEALTH_ADDR", "POOLS_FILE", "EVENT_CONCURRENCY", "LOG_DRAIN_TIMEOUT", "DRAIN_TIMEOUT", "LEASE_DURATION", "MAX_WRITES", "RELEASE_TIMEOUT"} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+name) {
			t.Errorf("%s is not named by: %v", name, err)
		}
	}
}

func TestWrongFilesAreSaidInOneLine(t *testing.T) {
	kubeconfig := workertest.Kubeconfig(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("pools: {a: {template: {spec: {}}}, b: {template: {spec: {}}}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no pool file":    {func(c *Config) { c.PoolsFile = "/nowhere.yaml" }, "reading the pool file: open /nowhere.yaml"},
		"a bad pool file": {func(c *Config) { c.PoolsFile = bad }, "pools.b.template.spec.containers: a worker needs"},
		"no kubeconfig":   {func(c *Config) { c.Kubeconfig = "/nowhere" }, "finding the cluster"},
		"no cluster":      {func(c *Config) { c.Kubeconfig = "" }, "set KUBECONFIG"},
	} {
		cfg := valid(t)
		cfg.Kubeconfig = kubeconfig
		c.change(&cfg)
		err := run(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", name, err, c.want)
		}
	}
}

func TestANamespaceOfSomebodyElseIsExitCodeTwoAndOneLine(t *testing.T) {
	s := workertest.ControlPlane(t, nil)
	discard := slog.New(slog.DiscardHandler)
	if err := worker.ClaimNamespace(t.Context(), s.Leases(), s.Namespace, worker.Owner{User: "jinwoo", Instance: "ottoscaler"}, discard); err != nil {
		t.Fatal(err)
	}
	cfg := valid(t)
	for name, value := range map[string]string{
		"NAMESPACE": s.Namespace, "INSTANCE_USER": "minji", "KUBECONFIG": workertest.Kubeconfig(t),
		"POOLS_FILE": cfg.PoolsFile, "OTTO_AGENT_IMAGE": cfg.OttoAgentImage,
		"QUEUE_ADDR": cfg.QueueAddr, "HEALTH_ADDR": cfg.HealthAddr, "LOG_LEVEL": "error",
	} {
		t.Setenv(name, value)
	}
	var stderr bytes.Buffer
	if code := daemon.Main(&stderr, nil, run); code != 2 {
		t.Errorf("exit code = %d, want 2", code)
	}
	said := stderr.String()
	for _, want := range []string{"NAMESPACE: " + s.Namespace + " belongs to user jinwoo (instance ottoscaler", "delete lease " + worker.OwnerLease} {
		if !strings.Contains(said, want) || strings.Count(said, "\n") != 1 {
			t.Errorf("it says %q, want one line with %q", said, want)
		}
	}
	lease, err := s.Leases().Leases(s.Namespace).Get(t.Context(), worker.OwnerLease, metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "jinwoo" {
		t.Errorf("the namespace is not jinwoo's any more: %v, %v", lease, err)
	}
}

func TestUnreachableAPIServerIsWaitedFor(t *testing.T) {
	cfg := valid(t)
	cfg.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	content := `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: "http://` + freeAddr(t) + `"}}]}`
	if err := os.WriteFile(cfg.Kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	l, stop := begin(t, cfg)
	defer stop()
	workertest.Eventually(t, "it says so", func() bool { return l.count("cannot find out whose the namespace is") > 0 })
	time.Sleep(3 * time.Second)
	if n := l.count("level=WARN") + l.count("level=ERROR"); n > 2 { // the other is the queue
		t.Errorf("%d lines about it, want one", n)
	}
	if code, body := readyz(t, cfg); code != http.StatusServiceUnavailable || !strings.Contains(body, "kubernetes") {
		t.Errorf("/readyz: %d %s", code, body)
	}
}

func TestEventsAreCarriedOutOverTheQueue(t *testing.T) {
	space := workertest.ControlPlane(t, nil)
	cfg := valid(t)
	cfg.Kubeconfig, cfg.Namespace = workertest.Kubeconfig(t), space.Namespace
	l, stop := begin(t, cfg) // before there is a queue
	defer stop()
	workertest.Eventually(t, "it waits for the queue", func() bool { return l.count("cannot offer workers") == 1 })
	if code, body := readyz(t, cfg); code != http.StatusServiceUnavailable || !strings.Contains(body, "queue") || !strings.Contains(body, partEvents) {
		t.Errorf("/readyz: %d %s", code, body)
	}

	events := queue.NewMemory[*scaleevent.Event]()
	workers := queue.NewMemory[queue.Worker]()
	server := grpc.NewServer()
	queuerpc.NewServer(events, workers).Register(server)
	lis, err := net.Listen("tcp", cfg.QueueAddr)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(lis) }() // it ends with Stop
	defer server.Stop()

	producer, err := events.Produce(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	e, err := scaleevent.Parse("1700000000000-0", map[string]string{"type": "scale_up", "task_id": "t", "pod_count": "2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := producer.Offer(t.Context(), queue.Item[*scaleevent.Event]{ID: e.ID, Key: e.OrderingKey(), Value: &e}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	outcome, err := producer.Outcome(ctx)
	if err != nil || outcome.Status != queue.Done || outcome.Details["count"] != "2" {
		t.Fatalf("outcome %+v, %v", outcome, err)
	}
	if n := len(space.Workers()); n != 2 {
		t.Errorf("%d workers, want 2", n)
	}
	workertest.Eventually(t, "it is ready", func() bool { code, _ := readyz(t, cfg); return code == http.StatusOK })
	workertest.Eventually(t, "both workers are offered to the relay", func() bool {
		stats, err := workers.Stats(t.Context())
		return err == nil && stats.Ready == 2
	})
	server.Stop()
	workertest.Eventually(t, "it says that the subscription is broken", func() bool {
		code, body := readyz(t, cfg)
		return code == http.StatusServiceUnavailable && strings.Contains(body, partEvents)
	})
	stop()

	// And the pre-delete hook, with nobody left to release the workers.
	cfg.ReleaseTimeout = 8 * time.Second
	if err := release(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
		t.Fatal(err)
	}
	left, err := space.Client.Pods(space.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(left.Items) != 0 {
		t.Errorf("%d workers are left, %v", len(left.Items), err)
	}
}

func TestHelpNamesTheVariables(t *testing.T) {
	var stderr bytes.Buffer
	if code := daemon.Main(&stderr, []string{"--help"}, run); code != 0 || stderr.Len() != 0 {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
}
