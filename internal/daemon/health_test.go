package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// serveHealth serves h until the test ends and returns its address.
func serveHealth(t *testing.T, h *Health) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serving health: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("health did not stop")
		}
	})
	return lis.Addr().String()
}

func get(t *testing.T, addr, path string) (int, string) {
	t.Helper()
	response, err := http.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(body))
}

func wantGet(t *testing.T, addr, path string, wantCode int, wantBody string) {
	t.Helper()
	if code, body := get(t, addr, path); code != wantCode || body != wantBody {
		t.Errorf("GET %s: %d %q, want %d %q", path, code, body, wantCode, wantBody)
	}
}

func TestReadyWhenEveryPartIs(t *testing.T) {
	h := NewHealth(NewRegistry())
	addr := serveHealth(t, h)
	wantGet(t, addr, "/readyz", 200, "ok")
	h.Require("redis", "queue")
	wantGet(t, addr, "/readyz", 503, "queue: starting\nredis: starting")
	h.Report("queue", nil)
	h.Report("redis", errors.New("dial tcp redis:6379: connection refused"))
	wantGet(t, addr, "/readyz", 503, "redis: dial tcp redis:6379: connection refused")
	wantGet(t, addr, "/healthz", 200, "ok")
	h.Report("redis", nil)
	wantGet(t, addr, "/readyz", 200, "ok")
	h.Require("redis") // again, by someone else
	wantGet(t, addr, "/readyz", 200, "ok")
}

func TestMetricsTellThePartsAndTheProcess(t *testing.T) {
	h := NewHealth(NewRegistry())
	addr := serveHealth(t, h)
	h.Require("redis")
	h.Report("queue", nil)
	code, body := get(t, addr, "/metrics")
	for _, want := range []string{
		`ottoscaler_daemon_part_ready{part="redis"} 0`,
		`ottoscaler_daemon_part_ready{part="queue"} 1`,
		"go_goroutines ", "process_cpu_seconds_total ", "go_build_info{",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("GET /metrics: %d, without %s", code, want)
		}
	}
}

func healthClient(t *testing.T, addr string) grpc_health_v1.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return grpc_health_v1.NewHealthClient(conn)
}

func TestGRPCHealthAnswersOnTheSamePort(t *testing.T) {
	h := NewHealth(NewRegistry())
	client := healthClient(t, serveHealth(t, h))
	h.Require("redis")
	for service, want := range map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
		"":          grpc_health_v1.HealthCheckResponse_NOT_SERVING,
		"readiness": grpc_health_v1.HealthCheckResponse_NOT_SERVING,
		"redis":     grpc_health_v1.HealthCheckResponse_NOT_SERVING,
		"liveness":  grpc_health_v1.HealthCheckResponse_SERVING,
	} {
		response, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || response.GetStatus() != want {
			t.Errorf("checking %q: %v (%v), want %v", service, response.GetStatus(), err, want)
		}
	}
	_, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "nonsense"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("checking nonsense: %v, want NotFound", err)
	}
}

func TestGRPCHealthTellsWatchersOfChangesAndOfTheEnd(t *testing.T) {
	h := NewHealth(NewRegistry())
	h.Require("redis")
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, lis) }()
	watch, err := healthClient(t, lis.Addr().String()).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantNext := func(want grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if response, err := watch.Recv(); err != nil || response.GetStatus() != want {
			t.Fatalf("watching: %v (%v), want %v", response.GetStatus(), err, want)
		}
	}
	wantNext(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	h.Report("redis", nil)
	wantNext(grpc_health_v1.HealthCheckResponse_SERVING)
	began := time.Now()
	stop()
	if err := <-served; err != nil {
		t.Errorf("serving health: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping with a watcher took %s", took)
	}
	for {
		response, err := watch.Recv()
		if err != nil {
			break
		}
		if response.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING {
			t.Error("a server that stops says that it is serving")
		}
	}
}

func TestAnAddressThatIsTakenIsAnError(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	err = NewHealth(NewRegistry()).Run(t.Context(), lis.Addr().String())
	if err == nil || !strings.HasPrefix(err.Error(), "serving health: listen tcp "+lis.Addr().String()) {
		t.Errorf("got %v, want an error that names the address", err)
	}
}
