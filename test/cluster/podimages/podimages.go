// Package podimages makes the images of the pods that kubeadm starts on a node:
// the control plane, kube-proxy, DNS and the pause container. What kubeadm would
// pull from a registry is made of the programs that we build.
package podimages

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/ottoscaler/ottoscaler/test/cluster/image"
)

// Programs are the folders of what the images are made of.
type Programs struct{ Kubernetes, CoreDNS, Pause string }

// searchPath is where the programs are in their images, and what they call.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Write writes the images to an archive at out. The root file system is that of a
// Debian with iptables, which kube-proxy calls.
func Write(ctx context.Context, out string, programs Programs, root string) error {
	names, err := wanted(ctx, filepath.Join(programs.Kubernetes, "kubeadm"))
	if err != nil {
		return err
	}
	iptables, err := iptablesLayer(root)
	if err != nil {
		return err
	}
	base := image.Layer{
		{Path: "etc/passwd", Content: []byte("root:x:0:0:root:/:/sbin/nologin\n"), Mode: 0o644},
		{Path: "etc/nsswitch.conf", Content: []byte("hosts: files dns\n"), Mode: 0o644},
		{Path: "tmp/", Mode: 0o1777},
		{Path: "run/", Mode: 0o755},
	}
	kubernetes := image.Layer{{Path: "usr/local/bin/kubernetes", Source: filepath.Join(programs.Kubernetes, "kubernetes")}}
	for _, component := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		kubernetes = append(kubernetes, image.File{Path: "usr/local/bin/" + component, Link: "kubernetes"})
	}
	var specs []image.Spec
	for _, name := range names {
		component := path.Base(name[:strings.LastIndex(name, ":")])
		spec := image.Spec{Name: name, Env: []string{searchPath}, Layers: []image.Layer{base, kubernetes}}
		switch component {
		case "kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd":
		case "kube-proxy":
			spec.Layers = append(spec.Layers, iptables)
		case "coredns":
			spec.Layers = []image.Layer{base, {{Path: "coredns", Source: filepath.Join(programs.CoreDNS, "coredns")}}}
			spec.Entrypoint = []string{"/coredns"}
		case "pause":
			spec.Layers = []image.Layer{{{Path: "pause", Source: filepath.Join(programs.Pause, "pause")}}}
			spec.Entrypoint = []string{"/pause"}
		default:
			return fmt.Errorf("kubeadm wants an image that is not made here: %s", name)
		}
		specs = append(specs, spec)
	}
	return image.WriteSet(out, specs)
}

// wanted asks kubeadm for the names of the images that it would pull.
func wanted(ctx context.Context, kubeadm string) ([]string, error) {
	version, err := exec.CommandContext(ctx, kubeadm, "version", "--output", "short").Output()
	if err != nil {
		return nil, fmt.Errorf("asking kubeadm for its version: %w", err)
	}
	cmd := exec.CommandContext(ctx, kubeadm, "config", "images", "list", "--kubernetes-version", strings.TrimSpace(string(version)))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("asking kubeadm for its images: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return strings.Fields(string(out)), nil
}
