package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Names of the images, without a tag. The host is one that nobody can pull from:
// a node that has not been given the image says so at once.
const (
	OttoscalerName = "ottoscaler.local/ottoscaler"
	AgentName      = "ottoscaler.local/otto-agent"
)

// Ottoscaler compiles the three programs of the main pod from the module at
// repoRoot and writes their image, ottoscaler.local/ottoscaler:tag, to out. It
// returns the image's digest.
func Ottoscaler(ctx context.Context, repoRoot, tag, out string) (digest string, err error) {
	return Build(ctx, repoRoot, out, Spec{
		Name:       OttoscalerName + ":" + tag,
		Entrypoint: []string{"/consumer"},
		Labels:     map[string]string{"org.opencontainers.image.title": "ottoscaler"},
	}, "./cmd/consumer", "./cmd/scaler", "./cmd/log-relay")
}

// Agent compiles the sample agent from the module at repoRoot and writes its
// image, ottoscaler.local/otto-agent:tag, to out. It returns the image's digest.
func Agent(ctx context.Context, repoRoot, tag, out string) (digest string, err error) {
	return Build(ctx, repoRoot, out, Spec{
		Name:       AgentName + ":" + tag,
		Entrypoint: []string{"/agent"},
		Labels:     map[string]string{"org.opencontainers.image.title": "otto-agent"},
	}, "./examples/agent")
}

// Build compiles packages of the module at repoRoot as static programs, adds each
// to spec at the image's root under its package's last name, and writes the image
// to out, whose folder it makes.
func Build(ctx context.Context, repoRoot, out string, spec Spec, packages ...string) (digest string, err error) {
	dir, err := os.MkdirTemp("", "ottoscaler-image-*")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := compile(ctx, repoRoot, dir, packages...); err != nil {
		return "", err
	}
	for _, pkg := range packages {
		name := filepath.Base(pkg)
		spec.Files = append(spec.Files, File{Path: "/" + name, Source: filepath.Join(dir, name)})
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", err
	}
	return Write(ctx, out, spec)
}

// compile uses the Makefile's build flags, whatever this process was started with:
// others would compile every dependency a second time, and -trimpath is what keeps
// the place of the source tree out of the programs.
func compile(ctx context.Context, repoRoot, dir string, packages ...string) error {
	args := append([]string{"build", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = repoRoot
	cmd.Env = append(os.Environ(),
		"CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling %s: %w\n%s", strings.Join(packages, " "), err, output)
	}
	return nil
}
