package logs

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/ottoscaler/ottoscaler/internal/logs/link"
	"github.com/ottoscaler/ottoscaler/internal/logs/link/linktest"
	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// A story is what was logged.
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

// secure makes r's server one that wants TLS both ways, and dials it with files in dir.
func secure(t *testing.T, r *rig, dir string, server *linktest.Authority, clients *linktest.Authority) {
	t.Helper()
	r.server.close()
	ours := filepath.Join(dir, "ca.crt")
	r.server = newServerRigWith(t, link.Options{
		TLS: true, CAFile: ours, CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
	}, grpc.Creds(server.ServerCredentials(time.Now().Add(time.Hour), clients)))
	r.server.backend.Restore(logstest.Worker{Registration: &logsv1.Worker{Uid: key.WorkerUID, Name: "w-1"}})
	r.renew()
}

// lay writes the relay's files.
func lay(t *testing.T, dir string, server, clients *linktest.Authority) {
	t.Helper()
	cert, key := clients.Issue("relay", time.Now().Add(time.Hour))
	linktest.Write(t, filepath.Join(dir, "ca.crt"), server.PEM)
	linktest.Write(t, filepath.Join(dir, "tls.crt"), cert)
	linktest.Write(t, filepath.Join(dir, "tls.key"), key)
}

func TestCertificatesAreReplacedUnderARelayThatRuns(t *testing.T) {
	r := newTestRig(t)
	dir := t.TempDir()
	server, clients := linktest.NewAuthority(t), linktest.NewAuthority(t)
	lay(t, dir, server, clients)
	secure(t, r, dir, server, clients)
	var told story
	r.follow.outage.log = slog.New(slog.NewTextHandler(&told, nil))
	want := r.print(at(0, 1, 2)...)
	r.start(context.Background())
	r.await(3)

	// The server shows a certificate of another authority, and asks for one of another.
	server, clients = linktest.NewAuthority(t), linktest.NewAuthority(t)
	r.server.stop()
	r.server.options = []grpc.ServerOption{grpc.Creds(server.ServerCredentials(time.Now().Add(time.Hour), clients))}
	r.server.start()
	want = append(want, r.print(at(3, 4)...)...)
	r.eventually("the relay says what is wrong", func() bool {
		return strings.Contains(strings.Join(told.lines(), "\n"), "not signed by those in LOG_SERVER_CA_FILE")
	})
	lay(t, dir, server, clients)
	r.await(5)
	r.end()
	if err := r.finish(); err != nil {
		t.Fatal(err)
	}
	r.check(want)
	count := 0
	for _, line := range told.lines() {
		if strings.Contains(line, "LOG_SERVER_CA_FILE") {
			count++
		}
	}
	if count != 1 {
		t.Errorf("one reason takes %d lines: %q", count, told.lines())
	}
}
