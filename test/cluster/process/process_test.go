package process_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ottoscaler/ottoscaler/test/cluster/process"
)

func everything(process.Process) bool { return true }

// group returns a group whose processes end with the test.
func group(t *testing.T) (process.Group, func(name, script string) process.Spec) {
	t.Helper()
	dir := t.TempDir()
	g := process.Group(dir)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Kill(ctx, everything); err != nil {
			t.Error(err)
		}
	})
	return g, func(name, script string) process.Spec {
		return process.Spec{Name: name, Args: []string{"/bin/sh", "-c", script}, Log: filepath.Join(dir, name+".log")}
	}
}

func start(t *testing.T, g process.Group, s process.Spec) bool {
	t.Helper()
	started, err := g.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	return started
}

func TestAProcessIsStartedOnce(t *testing.T) {
	g, spec := group(t)
	s := spec("a", "sleep 100 & wait")
	if !start(t, g, s) {
		t.Error("first start: started nothing")
	}
	if start(t, g, s) {
		t.Error("second start: started it again")
	}
}

// A new process has no environment for a moment.
func TestAProcessIsKnownWhenStartReturns(t *testing.T) {
	g, spec := group(t)
	for i := range 200 {
		s := spec(fmt.Sprint("p", i), "sleep 100")
		start(t, g, s)
		if _, running, err := g.Find(s); !running || err != nil {
			t.Fatalf("process %d: running = %v, %v", i, running, err)
		}
	}
}

func TestKillEndsChildrenThatWereLeftBehind(t *testing.T) {
	g, spec := group(t)
	start(t, g, spec("a", "setsid sleep 100 & exit 0"))
	deadline := time.Now().Add(5 * time.Second)
	for { // wait until the shell is gone and only the child is left
		all, err := g.All()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 1 && filepath.Base(all[0].Path) == "sleep" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes = %v, want only the child", all)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := g.Kill(t.Context(), everything); err != nil {
		t.Fatal(err)
	}
	if all, err := g.All(); err != nil || len(all) > 0 {
		t.Errorf("after kill: %v, %v; want none", all, err)
	}
}

func TestAGroupDoesNotSeeAnother(t *testing.T) {
	g, spec := group(t)
	other, _ := group(t)
	start(t, g, spec("a", "sleep 100 & wait"))
	if all, err := other.All(); err != nil || len(all) > 0 {
		t.Errorf("other group: %v, %v; want none", all, err)
	}
	if err := other.Kill(t.Context(), everything); err != nil {
		t.Fatal(err)
	}
	if _, running, err := g.Find(spec("a", "")); err != nil || !running {
		t.Errorf("running = %v, %v; want it to have survived the other group's kill", running, err)
	}
}

func TestAProcessThatDiedIsFoundDead(t *testing.T) {
	g, spec := group(t)
	s := spec("a", "echo last words; exit 3")
	start(t, g, s)
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, running, err := g.Find(s)
		if err != nil {
			t.Fatal(err)
		}
		if !running {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("still found after 5 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got, want := process.Tail(s.Log, 1), "last words"; got != want {
		t.Errorf("log = %q, want %q", got, want)
	}
}

func TestAwaitShowsTheEndOfADeadProcessesLog(t *testing.T) {
	g, spec := group(t)
	s := spec("a", "echo no such flag; exit 3")
	start(t, g, s)
	notYet := func(context.Context) error { return errors.New("connection refused") }
	err := g.Await(t.Context(), 10*time.Second, notYet, s)
	if !errors.Is(err, process.ErrDied) || !strings.Contains(err.Error(), "no such flag") {
		t.Errorf("err = %v, want that it died, and its words", err)
	}
}

func TestAwaitGivesUpOnAProcessThatIsNeverReady(t *testing.T) {
	g, spec := group(t)
	s := spec("a", "echo still thinking; sleep 100 & wait")
	start(t, g, s)
	err := g.Await(t.Context(), 200*time.Millisecond, func(context.Context) error { return errors.New("connection refused") }, s)
	if err == nil || !strings.Contains(err.Error(), "not ready after 200ms: connection refused") {
		t.Errorf("err = %v, want the time and the last answer", err)
	}
}

func TestAFailingEnterStartsNothing(t *testing.T) {
	g, spec := group(t)
	s := spec("a", "sleep 100")
	refused := errors.New("no such namespace")
	s.Enter = func() error { return refused }
	if _, err := g.Start(s); !errors.Is(err, refused) {
		t.Errorf("err = %v, want %v", err, refused)
	}
	if all, err := g.All(); err != nil || len(all) > 0 {
		t.Errorf("processes = %v, %v; want none", all, err)
	}
}

func TestRunReportsWhatTheProgramSaid(t *testing.T) {
	_, err := process.Run(t.Context(), nil, "/bin/sh", "-c", "echo no such image >&2; exit 1")
	if err == nil || !strings.Contains(err.Error(), "no such image") {
		t.Errorf("err = %v, want the program's words", err)
	}
}

func TestTailReadsTheEndOfALongLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("a line that is long enough to fill the file\n", 5000) + "next to last\nlast\n"
	if err := os.WriteFile(path, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := process.Tail(path, 2), "next to last\nlast"; got != want {
		t.Errorf("tail = %q, want %q", got, want)
	}
}
