package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Services of grpc.health.v1 beside the empty name, which means readiness, and
// the names of the parts.
const (
	livenessService  = "liveness"
	readinessService = "readiness"
)

// errNotReported is the state of a part that was announced and nothing else.
var errNotReported = errors.New("starting")

// NewRegistry returns a registry with what every binary tells: the Go runtime,
// the process and the build.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	return reg
}

// Health tells Kubernetes and Prometheus how the parts of a binary are: over
// HTTP at /healthz, /readyz and /metrics, and over gRPC as grpc.health.v1 (the
// services "", "readiness", "liveness", and one for each part), all on one port.
//
// It is ready when every part is, and alive for as long as it answers. All methods may be called concurrently.
type Health struct {
	reg     *prometheus.Registry
	metrics *metrics
	grpc    *health.Server

	mu       sync.Mutex
	parts    map[string]error // nil: ready
	stopping bool
}

// NewHealth returns a Health without parts, which is ready. It serves the
// metrics of reg, and adds its own to them.
func NewHealth(reg *prometheus.Registry) *Health {
	h := &Health{reg: reg, metrics: newMetrics(reg), grpc: health.NewServer(), parts: map[string]error{}}
	h.publish()
	return h
}

// Require announces parts: Health is not ready until each has been reported.
func (h *Health) Require(parts ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, part := range parts {
		if _, known := h.parts[part]; !known {
			h.set(part, errNotReported)
		}
	}
	h.publish()
}

// Report says how a part is: nil means ready, an error why it is not. The error's
// text is shown by /readyz.
func (h *Health) Report(part string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.set(part, err)
	h.publish()
}

// set is called with mu held.
func (h *Health) set(part string, err error) {
	h.parts[part] = err
	h.metrics.setReady(part, err == nil)
	h.grpc.SetServingStatus(part, servingStatus(err == nil))
}

// publish brings the overall services of grpc.health.v1 up to date. It is called
// with mu held, or before anyone else knows h.
func (h *Health) publish() {
	ready := servingStatus(len(h.problems()) == 0)
	h.grpc.SetServingStatus("", ready)
	h.grpc.SetServingStatus(readinessService, ready)
	h.grpc.SetServingStatus(livenessService, servingStatus(true))
}

// problems returns one line for each part that is not ready. It is called with
// mu held.
func (h *Health) problems() (unready []string) {
	if h.stopping {
		unready = append(unready, "stopping")
	}
	for _, part := range slices.Sorted(maps.Keys(h.parts)) {
		err := h.parts[part]
		if err == nil {
			continue
		}
		unready = append(unready, fmt.Sprintf("%s: %v", part, err))
	}
	return unready
}

func servingStatus(ok bool) grpc_health_v1.HealthCheckResponse_ServingStatus {
	if ok {
		return grpc_health_v1.HealthCheckResponse_SERVING
	}
	return grpc_health_v1.HealthCheckResponse_NOT_SERVING
}

// Run serves on addr until ctx is done. It blocks.
func (h *Health) Run(ctx context.Context, addr string) error {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serving health: %w", err)
	}
	return h.Serve(ctx, lis)
}

// Serve is [Health.Run] on a listener, which it closes.
func (h *Health) Serve(ctx context.Context, lis net.Listener) error {
	grpcServer := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(grpcServer, h.grpc)

	// Kubernetes' gRPC probe speaks HTTP/2 without TLS and without asking first.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           h.handler(grpcServer),
		Protocols:         protocols,
		ReadHeaderTimeout: 5 * time.Second,
	}

	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving health: %w", err)
	case <-ctx.Done():
	}

	h.mu.Lock()
	h.stopping = true
	h.publish()
	h.mu.Unlock()
	h.grpc.Shutdown()
	grpcServer.Stop() // ends Watch calls, which would hold up the Shutdown
	stopCtx, cancel := Drain(ctx, time.Second)
	defer cancel()
	if err := server.Shutdown(stopCtx); err != nil {
		// A scraper that reads slowly is not worth waiting for.
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving health: %w", err)
	}
	return nil
}

func (h *Health) handler(grpcServer *grpc.Server) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, nil)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		h.mu.Lock()
		unready := h.problems()
		h.mu.Unlock()
		answer(w, unready)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.reg, promhttp.HandlerOpts{Registry: h.reg}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			grpcServer.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// answer writes ok, or the problems, one on a line.
func answer(w http.ResponseWriter, problems []string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := "ok"
	if len(problems) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		text = strings.Join(problems, "\n")
	}
	printLine(w, text)
}
