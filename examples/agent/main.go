// Command agent is the sample Otto agent: the worker of the demo and of the
// tests. It prints numbered lines at a rate, says its last words when it is told
// to stop, and exits with the code that it was told.
//
// It is configured by environment variables. Those of every worker:
//
//	OTTO_WORKER_NAME    how it calls itself; the host name when absent
//
// And those of this agent:
//
//	AGENT_LINES         how many lines to print; 0 (the default) prints until told to stop
//	AGENT_RATE          lines per second, may be a fraction; 0 prints as fast as it can (default 1)
//	AGENT_DURATION      how long to run at most, such as 90s; 0 (the default) is no limit
//	AGENT_EXIT_CODE     the exit code, 0 (the default) to 255
//	AGENT_STDERR_EVERY  every Nth line goes to stderr; 0 sends none there (default 5)
//
// Line n reads "<worker name> line <n>". The line about its end goes to stdout:
// "last words of <worker name> after <n> lines" on SIGTERM or SIGINT. A wrong
// variable is one line on stderr and exit code 2.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Stdout, os.Stderr, os.LookupEnv)
	stop()
	os.Exit(code)
}

// run prints until the agent is done or told to stop, and returns its exit code.
func run(ctx context.Context, stdout, stderr io.Writer, lookup func(string) (string, bool)) int {
	cfg, err := parse(lookup)
	if err != nil {
		fmt.Fprintf(stderr, "agent: %v\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return 2
	}
	lines, err := printLines(ctx, cfg, stdout, stderr)
	if err == nil && ctx.Err() != nil {
		_, err = fmt.Fprintf(stdout, "last words of %s after %d lines\n", cfg.name, lines)
	}
	if err != nil {
		fmt.Fprintf(stderr, "agent: %v\n", err)
		return 1
	}
	return cfg.exitCode
}

type config struct {
	name        string
	lines       int
	rate        float64
	duration    time.Duration
	exitCode    int
	stderrEvery int
}

// parse reads the environment and reports every problem at once.
func parse(lookup func(string) (string, bool)) (config, error) {
	cfg := config{rate: 1, stderrEvery: 5}
	var problems []error
	read := func(name, want string, set func(value string) bool) {
		if value, ok := lookup(name); ok && value != "" && !set(value) {
			problems = append(problems, fmt.Errorf("%s is %q: want %s", name, value, want))
		}
	}
	number := func(to *int, highest int) func(string) bool {
		return func(value string) bool {
			n, err := strconv.Atoi(value)
			*to = n
			return err == nil && n >= 0 && n <= highest
		}
	}
	read("AGENT_LINES", "a number of lines, 0 or more", number(&cfg.lines, math.MaxInt))
	read("AGENT_EXIT_CODE", "an exit code, 0 to 255", number(&cfg.exitCode, 255))
	read("AGENT_STDERR_EVERY", "a number, 0 or more", number(&cfg.stderrEvery, math.MaxInt))
	read("AGENT_RATE", "lines per second, 0 or more", func(value string) (ok bool) {
		var err error
		cfg.rate, err = strconv.ParseFloat(value, 64)
		return err == nil && cfg.rate >= 0 && !math.IsInf(cfg.rate, 0) && !math.IsNaN(cfg.rate)
	})
	read("AGENT_DURATION", "a duration such as 90s, 0 or more", func(value string) (ok bool) {
		var err error
		cfg.duration, err = time.ParseDuration(value)
		return err == nil && cfg.duration >= 0
	})
	if name, ok := lookup("OTTO_WORKER_NAME"); ok && name != "" {
		cfg.name = name
	} else if host, err := os.Hostname(); err == nil {
		cfg.name = host
	}
	return cfg, errors.Join(problems...)
}

// printLines prints the lines and returns how many. It returns early without an error
// when ctx ends.
func printLines(ctx context.Context, cfg config, stdout, stderr io.Writer) (int, error) {
	// Only an agent without a rate gathers lines before it writes them.
	if cfg.rate == 0 {
		buffered := bufio.NewWriterSize(stdout, 64<<10)
		defer buffered.Flush() //nolint:errcheck // the last words follow on the same file and report its error
		stdout = buffered
	}
	start := time.Now()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for n := 0; ; n++ {
		if ctx.Err() != nil || (cfg.lines > 0 && n == cfg.lines) {
			return n, nil
		}
		if cfg.duration > 0 && time.Since(start) >= cfg.duration {
			return n, nil
		}
		if cfg.rate > 0 {
			// By the clock, not by a pause after each line: the rate holds however long a write takes.
			due := start.Add(time.Duration(float64(n) / cfg.rate * float64(time.Second)))
			if cfg.duration > 0 && due.Sub(start) > cfg.duration {
				due = start.Add(cfg.duration)
			}
			if wait := time.Until(due); wait > 0 {
				pause.Reset(wait)
				select {
				case <-ctx.Done():
				case <-pause.C:
				}
			}
			if ctx.Err() != nil || (cfg.duration > 0 && time.Since(start) >= cfg.duration) {
				return n, nil
			}
		}
		out := stdout
		if cfg.stderrEvery > 0 && (n+1)%cfg.stderrEvery == 0 {
			out = stderr
		}
		if _, err := fmt.Fprintf(out, "%s line %d\n", cfg.name, n+1); err != nil {
			return n, fmt.Errorf("printing line %d: %w", n+1, err)
		}
	}
}
