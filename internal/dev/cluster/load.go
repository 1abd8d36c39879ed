package cluster

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
)

// kindLoad makes archives known to the nodes of a kind cluster. Layers that a
// node has are not sent again, so that a change of one program costs one layer,
// and an image that is there already costs nothing.
func (c *Cluster) kindLoad(ctx context.Context, archives []string) error {
	nodes, err := c.kindNodes(ctx)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		return fmt.Errorf("loading images: there is no cluster %s", c.opts.Name)
	}
	var group errgroup.Group
	for _, node := range nodes {
		group.Go(func() error {
			if err := loadInto(ctx, node, archives); err != nil {
				return fmt.Errorf("loading images into %s: %w", node, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// loadInto loads archives into one node.
func loadInto(ctx context.Context, node string, archives []string) error {
	// containerd's folder of blobs answers sooner than `ctr content ls`. It may show
	// more than the namespace knows; then the import fails, and all is sent.
	has, err := docker.Run(ctx, "exec", node, "sh", "-c", "ctr --namespace=k8s.io images ls && { ls "+blobs+" 2>/dev/null || true; }")
	if err != nil {
		return err
	}
	for _, archive := range archives {
		index, err := readIndex(archive)
		if err != nil {
			return err
		}
		if len(index.Manifests) > 0 && known(has, index) {
			continue
		}
		// As `kind load image-archive` does, but for the third name that its --digests gives.
		load := func(skip func(blob string) bool) error {
			return send(ctx, archive, skip, func(r io.Reader) error {
				_, err := docker.RunWith(ctx, r, "exec", "--interactive", node, "ctr", "--namespace=k8s.io",
					"images", "import", "--all-platforms", "--snapshotter=overlayfs", "-")
				return err
			})
		}
		err = load(func(blob string) bool { return strings.Contains(has, blob) })
		if err != nil && ctx.Err() == nil { // the node has let go of a layer since we looked
			err = load(func(string) bool { return false })
		}
		if err != nil {
			return err
		}
		// Each image has a second name, its ID, by which the node would keep it for
		// good: kind's kubelets collect no images.
		if old := former(has, index); len(old) > 0 {
			if _, err := docker.Run(ctx, append([]string{"exec", node, "ctr", "--namespace=k8s.io", "images", "rm"}, old...)...); err != nil {
				return fmt.Errorf("removing former images: %w", err)
			}
		}
	}
	return nil
}

// blobs is where containerd keeps content, by the hash.
const blobs = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256"

// former returns the IDs, in a node's list of images, of those that had the names
// of the index before it.
func former(images string, index v1.IndexManifest) []string {
	digests := map[string]bool{}
	for line := range strings.Lines(images) {
		fields := strings.Fields(line)
		for _, m := range index.Manifests {
			if len(fields) >= 3 && fields[0] == m.Annotations[imageName] && fields[2] != m.Digest.String() {
				digests[fields[2]] = true
			}
		}
	}
	var ids []string
	for line := range strings.Lines(images) {
		if fields := strings.Fields(line); len(fields) >= 3 && digests[fields[2]] && strings.HasPrefix(fields[0], "sha256:") {
			ids = append(ids, fields[0])
		}
	}
	return ids
}

// known tells whether a node's list of images has each image of the index under
// its name, with its digest.
func known(images string, index v1.IndexManifest) bool {
	for _, m := range index.Manifests {
		found := false
		for line := range strings.Lines(images) {
			fields := strings.Fields(line)
			found = found || len(fields) >= 3 && fields[0] == m.Annotations[imageName] && fields[2] == m.Digest.String()
		}
		if !found {
			return false
		}
	}
	return true
}

// imageName is the annotation by which containerd knows an image of an archive.
const imageName = "io.containerd.image.name"

// readIndex reads the index of an OCI archive. An archive of an old docker save
// has none.
func readIndex(archive string) (index v1.IndexManifest, err error) {
	err = walk(archive, func(h *tar.Header, r io.Reader) error {
		if h.Name != "index.json" {
			return nil
		}
		return json.NewDecoder(r).Decode(&index)
	})
	return index, err
}

// send gives an archive without its skipped blobs to take.
func send(ctx context.Context, archive string, skip func(blob string) bool, take func(io.Reader) error) error {
	r, w := io.Pipe()
	var group errgroup.Group
	group.Go(func() error {
		tw := tar.NewWriter(w)
		err := walk(archive, func(h *tar.Header, content io.Reader) error {
			if blob, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok && h.Size > smallBlob && skip(blob) {
				return nil
			}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			_, err := io.Copy(tw, content)
			return err
		})
		return w.CloseWithError(errors.Join(err, tw.Close(), ctx.Err()))
	})
	err := take(r)
	return errors.Join(err, r.Close(), group.Wait())
}

// smallBlob is the size up to which a blob is sent in any case: manifests and
// configurations, which containerd wants to see in an archive.
const smallBlob = 64 << 10

// walk visits the files of an archive.
func walk(archive string, visit func(*tar.Header, io.Reader) error) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it was only read
	tr := tar.NewReader(file)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		if err := visit(h, tr); err != nil {
			return err
		}
	}
}
