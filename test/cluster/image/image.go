// Package image writes container images of one static program, as archives that
// `ctr images import` takes. The same program gives the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

// A descriptor points to a blob; see the OCI image specification.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// An archive is an OCI image layout in a tar file under construction. The first
// error is kept.
type archive struct {
	buf bytes.Buffer
	tar *tar.Writer
	err error
}

// Write makes an image archive at path: the program is /app and the entry
// point, and runs as a user that is not root. The name must be a full one, with
// a registry's host: containerd stores it as it is.
func Write(path, name, program string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer := newArchive()
	layer.file("app", 0o755, binary)
	rootfs, err := layer.close()
	if err != nil {
		return err
	}

	a := newArchive()
	a.file("oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	rootfsBlob := a.blob("application/vnd.oci.image.layer.v1.tar", rootfs)
	config := a.json("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/app"}, "User": "65532:65532"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{rootfsBlob.Digest}},
	})
	manifest := a.json("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        config,
		"layers":        []descriptor{rootfsBlob},
	})
	manifest.Annotations = map[string]string{"io.containerd.image.name": name}
	a.jsonFile("index.json", map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	b, err := a.close()
	if err != nil {
		return fmt.Errorf("writing image %s: %w", name, err)
	}
	return state.WriteFile(path, b, 0o644)
}

func newArchive() *archive {
	a := &archive{}
	a.tar = tar.NewWriter(&a.buf)
	return a
}

func (a *archive) file(name string, mode int64, content []byte) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))})
	}
	if a.err == nil {
		_, a.err = a.tar.Write(content)
	}
}

func (a *archive) blob(mediaType string, content []byte) descriptor {
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	a.file("blobs/sha256/"+digest, 0o644, content)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(content)}
}

func (a *archive) json(mediaType string, v any) descriptor {
	b, err := json.Marshal(v)
	if a.err == nil {
		a.err = err
	}
	return a.blob(mediaType, b)
}

func (a *archive) jsonFile(name string, v any) {
	b, err := json.Marshal(v)
	if a.err == nil {
		a.err = err
	}
	a.file(name, 0o644, b)
}

func (a *archive) close() ([]byte, error) {
	if a.err == nil {
		a.err = a.tar.Close()
	}
	return a.buf.Bytes(), a.err
}
