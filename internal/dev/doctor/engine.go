package doctor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
)

// Engine returns nil when a Docker engine answers, and otherwise what is wrong and
// what to do, in one line.
func Engine(ctx context.Context) error {
	_, err := engineVersion(ctx)
	return err
}

// engineVersion asks the engine for its version.
func engineVersion(ctx context.Context) (string, error) {
	if _, err := exec.LookPath(docker.Program()); err != nil {
		return "", fmt.Errorf("there is no %s command, and environments live in a Docker engine: install one (on Debian, as root: kind/engine up)", docker.Program())
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	version, err := docker.Run(ctx, "version", "--format", "{{.Server.Version}}")
	return version, explain(err)
}

// explain turns docker's complaint into what to do about it.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("the Docker engine does not answer within 10 s: start it again")
	case strings.Contains(err.Error(), "permission denied"):
		return errors.New("the Docker engine does not let you in: add yourself to the group docker (sudo usermod -aG docker <you>) and log in again")
	case strings.Contains(err.Error(), "Cannot connect") || strings.Contains(err.Error(), "failed to connect to the docker API") || strings.Contains(err.Error(), "connection refused"):
		return errors.New("no Docker engine answers: start Docker (on a Debian machine without one, as root: kind/engine up)")
	default:
		return fmt.Errorf("no Docker engine answers: %w", err)
	}
}
