package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/test/cluster/image"
)

func write(t *testing.T, program string) []byte {
	t.Helper()
	dir := t.TempDir()
	binary, out := filepath.Join(dir, "program"), filepath.Join(dir, "image.tar")
	if err := os.WriteFile(binary, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := image.Write(out, "registry.invalid/app:1", binary); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func files(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheSameProgramGivesTheSameBytes(t *testing.T) {
	if !bytes.Equal(write(t, "program"), write(t, "program")) {
		t.Error("two archives of one program differ")
	}
	if bytes.Equal(write(t, "program"), write(t, "another")) {
		t.Error("archives of two programs are the same")
	}
}

func TestEveryBlobIsWhereItsDigestSays(t *testing.T) {
	all := files(t, write(t, "program"))
	blobs := 0
	for name, content := range all {
		digest, ok := strings.CutPrefix(name, "blobs/sha256/")
		if !ok {
			continue
		}
		blobs++
		if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != digest {
			t.Errorf("%s holds something else", name)
		}
	}
	if blobs != 3 {
		t.Errorf("%d blobs, want layer, config and manifest", blobs)
	}
}

func TestTheIndexLeadsToTheProgram(t *testing.T) {
	all := files(t, write(t, "program"))
	type descriptor struct {
		Digest      string            `json:"digest"`
		Annotations map[string]string `json:"annotations"`
	}
	follow := func(d descriptor, into any) {
		t.Helper()
		b := all["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatalf("%s: %v", d.Digest, err)
		}
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(all["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if got := index.Manifests[0].Annotations["io.containerd.image.name"]; got != "registry.invalid/app:1" {
		t.Errorf("name = %q", got)
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	follow(index.Manifests[0], &manifest)
	var config struct{ Config struct{ User string } }
	follow(manifest.Config, &config)
	if config.Config.User == "" || strings.HasPrefix(config.Config.User, "0") {
		t.Errorf("user = %q, want one that is not root", config.Config.User)
	}
	layer := files(t, all["blobs/sha256/"+strings.TrimPrefix(manifest.Layers[0].Digest, "sha256:")])
	if got := string(layer["app"]); got != "program" {
		t.Errorf("/app = %q", got)
	}
}

func TestImagesOfOneArchiveShareTheirLayers(t *testing.T) {
	out := filepath.Join(t.TempDir(), "images.tar")
	base := image.Layer{{Path: "etc/hosts", Content: []byte("127.0.0.1 localhost\n"), Mode: 0o644}, {Path: "bin", Link: "usr/bin"}, {Path: "tmp/", Mode: 0o1777}}
	var specs []image.Spec
	for _, name := range []string{"one", "two"} {
		own := image.Layer{{Path: "app", Content: []byte(name)}}
		specs = append(specs, image.Spec{Name: "registry.invalid/" + name + ":1", Layers: []image.Layer{base, own}})
	}
	if err := image.WriteSet(out, specs); err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var layers []string
	for name, content := range files(t, archive) {
		if !strings.HasPrefix(name, "blobs/") || json.Valid(content) {
			continue
		}
		found := files(t, content)
		for _, path := range []string{"app", "etc/hosts"} {
			if b, ok := found[path]; ok {
				layers = append(layers, path+"="+string(b))
			}
		}
	}
	slices.Sort(layers)
	if diff := cmp.Diff([]string{"app=one", "app=two", "etc/hosts=127.0.0.1 localhost\n"}, layers); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
	if n := bytes.Count(archive, []byte("127.0.0.1 localhost")); n != 1 {
		t.Errorf("the shared layer is in the archive %d times, want once", n)
	}
}
