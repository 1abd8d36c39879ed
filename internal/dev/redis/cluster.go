package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// Cluster is a Redis Cluster of masters without replicas.
type Cluster struct {
	// Nodes of it. All have one password.
	Nodes []*Server

	clients []*redis.Client // of each node
	names   []string        // that nodes have among themselves
}

// slots is how many a cluster has.
const slots = 16384

// StartCluster starts one of so many nodes, and waits until it is whole.
func StartCluster(ctx context.Context, nodes int, opts Options) (c *Cluster, err error) {
	c = &Cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	opts.Password = rand.Text()
	config := opts.Config
	for i := range nodes {
		bus, err := freePort(ctx, []string{"127.0.0.1"})
		if err != nil {
			return c, err
		}
		opts.Config = append([]string{
			"masterauth " + opts.Password, "cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000", "cluster-port " + strconv.Itoa(bus),
		}, config...)
		node, err := Start(ctx, opts)
		if err != nil {
			return c, err
		}
		client := node.Client()
		c.Nodes, c.clients = append(c.Nodes, node), append(c.clients, client)
		if err := client.ClusterAddSlotsRange(ctx, i*slots/nodes, (i+1)*slots/nodes-1).Err(); err != nil {
			return c, fmt.Errorf("giving slots to node %d: %w", i, err)
		}
		name, err := client.ClusterMyID(ctx).Result()
		if err != nil {
			return c, fmt.Errorf("asking node %d for its name: %w", i, err)
		}
		c.names = append(c.names, name)
		if err := c.clients[0].Do(ctx, "CLUSTER", "MEET", node.Host, node.Port, bus).Err(); err != nil {
			return c, fmt.Errorf("introducing node %d: %w", i, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for range (backoff.Policy{Initial: 20 * time.Millisecond, Max: 200 * time.Millisecond}).Attempts(ctx) {
		if c.whole(ctx) {
			return c, nil
		}
	}
	return c, fmt.Errorf("waiting for a cluster: %w", ctx.Err())
}

func (c *Cluster) whole(ctx context.Context) bool {
	for _, client := range c.clients {
		info, err := client.ClusterInfo(ctx).Result()
		if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(len(c.Nodes))+"\r") {
			return false
		}
	}
	return true
}

// Addrs of the nodes.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, len(c.Nodes))
	for i, node := range c.Nodes {
		addrs[i] = node.Addr
	}
	return addrs
}

// Move gives the slot of a key, with all that is in it, to the next node. It returns
// the node that had it.
func (c *Cluster) Move(ctx context.Context, key string) (from *Server, err error) {
	slot, err := c.clients[0].ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return nil, fmt.Errorf("looking for the slot of key %s: %w", key, err)
	}
	source, err := c.owner(ctx, int(slot))
	if err != nil {
		return nil, err
	}
	target := (source + 1) % len(c.Nodes)
	do := func(node int, args ...any) {
		if err == nil {
			err = c.clients[node].Do(ctx, args...).Err()
		}
	}
	do(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.names[source])
	do(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.names[target])
	for err == nil {
		// What is written meanwhile goes to the target already.
		keys, kerr := c.clients[source].ClusterGetKeysInSlot(ctx, int(slot), 100).Result()
		if err = kerr; err != nil || len(keys) == 0 {
			break
		}
		migrate := []any{"MIGRATE", c.Nodes[target].Host, c.Nodes[target].Port, "", 0, 5000, "REPLACE", "AUTH", c.Nodes[target].Password, "KEYS"}
		for _, key := range keys {
			migrate = append(migrate, key)
		}
		do(source, migrate...)
	}
	do(target, "CLUSTER", "SETSLOT", slot, "NODE", c.names[target])
	for node := range c.Nodes {
		do(node, "CLUSTER", "SETSLOT", slot, "NODE", c.names[target])
	}
	if err != nil {
		return nil, fmt.Errorf("moving slot %d: %w", slot, err)
	}
	return c.Nodes[source], nil
}

// owner returns which node has a slot.
func (c *Cluster) owner(ctx context.Context, slot int) (int, error) {
	ranges, err := c.clients[0].ClusterSlots(ctx).Result() //nolint:staticcheck // CLUSTER SHARDS is new in Redis 7
	if err != nil {
		return 0, fmt.Errorf("reading who has which slots: %w", err)
	}
	for _, r := range ranges {
		if slot < r.Start || slot > r.End {
			continue
		}
		for i, name := range c.names {
			if r.Nodes[0].ID == name {
				return i, nil
			}
		}
	}
	return 0, fmt.Errorf("nobody has slot %d", slot)
}

// Stop ends all nodes.
func (c *Cluster) Stop() error {
	var errs []error
	for _, client := range c.clients {
		errs = append(errs, client.Close())
	}
	for _, node := range c.Nodes {
		errs = append(errs, node.Stop())
	}
	return errors.Join(errs...)
}
