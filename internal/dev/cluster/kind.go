package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
)

// madeMarker is a file in the first node of a cluster whose creation came to its
// end. One without it was interrupted, and is of no use.
const madeMarker = "/kind/made-by-ottoscaler"

// LocalNodeImage is the repository of the node image that kind/images makes, for
// those who cannot pull any. It is used where KIND_NODE_IMAGE says nothing else.
const LocalNodeImage = "ottoscaler.local/kind-node"

// kindUp makes a kind cluster, or starts the one that is there.
func (c *Cluster) kindUp(ctx context.Context) error {
	if err := c.kindKubeconfig(); err != nil {
		return err
	}
	nodes, err := c.kindNodes(ctx)
	if err != nil {
		return err
	}
	if len(nodes) > 0 {
		whole, err := c.kindStart(ctx, nodes)
		if err != nil {
			return err
		}
		if !whole {
			if err := c.kind(ctx, nil, "delete", "cluster", "--kubeconfig", c.Kubeconfig); err != nil {
				return err
			}
			nodes = nil
		}
	}
	if len(nodes) == 0 {
		if err := c.kindCreate(ctx); err != nil {
			return err
		}
		c.Made = true
	}
	if err := c.awaitSystem(ctx); err != nil {
		return err
	}
	network, err := docker.InspectNetwork(ctx, c.network())
	if err != nil {
		return err
	}
	c.HostAddr = network.Gateway() // the servers of tests and demo listen on IPv4
	return nil
}

func (c *Cluster) network() string {
	for _, name := range []string{c.opts.Network, os.Getenv("KIND_EXPERIMENTAL_DOCKER_NETWORK")} {
		if name != "" {
			return name
		}
	}
	return "kind"
}

func (c *Cluster) kindCreate(ctx context.Context) error {
	args := []string{
		"create", "cluster", "--wait", "3m", "--kubeconfig", c.Kubeconfig,
		"--config", filepath.Join(c.opts.Root, "kind", "cluster.yaml"),
	}
	image := os.Getenv("KIND_NODE_IMAGE")
	if image == "" {
		var err error
		if image, err = docker.LocalImage(ctx, LocalNodeImage); err != nil {
			return err
		}
	}
	if image != "" {
		args = append(args, "--image", image)
	}
	if err := c.kind(ctx, nil, args...); err != nil {
		if strings.Contains(err.Error(), "pull") {
			err = fmt.Errorf("%w: set KIND_NODE_IMAGE to an image that can be had; without a registry, kind/images makes one (kind/README.md)", err)
		}
		return err
	}
	nodes, err := c.kindNodes(ctx)
	if err != nil {
		return err
	}
	_, err = docker.Run(ctx, "exec", nodes[0], "touch", madeMarker)
	return err
}

// kindStart starts the nodes of a cluster that is there. It tells whether the
// cluster was ever whole.
func (c *Cluster) kindStart(ctx context.Context, nodes []string) (whole bool, err error) {
	if _, err := docker.Run(ctx, append([]string{"start"}, nodes...)...); err != nil {
		return false, err
	}
	if _, err := docker.Run(ctx, "exec", nodes[0], "test", "-f", madeMarker); err != nil {
		return false, ctx.Err()
	}
	if _, err := os.Stat(c.Kubeconfig); err == nil {
		return true, nil // kind keeps the API server's port for the cluster's life
	}
	return true, c.kind(ctx, nil, "export", "kubeconfig", "--kubeconfig", c.Kubeconfig)
}

// awaitSystem waits until the cluster's own workloads do their work: a node is
// ready before Services and names are.
func (c *Cluster) awaitSystem(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading kubeconfig %s: %w", c.Kubeconfig, err)
	}
	cfg.Timeout = 5 * time.Second
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("connecting to cluster %s: %w", c.opts.Name, err)
	}
	for {
		dns, err := client.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
		var proxy *appsv1.DaemonSet
		if err == nil {
			proxy, err = client.AppsV1().DaemonSets("kube-system").Get(ctx, "kube-proxy", metav1.GetOptions{})
		}
		if err == nil && dns.Status.AvailableReplicas > 0 && proxy.Status.NumberAvailable > 0 && proxy.Status.NumberAvailable >= proxy.Status.DesiredNumberScheduled {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("DNS has %d servers, kube-proxy runs on %d nodes", dns.Status.AvailableReplicas, proxy.Status.NumberAvailable)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for cluster %s to work: %w", c.opts.Name, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// kindDown removes the cluster and its kubeconfig, whatever state it is in.
func (c *Cluster) kindDown(ctx context.Context) error {
	if err := c.kindKubeconfig(); err != nil {
		return err
	}
	// Without its own kubeconfig, kind would look into the user's.
	if err := c.kind(ctx, nil, "delete", "cluster", "--kubeconfig", c.Kubeconfig); err != nil {
		return err
	}
	// kind has taken its cluster out of the file. There may be others in it, if its
	// user chose the place.
	left, err := clientcmd.LoadFromFile(c.Kubeconfig)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("reading kubeconfig %s: %w", c.Kubeconfig, err)
	case len(left.Clusters) > 0:
		return nil
	}
	if err := os.Remove(c.Kubeconfig); err != nil {
		return fmt.Errorf("removing the kubeconfig of cluster %s: %w", c.opts.Name, err)
	}
	return nil
}

// kindKubeconfig sets the path of the kubeconfig of a kind cluster, which is not
// the user's.
func (c *Cluster) kindKubeconfig() error {
	if c.Kubeconfig = c.opts.Kubeconfig; c.Kubeconfig == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("finding the cache folder: %w", err)
		}
		c.Kubeconfig = filepath.Join(dir, "ottoscaler", "kind", c.opts.Name+".kubeconfig")
	}
	if err := os.MkdirAll(filepath.Dir(c.Kubeconfig), 0o700); err != nil {
		return fmt.Errorf("making room for the kubeconfig: %w", err)
	}
	return nil
}

// kindNodes returns the containers of the cluster's nodes, the control plane's first.
func (c *Cluster) kindNodes(ctx context.Context) ([]string, error) {
	out, err := docker.Run(ctx, "container", "ls", "--all", "--filter", "label=io.x-k8s.kind.cluster="+c.opts.Name,
		"--format", `{{.Label "io.x-k8s.kind.role"}} {{.Names}}`)
	if err != nil {
		return nil, fmt.Errorf("looking for cluster %s: %w", c.opts.Name, err)
	}
	var first, rest []string
	for line := range strings.Lines(out) {
		role, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch role {
		case "control-plane":
			first = append(first, name)
		case "worker":
			rest = append(rest, name)
		}
	}
	return append(first, rest...), nil
}

func (c *Cluster) kind(ctx context.Context, out io.Writer, args ...string) error {
	env := []string{"KIND_EXPERIMENTAL_DOCKER_NETWORK=" + c.network()}
	args = append([]string{"tool", "-modfile=" + c.tool("kind"), "kind", "--name", c.opts.Name}, args...)
	return c.run(ctx, env, out, "go", args...)
}
