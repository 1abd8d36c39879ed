package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// A Recipe says which programs of the module make an image.
type Recipe struct {
	// Name of the image, without a tag. The host of ours is one that nobody can pull
	// from: a node that has not been given the image says so at once.
	Name string
	// Packages are its programs, a layer each; the image begins with the first.
	Packages []string
	// Labels describe the image to those who inspect it.
	Labels map[string]string
}

// Images that are made of this module.
var (
	// Ottoscaler is the image of the main pod's containers.
	Ottoscaler = recipe("ottoscaler", "./cmd/consumer", "./cmd/scaler", "./cmd/log-relay")
	// Agent is the image of the sample agent.
	Agent = recipe("otto-agent", "./examples/agent")
	// LogServer is the image of the reference log server.
	LogServer = recipe("logserver", "./test/logserver/cmd/logserver")
)

func recipe(title string, packages ...string) Recipe {
	return Recipe{"ottoscaler.local/" + title, packages, map[string]string{"org.opencontainers.image.title": title}}
}

// A Built image is an archive, and the digest of the image in it.
type Built struct{ Archive, Digest string }

// Build compiles the programs of images as static binaries and writes an archive
// for each image to dir. The programs are kept in dir/bin: what has not changed
// since is not linked again. Two builds in one folder take turns. The compiled
// function, if there is one, is called between compiling and writing.
func Build(ctx context.Context, repoRoot, dir, tag string, compiled func(), recipes ...Recipe) (built []Built, err error) {
	programs := filepath.Join(dir, "bin")
	if err := os.MkdirAll(programs, 0o755); err != nil {
		return nil, fmt.Errorf("making room for images: %w", err)
	}
	turn := flock.New(filepath.Join(dir, "lock"))
	if _, err := turn.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return nil, fmt.Errorf("waiting for another build in %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, turn.Close()) }()
	var packages []string
	for _, r := range recipes {
		packages = append(packages, r.Packages...)
	}
	if err := compile(ctx, repoRoot, programs, packages...); err != nil {
		return nil, err
	}
	if compiled != nil {
		compiled()
	}
	for _, r := range recipes {
		b := Built{Archive: filepath.Join(dir, path.Base(r.Name)+".tar")}
		spec := Spec{Name: r.Name + ":" + tag, Labels: r.Labels}
		for _, pkg := range r.Packages {
			name := filepath.Base(pkg)
			spec.Files = append(spec.Files, File{Path: "/" + name, Source: filepath.Join(programs, name)})
		}
		spec.Entrypoint = []string{spec.Files[0].Path}
		if b.Digest, err = Write(ctx, b.Archive, spec); err != nil {
			return nil, err
		}
		built = append(built, b)
	}
	return built, nil
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
