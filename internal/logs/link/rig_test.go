package link

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/ottoscaler/ottoscaler/internal/logs/link/linktest"
	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

var inAnHour = time.Now().Add(time.Hour)

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	linktest.Write(t, path, content)
	return path
}

// A server is a log server that knows who called, and how.
type server struct {
	t       *testing.T
	backend *logstest.Server
	grpc    *grpc.Server
	addr    string

	mu          sync.Mutex
	token       string // that callers must have, if any
	compression string
	connections int
}

// serve starts a log server, on the address of the last one if there was one.
func serve(t *testing.T, last *server, options ...grpc.ServerOption) *server {
	t.Helper()
	s := &server{t: t, backend: &logstest.Server{}, addr: "127.0.0.1:0"}
	if last != nil {
		last.grpc.Stop()
		s.addr = last.addr
	}
	var listener net.Listener
	var err error
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if listener, err = net.Listen("tcp", s.addr); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	s.addr = listener.Addr().String()
	s.grpc = grpc.NewServer(append(options, grpc.StatsHandler(s), grpc.UnaryInterceptor(s.check))...)
	logsv1.RegisterLogServiceServer(s.grpc, s.backend)
	go s.grpc.Serve(listener) //nolint:errcheck // ends with Stop
	t.Cleanup(s.grpc.Stop)
	return s
}

func (s *server) check(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != "" {
		incoming, _ := metadata.FromIncomingContext(ctx)
		if got := incoming.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+s.token {
			return nil, status.Error(codes.Unauthenticated, "who are you?")
		}
	}
	return handler(ctx, request)
}

func (s *server) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (s *server) HandleRPC(_ context.Context, seen stats.RPCStats) {
	if header, ok := seen.(*stats.InHeader); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.compression = header.Compression
	}
}

func (s *server) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *server) HandleConn(_ context.Context, seen stats.ConnStats) {
	if _, ok := seen.(*stats.ConnBegin); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.connections++
	}
}

// A story is what was logged. It may be written to and read concurrently.
type story struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *story) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *story) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Split(strings.TrimSpace(s.text.String()), "\n")
}

func (s *story) has(text string) bool { return strings.Contains(strings.Join(s.lines(), "\n"), text) }

func (s *story) log() *slog.Logger { return slog.New(slog.NewTextHandler(s, nil)) }

// dial prepares a link that ends with the test.
func dial(t *testing.T, options Options) *Link {
	t.Helper()
	l, err := Dial(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // the test is over
	return l
}

// register makes a call.
func register(t *testing.T, l *Link) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := logsv1.NewLogServiceClient(l).RegisterWorker(ctx, &logsv1.RegisterWorkerRequest{
		Worker: &logsv1.Worker{Uid: "uid-1", Name: "w-1"},
	})
	return err
}

// eventually calls until that is no error, as a relay does.
func eventually(t *testing.T, l *Link) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = register(t, l); err == nil {
			return
		}
	}
	t.Fatalf("not within %v: %v", patience, err)
}

// forward copies between two connections until either ends.
func forward(a, b net.Conn) {
	done := make(chan struct{}, 2)
	go func() { io.Copy(a, b); done <- struct{}{} }() //nolint:errcheck // ends when either is closed
	go func() { io.Copy(b, a); done <- struct{}{} }() //nolint:errcheck // as above
	<-done
	a.Close() //nolint:errcheck // nothing is lost that anybody waits for
	b.Close() //nolint:errcheck // as above
	<-done
}
