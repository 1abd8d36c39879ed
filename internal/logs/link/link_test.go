package link

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ottoscaler/ottoscaler/internal/logs/link/linktest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

func TestTroubleIsExplained(t *testing.T) {
	ours, theirs := linktest.NewAuthority(t), linktest.NewAuthority(t)
	roots, otherRoots := file(t, ours.PEM), file(t, theirs.PEM)
	cert, key := ours.Issue("relay", inAnHour)
	certFile, keyFile := file(t, cert), file(t, key)
	expired, expiredKey := ours.Issue("relay", time.Now().Add(-time.Hour))
	secure := func(clients *linktest.Authority) []grpc.ServerOption {
		return []grpc.ServerOption{grpc.Creds(ours.ServerCredentials(inAnHour, clients))}
	}
	overdue := grpc.Creds(ours.ServerCredentials(time.Now().Add(-time.Hour), nil))

	for _, row := range []struct {
		name    string
		server  []grpc.ServerOption
		token   string
		options Options
		code    codes.Code
		says    string
	}{
		{"plaintext to TLS", secure(nil), "", Options{}, codes.Unavailable, "LOG_SERVER_TLS=on"},
		{"TLS to plaintext", nil, "", Options{TLS: true}, codes.Unavailable, "LOG_SERVER_TLS=off"},
		{"an authority that nobody named", secure(nil), "", Options{TLS: true}, codes.Unavailable, "LOG_SERVER_CA_FILE names the authority"},
		{"another authority", secure(nil), "", Options{TLS: true, CAFile: otherRoots}, codes.Unavailable, "not signed by those in LOG_SERVER_CA_FILE, " + otherRoots},
		{"another name", secure(nil), "", Options{TLS: true, CAFile: roots, ServerName: "else.test"}, codes.Unavailable, "LOG_SERVER_NAME must be a name in the server's certificate: logs.test"},
		{"an expired certificate", []grpc.ServerOption{overdue}, "", Options{TLS: true, CAFile: roots}, codes.Unavailable, "renew the server's certificate"},
		{"no client certificate", secure(ours), "", Options{TLS: true, CAFile: roots}, codes.Unavailable, "client certificate"},
		{"a client certificate of another authority", secure(theirs), "", Options{TLS: true, CAFile: roots, CertFile: certFile, KeyFile: keyFile}, codes.Unavailable, "LOG_SERVER_CERT_FILE"},
		{"an expired client certificate", secure(ours), "", Options{TLS: true, CAFile: roots, CertFile: file(t, expired), KeyFile: file(t, expiredKey)}, codes.Unavailable, "LOG_SERVER_CERT_FILE"},
		{"no token", secure(nil), "right", Options{TLS: true, CAFile: roots}, codes.Unauthenticated, "the server wants a token: LOG_SERVER_TOKEN_FILE"},
		{"another token", secure(nil), "right", Options{TLS: true, CAFile: roots, TokenFile: file(t, []byte("wrong"))}, codes.Unauthenticated, "does not take the token of LOG_SERVER_TOKEN_FILE"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := serve(t, nil, row.server...)
			s.token = row.token
			row.options.Addr = s.addr
			err := register(t, dial(t, row.options))
			if status.Code(err) != row.code {
				t.Errorf("got %v, want code %v", err, row.code)
			}
			if err == nil || !strings.Contains(err.Error(), row.says) {
				t.Errorf("got %v, want it to say %q", err, row.says)
			}
			if err != nil && (strings.Contains(err.Error(), "wrong") || strings.Contains(err.Error(), "\n")) {
				t.Errorf("it tells the token, or takes more than a line: %v", err)
			}
		})
	}
}

func TestServerThatIsNoLogServerIsExplained(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	err := register(t, dial(t, Options{Addr: web.Listener.Addr().String()}))
	if err == nil || !strings.Contains(err.Error(), "must be the gRPC port") {
		t.Errorf("a web server: got %v", err)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := grpc.NewServer()
	go other.Serve(listener) //nolint:errcheck // ends with Stop
	defer other.Stop()
	err = register(t, dial(t, Options{Addr: listener.Addr().String()}))
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "ottoscaler.logs.v1") {
		t.Errorf("a gRPC server without the service: got %v", err)
	}
}

func TestTLSBothWays(t *testing.T) {
	ours, clients := linktest.NewAuthority(t), linktest.NewAuthority(t)
	s := serve(t, nil, grpc.Creds(ours.ServerCredentials(inAnHour, clients)))
	cert, key := clients.Issue("relay", inAnHour)
	options := Options{Addr: s.addr, TLS: true, CAFile: file(t, ours.PEM), CertFile: file(t, cert), KeyFile: file(t, key)}
	for _, name := range []string{"", linktest.ServerName} {
		options.ServerName = name
		if err := register(t, dial(t, options)); err != nil {
			t.Errorf("server name %q: %v", name, err)
		}
	}
}

func TestFilesThatAreReplacedAreUsedAtTheNextHandshake(t *testing.T) {
	oldServer, oldClients := linktest.NewAuthority(t), linktest.NewAuthority(t)
	newServer, newClients := linktest.NewAuthority(t), linktest.NewAuthority(t)
	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	lay := func(roots []byte, clients *linktest.Authority) {
		c, k := clients.Issue("relay", inAnHour)
		linktest.Write(t, ca, roots)
		linktest.Write(t, cert, c)
		linktest.Write(t, key, k)
	}
	lay(oldServer.PEM, oldClients)
	s := serve(t, nil, grpc.Creds(oldServer.ServerCredentials(inAnHour, oldClients)))
	var told story
	l := dial(t, Options{Addr: s.addr, TLS: true, CAFile: ca, CertFile: cert, KeyFile: key, Log: told.log()})
	eventually(t, l)

	// The server is renewed first: it is refused until the files follow.
	s = serve(t, s, grpc.Creds(newServer.ServerCredentials(inAnHour, newClients)))
	if err := register(t, l); err == nil {
		t.Fatal("a server with the certificate of another authority is trusted")
	}
	lay(newServer.PEM, newClients)
	eventually(t, l)

	// Half a file changes nothing, and is reported once.
	linktest.Write(t, key, []byte("-----BEGIN PRIVATE KEY-----\n"))
	s = serve(t, s, grpc.Creds(newServer.ServerCredentials(inAnHour, newClients)))
	eventually(t, l)
	serve(t, s, grpc.Creds(newServer.ServerCredentials(inAnHour, newClients)))
	eventually(t, l)
	if lines := told.lines(); len(lines) != 1 || !strings.Contains(lines[0], "stay as they were") || !strings.Contains(lines[0], key) {
		t.Errorf("it logs %q", lines)
	}
}

func TestFilesThatCannotBeUsedAreAnErrorAtOnce(t *testing.T) {
	a := linktest.NewAuthority(t)
	cert, _ := a.Issue("relay", inAnHour)
	_, otherKey := a.Issue("relay", inAnHour)
	for _, options := range []Options{
		{TLS: true, CAFile: "/nowhere"},
		{TLS: true, CAFile: file(t, []byte("no PEM"))},
		{TLS: true, CertFile: file(t, cert), KeyFile: file(t, otherKey)},
		{TLS: true, TokenFile: "/nowhere"},
		{TLS: true, TokenFile: file(t, []byte("\n"))},
		{TLS: true, TokenFile: file(t, []byte("two\nlines"))},
	} {
		options.Addr = "logs.example:443"
		if l, err := Dial(options); err == nil {
			l.Close() //nolint:errcheck // it should not be there
			t.Errorf("%+v is accepted", options)
		}
	}
}

func TestTokenIsReadAgainForEachCall(t *testing.T) {
	s := serve(t, nil)
	s.token = "first"
	path := file(t, []byte("first\n"))
	l := dial(t, Options{Addr: s.addr, TokenFile: path}) // plaintext, but on this machine
	if err := register(t, l); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.token = "second"
	s.mu.Unlock()
	if err := register(t, l); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("with the old token: %v", err)
	}
	linktest.Write(t, path, []byte("second"))
	if err := register(t, l); err != nil {
		t.Errorf("with the new token: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := register(t, l); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), path) {
		t.Errorf("without its file: %v", err)
	}
}

func TestTokenIsNotSentInPlaintextUnlessSaid(t *testing.T) {
	path := file(t, []byte("secret"))
	for _, row := range []struct {
		addr    string
		tls     bool
		allowed bool
		works   bool
	}{
		{"logs.example:50051", false, false, false},
		{"10.1.2.3:50051", false, false, false},
		{"logs.example:50051", true, false, true},
		{"logs.example:50051", false, true, true},
		{"127.0.0.1:50051", false, false, true},
		{"localhost:50051", false, false, true},
	} {
		l, err := Dial(Options{Addr: row.addr, TLS: row.tls, TokenFile: path, TokenPlaintext: row.allowed})
		if (err == nil) != row.works {
			t.Errorf("%+v: got %v", row, err)
		}
		if err == nil {
			l.Close() //nolint:errcheck // it was never used
		}
	}
}

func TestGzipIsUsedWhenAskedFor(t *testing.T) {
	for want, options := range map[string]Options{"gzip": {Gzip: true}, "": {}} {
		s := serve(t, nil)
		options.Addr = s.addr
		if err := register(t, dial(t, options)); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		if s.compression != want {
			t.Errorf("the server sees compression %q, want %q", s.compression, want)
		}
		s.mu.Unlock()
	}
}

func TestStreamsTakeTurnsOnTheConnections(t *testing.T) {
	s := serve(t, nil)
	l := dial(t, Options{Addr: s.addr, Connections: 3})
	for range 6 {
		if err := register(t, l); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connections != 3 {
		t.Errorf("the server sees %d connections, want 3", s.connections)
	}
}

func TestStreamThatFindsNoRoomOnItsConnectionIsReported(t *testing.T) {
	s := serve(t, nil, grpc.MaxConcurrentStreams(1))
	var told story
	l := dial(t, Options{Addr: s.addr, Log: told.log()})
	l.streamWait = 50 * time.Millisecond
	client := logsv1.NewLogServiceClient(l)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, err := client.StreamLogs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	waiting, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		client.StreamLogs(waiting) //nolint:errcheck // it waits until it is told to stop
	}()
	for deadline := time.Now().Add(patience); !told.has("LOG_SERVER_CONNECTIONS (now 1)"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no warning; it logs %q", told.lines())
		}
	}
	stop()
	<-done
	if err := first.CloseSend(); err != nil {
		t.Error(err)
	}
}

// The proxy's environment is read once in a process, so the client is one of its own.
func TestConnectsThroughTheProxyOfTheEnvironment(t *testing.T) {
	if addr := os.Getenv("LINK_TEST_ADDR"); addr != "" {
		l := dial(t, Options{Addr: addr, TLS: true, CAFile: os.Getenv("LINK_TEST_CA")})
		if err := register(t, l); err != nil {
			fmt.Fprintln(os.Stdout, "explained:", err)
			t.Fatal(err)
		}
		return
	}
	a := linktest.NewAuthority(t)
	s := serve(t, nil, grpc.Creds(a.ServerCredentials(inAnHour, nil)))
	asked := make(chan string, 10)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		if r.Host != linktest.ServerName+":443" {
			http.Error(w, "not allowed", http.StatusForbidden)
			return
		}
		there, err := net.Dial("tcp", s.addr)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		here, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(here, "HTTP/1.1 200 Connection established\r\n\r\n")
		forward(here, there)
	}))
	defer proxy.Close()
	roots := file(t, a.PEM)
	if out, err := again(t, "LINK_TEST_ADDR="+linktest.ServerName+":443", "LINK_TEST_CA="+roots, "HTTPS_PROXY="+proxy.URL); err != nil {
		t.Errorf("through the proxy: %v\n%s", err, out)
	}
	if got, want := <-asked, "CONNECT "+linktest.ServerName+":443"; got != want {
		t.Errorf("the proxy is asked for %q, want %q", got, want)
	}
	out, err := again(t, "LINK_TEST_ADDR=else.test:443", "LINK_TEST_CA="+roots, "HTTPS_PROXY="+proxy.URL)
	if err == nil || !strings.Contains(out, "of HTTPS_PROXY; NO_PROXY lists what needs none") {
		t.Errorf("through a proxy that refuses: %v\n%s", err, out)
	}
	<-asked
	out, err = again(t, "LINK_TEST_ADDR=else.test:443", "LINK_TEST_CA="+roots, "HTTPS_PROXY="+proxy.URL, "NO_PROXY=.test")
	if err == nil || strings.Contains(out, "HTTPS_PROXY") {
		t.Errorf("a server that needs no proxy, and is not there: %v\n%s", err, out)
	}
	select {
	case got := <-asked:
		t.Errorf("NO_PROXY does not keep it from the proxy: %q", got)
	default:
	}
}

func TestMetricsAreThere(t *testing.T) {
	registry := prometheus.NewRegistry()
	dial(t, Options{Addr: "127.0.0.1:1", Registry: registry})
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 2 {
		t.Errorf("%d metrics, %v", n, err)
	}
}
