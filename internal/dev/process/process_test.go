package process_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/process"
)

func TestAStartedProcessIsFoundUntilItIsStopped(t *testing.T) {
	dir := t.TempDir()
	started := start(t, dir, "echo hello; exec sleep 60")
	again := start(t, dir, "exit 1") // it runs already, so this is not started
	if again.PID != started.PID {
		t.Errorf("second start: got pid %d, want %d of the first", again.PID, started.PID)
	}
	found, err := process.Find(dir, "test")
	if err != nil || found == nil || found.PID != started.PID {
		t.Fatalf("find: got %+v, %v, want pid %d", found, err, started.PID)
	}
	log := func() string {
		text, err := os.ReadFile(process.LogFile(dir, "test"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	for deadline := time.Now().Add(10 * time.Second); log() != "hello"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("log: got %q, want hello", log())
		}
	}
	if err := found.Stop(t.Context(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if found.Alive() {
		t.Error("the process is alive after Stop")
	}
	if found, err := process.Find(dir, "test"); err != nil || found != nil {
		t.Errorf("find after Stop: got %+v, %v, want nothing", found, err)
	}
}

func TestOneThatIgnoresSIGTERMIsKilled(t *testing.T) {
	p := start(t, t.TempDir(), `trap "" TERM; while :; do sleep 1; done`)
	time.Sleep(100 * time.Millisecond) // for the trap
	if err := p.Stop(t.Context(), 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("the process is alive after Stop")
	}
}

// A machine that has started anew gives the pid of the record to someone else.
func TestAStrangerWithTheSamePidIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	stranger := exec.CommandContext(t.Context(), "sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(process.Process{PID: stranger.Process.Pid, Started: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "test.pid"), record, 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := process.Find(dir, "test"); err != nil || found != nil {
		t.Errorf("find: got %+v, %v, want nothing", found, err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(stranger.Process.Pid) + "/stat"); err != nil {
		t.Errorf("the stranger is gone: %v", err)
	}
}

func start(t *testing.T, dir, script string) *process.Process {
	t.Helper()
	p, err := process.Start(process.Spec{Dir: dir, Name: "test", Args: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
	})
	return p
}
