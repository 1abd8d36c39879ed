// Package kwok gives a cluster nodes that are only pretended: pods on them become
// Ready at once and run nothing. It is for tests of many pods.
package kwok

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/test/cluster/api"
	"github.com/ottoscaler/ottoscaler/test/cluster/pki"
	"github.com/ottoscaler/ottoscaler/test/cluster/process"
	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

const readyTimeout = 2 * time.Minute

// Nodes are the pretended nodes of a cluster.
type Nodes struct {
	Count   int
	Cluster state.Cluster
	Slot    slot.Slot
	Group   process.Group
	// Bin is the folder of kwok and its stages.
	Bin string
}

// Start makes the nodes that are missing and waits until all are ready.
func (n *Nodes) Start(ctx context.Context, client *api.Client, authority *pki.Authority) error {
	if _, err := n.Group.Start(n.spec(authority)); err != nil {
		return err
	}
	calls, callCtx := errgroup.WithContext(ctx)
	calls.SetLimit(16)
	for i := 1; i <= n.Count; i++ {
		calls.Go(func() error { return client.Create(callCtx, "/api/v1/nodes", node(i)) })
	}
	if err := calls.Wait(); err != nil {
		return fmt.Errorf("creating kwok nodes: %w", err)
	}
	return n.Group.Await(ctx, readyTimeout, func(ctx context.Context) error {
		nodes, err := client.Nodes(ctx, true)
		if err != nil {
			return err
		}
		ready := 0
		for _, node := range nodes {
			if node.Ready {
				ready++
			}
		}
		if ready < n.Count {
			return fmt.Errorf("%d of %d kwok nodes are ready", ready, n.Count)
		}
		return nil
	}, n.spec(authority))
}

// Specs lists the processes.
func (n *Nodes) Specs(authority *pki.Authority) []process.Spec {
	return []process.Spec{n.spec(authority)}
}

func (n *Nodes) spec(authority *pki.Authority) process.Spec {
	return process.Spec{
		Name: "kwok",
		Log:  n.Cluster.Log("kwok"),
		Args: []string{
			filepath.Join(n.Bin, "kwok"),
			"--kubeconfig=" + n.Cluster.Kubeconfig(),
			"--config=" + filepath.Join(n.Bin, "stages.yaml"),
			"--manage-all-nodes=false",
			"--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
			"--cidr=" + n.Slot.FakePodNet().String(),
			"--node-ip=127.0.0.1",
			fmt.Sprintf("--node-port=%d", n.Slot.KwokPort()),
			fmt.Sprintf("--server-address=127.0.0.1:%d", n.Slot.KwokPort()),
			"--tls-cert-file=" + authority.CertFile("kwok"),
			"--tls-private-key-file=" + authority.KeyFile("kwok"),
			// The default of 0 makes no leases, and nodes go NotReady about once a minute.
			"--node-lease-duration-seconds=40",
		},
	}
}

// node is a pretended node with room for many pods.
func node(i int) map[string]any {
	name := fmt.Sprintf("fake-%d", i)
	resources := map[string]string{"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "2000"}
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata": map[string]any{
			"name":        name,
			"annotations": map[string]string{"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
			"labels": map[string]string{
				"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "type": "kwok",
			},
		},
		"status": map[string]any{"allocatable": resources, "capacity": resources},
	}
}
