package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// installing lets one test at a time call apt-get, which has a lock of its own but
// does not wait for it.
var installing sync.Mutex

// find returns the path of redis-server, and installs it where it can.
func find(ctx context.Context, output io.Writer) (string, error) {
	installing.Lock()
	defer installing.Unlock()
	program, err := exec.LookPath("redis-server")
	if err == nil {
		return program, nil
	}
	apt, aptErr := exec.LookPath("apt-get")
	if aptErr != nil || os.Geteuid() != 0 {
		return "", errors.New("finding redis-server: it is not on PATH: install it, on Debian with: sudo apt-get install redis-server")
	}
	if output != nil {
		if _, err := fmt.Fprintln(output, "installing Debian's redis-server …"); err != nil {
			return "", fmt.Errorf("installing redis-server: %w", err)
		}
	}
	const wait = "-oDPkg::Lock::Timeout=120" // another package may be installed right now
	install := func() error { return run(ctx, apt, wait, "install", "-y", "--no-install-recommends", "redis-server") }
	if err := install(); err != nil {
		// A fresh image has no package lists.
		if err := run(ctx, apt, wait, "update"); err != nil {
			return "", fmt.Errorf("installing redis-server: %w", err)
		}
		if err := install(); err != nil {
			return "", fmt.Errorf("installing redis-server: %w", err)
		}
	}
	if program, err = exec.LookPath("redis-server"); err != nil {
		return "", fmt.Errorf("installing redis-server: %w", err)
	}
	return program, nil
}

func run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// RUNLEVEL=1 keeps the package from starting a server of its own on port 6379.
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("running %s: %w: %s", strings.Join(args, " "), err, lines[len(lines)-1])
	}
	return nil
}
