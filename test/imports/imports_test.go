// Package imports_test holds the lines that no package may cross: what a program
// links is what runs with its rights, and what every user of the image downloads.
package imports_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/ottoscaler/ottoscaler/"

func TestProgramsLinkOnlyWhatTheyNeed(t *testing.T) {
	everywhere := []string{"helm.sh/", "k8s.io/kubernetes/", "github.com/google/go-containerregistry/", module + "internal/dev/", module + "test/", "testing"}
	for _, row := range []struct {
		program string
		without []string
		with    string // shows that the list of imports is one
	}{
		{"cmd/consumer", []string{"k8s.io/client-go/", "k8s.io/api/"}, "github.com/redis/go-redis/v9"},
		{"cmd/scaler", []string{"github.com/redis/"}, "k8s.io/client-go/rest"},
		{"cmd/log-relay", []string{"github.com/redis/"}, "k8s.io/client-go/rest"},
	} {
		imports := deps(t, row.program)
		if !contains(imports, row.with) {
			t.Errorf("%s does not link %s: the list is wrong\n%v", row.program, row.with, imports)
		}
		for _, banned := range append(row.without, everywhere...) {
			for _, path := range imports {
				if matches(path, banned) {
					t.Errorf("%s links %s", row.program, path)
				}
			}
		}
	}
}

func TestEventContractImportsNothingOfOurs(t *testing.T) {
	for _, path := range deps(t, "pkg/scaleevent") {
		if strings.HasPrefix(path, module) && path != module+"pkg/scaleevent" {
			t.Errorf("pkg/scaleevent imports %s: others could not use it alone", path)
		}
	}
}

// A package imports only what lies before it on the way of the data.
func TestNothingImportsUpwards(t *testing.T) {
	line := []string{"pkg/scaleevent", "internal/queue", "internal/stream", "internal/worker", "internal/logs"}
	allowed := map[string][]string{
		"pkg/scaleevent":  {},
		"internal/queue":  {"pkg/scaleevent"},
		"internal/stream": {"pkg/scaleevent", "internal/queue"},
		"internal/worker": {"pkg/scaleevent", "internal/queue"},
		"internal/logs":   {"pkg/scaleevent", "internal/queue", "internal/worker"},
	}
	for _, pkg := range line {
		imports := deps(t, pkg)
		for _, other := range line {
			if other == pkg || contains(allowed[pkg], other) {
				continue
			}
			if contains(imports, module+other) {
				t.Errorf("%s imports %s", pkg, other)
			}
		}
	}
}

func matches(path, banned string) bool {
	return path == strings.TrimSuffix(banned, "/") || strings.HasSuffix(banned, "/") && strings.HasPrefix(path, banned)
}

func contains(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

func deps(t *testing.T, pkg string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./"+pkg)
	cmd.Dir = "../.."
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -deps ./%s: %v\n%s", pkg, err, stderr(err))
	}
	return strings.Fields(string(output))
}

func stderr(err error) []byte {
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // straight from exec
		return exit.Stderr
	}
	return nil
}
