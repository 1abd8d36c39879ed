// Package process starts programs that outlive their parent and finds them again.
//
// A process is remembered by its pid and the moment at which it began, so that
// Stop never ends a stranger that was given the same pid later.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	// Dir holds the process' log and its record. It is created.
	Dir string
	// Name of the record and of the log within Dir.
	Name string
	// Args are the program and its arguments.
	Args []string
	// Env is added to the parent's environment.
	Env []string
}

// Process is a program that was started by [Start], perhaps by another parent.
type Process struct {
	// PID is its process ID.
	PID int `json:"pid"`
	// Started is when it began, in clock ticks since the machine's start
	// (field 22 of proc_pid_stat(5)).
	Started uint64 `json:"started"`

	record string
}

// LogFile returns the path of the file that a process' output goes to.
func LogFile(dir, name string) string { return filepath.Join(dir, name+".log") }

// Start starts a program in a session of its own, so that it outlives its
// parent. Its output is appended to [LogFile]. One that runs already under the
// same name is returned instead.
func Start(spec Spec) (*Process, error) {
	if p, err := Find(spec.Dir, spec.Name); err != nil || p != nil {
		return p, err
	}
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	log, err := os.OpenFile(LogFile(spec.Dir, spec.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	defer log.Close() //nolint:errcheck // nothing was written here: the child has a descriptor of its own

	cmd := exec.Command(spec.Args[0], spec.Args[1:]...)
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	// The parent reaps it if it ends first, or Find would take the zombie for alive.
	go func() { _ = cmd.Wait() }() // its end is seen by Alive; its output is in the log

	p := &Process{PID: cmd.Process.Pid, record: recordFile(spec.Dir, spec.Name)}
	if p.Started, err = startTime(p.PID); err != nil {
		return nil, fmt.Errorf("starting %s: it ended at once, see %s", spec.Name, log.Name())
	}
	data, err := json.Marshal(p)
	if err == nil {
		err = os.WriteFile(p.record, data, 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("recording %s: %w", spec.Name, err), p.Stop(context.Background(), 0))
	}
	return p, nil
}

// Find returns the process that was started under that name, or nil when there
// is none or it has ended.
func Find(dir, name string) (*Process, error) {
	p := &Process{record: recordFile(dir, name)}
	data, err := os.ReadFile(p.record)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, p)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", name, err)
	}
	if !p.Alive() {
		return nil, os.Remove(p.record)
	}
	return p, nil
}

// Alive tells whether the process still runs.
func (p *Process) Alive() bool {
	started, err := startTime(p.PID)
	return err == nil && started == p.Started
}

// Stop sends SIGTERM, waits up to grace, then sends SIGKILL. It forgets the
// process. One that has ended before is no error.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	deadline := time.Now().Add(grace)
	signal := syscall.SIGTERM
	for p.Alive() {
		if grace <= 0 || time.Now().After(deadline) {
			signal = syscall.SIGKILL
		}
		if err := syscall.Kill(p.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stopping process %d: %w", p.PID, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := os.Remove(p.record); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forgetting process %d: %w", p.PID, err)
	}
	return nil
}

func recordFile(dir, name string) string { return filepath.Join(dir, name+".pid") }

// startTime reads when a process began. A zombie counts as ended.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the name in parentheses, which may hold anything.
	_, rest, found := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 20 || fields[0] == "Z" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
