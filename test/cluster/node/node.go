// Package node runs nodes: containerd, the kubelet and kube-proxy in a network
// namespace, a mount namespace and a control group of their own.
//
// The namespaces live as long as a process of the node does; the first one
// started makes the mount namespace, and later ones join it. Everything that
// they mount goes with it. Fixed paths that two kubelets of one machine would
// fight over are covered by empty file systems in there.
package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ottoscaler/ottoscaler/test/cluster/api"
	"github.com/ottoscaler/ottoscaler/test/cluster/cgroup"
	"github.com/ottoscaler/ottoscaler/test/cluster/network"
	"github.com/ottoscaler/ottoscaler/test/cluster/pki"
	"github.com/ottoscaler/ottoscaler/test/cluster/process"
	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
	"github.com/ottoscaler/ottoscaler/test/cluster/toolchain"
)

// readyTimeout is generous, for machines that are busy with something else.
const readyTimeout = 2 * time.Minute

// A Node is one of a cluster.
type Node struct {
	// Index counts from 1.
	Index   int
	Cluster state.Cluster
	Slot    slot.Slot
	Config  state.Config
	Group   process.Group
	Cgroups cgroup.Machine
	// Kubernetes, Containerd and Pause are folders of programs.
	Kubernetes, Containerd, Pause string
	System                        toolchain.System
}

// covered are paths that a node must not share with the host or other nodes.
var covered = []string{"/run/netns", "/run/containerd", "/var/lib/kubelet", "/var/lib/cni"}

// Name is the node's name in the API.
func (n *Node) Name() string { return fmt.Sprintf("n%d", n.Index) }

// Prepare writes the node's configuration and makes its control group. Its
// network must exist.
func (n *Node) Prepare(authority *pki.Authority, server string) error {
	certificate := "kubelet-" + n.Name()
	err := authority.Issue(pki.Subject{
		Name: certificate, Common: "system:node:" + n.Name(), Groups: []string{"system:nodes"}, Client: true,
		IPs: []netip.Addr{n.Slot.NodeIP(n.Index)}, DNS: []string{n.Name()},
	})
	if err != nil {
		return err
	}
	if err := authority.WriteKubeconfig(n.path("kubelet.kubeconfig"), certificate, server); err != nil {
		return err
	}
	files, err := n.files(authority.CertFile("ca"), authority.CertFile(certificate), authority.KeyFile(certificate))
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := state.WriteFile(n.path(name), content, 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{n.path("kubelet"), n.path("log"), n.path("images"), n.run()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return n.cgroup().Create()
}

// StartRuntime starts containerd, waits until it answers, and gives it the image
// that every pod needs. It needs no API server.
func (n *Node) StartRuntime(ctx context.Context) error {
	containerd := n.containerd()
	if err := n.start(containerd); err != nil {
		return err
	}
	err := n.Group.Await(ctx, readyTimeout, func(ctx context.Context) error {
		_, err := n.ctr(ctx, "version")
		return err
	}, containerd)
	if err != nil {
		return err
	}
	images, err := n.ctr(ctx, "images", "list", "--quiet")
	if err != nil {
		return err
	}
	if strings.Contains(string(images), toolchain.PauseImage) {
		return nil
	}
	return n.Load(ctx, filepath.Join(n.Pause, "pause.tar"))
}

// StartKubelet starts the kubelet and kube-proxy. The API server must be ready.
func (n *Node) StartKubelet() error {
	if err := n.start(n.kubelet()); err != nil {
		return err
	}
	return n.start(n.proxy())
}

// AwaitReady waits until the API server has heard that the node is ready, and
// kube-proxy has programmed the Services.
func (n *Node) AwaitReady(ctx context.Context, client *api.Client) error {
	return n.Group.Await(ctx, readyTimeout, func(ctx context.Context) error {
		nodes, err := client.Nodes(ctx, false)
		if err != nil {
			return err
		}
		for _, node := range nodes {
			if node.Name == n.Name() && node.Ready {
				return nil
			}
		}
		return fmt.Errorf("node %s is not ready", n.Name())
	}, n.kubelet(), n.containerd(), n.proxy())
}

// Load imports an image archive.
func (n *Node) Load(ctx context.Context, archive string) error {
	if _, err := n.ctr(ctx, "--namespace", "k8s.io", "images", "import", "--local", archive); err != nil {
		return fmt.Errorf("loading %s into node %s: %w", archive, n.Name(), err)
	}
	return nil
}

// Images lists the names of the images that the node has.
func (n *Node) Images(ctx context.Context) ([]string, error) {
	b, err := n.ctr(ctx, "--namespace", "k8s.io", "images", "list", "--quiet")
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)), nil
}

// Specs lists the node's processes, in the order in which they start.
func (n *Node) Specs() []process.Spec {
	return []process.Spec{n.containerd(), n.kubelet(), n.proxy()}
}

func (n *Node) containerd() process.Spec {
	s := n.spec("containerd", filepath.Join(n.Containerd, "containerd"), "--config="+n.path("containerd.toml"), "--log-level=warn")
	// containerd looks for its shim on PATH, and the shim for mount(8).
	s.Env = []string{"PATH=" + n.Containerd + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	return s
}

func (n *Node) kubelet() process.Spec {
	return n.spec("kubelet", filepath.Join(n.Kubernetes, "kubelet"),
		"--config="+n.path("kubelet.yaml"),
		"--kubeconfig="+n.path("kubelet.kubeconfig"),
		"--root-dir="+n.path("kubelet"),
		"--hostname-override="+n.Name(),
		"--node-ip="+n.Slot.NodeIP(n.Index).String(),
		"--v=1",
	)
}

func (n *Node) proxy() process.Spec {
	return n.spec("kube-proxy", filepath.Join(n.Kubernetes, "kube-proxy"), "--config="+n.path("kube-proxy.yaml"))
}

func (n *Node) spec(component string, args ...string) process.Spec {
	name := n.Name() + "/" + component
	return process.Spec{Name: name, Args: args, Log: n.Cluster.Log(name)}
}

// start starts a process within the node's namespaces.
func (n *Node) start(s process.Spec) error {
	enter, err := n.enter()
	if err != nil {
		return err
	}
	if s.Cgroup, err = n.cgroup().SystemDir(); err != nil {
		return err
	}
	if s.Cgroup != nil {
		defer func() { _ = s.Cgroup.Close() }() // a handle only
	}
	s.Enter = func() error {
		if err := n.cgroup().Join(); err != nil {
			return err
		}
		return enter()
	}
	_, err = n.Group.Start(s)
	return err
}

func (n *Node) ctr(ctx context.Context, args ...string) ([]byte, error) {
	enter, err := n.enter()
	if err != nil {
		return nil, err
	}
	args = append([]string{filepath.Join(n.Containerd, "ctr"), "--address", n.socket()}, args...)
	return process.Run(ctx, enter, args...)
}

// enter returns how a thread gets into the node's namespaces: those of any of
// its processes, or new ones.
func (n *Node) enter() (func() error, error) {
	all, err := n.Group.All()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if strings.HasPrefix(p.Name, n.Name()+"/") {
			return func() error { return n.join(p.PID) }, nil
		}
	}
	return n.isolate, nil
}

// join moves the calling thread into the mount and network namespaces of a
// process.
func (n *Node) join(pid int) error {
	mounts, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer func() { _ = mounts.Close() }() // a handle only
	if err := network.Enter(n.Slot, n.Index); err != nil {
		return err
	}
	// A thread that shares its working directory with others may not change
	// its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS)
}

// isolate moves the calling thread into the node's network namespace and a new
// mount namespace, and furnishes that.
func (n *Node) isolate() error {
	if err := network.Enter(n.Slot, n.Index); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("separating mounts from the host's: %w", err)
	}
	// Volumes that the kubelet mounts while a container runs must appear in it.
	kubelet := n.path("kubelet")
	err := errors.Join(unix.Mount(kubelet, kubelet, "", unix.MS_BIND, ""), unix.Mount("", kubelet, "", unix.MS_SHARED, ""))
	if err != nil {
		return fmt.Errorf("sharing %s with containers: %w", kubelet, err)
	}
	// The kubelet serves all of /var/log, and keeps the logs of pods in there.
	if err := unix.Mount(n.path("log"), "/var/log", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("covering /var/log: %w", err)
	}
	for _, dir := range covered {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("covering %s: %w", dir, err)
		}
	}
	return nil
}

func (n *Node) cgroup() cgroup.Group {
	return n.Cgroups.Group(n.cgroupPath())
}

func (n *Node) cgroupPath() string { return n.Slot.Cgroup() + "/" + n.Name() }

func (n *Node) run() string { return n.Slot.NodeRunDir(n.Index) }

func (n *Node) socket() string { return filepath.Join(n.run(), "containerd.sock") }

func (n *Node) path(elem ...string) string {
	return n.Cluster.Path(append([]string{n.Name()}, elem...)...)
}
