// Package nestjs_test proves examples/nestjs-log-server: its own tests, and the
// conformance suite of the log protocol against the program as it is started.
package nestjs_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ottoscaler/ottoscaler/test/logconformance"
)

const folder = "../../examples/nestjs-log-server"

// patience bounds the wait for a program: a busy machine takes seconds to load it.
const patience = time.Minute

// built fails the test unless the program can be started.
func built(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(folder, "dist/src/main.js")); err != nil {
		t.Fatalf("%v; run this first: cd examples/nestjs-log-server && npm ci && npm run build", err)
	}
}

// Each test of the program's own is a test here, so that all are in one summary.
func TestOwnTests(t *testing.T) {
	built(t)
	command := exec.CommandContext(t.Context(), "npm", "test")
	command.Dir = folder
	command.Env = append(os.Environ(), "TEST_REPORTER=tap")
	output, err := command.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("npm test: %v", err)
	}
	results, planned := parseTAP(output)
	if !planned || len(results) == 0 {
		t.Fatalf("npm test: %v; it did not come to its end:\n%s", err, output)
	}
	failed := false
	for _, result := range results {
		t.Run(result.name, func(t *testing.T) {
			if !result.ok {
				failed = true
				t.Error(result.detail)
			}
		})
	}
	if err != nil && !failed {
		t.Errorf("npm test: %v although no test failed:\n%s", err, output)
	}
}

type result struct {
	ok           bool
	name, detail string
}

var tapLine = regexp.MustCompile(`^(ok|not ok) \d+ - (.*)$`)

// parseTAP reads the outermost tests of a report in the Test Anything Protocol, and
// whether it says how many there are, which it does at its end.
func parseTAP(output []byte) (results []result, planned bool) {
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		if match := tapLine.FindStringSubmatch(line); match != nil {
			// What is skipped here would be skipped in CI.
			ok := match[1] == "ok" && !strings.Contains(match[2], "# SKIP") && !strings.Contains(match[2], "# TODO")
			results = append(results, result{ok: ok, name: match[2], detail: line})
			continue
		}
		if strings.HasPrefix(line, "1..") {
			planned = true
		}
		if strings.HasPrefix(line, "  ") && len(results) > 0 { // the details stand behind the result
			results[len(results)-1].detail += "\n" + line
		}
	}
	return results, planned && lines.Err() == nil
}

func TestServerKeepsTheLogProtocol(t *testing.T) {
	built(t)
	server := &program{dir: t.TempDir(), addr: freeAddr(t)}
	if err := server.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.stop(syscall.SIGTERM); err != nil {
			t.Errorf("told to stop, the server ends with %v\n%s", err, &server.output)
		}
		if t.Failed() {
			t.Logf("the server said:\n%s", &server.output)
		}
	})
	logconformance.Run(t, logconformance.Server{Addr: server.addr, Restart: func(ctx context.Context) error {
		_ = server.stop(syscall.SIGKILL) // its status is the signal
		return server.begin(ctx)
	}})
}

// program is the server as it is started by npm start, without npm in between.
type program struct {
	dir, addr string
	command   *exec.Cmd
	output    bytes.Buffer
}

// begin starts the program and waits until it says that it serves.
func (p *program) begin(ctx context.Context) error {
	p.command = exec.Command("node", "dist/src/main.js") //nolint:noctx // it is stopped by its signals
	p.command.Dir = folder
	p.command.Env = append(os.Environ(), "LISTEN="+p.addr, "HTTP_LISTEN=off", "DATA_DIR="+p.dir)
	p.output.Reset()
	p.command.Stdout, p.command.Stderr = &p.output, &p.output
	if err := p.command.Start(); err != nil {
		return fmt.Errorf("starting node: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing hangs on it
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: "ottoscaler.logs.v1.LogService"}, grpc.WaitForReady(true))
	if err != nil || answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the server's health is %v: %w\n%s", answer.GetStatus(), err, &p.output)
	}
	return nil
}

func (p *program) stop(signal os.Signal) error {
	if err := p.command.Process.Signal(signal); err != nil {
		return err
	}
	return p.command.Wait()
}

func freeAddr(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // only its port is wanted
	return listener.Addr().String()
}

// reserved are the variables that no value of the chart sets: its template does, or
// they have no meaning beside the main pod.
var reserved = map[string]bool{
	"LISTEN": true, "HTTP_LISTEN": true, "DATA_DIR": true, // the probes, the Service and the volume must know them
	"HTTP_HOSTS": true, "TLS_CERT_FILE": true, "TLS_KEY_FILE": true, "TLS_CLIENT_CA_FILE": true, "AUTH_TOKEN_FILE": true,
}

func TestChartKnowsExactlyTheVariablesOfTheServer(t *testing.T) {
	built(t)
	command := exec.CommandContext(t.Context(), "node", "dist/src/main.js", "--help")
	command.Dir = folder
	help, err := command.Output()
	if err != nil {
		t.Fatalf("--help: %v", err)
	}
	want := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^  ([A-Z][A-Z0-9_]+) `).FindAllSubmatch(help, -1) {
		if name := string(match[1]); !reserved[name] {
			want[name] = true
		}
	}
	content, err := os.ReadFile("../../charts/ottoscaler/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties struct {
			LogServer struct {
				Properties struct {
					Env struct{ Properties map[string]any }
				}
			}
		}
	}
	if err := json.Unmarshal(content, &schema); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for name := range schema.Properties.LogServer.Properties.Env.Properties {
		got[name] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("logServer.env: variables of --help (-) and of values.schema.json (+):\n%s\n%s", diff, help)
	}
}
