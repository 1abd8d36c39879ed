// Package nestjs_test proves examples/nestjs-log-server: its own tests, and the
// conformance suite of the log protocol against the program as it is started.
package nestjs_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/internal/dev/nestjs"
	"github.com/ottoscaler/ottoscaler/test/logconformance"
)

var folder = nestjs.Folder("../..")

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
	server, err := nestjs.New(t.Context(), "../..", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Errorf("told to stop, the server ends with %v", err)
		}
		if output, err := os.ReadFile(server.Output); err != nil || t.Failed() {
			t.Logf("the server said:\n%s%v", output, err)
		}
	})
	logconformance.Run(t, logconformance.Server{Addr: server.Addr, Restart: func(ctx context.Context) error {
		if err := server.Kill(); err != nil {
			return err
		}
		return server.Start(ctx)
	}})
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
