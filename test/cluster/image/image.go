// Package image writes container images as archives that `ctr images import`
// takes, without a container engine. The same files give the same bytes.
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
	"strings"

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

	written map[string]bool // blobs
}

// A Spec says what an image is made of.
type Spec struct {
	// Name must be a full one, with a registry's host: containerd stores it as it is.
	Name string
	// Layers lie one on the other, the first at the bottom.
	Layers []Layer
	// Entrypoint, Env and User are what the image says of its process.
	Entrypoint, Env []string
	// User is root if it is empty.
	User string
}

// A Layer is a part of an image's file system. Images of one archive share the
// layers that have the same content.
type Layer []File

// A File is one file, folder or symbolic link of a layer.
type File struct {
	// Path within the image, without a leading slash. That of a folder ends with one.
	Path string
	// Source is the file's place on this machine.
	Source string
	// Link, if set, is where a symbolic link leads.
	Link string
	// Content is that of a file without a source.
	Content []byte
	// Mode of the file; 0 means 0755.
	Mode int64
}

// Write makes an image archive at path: the program is /app and the entry
// point, and runs as a user that is not root.
func Write(path, name, program string) error {
	return WriteSet(path, []Spec{{
		Name: name, Layers: []Layer{{{Path: "app", Source: program}}}, Entrypoint: []string{"/app"}, User: "65532:65532",
	}})
}

// WriteSet makes an archive of several images at path.
func WriteSet(path string, specs []Spec) error {
	a := newArchive()
	a.file("oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	var manifests []descriptor
	for _, spec := range specs {
		manifest, err := a.image(spec)
		if err != nil {
			return fmt.Errorf("writing image %s: %w", spec.Name, err)
		}
		manifests = append(manifests, manifest)
	}
	a.jsonFile("index.json", map[string]any{"schemaVersion": 2, "manifests": manifests})
	b, err := a.close()
	if err != nil {
		return fmt.Errorf("writing images: %w", err)
	}
	return state.WriteFile(path, b, 0o644)
}

// image adds an image's blobs and returns its manifest.
func (a *archive) image(spec Spec) (descriptor, error) {
	layers, diffs := []descriptor{}, []string{}
	for _, layer := range spec.Layers {
		content, err := layer.pack()
		if err != nil {
			return descriptor{}, err
		}
		blob := a.blob("application/vnd.oci.image.layer.v1.tar", content)
		layers, diffs = append(layers, blob), append(diffs, blob.Digest)
	}
	process := map[string]any{"Entrypoint": spec.Entrypoint}
	if spec.User != "" {
		process["User"] = spec.User
	}
	if len(spec.Env) > 0 {
		process["Env"] = spec.Env
	}
	config := a.json("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       process,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffs},
	})
	manifest := a.json("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        config,
		"layers":        layers,
	})
	manifest.Annotations = map[string]string{"io.containerd.image.name": spec.Name}
	return manifest, nil
}

// pack makes a layer's tar, in the order of its files.
func (l Layer) pack() ([]byte, error) {
	a := newArchive()
	for _, f := range l {
		content := f.Content
		if f.Source != "" {
			var err error
			if content, err = os.ReadFile(f.Source); err != nil {
				return nil, err
			}
		}
		switch {
		case strings.HasSuffix(f.Path, "/"):
			a.folder(f.Path, f.Mode)
		case f.Link != "":
			a.link(f.Path, f.Link)
		case f.Mode != 0:
			a.file(f.Path, f.Mode, content)
		default:
			a.file(f.Path, 0o755, content)
		}
	}
	return a.close()
}

func newArchive() *archive {
	a := &archive{written: map[string]bool{}}
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

func (a *archive) folder(name string, mode int64) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode})
	}
}

func (a *archive) link(name, to string) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777})
	}
}

func (a *archive) blob(mediaType string, content []byte) descriptor {
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	if !a.written[digest] {
		a.written[digest] = true
		a.file("blobs/sha256/"+digest, 0o644, content)
	}
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
