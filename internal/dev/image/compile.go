package image

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
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

// NestJSLogServer is the name of the image that scripts/image-log-server makes in a
// Docker engine.
const NestJSLogServer = "ottoscaler.local/nestjs-log-server"

func recipe(title string, packages ...string) Recipe {
	return Recipe{"ottoscaler.local/" + title, packages, map[string]string{"org.opencontainers.image.title": title}}
}

// A Built image is an archive, and what is in it.
type Built struct {
	// Archive is the path of the file.
	Archive string
	// Repository is the name of the image, without a tag.
	Repository string
	// Digest of the image's manifest.
	Digest string
	// Pinned is the name by which this very image is known where it is loaded:
	// another one gets another name, while the tag moves on.
	Pinned string
	// Programs identify the programs in it, by their names: what has not changed has
	// the same word as before.
	Programs map[string]string
}

// Build compiles the programs of images as static binaries and packs them; see
// [Pack]. The programs are kept in dir/bin: what has not changed since is not
// linked again.
func Build(ctx context.Context, repoRoot, dir, tag string, recipes ...Recipe) ([]Built, error) {
	return build(ctx, dir, tag, recipes, func(programs string) error {
		var packages []string
		for _, r := range recipes {
			packages = append(packages, r.Packages...)
		}
		return compile(ctx, repoRoot, programs, packages...)
	})
}

// Pack writes an archive for each image to dir, of programs that lie in dir/bin.
func Pack(ctx context.Context, dir, tag string, recipes ...Recipe) ([]Built, error) {
	return build(ctx, dir, tag, recipes, func(string) error { return nil })
}

// build lets two builds in one folder take turns.
func build(ctx context.Context, dir, tag string, recipes []Recipe, compile func(programs string) error) (built []Built, err error) {
	programs := filepath.Join(dir, "bin")
	if err := os.MkdirAll(programs, 0o755); err != nil {
		return nil, fmt.Errorf("making room for images: %w", err)
	}
	turn := flock.New(filepath.Join(dir, "lock"))
	if _, err := turn.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return nil, fmt.Errorf("waiting for another build in %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, turn.Close()) }()
	if err := compile(programs); err != nil {
		return nil, err
	}
	for _, r := range recipes {
		b, err := pack(ctx, dir, tag, r)
		if err != nil {
			return nil, err
		}
		built = append(built, b)
	}
	return built, nil
}

func pack(ctx context.Context, dir, tag string, r Recipe) (b Built, err error) {
	b.Repository, b.Archive = r.Name, filepath.Join(dir, path.Base(r.Name)+".tar")
	spec := Spec{Name: r.Name + ":" + tag, Labels: r.Labels}
	for _, pkg := range r.Packages {
		name := filepath.Base(pkg)
		spec.Files = append(spec.Files, File{Path: "/" + name, Source: filepath.Join(dir, "bin", name)})
	}
	spec.Entrypoint = []string{spec.Files[0].Path}
	if spec.Files, b.Programs, err = changedLast(spec.Files, b.Archive+".layers"); err != nil {
		return Built{}, err
	}
	b.Digest, err = Write(ctx, b.Archive, spec)
	b.Pinned = Pinned(spec.Name, b.Digest)
	return b, err
}

// A linked program is one layer of the image that was made last.
type linked struct {
	Path    string
	BuildID string // of the Go linker: a hash of all that it is made from
}

// buildID reads the ID of a Go program. Its file's times do not tell: go build
// touches what it finds up to date.
func buildID(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // it was only read
	section := f.Section(".note.go.buildid")
	if section == nil {
		return "", fmt.Errorf("%s has no build ID: it is no Go program", program)
	}
	note, err := section.Data()
	return base64.StdEncoding.EncodeToString(note), err
}

// changedLast orders the layers as in the image that the record tells of, but for
// those whose programs were linked since: these come last. A node unpacks a layer
// again if one below it has changed; so what is edited again and again comes to lie
// on top, and is all that is unpacked. Without a record the order is the recipe's.
//
// It also returns a word for each program, by its name, that changes with it.
func changedLast(files []File, record string) (ordered []File, words map[string]string, err error) {
	var before, now []linked
	if content, err := os.ReadFile(record); err == nil {
		_ = json.Unmarshal(content, &before) // one that is damaged is none
	}
	rank := map[string]int{}
	words = map[string]string{}
	for i, f := range files {
		id, err := buildID(f.Source)
		if err != nil {
			return nil, nil, err
		}
		words[path.Base(f.Path)] = fmt.Sprintf("%x", sha256.Sum256([]byte(id)))[:pinLength]
		l := linked{f.Path, id}
		now = append(now, l)
		if rank[f.Path] = slices.Index(before, l); rank[f.Path] < 0 {
			rank[f.Path] = len(before) + i
		}
	}
	slices.SortFunc(files, func(a, b File) int { return rank[a.Path] - rank[b.Path] })
	slices.SortFunc(now, func(a, b linked) int { return rank[a.Path] - rank[b.Path] })
	content, err := json.Marshal(now)
	if err != nil {
		return nil, nil, err
	}
	return files, words, os.WriteFile(record, content, 0o644)
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
