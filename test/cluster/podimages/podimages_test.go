package podimages

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// programs returns stand-ins for what takes minutes to build: only kubeadm's word
// matters here, and who is asked is told to ask for what list names.
func programs(t *testing.T, list ...string) Programs {
	t.Helper()
	dir := t.TempDir()
	kubeadm := "#!/bin/sh\n[ \"$1\" = version ] && echo v1.2.3 && exit\nprintf '%s\\n' " + strings.Join(list, " ") + "\n"
	for name, content := range map[string]string{"kubeadm": kubeadm, "kubernetes": "k8s", "coredns": "dns", "pause": "zzz"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Programs{Kubernetes: dir, CoreDNS: dir, Pause: dir}
}

// debian makes a root file system with an iptables, which is a program of this
// machine that is linked against something.
func debian(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	copyFile := func(from, to string) {
		content, err := os.ReadFile(from)
		if err == nil {
			to = filepath.Join(root, to)
			err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, content, 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	needed := map[string]string{}
	if err := libraries("/", "/bin/sh", needed); err != nil {
		t.Fatal(err)
	}
	if len(needed) < 2 {
		t.Fatalf("libraries of /bin/sh: got %v, want the C library and its loader", needed)
	}
	for _, source := range needed {
		copyFile(source, "usr/lib/x86_64-linux-gnu/"+filepath.Base(source))
	}
	copyFile("/bin/sh", "usr/sbin/xtables-nft-multi")
	copyFile(filepath.Join(root, "usr/lib/x86_64-linux-gnu/libc.so.6"), "usr/lib/x86_64-linux-gnu/xtables/libxt_tcp.so")
	return root
}

func write(t *testing.T, p Programs, root string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "images.tar")
	if err := Write(t.Context(), out, p, root); err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

func files(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := found[h.Name]; twice {
			t.Errorf("%s is in the archive twice", h.Name)
		}
		if found[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

var names = []string{
	"example.invalid/kube-apiserver:v1", "example.invalid/kube-controller-manager:v1", "example.invalid/kube-scheduler:v1",
	"example.invalid/kube-proxy:v1", "example.invalid/coredns/coredns:v2", "example.invalid/pause:3", "example.invalid/etcd:3",
}

func TestThereIsAnImageForEveryNameThatKubeadmAsksFor(t *testing.T) {
	archive := files(t, write(t, programs(t, names...), debian(t)))
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(archive["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range index.Manifests {
		got = append(got, m.Annotations["io.containerd.image.name"])
		var manifest struct{ Layers []struct{ Digest string } }
		if err := json.Unmarshal(archive["blobs/sha256/"+strings.TrimPrefix(m.Digest, "sha256:")], &manifest); err != nil {
			t.Fatal(err)
		}
		for _, layer := range manifest.Layers {
			if archive["blobs/sha256/"+strings.TrimPrefix(layer.Digest, "sha256:")] == nil {
				t.Errorf("%s: layer %s is not in the archive", got[len(got)-1], layer.Digest)
			}
		}
	}
	if !slices.Equal(got, names) {
		t.Errorf("images: got %v, want %v", got, names)
	}
}

func TestTheSameFilesGiveTheSameBytes(t *testing.T) {
	p, root := programs(t, names...), debian(t)
	if !bytes.Equal(write(t, p, root), write(t, p, root)) {
		t.Error("two archives of the same files differ")
	}
}

func TestAnImageThatNobodyMakesIsNamed(t *testing.T) {
	err := Write(t.Context(), filepath.Join(t.TempDir(), "x.tar"), programs(t, "example.invalid/kube-novelty:v1"), debian(t))
	if err == nil || !strings.Contains(err.Error(), "kube-novelty") {
		t.Errorf("got %v, want the image's name", err)
	}
}

func TestALibraryThatIsMissingIsNamed(t *testing.T) {
	root := debian(t)
	if err := os.Remove(filepath.Join(root, "usr/lib/x86_64-linux-gnu/libc.so.6")); err != nil {
		t.Fatal(err)
	}
	err := Write(t.Context(), filepath.Join(t.TempDir(), "x.tar"), programs(t, names...), root)
	if err == nil || !strings.Contains(err.Error(), "libc.so.6") {
		t.Errorf("got %v, want the library's name", err)
	}
}
