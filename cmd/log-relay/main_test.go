package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
)

// good is a configuration without a problem.
func good() Config {
	return Config{
		Namespace: "otto", InstanceID: "ottoscaler", QueueAddr: "127.0.0.1:7070", LogServerAddr: "logs:50051",
		MaxWorkers: 1, BatchLines: 1, BatchBytes: 1024, BatchLinger: time.Millisecond,
		HealthAddr: "127.0.0.1:0", DrainTimeout: time.Second,
		SpoolWorkerBytes: 1 << 20, SpoolBytes: 1 << 20, LogDrainTimeout: time.Second, StreamAge: time.Minute,
	}
}

func TestEveryWrongVariableIsNamedAtOnce(t *testing.T) {
	if err := good().Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	err := Config{BatchBytes: 1 << 20, QueueAddr: "nowhere", SpoolBytes: -1}.Validate()
	if err == nil {
		t.Fatal("an empty configuration is accepted")
	}
	for _, name := range []string{
		"NAMESPACE", "INSTANCE_ID", "LOG_SERVER_ADDR", "QUEUE_ADDR", "HEALTH_ADDR", "MAX_WORKERS",
		"BATCH_LINES", "BATCH_BYTES", "BATCH_LINGER", "DRAIN_TIMEOUT",
		"SPOOL_WORKER_BYTES", "SPOOL_BYTES", "LOG_DRAIN_TIMEOUT", "STREAM_AGE",
	} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in %q", name, err)
		}
	}
}

func TestRelayOutsideOfAClusterIsMisconfigured(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var stderr strings.Builder
	for name, value := range map[string]string{"NAMESPACE": "otto", "LOG_SERVER_ADDR": "logs:1", "LOG_FORMAT": "text"} {
		t.Setenv(name, value)
	}
	t.Setenv("KUBECONFIG", "")
	if got := daemon.Main(&stderr, nil, run); got != 2 {
		t.Errorf("exit code = %d, want 2; it says %s", got, &stderr)
	}
}

func TestRelayWithoutItsNeighboursWaitsAndStopsWhenTold(t *testing.T) {
	// An API server, a queue and a log server that are not there.
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := good()
	cfg.QueueAddr, cfg.LogServerAddr = nowhere, nowhere
	cfg.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	kubeconfig := "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: 'http://" + nowhere + "'}}]}"
	if err := os.WriteFile(cfg.Kubeconfig, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	select {
	case err := <-stopped:
		if err != nil {
			t.Errorf("a relay that waits, told to stop: %v", err)
		}
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("it has not waited")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not stop")
	}
}
