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
		LogServerTLS: "auto", LogServerCompression: "auto", LogServerConnections: 1, LogStreams: "auto",
		MaxWorkers: 1, BatchLines: 1, BatchBytes: 1024, BatchLinger: time.Millisecond,
		HealthAddr: "127.0.0.1:0", DrainTimeout: time.Second,
		SpoolWorkerBytes: 1 << 20, SpoolBytes: 1 << 20, LogDrainTimeout: time.Second, StreamAge: time.Minute,
		KubeletPort: 10250,
	}
}

func TestEveryWrongVariableIsNamedAtOnce(t *testing.T) {
	if err := good().Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	err := Config{BatchBytes: 1 << 20, QueueAddr: "nowhere", MaskPatterns: "fine\n[", SpoolBytes: -1, KubeletCAFile: "ca.crt", KubeletInsecure: true}.Validate()
	if err == nil {
		t.Fatal("an empty configuration is accepted")
	}
	for _, name := range []string{
		"NAMESPACE", "INSTANCE_ID", "LOG_SERVER_ADDR", "QUEUE_ADDR", "HEALTH_ADDR", "MAX_WORKERS",
		"BATCH_LINES", "BATCH_BYTES", "BATCH_LINGER", "DRAIN_TIMEOUT",
		"LOG_SERVER_TLS", "LOG_SERVER_COMPRESSION", "LOG_SERVER_CONNECTIONS", "MASK_PATTERNS: line 2", "LOG_STREAMS",
		"SPOOL_WORKER_BYTES", "SPOOL_BYTES", "LOG_DRAIN_TIMEOUT", "STREAM_AGE", "KUBELET_PORT", "KUBELET_CA_FILE",
	} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in %q", name, err)
		}
	}
}

func TestWayToTheLogServerMustMakeSense(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		change func(*Config)
		says   string // "" if it is fine
	}{
		{"a file that is not there", func(c *Config) { c.LogServerCAFile = "/nowhere" }, "LOG_SERVER_CA_FILE"},
		{"a file without a certificate", func(c *Config) { c.LogServerCAFile = file }, "LOG_SERVER_CA_FILE"},
		{"a certificate without a key", func(c *Config) { c.LogServerCertFile = file }, "LOG_SERVER_KEY_FILE is not"},
		{"a key without a certificate", func(c *Config) { c.LogServerKeyFile = file }, "LOG_SERVER_CERT_FILE is not"},
		{"a pair that is none", func(c *Config) { c.LogServerCertFile, c.LogServerKeyFile = file, file }, "LOG_SERVER_CERT_FILE: "},
		{"a name without TLS", func(c *Config) { c.LogServerTLS, c.LogServerName = "off", "logs.test" }, "LOG_SERVER_NAME is set"},
		{"a token without TLS", func(c *Config) { c.LogServerTLS, c.LogServerTokenFile = "off", file }, "LOG_SERVER_TOKEN_FILE is set"},
		{"a token file that is not there", func(c *Config) { c.LogServerTokenFile = "/nowhere" }, "LOG_SERVER_TOKEN_FILE: "},
		{"a token without TLS, on this machine", func(c *Config) {
			c.LogServerAddr, c.LogServerTLS, c.LogServerTokenFile = "127.0.0.1:1", "off", file
		}, ""},
		{"a token without TLS, as told", func(c *Config) {
			c.LogServerTLS, c.LogServerTokenFile, c.LogServerTokenPlaintext = "off", file, true
		}, ""},
	} {
		cfg := good()
		row.change(&cfg)
		err := cfg.Validate()
		if (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: got %v, want %q", row.name, err, row.says)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", row.name, err)
		}
	}
}

func TestWhatIsAutoIsDecidedByTheRest(t *testing.T) {
	for _, row := range []struct {
		name      string
		change    func(*Config)
		tls, gzip bool
	}{
		{"in the cluster", func(*Config) {}, false, false},
		{"elsewhere", func(c *Config) { c.LogServerAddr = "logs.example:50051" }, false, true},
		{"port 443", func(c *Config) { c.LogServerAddr = "logs.example:443" }, true, true},
		{"a CA", func(c *Config) { c.LogServerCAFile = "ca.crt" }, true, false},
		{"a client certificate", func(c *Config) { c.LogServerCertFile = "tls.crt" }, true, false},
		{"a name", func(c *Config) { c.LogServerName = "logs.test" }, true, false},
		{"a token", func(c *Config) { c.LogServerTokenFile = "token" }, true, false},
		{"a token on this machine", func(c *Config) { c.LogServerAddr, c.LogServerTokenFile = "localhost:1", "token" }, false, false},
		{"a token in plaintext", func(c *Config) { c.LogServerTokenFile, c.LogServerTokenPlaintext = "token", true }, false, false},
		{"said", func(c *Config) { c.LogServerTLS, c.LogServerCompression = "on", "gzip" }, true, true},
		{"said against", func(c *Config) {
			c.LogServerAddr, c.LogServerTLS, c.LogServerCompression = "logs.example:443", "off", "none"
		}, false, false},
	} {
		cfg := good()
		row.change(&cfg)
		if got := cfg.link(); got.TLS != row.tls || got.Gzip != row.gzip {
			t.Errorf("%s: TLS %v, gzip %v, want %v and %v", row.name, got.TLS, got.Gzip, row.tls, row.gzip)
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
