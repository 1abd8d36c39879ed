package toolchain

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// module writes a small module and returns a toolchain that builds from it.
func module(t *testing.T) (Toolchain, Artifact) {
	t.Helper()
	source := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":         "module example.org/tool\n\ngo 1.26\n",
		"go.sum":         "",
		"hello/main.go":  "package main\n\nfunc main() { println(\"hello\") }\n",
		"other/other.go": "package other\n",
	} {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return Toolchain{Source: source, Cache: filepath.Join(t.TempDir(), "cache"), Progress: log},
		Artifact{Name: "hello", Dir: ".", Packages: []string{"./hello"}, Sources: []string{"hello"}, LinkFlags: "-s -w"}
}

func ensure(t *testing.T, tc Toolchain, a Artifact) string {
	t.Helper()
	dir, err := tc.Ensure(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAnArtifactIsBuiltOnce(t *testing.T) {
	tc, a := module(t)
	dir := ensure(t, tc, a)
	before, err := os.Stat(filepath.Join(dir, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	if again := ensure(t, tc, a); again != dir {
		t.Errorf("second call: %s, want %s", again, dir)
	}
	after, err := os.Stat(filepath.Join(dir, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("the program was built again")
	}
}

func TestAChangeOfSourceOrFlagsBuildsAnother(t *testing.T) {
	tc, a := module(t)
	first := ensure(t, tc, a)
	if err := os.WriteFile(filepath.Join(tc.Source, "hello/main.go"), []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	second := ensure(t, tc, a)
	a.LinkFlags = "-s"
	third := ensure(t, tc, a)
	if first == second || second == third {
		t.Errorf("folders %s, %s, %s: want three", first, second, third)
	}
}

func TestABuildThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	tc, a := module(t)
	if err := os.WriteFile(filepath.Join(tc.Source, "hello/main.go"), []byte("package main\n\nfunc main() { undefined() }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := tc.Ensure(t.Context(), a)
	if err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("err = %v, want the compiler's words", err)
	}
	assertOnlyLock(t, tc.Cache)
}

func TestAnInterruptedBuildLeavesNothing(t *testing.T) {
	tc, a := module(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tc.Ensure(ctx, a); err == nil {
		t.Error("no error")
	}
	assertOnlyLock(t, tc.Cache)
}

func assertOnlyLock(t *testing.T, cache string) {
	t.Helper()
	entries, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "build.lock" {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestProgressSaysHowFarTheBuildIs(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	p := newProgress(log, "kubernetes")
	defer p.stop()
	for _, step := range []struct {
		do   func()
		said string
		want string
	}{
		{func() { p.phase("downloading modules") }, "go: downloading a v1\ngo: downloading b v1\n", "downloading modules (2 so far)"},
		{func() { p.compiling(1800) }, "", "0 packages compiled of at most 1800, reading"},
		{func() {}, "k8s.io/api\nk8s.io/client-go\n", "2 packages compiled of at most 1800, now k8s.io/client-go"},
	} {
		step.do()
		if _, err := p.Write([]byte(step.said)); err != nil {
			t.Fatal(err)
		}
		if got := p.line(90 * time.Second); !strings.Contains(got, step.want) || !strings.Contains(got, "1m30s") {
			t.Errorf("line = %q, want %q and the time", got, step.want)
		}
	}
}
