package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

func newTestLab(t *testing.T) Lab {
	t.Helper()
	return Lab{Root: state.Root{Dir: filepath.Join(t.TempDir(), "clusters")}, Say: t.Logf}
}

func folder(t *testing.T, l Lab, name string) state.Cluster {
	t.Helper()
	dir, err := l.Root.Cluster(name)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// record plans and reserves a cluster of pretended nodes.
func record(t *testing.T, l Lab, name string, place Place) state.Record {
	t.Helper()
	r, err := l.plan(t.Context(), folder(t, l, name), name, state.Wish{Kwok: new(3)})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.reserve(folder(t, l, name), &r, place); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestClustersGetSlotsOfTheirOwnAndKeepThem(t *testing.T) {
	l := newTestLab(t)
	a, b := record(t, l, "a", Place{}), record(t, l, "b", Place{})
	if a.Slot.Number == b.Slot.Number {
		t.Errorf("both are in slot %d", a.Slot.Number)
	}
	if again := record(t, l, "a", Place{}); again.Slot != a.Slot {
		t.Errorf("second time: slot %+v, want %+v", again.Slot, a.Slot)
	}
}

func TestAPlaceIsTakenAtItsWord(t *testing.T) {
	l := newTestLab(t)
	r := record(t, l, "a", Place{Slot: new(31), CIDR: new("10.99.0.0/16"), Port: new(29500)})
	if r.Slot.Number != 31 || r.Slot.HostIP().String() != "10.99.0.1" || r.Slot.APIPort() != 29502 {
		t.Errorf("slot = %+v", r.Slot)
	}
	r = state.Record{Name: "b"}
	err := l.reserve(folder(t, l, "b"), &r, Place{Slot: new(31)})
	if err == nil {
		t.Error("a slot was given to two clusters")
	}
	err = l.reserve(folder(t, l, "b"), &r, Place{CIDR: new("10.99.1.0/24")})
	if err == nil || !strings.Contains(err.Error(), "want an IPv4 /16") {
		t.Errorf("err = %v, want it to name the range", err)
	}
}

func TestAfterARebootAClusterStartsOverAsItWas(t *testing.T) {
	l := newTestLab(t)
	dir := folder(t, l, "a")
	old := state.Record{Name: "a", Slot: slot.New(5), Config: state.Config{Kwok: 7, FeatureGates: "X=true"}, BootID: "an earlier boot"}
	if err := dir.Save(old); err != nil {
		t.Fatal(err)
	}
	if err := state.WriteFile(dir.Path("etcd", "data"), []byte("stale"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := l.plan(t.Context(), dir, "a", state.Wish{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Config != old.Config || r.Slot.CIDR.IsValid() || r.BootID == old.BootID {
		t.Errorf("record = %+v, want the old configuration, no slot, and this boot", r)
	}
	if _, err := os.Stat(dir.Path("etcd", "data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stale data: %v, want it gone", err)
	}
}

func TestWhatNeedsAClusterSaysThatThereIsNone(t *testing.T) {
	l := newTestLab(t)
	if _, err := l.Kubeconfig("a"); !errors.Is(err, ErrNotUp) {
		t.Errorf("kubeconfig: %v", err)
	}
	if _, err := l.Status(t.Context(), "a"); !errors.Is(err, ErrNotUp) {
		t.Errorf("status: %v", err)
	}
	if err := l.Load(t.Context(), "a", []string{"image.tar"}); !errors.Is(err, ErrNotUp) {
		t.Errorf("load: %v", err)
	}
	if _, err := l.Logs("a"); !errors.Is(err, ErrNotUp) {
		t.Errorf("logs: %v", err)
	}
	if err := l.Down(t.Context(), "a"); err != nil {
		t.Errorf("down: %v, want nothing to do", err)
	}
}

func TestDownRemovesAClusterThatNeverCameUp(t *testing.T) {
	l := newTestLab(t)
	dir := folder(t, l, "a")
	record(t, l, "a", Place{})
	for range 2 {
		if err := l.Down(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder: %v, want it gone", err)
	}
}
