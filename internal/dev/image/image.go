// Package image makes container images without a container engine.
//
// An archive that it writes can be read by everything that takes images from a
// file: containerd (ctr images import, kind load image-archive) finds an OCI
// layout in it, docker load finds the manifest.json that docker save would have
// written; both name the same blobs. The same files make the same archive, to the
// byte: no time, owner or order of this machine gets in.
package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// User is whom every image runs as: nobody that a node would know.
const User = "65532:65532"

// A Spec says what is in an image.
type Spec struct {
	// Name is the full name with a tag, e.g. ottoscaler.local/ottoscaler:dev. Its
	// first part must look like a host, or containerd and Docker understand
	// different names by it.
	Name string
	// Files are the layers, one each, in this order: put first what changes least,
	// and an edit of one program leaves the other layers as they were.
	Files []File
	// Entrypoint is what runs when the pod says nothing.
	Entrypoint []string
	// Labels describe the image to those who inspect it.
	Labels map[string]string
}

// A File is one executable of an image.
type File struct {
	// Path is the file's place in the image, e.g. /consumer.
	Path string
	// Source is the file's place on this machine.
	Source string
}

// Write makes an image and writes it to an archive at path, whose folder must
// exist. It returns the digest of the image's manifest, which is the image ID that
// containerd shows. The archive appears whole or not at all.
//
// In the archive the image has two names: its tag, which moves on with every build,
// and one that no other image gets, so that a pod can say exactly which it runs.
func Write(ctx context.Context, path string, spec Spec) (digest string, err error) {
	img, err := assemble(ctx, spec)
	if err != nil {
		return "", fmt.Errorf("building image %s: %w", spec.Name, err)
	}
	hash, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("building image %s: %w", spec.Name, err)
	}
	if err := writeFile(path, func(w io.Writer) error { return writeArchive(ctx, w, spec.Name, img) }); err != nil {
		return "", fmt.Errorf("writing image %s: %w", spec.Name, err)
	}
	return hash.String(), nil
}

func assemble(ctx context.Context, spec Spec) (v1.Image, error) {
	if err := checkName(spec.Name); err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, file := range spec.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		layer, err := layerOf(file)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:   layer,
			History: v1.History{Created: epoch, CreatedBy: "COPY " + file.Path},
		})
		if err != nil {
			return nil, fmt.Errorf("adding %s: %w", file.Path, err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Created = epoch
	config.OS = "linux"
	config.Architecture = runtime.GOARCH
	config.Config = v1.Config{
		User:       User,
		Entrypoint: spec.Entrypoint,
		Labels:     spec.Labels,
		// What Docker assumes of an image that says nothing; said here, so that the
		// programs see the same under every runtime.
		Env:        []string{"PATH=/"},
		WorkingDir: "/",
	}
	return mutate.ConfigFile(img, config)
}

// epoch stands for every time in an image: a real one would make each build differ.
var epoch = v1.Time{Time: time.Unix(0, 0).UTC()}

// A fileLayer is a layer of one file: a tar that is put together while it is read.
// It is not compressed: archives stay on this machine, where packing costs more
// than it saves, and a layer that is its own tar does not depend on a compressor's
// version. Its hash is computed once; it is asked for many times.
type fileLayer struct {
	source     string
	head, tail []byte // of the tar, around the file
	size       int64
	hash       v1.Hash
}

func layerOf(file File) (*fileLayer, error) {
	name := strings.TrimPrefix(file.Path, "/")
	if name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("file %q: only files at the root of the image are known here", file.Path)
	}
	info, err := os.Stat(file.Source)
	if err != nil {
		return nil, err
	}
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(header(name, 0o755, info.Size())); err != nil {
		return nil, err
	}
	// The file is filled up to a whole block, and two empty blocks are the end.
	padding := (tarBlock - info.Size()%tarBlock) % tarBlock
	l := &fileLayer{source: file.Source, head: head.Bytes(), tail: make([]byte, padding+2*tarBlock)}
	content, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	l.hash, l.size, err = v1.SHA256(content)
	return l, errors.Join(err, content.Close())
}

const tarBlock = 512

// Compressed returns the layer as it is stored, which is not compressed.
func (l *fileLayer) Compressed() (io.ReadCloser, error) {
	f, err := os.Open(l.source)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(l.head), f, bytes.NewReader(l.tail)), f}, nil
}

// Uncompressed returns the layer.
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }

// Digest returns the hash of the layer.
func (l *fileLayer) Digest() (v1.Hash, error) { return l.hash, nil }

// DiffID returns the hash of the layer.
func (l *fileLayer) DiffID() (v1.Hash, error) { return l.hash, nil }

// Size returns the length of the layer.
func (l *fileLayer) Size() (int64, error) { return l.size, nil }

// MediaType returns that of a layer that is not compressed.
func (l *fileLayer) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }

// writeArchive writes an OCI layout and docker save's manifest.json into one tar.
func writeArchive(ctx context.Context, w io.Writer, name string, img v1.Image) error {
	configName, err := img.ConfigName()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	manifestDigest, err := img.Digest()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	var blobs []blob
	var layerPaths []string
	seen := map[v1.Hash]bool{configName: true, manifestDigest: true}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		layerPaths = append(layerPaths, blobPath(digest))
		if seen[digest] { // two programs with the same content
			continue
		}
		seen[digest] = true
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := addLayer(tw, blobPath(digest), layer); err != nil {
			return err
		}
	}
	blobs = append(blobs, blob{blobPath(configName), config}, blob{blobPath(manifestDigest), manifest})

	var names []v1.Descriptor
	for _, name := range []string{name, Pinned(name, manifestDigest.String())} {
		names = append(names, v1.Descriptor{
			MediaType: types.OCIManifestSchema1,
			Size:      int64(len(manifest)),
			Digest:    manifestDigest,
			Platform:  &v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
			Annotations: map[string]string{
				"io.containerd.image.name":          name,
				"org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
			},
		})
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: names})
	if err != nil {
		return err
	}
	docker, err := json.Marshal([]map[string]any{{
		"Config": blobPath(configName), "RepoTags": []string{name}, "Layers": layerPaths,
	}})
	if err != nil {
		return err
	}
	blobs = append(blobs,
		blob{"index.json", index},
		blob{"manifest.json", docker},
		blob{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
	)

	for _, b := range blobs {
		if err := addEntry(tw, b.path, 0o644, b.content); err != nil {
			return err
		}
	}
	return tw.Close()
}

// pinLength is how many hexadecimal digits tell images, or programs, apart.
const pinLength = 12

// Pinned returns the name of one very image: that of its tag, and the beginning of
// its digest.
func Pinned(name, digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return name + "-" + hex[:min(pinLength, len(hex))]
}

// A blob is one file of an archive.
type blob struct {
	path    string
	content []byte
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func addLayer(tw *tar.Writer, path string, layer v1.Layer) (err error) {
	size, err := layer.Size()
	if err != nil {
		return err
	}
	content, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	if err := tw.WriteHeader(header(path, 0o644, size)); err != nil {
		return err
	}
	_, err = io.Copy(tw, content)
	return err
}

func addEntry(tw *tar.Writer, name string, mode int64, content []byte) error {
	if err := tw.WriteHeader(header(name, mode, int64(len(content)))); err != nil {
		return err
	}
	_, err := tw.Write(content)
	return err
}

func header(name string, mode, size int64) *tar.Header {
	return &tar.Header{
		Typeflag: tar.TypeReg,
		Name:     name,
		Mode:     mode,
		Size:     size,
		ModTime:  epoch.Time,
		Format:   tar.FormatUSTAR,
	}
}

// checkName refuses a name that containerd and Docker would complete, each in
// its own way, with the name of a public registry.
func checkName(name string) error {
	host, rest, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(host, ".:") {
		return fmt.Errorf("name %q does not begin with a host", name)
	}
	if colon := strings.LastIndex(rest, ":"); colon <= 0 || colon == len(rest)-1 {
		return fmt.Errorf("name %q has no tag", name)
	}
	return nil
}

// writeFile writes beside path and renames, so that nobody reads half an archive.
func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
