package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// serverName is what the certificates of the tests are for, besides 127.0.0.1.
const serverName = "logs.test"

// An authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "an authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key, a.pem, _ = a.sign(template, nil)
	return a
}

// sign signs with a's key, or with the certificate's own.
func (a *authority) sign(template, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// issue returns a certificate of a server or client, and its key, in PEM.
func (a *authority) issue(name string, notAfter time.Time) (cert, key []byte) {
	a.t.Helper()
	_, _, cert, key = a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert)
	return cert, key
}

// serverCredentials makes a server that shows a certificate of a, and asks clients for one
// that clients signed.
func (a *authority) serverCredentials(notAfter time.Time, clients *authority) credentials.TransportCredentials {
	a.t.Helper()
	cert, err := tls.X509KeyPair(a.issue(serverName, notAfter))
	if err != nil {
		a.t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	if clients != nil {
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AddCert(clients.cert)
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return credentials.NewTLS(config)
}

var inAnHour = time.Now().Add(time.Hour)

// write writes a file as Kubernetes does: no reader ever sees a part of it.
func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, content)
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
	clients     []string // the names in the certificates of those who called
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
