package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mountinfo of three kinds of machine, shortened.
const (
	version1 = `30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
33 30 0:29 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`
	version2 = `25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
26 30 0:23 / /proc rw - proc proc rw
`
)

func TestHierarchiesAreReadFromMountinfo(t *testing.T) {
	for name, tt := range map[string]struct {
		mountinfo string
		dirs      string
		v2        bool
	}{
		"version 1 beside an empty version 2": {version1, "/sys/fs/cgroup/cpu,cpuacct /sys/fs/cgroup/cpuset /sys/fs/cgroup/pids /sys/fs/cgroup/unified", false},
		"version 2":                           {version2, "/sys/fs/cgroup", true},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := parse(strings.NewReader(tt.mountinfo))
			if err != nil {
				t.Fatal(err)
			}
			var dirs []string
			for _, h := range m.hierarchies {
				dirs = append(dirs, h.dir)
			}
			if got := strings.Join(dirs, " "); got != tt.dirs || m.V2() != tt.v2 {
				t.Errorf("got %s, version 2 alone = %v; want %s, %v", got, m.V2(), tt.dirs, tt.v2)
			}
		})
	}
	if _, err := parse(strings.NewReader("26 30 0:23 / /proc rw - proc proc rw\n")); err == nil {
		t.Error("a machine without control groups: no error")
	}
}

// imitation is a machine whose hierarchies are plain folders.
func imitation(t *testing.T, v2 bool) Machine {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"cpuset.cpus": "0-1", "cpuset.mems": "0", "cgroup.controllers": "cpu memory pids", "cgroup.subtree_control": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Machine{hierarchies: []hierarchy{{dir: dir, options: []string{"rw", "cpuset", "pids"}, v2: v2}}}
}

func TestACPUSetGroupIsSeededAtEveryLevel(t *testing.T) {
	m := imitation(t, false)
	if err := m.Group("/otto0/n1").Create(); err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"otto0", "otto0/n1", "otto0/n1/system"} {
		b, err := os.ReadFile(filepath.Join(m.hierarchies[0].dir, level, "cpuset.cpus"))
		if err != nil || string(b) != "0-1" {
			t.Errorf("%s: cpus = %q, %v; want those of the machine", level, b, err)
		}
	}
}

func TestAVersion2GroupPassesControllersOn(t *testing.T) {
	m := imitation(t, true)
	m.hierarchies[0].options = nil
	// The kernel would make these files; here the levels exist before.
	for _, level := range []string{"otto0", "otto0/n1"} {
		dir := filepath.Join(m.hierarchies[0].dir, level)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"cgroup.controllers": "pids", "cgroup.subtree_control": ""} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := m.Group("/otto0/n1").Create(); err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"", "otto0", "otto0/n1"} {
		b, err := os.ReadFile(filepath.Join(m.hierarchies[0].dir, level, "cgroup.subtree_control"))
		if err != nil || string(b) != "+pids" { // a plain file keeps the last write
			t.Errorf("%q: subtree_control = %q, %v; want controllers enabled", level, b, err)
		}
	}
}

func TestKillingAGroupThatDoesNotExistDoesNothing(t *testing.T) {
	if err := imitation(t, false).Group("/otto9").Kill(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestKillEmptiesAndRemovesARealGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: only that the control groups are read is tried")
		if _, err := Read(); err != nil {
			t.Error(err)
		}
		return
	}
	m, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	g := m.Group("/ottoscaler-cgroup-test")
	t.Cleanup(func() {
		if err := g.remove(); err != nil {
			t.Error(err)
		}
	})
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, h := range m.hierarchies {
		procs := filepath.Join(h.dir, g.path, "system", "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pids, err := g.PIDs(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes = %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	killed := make(chan error)
	go func() { killed <- cmd.Wait() }()
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-killed; err == nil {
		t.Error("the process ended by itself")
	}
	if _, err := os.Stat(filepath.Join(m.hierarchies[0].dir, g.path)); err == nil {
		t.Error("the group is still there")
	}
}
