package state_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	root := state.Root{Dir: filepath.Join(t.TempDir(), "clusters")}
	want := state.Record{Name: "a", Slot: slot.New(3), Config: state.Config{Nodes: 2, FeatureGates: "X=true"}, BootID: "b"}
	c, err := root.Cluster("a")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // saving again replaces it
		if err := c.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	records, err := root.Records()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]state.Record{want}, records, cmpopts.EquateComparable(slot.Slot{})); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if left, _ := filepath.Glob(c.Path(".tmp-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAClusterThatWasRemovedIsNotFound(t *testing.T) {
	root := state.Root{Dir: t.TempDir()}
	c, err := root.Cluster("gone")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Save(state.Record{Name: "gone"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // removing twice is no error
		if err := c.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("err = %v, want fs.ErrNotExist", err)
	}
}

func TestNamesThatCouldLeaveTheFolderAreRefused(t *testing.T) {
	for _, name := range []string{"", "..", "a/b", "A", "-a", "a_b"} {
		if _, err := (state.Root{Dir: "/x"}).Cluster(name); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

func TestALockIsHeldByOneAtATime(t *testing.T) {
	root := state.Root{Dir: t.TempDir()}
	unlock, err := root.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error)
	go func() {
		unlock, err := root.Lock("a")
		if err == nil {
			unlock()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("second lock was given while the first was held (err %v)", err)
	case <-time.After(50 * time.Millisecond):
	}
	unlock()
	if err := <-second; err != nil {
		t.Errorf("second lock: %v", err)
	}
}

func TestAFileThatCannotBeWrittenKeepsItsOldContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := state.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := state.WriteFile(filepath.Join(path, "below-a-file"), []byte("new"), 0o600); err == nil {
		t.Error("writing below a file succeeded")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
		t.Errorf("content = %q, %v; want the old one", b, err)
	}
}
