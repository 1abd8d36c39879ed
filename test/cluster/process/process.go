// Package process starts programs that outlive the command that started them,
// and finds them again.
//
// A process is recognised by a variable in its environment, which its children
// inherit, and not by a file with its number: there is no moment at which it runs
// and is not yet known, and a number that the kernel has given to another process
// since cannot mislead us. It is signalled through a pidfd for the same reason.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// marker is the variable; its value is "<group>:<name>".
const marker = "OTTOSCALER_CLUSTER_PROCESS"

// A Group is the set of processes of one cluster, named by its state folder.
type Group string

// A Spec says what to start.
type Spec struct {
	// Name is unique in the group.
	Name string
	// Args are the program's path and its arguments. The path must be absolute.
	Args []string
	// Env are further variables, "NAME=value".
	Env []string
	// Log is the file that standard output and error are appended to.
	Log string
	// Enter, if not nil, is called on the operating-system thread that the
	// process is forked from, to move it into namespaces and control groups.
	// The thread is thrown away afterwards.
	Enter func() error
	// Cgroup, if not nil, is the version 2 control group to be born in.
	Cgroup *os.File
}

// A Process is one that belongs to a group.
type Process struct {
	PID  int
	Name string
	// Path is what it was started as: a child of a process has its name, but
	// another path.
	Path string
}

// Start starts the program in a session of its own, unless it is already
// running. It does not wait for it to be ready for anything.
func (g Group) Start(s Spec) (started bool, err error) {
	if _, running, err := g.Find(s); err != nil || running {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(s.Log), 0o755); err != nil {
		return false, err
	}
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return false, err
	}
	defer func() { _ = log.Close() }() // the child has its own; we wrote nothing
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(baseEnv(), s.Env...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s:%s", marker, g, s.Name))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.Cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(s.Cgroup.Fd())
	}
	ended := make(chan struct{})
	err = onThread(s.Enter, func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() {
			defer close(ended)
			_ = cmd.Wait() // reaps it if it dies while we run; how it ended is in its log
		}()
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("starting %s: %w", s.Name, err)
	}
	g.awaitEnviron(cmd.Process.Pid, ended)
	return true, nil
}

// awaitEnviron waits until a new process can be recognised, or has ended. The kernel says
// that its program was started before the program's environment is in its place, which
// takes as long as the program's file takes to be read.
func (g Group) awaitEnviron(pid int, ended <-chan struct{}) {
	late := time.After(10 * time.Second)
	for {
		if _, ok := g.member(pid); ok {
			return
		}
		select {
		case <-ended:
			return
		case <-late:
			return // whoever waits for what it does will see
		case <-time.After(time.Millisecond):
		}
	}
}

// Run runs a program to its end, for example within a node's namespaces, and
// returns what it printed.
func Run(ctx context.Context, enter func() error, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = baseEnv()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := onThread(enter, cmd.Start); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(args[0]), err, bytes.TrimSpace(out.Bytes()))
	}
	return out.Bytes(), nil
}

// onThread runs do after enter on a thread that nothing else will ever run on.
func onThread(enter, do func() error) error {
	if enter == nil {
		return do()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := enter()
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// Find returns the running process of a spec. Children of it are not it.
func (g Group) Find(s Spec) (Process, bool, error) {
	all, err := g.All()
	if err != nil {
		return Process{}, false, err
	}
	i := slices.IndexFunc(all, s.Matches)
	if i < 0 {
		return Process{}, false, nil
	}
	return all[i], true, nil
}

// Matches tells whether p is the process of this spec and not a child of it. The
// program may lie in another folder: a cluster goes on running what it was
// started with when there are newer programs.
func (s Spec) Matches(p Process) bool {
	return p.Name == s.Name && filepath.Base(p.Path) == filepath.Base(s.Args[0])
}

// All lists the group's processes, children included. A zombie is none.
func (g Group) All() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if name, ok := g.member(pid); ok {
			all = append(all, Process{PID: pid, Name: name, Path: argv0(pid)})
		}
	}
	return all, nil
}

// Kill ends all processes of the group that match, and waits until they are
// gone. Killing none is not an error.
func (g Group) Kill(ctx context.Context, match func(Process) bool) error {
	for {
		all, err := g.All()
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(p Process) bool { return !match(p) })
		if len(all) == 0 {
			return nil
		}
		for _, p := range all {
			if err := g.kill(p); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d processes to end, first %s (%d): %w", len(all), all[0].Name, all[0].PID, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (g Group) kill(p Process) error {
	handle, err := os.FindProcess(p.PID) // a pidfd
	if err != nil {
		return err
	}
	defer func() { _ = handle.Release() }() // a handle only
	if _, ok := g.member(p.PID); !ok {
		return nil // it ended before we had the handle
	}
	if err := handle.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s (%d): %w", p.Name, p.PID, err)
	}
	return nil
}

// member reads a process's mark. Processes of others cannot be read, and are
// not ours.
func (g Group) member(pid int) (name string, ok bool) {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return "", false
	}
	prefix := fmt.Sprintf("%s=%s:", marker, g)
	for v := range strings.SplitSeq(string(env), "\x00") {
		if name, ok := strings.CutPrefix(v, prefix); ok {
			return name, true
		}
	}
	return "", false
}

func argv0(pid int) string {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	path, _, _ := strings.Cut(string(cmdline), "\x00")
	return path
}

// baseEnv is a clean environment: what the user has set for other Kubernetes
// tools must not change ours.
func baseEnv() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
	}
}

// Tail returns the last lines of a log, or why there are none.
func Tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }() // read only
	const enough = 64 << 10
	if info, err := f.Stat(); err == nil && info.Size() > enough {
		if _, err := f.Seek(-enough, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
