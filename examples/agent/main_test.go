package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// env makes a lookup function out of pairs of name and value.
func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestAgentPrintsItsLinesToBothStreams(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), &stdout, &stderr, env("OTTO_WORKER_NAME", "w-1",
		"AGENT_LINES", "4", "AGENT_RATE", "0", "AGENT_STDERR_EVERY", "3", "AGENT_EXIT_CODE", "7"))
	if code != 7 {
		t.Errorf("exit code = %d, want 7", code)
	}
	if got, want := stdout.String(), "w-1 line 1\nw-1 line 2\nw-1 line 4\n"; got != want {
		t.Errorf("stdout = %q, want %q", got, want)
	}
	if got, want := stderr.String(), "w-1 line 3\n"; got != want {
		t.Errorf("stderr = %q, want %q", got, want)
	}
}

func TestAgentSaysItsLastWordsWhenToldToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		var stdout, stderr bytes.Buffer
		code := run(ctx, &stdout, &stderr, env("OTTO_WORKER_NAME", "w-1", "AGENT_EXIT_CODE", "3"))
		if code != 3 {
			t.Errorf("exit code = %d, want 3", code)
		}
		want := "w-1 line 1\nw-1 line 2\nw-1 line 3\nlast words of w-1 after 3 lines\n"
		if got := stdout.String(); got != want {
			t.Errorf("stdout = %q, want %q", got, want)
		}
	})
}

func TestAgentEndsAfterItsDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var stdout, stderr bytes.Buffer
		run(t.Context(), &stdout, &stderr, env("OTTO_WORKER_NAME", "w-1", "AGENT_RATE", "2", "AGENT_DURATION", "1200ms"))
		if got, want := time.Since(start), 1200*time.Millisecond; got != want {
			t.Errorf("ran for %v, want %v", got, want)
		}
		if got, want := strings.Count(stdout.String(), "\n"), 3; got != want {
			t.Errorf("printed %d lines, want %d", got, want)
		}
	})
}

func TestWrongVariablesAreOneLineAndExitCode2(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), &stdout, &stderr, env("AGENT_LINES", "-1", "AGENT_RATE", "fast", "AGENT_EXIT_CODE", "256"))
	if code != 2 {
		t.Errorf("exit code = %d, want 2", code)
	}
	got := stderr.String()
	if strings.Count(got, "\n") != 1 {
		t.Errorf("stderr = %q, want one line", got)
	}
	for _, name := range []string{"AGENT_LINES", "AGENT_RATE", "AGENT_EXIT_CODE"} {
		if !strings.Contains(got, name) {
			t.Errorf("stderr = %q, does not name %s", got, name)
		}
	}
}
