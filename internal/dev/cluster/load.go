package cluster

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
)

// An Inventory is what the nodes of a kind cluster have of images, when it was made.
type Inventory struct {
	nodes []string
	has   []string // of each node: its list of images, and its blobs
}

// Inventory looks what the nodes have. Who knows beforehand that images are to be
// loaded can have it made while they are built. Of other clusters it is nil.
func (c *Cluster) Inventory(ctx context.Context) (*Inventory, error) {
	if c.Kind != InDocker {
		return nil, nil
	}
	nodes, err := c.kindNodes(ctx)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("loading images: there is no cluster %s", c.opts.Name)
	}
	inventory := &Inventory{nodes, make([]string, len(nodes))}
	var group errgroup.Group
	for i, node := range nodes {
		group.Go(func() (err error) {
			// containerd's folder of blobs answers sooner than `ctr content ls`. It may show
			// more than the namespace knows; then the import fails, and all is sent.
			inventory.has[i], err = docker.Run(ctx, "exec", node, "sh", "-c", "ctr --namespace=k8s.io images ls && { ls "+blobs+" 2>/dev/null || true; }")
			return err
		})
	}
	return inventory, group.Wait()
}

// Has tells whether every node had an image of that name, with its tag.
func (inventory *Inventory) Has(name string) bool {
	return !slices.ContainsFunc(inventory.has, func(images string) bool {
		for line := range strings.Lines(images) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == name {
				return false
			}
		}
		return true
	})
}

// kindLoad makes archives known to the nodes of a kind cluster. Layers that a
// node has are not sent again, so that a change of one program costs one layer,
// and an image that is there already costs nothing.
func (inventory *Inventory) kindLoad(ctx context.Context, archives []string) error {
	var group errgroup.Group
	for i, node := range inventory.nodes {
		group.Go(func() error {
			if err := loadInto(ctx, node, inventory.has[i], archives); err != nil {
				return fmt.Errorf("loading images into %s: %w", node, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// loadInto loads archives into a node that has some images.
func loadInto(ctx context.Context, node, has string, archives []string) error {
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
	}
	return nil
}

// Forget has the nodes of a kind cluster let go of all images of a repository but
// those of the names to keep. kind's kubelets collect no images.
func (c *Cluster) Forget(ctx context.Context, repository string, keep ...string) error {
	if c.Kind != InDocker {
		return nil
	}
	nodes, err := c.kindNodes(ctx)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		has, err := docker.Run(ctx, "exec", node, "ctr", "--namespace=k8s.io", "images", "ls")
		if err != nil {
			return err
		}
		if old := former(has, repository, keep); len(old) > 0 {
			if _, err := docker.Run(ctx, append([]string{"exec", node, "ctr", "--namespace=k8s.io", "images", "rm"}, old...)...); err != nil {
				return fmt.Errorf("removing former images from %s: %w", node, err)
			}
		}
	}
	return nil
}

// blobs is where containerd keeps content, by the hash.
const blobs = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256"

// former returns the names, in a node's list of images, of those of a repository
// that none of the names to keep stands for. Each image also has its ID for a name.
func former(images, repository string, keep []string) (names []string) {
	type line struct{ name, digest string }
	var lines []line
	kept, old := map[string]bool{}, map[string]bool{}
	for text := range strings.Lines(images) {
		fields := strings.Fields(text)
		if len(fields) < 3 {
			continue
		}
		l := line{fields[0], fields[2]}
		lines = append(lines, l)
		if slices.Contains(keep, l.name) {
			kept[l.digest] = true
		} else if strings.HasPrefix(l.name, repository+":") {
			old[l.digest] = true
		}
	}
	for _, l := range lines {
		tag := strings.HasPrefix(l.name, repository+":") && !slices.Contains(keep, l.name)
		id := strings.HasPrefix(l.name, "sha256:") && old[l.digest] && !kept[l.digest]
		if tag || id {
			names = append(names, l.name)
		}
	}
	return names
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
