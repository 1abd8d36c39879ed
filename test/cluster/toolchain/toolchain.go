// Package toolchain builds the programs that a cluster is made of, from Go
// modules, and keeps them.
//
// Each [Artifact] is built once per content of what it is built from: the key of
// its folder is a hash of its go.mod, go.sum, sources, flags and Go version. A
// build that is interrupted leaves nothing but a warmer build cache.
package toolchain

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ottoscaler/ottoscaler/test/cluster/image"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

// PauseImage is the name of the image that holds a pod's namespaces. The domain
// is one that never resolves (RFC 2606): nothing can be pulled by mistake.
const PauseImage = "ottoscaler.invalid/pause:1"

// environment is added to the user's for every build. Flags are part of every
// package's key in Go's build cache, so there is one set for all.
var environment = []string{"CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off"}

// An Artifact is one folder of programs, built together.
type Artifact struct {
	// Name is the folder's name, and what progress messages say.
	Name string
	// Dir is the module's folder, relative to the source folder.
	Dir string
	// Packages are what to build.
	Packages []string
	// Sources are the folders, relative to Dir, whose Go files are ours.
	Sources []string
	// Tags and LinkFlags are for the compiler and the linker; "VERSION",
	// "MAJOR" and "MINOR" in LinkFlags stand for that of Module.
	Tags, LinkFlags, Module string
	// finish completes the folder after the build.
	finish func(ctx context.Context, moduleDir, out string) error
}

const kubernetesVersion = "k8s.io/component-base/version"

// Artifacts that there are.
var (
	Kubernetes = Artifact{
		Name: "kubernetes", Dir: ".", Packages: []string{"./kubernetes"}, Sources: []string{"kubernetes"},
		Module: "k8s.io/kubernetes",
		LinkFlags: "-s -w -X " + kubernetesVersion + ".gitVersion=VERSION -X " + kubernetesVersion + ".gitMajor=MAJOR -X " +
			kubernetesVersion + ".gitMinor=MINOR -X " + kubernetesVersion + ".gitTreeState=clean",
		finish: func(_ context.Context, _, out string) error { return linkComponents(out) },
	}
	Containerd = Artifact{
		Name: "containerd", Dir: "containerd", Module: "github.com/containerd/containerd/v2",
		Packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		},
		Tags:      "no_btrfs,no_devmapper,no_zfs,no_aufs", // drivers of file systems that we do not use
		LinkFlags: "-s -w -X github.com/containerd/containerd/v2/version.Version=VERSION",
	}
	Pause = Artifact{
		Name: "pause", Dir: ".", Packages: []string{"./pause"}, Sources: []string{"pause", "image"},
		LinkFlags: "-s -w",
		finish: func(_ context.Context, _, out string) error {
			return image.Write(filepath.Join(out, "pause.tar"), PauseImage, filepath.Join(out, "pause"))
		},
	}
	CoreDNS = Artifact{
		Name: "coredns", Dir: ".", Packages: []string{"./coredns"}, Sources: []string{"coredns"}, LinkFlags: "-s -w",
	}
	Crictl = Artifact{
		Name: "crictl", Dir: ".", Module: "sigs.k8s.io/cri-tools", Packages: []string{"sigs.k8s.io/cri-tools/cmd/crictl"},
		LinkFlags: "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=VERSION",
	}
	Kwok = Artifact{
		Name: "kwok", Dir: "../../tools/kwok", Module: "sigs.k8s.io/kwok",
		Packages: []string{"sigs.k8s.io/kwok/cmd/kwok"}, LinkFlags: "-s -w",
		finish: copyStages,
	}
)

// Components are the names that the Kubernetes binary answers to.
var Components = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubeadm", "kubectl"}

// A Toolchain builds from Source, the folder of this command's go.mod, and keeps
// what it built in Cache.
type Toolchain struct {
	Source, Cache string
	// Progress is where long builds are reported.
	Progress *os.File
}

// Ensure returns the folder of an artifact's programs, which it builds if they
// are not there yet. Several commands may ask at once: one builds.
func (t Toolchain) Ensure(ctx context.Context, a Artifact) (string, error) {
	key, err := t.key(a)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(t.Cache, a.Name+"-"+key)
	if built(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(t.Cache, 0o755); err != nil {
		return "", err
	}
	// One lock for all artifacts: two big builds at once take longer than one
	// after the other.
	unlock, err := state.Lock(filepath.Join(t.Cache, "build.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if built(dir) {
		return dir, nil
	}
	if err := t.build(ctx, a, dir); err != nil {
		return "", fmt.Errorf("building %s: %w", a.Name, err)
	}
	return dir, nil
}

func built(dir string) bool {
	_, err := os.Stat(dir)
	return err == nil
}

func (t Toolchain) build(ctx context.Context, a Artifact, dir string) (err error) {
	tmp, err := os.MkdirTemp(t.Cache, "."+a.Name+"-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	moduleDir := filepath.Join(t.Source, a.Dir)
	ldflags, err := linkFlags(ctx, moduleDir, a)
	if err != nil {
		return err
	}
	if err := t.compile(ctx, a, moduleDir, ldflags, tmp); err != nil {
		return err
	}
	if a.finish != nil {
		if err := a.finish(ctx, moduleDir, tmp); err != nil {
			return err
		}
	}
	return os.Rename(tmp, dir)
}

// compile runs `go build -v`, which names each package that it compiles, and
// compares with how many there are.
func (t Toolchain) compile(ctx context.Context, a Artifact, moduleDir, ldflags, out string) error {
	p := newProgress(t.Progress, a.Name)
	defer p.stop()
	var tags []string
	if a.Tags != "" {
		tags = []string{"-tags", a.Tags}
	}
	p.phase("downloading modules")
	list := append([]string{"list", "-deps", "-f", "{{.ImportPath}}"}, tags...)
	deps, err := goCommand(ctx, moduleDir, p, append(list, a.Packages...)...)
	if err != nil {
		return err
	}
	p.compiling(bytes.Count(deps, []byte("\n")))
	build := append([]string{"build", "-v", "-ldflags", ldflags, "-o", out + "/"}, tags...)
	_, err = goCommand(ctx, moduleDir, p, append(build, a.Packages...)...)
	return err
}

// linkFlags fills in the module's version, so that programs know theirs.
func linkFlags(ctx context.Context, moduleDir string, a Artifact) (string, error) {
	if a.Module == "" {
		return a.LinkFlags, nil
	}
	out, err := goCommand(ctx, moduleDir, io.Discard, "list", "-m", "-f", "{{.Version}}", a.Module)
	if err != nil {
		return "", err
	}
	version := strings.TrimSpace(string(out))
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return strings.NewReplacer("VERSION", version, "MAJOR", major, "MINOR", minor).Replace(a.LinkFlags), nil
}

// goCommand runs the go command in a module. What it says on the way goes to
// log, and the end of it into the error.
func goCommand(ctx context.Context, dir string, log io.Writer, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), environment...)
	// A big build spends a tenth less CPU when the compiler collects its
	// garbage less often.
	cmd.Env = append(cmd.Env, "GOGC=400", "PWD="+dir)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.MultiWriter(&said, log)
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return nil, fmt.Errorf("go %s: %w\n%s", args[0], err, strings.Join(lines[max(0, len(lines)-10):], "\n"))
	}
	return out.Bytes(), nil
}

// key is the hash of all that an artifact is built from.
func (t Toolchain) key(a Artifact) (string, error) {
	h := sha256.New()
	h.Write(fmt.Appendln(nil, runtime.Version(), runtime.GOARCH, environment, a.Packages, a.Tags, a.LinkFlags)) // a hash's Write returns no error
	dir := filepath.Join(t.Source, a.Dir)
	files := []string{filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum")}
	for _, source := range a.Sources {
		matches, err := filepath.Glob(filepath.Join(dir, source, "*.go"))
		if err != nil {
			return "", err
		}
		files = append(files, matches...)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("reading what %s is built from: %w", a.Name, err)
		}
		h.Write(fmt.Appendln(nil, filepath.Base(file), len(b)))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// linkComponents makes the folder of the multi-call binary look like a release.
func linkComponents(out string) error {
	for _, c := range Components {
		if err := os.Symlink("kubernetes", filepath.Join(out, c)); err != nil {
			return err
		}
	}
	return nil
}

// copyStages writes stages.yaml: how pretended nodes and pods go from one state
// to the next. kwok's program has none of its own; its module ships them.
func copyStages(ctx context.Context, moduleDir, out string) error {
	b, err := goCommand(ctx, moduleDir, io.Discard, "mod", "download", "-json", "sigs.k8s.io/kwok")
	if err != nil {
		return err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(b, &module); err != nil {
		return err
	}
	var stages bytes.Buffer
	for _, set := range []string{"node/fast", "node/heartbeat-with-lease", "pod/fast"} {
		files, err := filepath.Glob(filepath.Join(module.Dir, "kustomize/stage", set, "*.yaml"))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("finding stages %s: %w", set, fs.ErrNotExist)
		}
		for _, file := range files {
			if strings.Contains(filepath.Base(file), "kustomization") {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(&stages, "---\n%s\n", b)
		}
	}
	return state.WriteFile(filepath.Join(out, "stages.yaml"), stages.Bytes(), 0o644)
}
