package docker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// say makes a docker command that fails with a complaint.
func say(t *testing.T, complaint string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "docker")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho '"+complaint+"' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER", program)
}

// The words are docker's own; its exit code is 1 for everything.
func TestOnlyAnObjectThatIsMissingIsNotFound(t *testing.T) {
	for complaint, want := range map[string]bool{
		"Error: No such container: redis-x":                                                                            true,
		"Error response from daemon: network x not found":                                                              true,
		"Error: No such image: example.test/x:1":                                                                       true,
		"Cannot connect to the Docker daemon at unix:///x.sock":                                                        false,
		"failed to connect to the docker API at unix:///x.sock: dial unix /x.sock: connect: no such file or directory": false,
	} {
		say(t, complaint)
		if _, err := Run(t.Context(), "container", "inspect", "x"); err == nil || errors.Is(err, ErrNotFound) != want {
			t.Errorf("%q: got %v, want not found: %t", complaint, err, want)
		}
	}
}
