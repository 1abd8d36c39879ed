package intake

import (
	"context"
	"errors"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// A Ground is a Redis of some kind, and an installation's keys in it.
type Ground struct {
	// Events, Results and Dead are the streams, and Group is the consumer group.
	Events, Results, Dead, Group string
	// Where is how clients reach it.
	Where stream.Server
	// Redis is a client of it.
	Redis goredis.UniversalClient

	// One of these, by its kind.
	Server  *redis.Server
	Proxy   *redis.Proxy // before Server, perhaps
	Watched *redis.Watched
	Cluster *redis.Cluster
	// Owner is the node of the cluster that has the keys, and Replica its replica, if it
	// was given one.
	Owner, Replica *redis.Server

	variables []string
	stop      func() error
}

// Single returns a ground on one server.
func Single(ctx context.Context, opts redis.Options) (*Ground, error) {
	server, err := redis.Start(ctx, opts)
	if err != nil {
		return nil, err
	}
	g := &Ground{Server: server, Where: stream.Server{Addrs: []string{server.Addr}, Password: server.Password}, stop: server.Stop}
	return g.ready(""), nil
}

// BehindProxy is Single with a proxy between the consumer and the server. The ground's
// own client goes around it.
func BehindProxy(ctx context.Context, opts redis.Options) (*Ground, error) {
	g, err := Single(ctx, opts)
	if err != nil {
		return nil, err
	}
	if g.Proxy, err = redis.NewProxy(g.Server.Addr); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	stop := g.stop
	g.stop = func() error { return errors.Join(g.Proxy.Close(), stop()) }
	g.variables = append(g.variables, "REDIS_ADDRS="+g.Proxy.Addr) // the last one counts
	return g, nil
}

// Sentinel returns a ground on a master that a sentinel watches.
func Sentinel(ctx context.Context, opts redis.Options) (*Ground, error) {
	w, err := redis.StartWatched(ctx, opts)
	if err != nil {
		return nil, err
	}
	g := &Ground{
		Watched: w, stop: w.Stop,
		Where: stream.Server{Addrs: []string{w.Addr}, SentinelMaster: redis.MasterName, Password: w.Master.Password},
	}
	return g.ready("", "REDIS_SENTINEL_MASTER="+redis.MasterName), nil
}

// Cluster returns a ground on a cluster of three nodes.
func Cluster(ctx context.Context, opts redis.Options) (*Ground, error) {
	c, err := redis.StartCluster(ctx, 3, opts)
	if err != nil {
		return nil, err
	}
	g := &Ground{Cluster: c, stop: c.Stop, Where: stream.Server{Addrs: c.Addrs(), Cluster: true, Password: c.Nodes[0].Password}}
	return g.ready("{otto}", "REDIS_CLUSTER=true"), nil
}

// ReplicatedCluster is Cluster with a replica of the node that has the keys.
func ReplicatedCluster(ctx context.Context, opts redis.Options) (*Ground, error) {
	g, err := Cluster(ctx, opts)
	if err != nil {
		return nil, err
	}
	if g.Owner, g.Replica, err = g.Cluster.Replicate(ctx, g.Events); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// Master returns a client of the server that has the keys now.
func (g *Ground) Master(ctx context.Context) (*goredis.Client, error) {
	if cluster, ok := g.Redis.(*goredis.ClusterClient); ok {
		return cluster.MasterForKey(ctx, g.Events) //nolint:wrapcheck // it names the key
	}
	return g.Redis.(*goredis.Client), nil
}

// ready names the keys, and connects.
func (g *Ground) ready(tag string, variables ...string) *Ground {
	g.Events, g.Results, g.Dead, g.Group = tag+"otto:lab:events", tag+"otto:lab:results", tag+"otto:lab:dead", "lab"
	g.Redis = stream.NewClient(g.Where, "lab")
	g.variables = append(slices.Clip(variables),
		"REDIS_ADDRS="+strings.Join(g.Where.Addrs, ","), "REDIS_PASSWORD="+g.Where.Password,
		"REDIS_STREAM="+g.Events, "REDIS_RESULTS_STREAM="+g.Results, "REDIS_DEAD_STREAM="+g.Dead, "REDIS_CONSUMER_GROUP="+g.Group)
	return g
}

// Close ends the Redis.
func (g *Ground) Close() error {
	_ = g.Redis.Close() // every write was answered
	return g.stop()
}
