package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/ottoscaler/ottoscaler/internal/dev/image"
)

const name = "ottoscaler.local/two:test"

func TestSameSourceInAnotherFolderMakesTheSameArchive(t *testing.T) {
	var archives [2][]byte
	var digests [2]string
	for i := range archives {
		archives[i], digests[i] = build(t, "hello")
	}
	if digests[0] != digests[1] {
		t.Errorf("digests differ: %s and %s", digests[0], digests[1])
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("archives differ")
	}
}

func TestAnEditChangesOneLayerOnly(t *testing.T) {
	before, _ := build(t, "hello")
	after, _ := build(t, "goodbye")
	was, is := layersOf(t, before), layersOf(t, after)
	if was[0] != is[0] {
		t.Error("the layer of the program that was not edited has changed")
	}
	if was[1] == is[1] {
		t.Error("the layer of the edited program has not changed")
	}
}

func TestArchiveIsAnOCILayout(t *testing.T) {
	archive, digest := build(t, "hello")
	dir := unpack(t, archive)
	path, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 {
		t.Fatalf("index has %d names, want 2", len(manifest.Manifests))
	}
	entry := manifest.Manifests[0]
	for i, want := range []string{name, name + "-" + strings.TrimPrefix(digest, "sha256:")[:12]} {
		if got := manifest.Manifests[i].Annotations["io.containerd.image.name"]; got != want {
			t.Errorf("containerd would call the image %q, want %q", got, want)
		}
		if got := manifest.Manifests[i].Digest.String(); got != digest {
			t.Errorf("index names %s, Write returned %s", got, digest)
		}
	}
	img, err := path.Image(entry.Digest)
	if err != nil {
		t.Fatal(err)
	}
	check(t, img)
}

func TestArchiveIsWhatDockerSaveWrites(t *testing.T) {
	archive, _ := build(t, "hello")
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, img)

	// Docker checks neither; containerd and kind find their way by these names.
	var manifest []struct{ RepoTags []string }
	if err := json.Unmarshal(entriesOf(t, archive)["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if got := manifest[0].RepoTags; !slices.Equal(got, []string{name}) {
		t.Errorf("docker would call the image %q, want %q", got, name)
	}
}

func TestBlobsAreNamedByTheirContent(t *testing.T) {
	archive, _ := build(t, "hello")
	for path, content := range entriesOf(t, archive) {
		hex, ok := strings.CutPrefix(path, "blobs/sha256/")
		if !ok {
			continue
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != hex {
			t.Errorf("%s has the content of %s", path, got)
		}
	}
}

func TestNameThatRuntimesWouldCompleteIsRefused(t *testing.T) {
	for _, name := range []string{"ottoscaler", "ottoscaler:dev", "library/ottoscaler:dev", "ottoscaler.local/ottoscaler", "ottoscaler.local/ottoscaler:"} {
		out := filepath.Join(t.TempDir(), "out.tar")
		if _, err := image.Write(t.Context(), out, image.Spec{Name: name}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: got error %v, want one that names it", name, err)
		}
		if _, err := os.Stat(out); !os.IsNotExist(err) {
			t.Errorf("%q: something was written", name)
		}
	}
}

func TestFailedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	_, err := image.Write(t.Context(), filepath.Join(dir, "out.tar"), image.Spec{
		Name:  name,
		Files: []image.File{{Path: "/a", Source: filepath.Join(dir, "missing")}},
	})
	if err == nil {
		t.Fatal("want an error for a missing file")
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What is edited lies on top from then on, so that a node unpacks nothing else.
func TestWhatHasChangedComesLast(t *testing.T) {
	root, dir := module(t, "1"), t.TempDir()
	order := func() string {
		t.Helper()
		built, err := image.Build(t.Context(), root, dir, "dev", image.Recipe{Name: "example.test/two", Packages: []string{"./first", "./second"}})
		if err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(built[0].Archive, nil)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"/first"}, config.Config.Entrypoint); diff != "" {
			t.Errorf("entry point (-want +got):\n%s", diff)
		}
		var files []string
		for _, h := range config.History {
			files = append(files, strings.TrimPrefix(h.CreatedBy, "COPY /"))
		}
		return strings.Join(files, " ")
	}
	edit := func(program string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, program, "main.go"), fmt.Appendf(nil, "package main\n\nfunc main() { println(%q) }\n", t.Name()+program), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct{ edited, want string }{
		{"", "first second"},
		{"", "first second"},
		{"first", "second first"},
		{"", "second first"},
		{"second", "first second"},
	} {
		if step.edited != "" {
			edit(step.edited)
		}
		if got := order(); got != step.want {
			t.Errorf("layers after an edit of %q: got %s, want %s", step.edited, got, step.want)
		}
	}
}

func TestCompilerErrorIsShown(t *testing.T) {
	root := module(t, `"unterminated`)
	_, err := image.Build(t.Context(), root, t.TempDir(), "dev", image.Recipe{Name: name, Packages: []string{"./second"}})
	if err == nil || !strings.Contains(err.Error(), "main.go:3") {
		t.Errorf("got %v, want the compiler's own message", err)
	}
}

// check compares an image with what build puts into it.
func check(t *testing.T, img v1.Image) {
	t.Helper()
	// Fast, because the full validation takes every OCI layer for gzip.
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Error(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.Config{
		User: "65532:65532", Entrypoint: []string{"/first"}, Env: []string{"PATH=/"}, WorkingDir: "/",
		Labels: map[string]string{"a": "b"},
	}
	if diff := cmp.Diff(want, config.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var got [][]string
	for _, layer := range layers {
		r, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		var files []string
		for tr := tar.NewReader(r); ; {
			header, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if header.Uid != 0 || header.Gid != 0 || header.ModTime.Unix() != 0 {
				t.Errorf("%s: owner %d:%d, time %s: something of this machine got in", header.Name, header.Uid, header.Gid, header.ModTime)
			}
			files = append(files, fmt.Sprintf("%s %o", header.Name, header.Mode))
		}
		got = append(got, files)
	}
	if diff := cmp.Diff([][]string{{"first 755"}, {"second 755"}}, got); diff != "" {
		t.Errorf("files by layer (-want +got):\n%s", diff)
	}
}

// build makes a module of two programs in a new folder, and an image of them.
func build(t *testing.T, word string) (archive []byte, digest string) {
	t.Helper()
	repository, tag, _ := strings.Cut(name, ":")
	built, err := image.Build(t.Context(), module(t, fmt.Sprintf("%q", word)), filepath.Join(t.TempDir(), "images"), tag, image.Recipe{
		Name: repository, Packages: []string{"./first", "./second"}, Labels: map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	archive, err = os.ReadFile(built[0].Archive)
	if err != nil {
		t.Fatal(err)
	}
	return archive, built[0].Digest
}

// module writes two programs, of which the second prints the expression.
func module(t *testing.T, expression string) (root string) {
	t.Helper()
	root = t.TempDir()
	for path, content := range map[string]string{
		"go.mod":         "module example.test/two\n\ngo 1.26\n",
		"first/main.go":  "package main\n\nfunc main() { println(\"first\") }\n",
		"second/main.go": "package main\n\nfunc main() { println(" + expression + ") }\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func layersOf(t *testing.T, archive []byte) []string {
	t.Helper()
	var manifest []struct{ Layers []string }
	if err := json.Unmarshal(entriesOf(t, archive)["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	return manifest[0].Layers
}

func entriesOf(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	entries := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		if entries[header.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func unpack(t *testing.T, archive []byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for path, content := range entriesOf(t, archive) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
