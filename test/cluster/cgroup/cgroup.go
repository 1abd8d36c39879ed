// Package cgroup gives each node a control group that its kubelet takes for the
// root, on machines with version 1, version 2 or both.
//
// A [Group] of version 1 is a folder in every hierarchy; of version 2 it is one
// folder. Its "system" child holds the node's own programs: version 2 allows
// processes only in the leaves.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A hierarchy is one mounted control group file system.
type hierarchy struct {
	dir     string
	options []string // version 1: its controllers are among these
	v2      bool
}

// A Machine is the control groups of this computer.
type Machine struct{ hierarchies []hierarchy }

// A Group is a path that is used in all hierarchies.
type Group struct {
	machine Machine
	path    string
}

// Read finds out how this machine's control groups are mounted.
func Read() (Machine, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Machine{}, err
	}
	defer func() { _ = f.Close() }() // read only
	return parse(f)
}

// parse reads mountinfo; see proc_pid_mountinfo(5). Fields after " - " are the
// file system's type, its source, and its own options.
func parse(mountinfo io.Reader) (Machine, error) {
	var m Machine
	for lines := bufio.NewScanner(mountinfo); lines.Scan(); {
		mount, filesystem, ok := strings.Cut(lines.Text(), " - ")
		where, what := strings.Fields(mount), strings.Fields(filesystem)
		if !ok || len(where) < 5 || len(what) < 3 {
			continue
		}
		h := hierarchy{dir: where[4], options: strings.Split(what[2], ","), v2: what[0] == "cgroup2"}
		if what[0] != "cgroup" && what[0] != "cgroup2" || !strings.HasPrefix(h.dir, "/sys/fs/cgroup") {
			continue
		}
		m.hierarchies = append(m.hierarchies, h)
	}
	if len(m.hierarchies) == 0 {
		return m, errors.New("no control groups are mounted below /sys/fs/cgroup")
	}
	return m, nil
}

// V2 tells whether the machine has version 2 only.
func (m Machine) V2() bool { return len(m.hierarchies) == 1 && m.hierarchies[0].v2 }

// Group returns the group of that path, such as "/otto0/n1". It may not exist.
func (m Machine) Group(path string) Group { return Group{machine: m, path: path} }

// Create makes the group, its parents and its "system" child.
func (g Group) Create() error {
	for _, h := range g.machine.hierarchies {
		if err := h.create(filepath.Join(g.path, "system"), g.machine.V2()); err != nil {
			return fmt.Errorf("making control group %s in %s: %w", g.path, h.dir, err)
		}
	}
	return nil
}

func (h hierarchy) create(path string, enable bool) error {
	dir := h.dir
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if h.v2 && enable {
			if err := enableControllers(dir); err != nil {
				return err
			}
		}
		parent := dir
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if slices.Contains(h.options, "cpuset") {
			if err := seedCPUSet(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// seedCPUSet copies what a version 1 cpuset group starts without, and without
// which no process may join it.
func seedCPUSet(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// enableControllers lets the children of a version 2 group have its controllers.
func enableControllers(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(b)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s has processes of its own, so its children can have no controllers: move them to a child first", dir)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // a controller that cannot be delegated
			return err
		}
	}
	return nil
}

// Join moves the calling thread into the "system" child, so that the process
// which it forks next is born there. On a version 2 machine, where a thread
// cannot go alone, it does nothing: use [Group.SystemDir].
func (g Group) Join() error {
	if g.machine.V2() {
		return nil
	}
	thread := []byte(strconv.Itoa(unix.Gettid()))
	for _, h := range g.machine.hierarchies {
		if !slices.Contains(h.options, "pids") {
			continue // only for us to find the node's processes; limits are not wanted
		}
		if err := os.WriteFile(filepath.Join(h.dir, g.path, "system", "tasks"), thread, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// SystemDir opens the "system" child of a version 2 machine, for
// [syscall.SysProcAttr.CgroupFD]; there a thread alone cannot join a group. On
// version 1 it returns nil: use Join.
func (g Group) SystemDir() (*os.File, error) {
	if !g.machine.V2() {
		return nil, nil
	}
	return os.Open(filepath.Join(g.machine.hierarchies[0].dir, g.path, "system"))
}

// PIDs lists every process in the group and below it.
func (g Group) PIDs() ([]int, error) {
	seen := map[int]bool{}
	for _, h := range g.machine.hierarchies {
		err := walk(filepath.Join(h.dir, g.path), func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
				return nil // it went away, or is a threaded group
			}
			if err != nil {
				return err
			}
			for _, field := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					return err
				}
				if pid > 0 { // 0: a process of another PID namespace, which we could not signal
					seen[pid] = true
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// Kill ends every process in the group and below it and removes the groups. If
// the group does not exist, there is nothing to do.
func (g Group) Kill(ctx context.Context) error {
	for {
		pids, err := g.PIDs()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing %d: %w", pid, err)
			}
		}
		if len(pids) == 0 {
			if err = g.remove(); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("emptying control group %s: %w", g.path, errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// remove deletes the folders, deepest first. Their files are the kernel's.
func (g Group) remove() error {
	for _, h := range g.machine.hierarchies {
		var dirs []string
		err := walk(filepath.Join(h.dir, g.path), func(dir string) error {
			dirs = append(dirs, dir)
			return nil
		})
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("removing %s: %w", dir, err)
			}
		}
	}
	return nil
}

// walk visits a folder and those below it, parents first. What is gone is skipped.
func walk(dir string, visit func(dir string) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		return visit(path)
	})
}
