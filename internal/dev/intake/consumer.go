// Package intake runs the consumer as a process before a real Redis, for those who
// measure or break it.
package intake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
)

// Options of a consumer.
type Options struct {
	// Ground is where its streams are.
	Ground *Ground
	// Name within the group.
	Name string
	// QueueAddr that it serves; by default, a free one.
	QueueAddr string
	// Env are further variables, as NAME=value.
	Env []string
	// Log is what it writes its log to.
	Log *os.File
}

// A Consumer is one as a process, which does not outlive this one.
type Consumer struct {
	// QueueAddr is where its queue is.
	QueueAddr string

	health string
	cmd    *exec.Cmd
}

// Build compiles the consumer, and returns the program's file.
func Build(ctx context.Context) (string, error) {
	root, err := source.Root(ctx)
	if err != nil {
		return "", err
	}
	program := filepath.Join(root, "bin", "consumer")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "./cmd/consumer")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the consumer: %w\n%s", err, out)
	}
	return program, nil
}

// Start starts a consumer. It does not wait until it is ready.
func Start(program string, opts Options) (c *Consumer, err error) {
	c = &Consumer{QueueAddr: opts.QueueAddr}
	if c.QueueAddr == "" {
		if c.QueueAddr, err = loopback(); err != nil {
			return nil, err
		}
	}
	if c.health, err = loopback(); err != nil {
		return nil, err
	}
	c.cmd = exec.Command(program)
	c.cmd.Env = append(append(os.Environ(), opts.Ground.variables...),
		"REDIS_CONSUMER="+opts.Name, "QUEUE_ADDR="+c.QueueAddr, "HEALTH_ADDR="+c.health, "LOG_FORMAT=json")
	c.cmd.Env = append(c.cmd.Env, opts.Env...)
	c.cmd.Stdout, c.cmd.Stderr = opts.Log, opts.Log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the consumer: %w", err)
	}
	return c, nil
}

// loopback returns an address that nobody listens on.
func loopback() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// AwaitReady waits until the consumer says that it is ready, at most half a minute.
func (c *Consumer) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for range (backoff.Policy{Initial: 10 * time.Millisecond, Max: 100 * time.Millisecond}).Attempts(ctx) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.health+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("waiting for the consumer: %w", err)
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK {
			return nil
		}
	}
	return fmt.Errorf("waiting for the consumer: %w", ctx.Err())
}

// Kill ends it as a crash would.
func (c *Consumer) Kill() error {
	if err := c.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing the consumer: %w", err)
	}
	_ = c.cmd.Wait() // it was killed
	return nil
}

// Stop ends it in good order. One that has been killed is no error.
func (c *Consumer) Stop() error {
	if c.cmd.ProcessState != nil {
		return nil
	}
	if err := errors.Join(c.cmd.Process.Signal(syscall.SIGTERM), c.cmd.Wait()); err != nil {
		return fmt.Errorf("stopping the consumer: %w", err)
	}
	return nil
}

// CPU returns what processor time it has used. The kernel counts it in hundredths of
// a second.
func (c *Consumer) CPU() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading the consumer's processor time: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, fmt.Errorf("reading the consumer's processor time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// Resident returns how much memory it has, in MiB.
func (c *Consumer) Resident() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading the consumer's memory: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		return 0, fmt.Errorf("reading the consumer's memory: %w", err)
	}
	return kib / 1024, nil
}
