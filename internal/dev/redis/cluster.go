package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// Cluster is a Redis Cluster of masters, without replicas at first.
type Cluster struct {
	// Nodes of it. All have one password.
	Nodes []*Server

	opts     Options // of a node
	replicas []*Server

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
	c.opts = opts
	for i := range nodes {
		node, bus, err := c.start(ctx)
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

// start starts a server that is of no cluster yet, and returns the port by which others
// of one talk to it.
func (c *Cluster) start(ctx context.Context) (node *Server, bus int, err error) {
	if bus, err = freePort(ctx, []string{"127.0.0.1"}); err != nil {
		return nil, 0, err
	}
	opts := c.opts
	opts.Config = append([]string{
		"masterauth " + opts.Password, "cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000", "cluster-port " + strconv.Itoa(bus),
		"repl-diskless-sync-delay 0",
	}, opts.Config...)
	node, err = Start(ctx, opts)
	return node, bus, err
}

// Replicate gives the node that has a key a replica, which takes over when that node is
// gone, and waits until the replica has all of it and can be elected.
func (c *Cluster) Replicate(ctx context.Context, key string) (master, replica *Server, err error) {
	slot, err := c.clients[0].ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return nil, nil, fmt.Errorf("looking for the slot of key %s: %w", key, err)
	}
	owner, err := c.owner(ctx, int(slot))
	if err != nil {
		return nil, nil, err
	}
	replica, bus, err := c.start(ctx)
	if err != nil {
		return nil, nil, err
	}
	c.replicas = append(c.replicas, replica)
	client := replica.Client()
	defer client.Close() //nolint:errcheck // it only asked
	if err := c.clients[0].Do(ctx, "CLUSTER", "MEET", replica.Host, replica.Port, bus).Err(); err != nil {
		return nil, nil, fmt.Errorf("introducing a replica: %w", err)
	}
	name, err := client.ClusterMyID(ctx).Result()
	if err != nil {
		return nil, nil, fmt.Errorf("asking a replica for its name: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	told := false
	for range (backoff.Policy{Initial: 20 * time.Millisecond, Max: 200 * time.Millisecond}).Attempts(ctx) {
		if !told {
			if err = client.ClusterReplicate(ctx, c.names[owner]).Err(); err != nil {
				continue // it does not know that node yet
			}
			told = true
		}
		info, err := client.Info(ctx, "replication").Result()
		if err == nil && strings.Contains(info, "master_link_status:up") && c.electable(ctx, client, name, owner) {
			return c.Nodes[owner], replica, nil
		}
	}
	return nil, nil, fmt.Errorf("waiting for a replica of node %d: %w", owner, errors.Join(err, ctx.Err()))
}

// electable tells whether a replica of a node would get the votes to follow it. Who is of
// the cluster is only told by one node to the next, and a master ignores whom it does not
// know: a replica that nobody but its lost master knew would ask for votes for ever.
func (c *Cluster) electable(ctx context.Context, replica *redis.Client, name string, of int) bool {
	for i, client := range c.clients {
		if !knows(ctx, client, name, "slave", c.names[of]) || !knows(ctx, replica, c.names[i], "master", "-") {
			return false
		}
	}
	return true
}

// knows tells whether a node is connected to another, as one of that role and master.
func knows(ctx context.Context, client *redis.Client, name, role, master string) bool {
	nodes, err := client.ClusterNodes(ctx).Result()
	if err != nil {
		return false
	}
	for line := range strings.Lines(nodes) {
		// Name, address, flags, master, ping sent, pong received, epoch, state of the link.
		f := strings.Fields(line)
		if len(f) >= 8 && f[0] == name {
			return f[2] == role && f[3] == master && f[7] == "connected"
		}
	}
	return false
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
	shards, err := c.clients[0].ClusterShards(ctx).Result()
	if err != nil {
		return 0, fmt.Errorf("reading who has which slots: %w", err)
	}
	for _, shard := range shards {
		has := func(r redis.SlotRange) bool { return int64(slot) >= r.Start && int64(slot) <= r.End }
		if !slices.ContainsFunc(shard.Slots, has) {
			continue
		}
		for _, node := range shard.Nodes {
			if i := slices.Index(c.names, node.ID); i >= 0 {
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
	for _, node := range slices.Concat(c.Nodes, c.replicas) {
		errs = append(errs, node.Stop())
	}
	return errors.Join(errs...)
}
