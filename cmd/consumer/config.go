package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// Config is the environment of the consumer.
type Config struct {
	daemon.Settings

	stream.Environment

	// InstanceUser, InstanceID and Namespace say whose installation this is. Another
	// one with the same stream and group is refused; see stream.ForeignGroupError.
	InstanceUser string `split_words:"true" desc:"developer whose installation this is, if it is one's own"`
	InstanceID   string `split_words:"true" default:"ottoscaler" desc:"this installation, within its namespace"`
	Namespace    string `split_words:"true" desc:"namespace of this installation"`

	// RedisConsumer must differ between the main pods of an installation. It should
	// be the same after a restart, which then goes on at once where it ended.
	RedisConsumer string `split_words:"true" desc:"name within the group; default: the host name"`

	// RedisWaitReplicas keeps a failover from repeating what was done. A single server has
	// none unless one says so.
	RedisWaitReplicas int `split_words:"true" default:"-1" desc:"how many replicas must have an outcome before it counts as stored, as far as they are connected; -1: 1 with REDIS_SENTINEL_MASTER or REDIS_CLUSTER, else 0"`
	// RedisWaitTimeout should be longer than a failover takes.
	RedisWaitTimeout time.Duration `split_words:"true" default:"1m" desc:"how long to wait for replicas that are connected and do not answer, longer than a failover takes; those that have left are waited for 5s at most"`

	// ReclaimAfter is how long a single entry may be without a sign of life. It is a
	// net: the consumer takes over everything at once when its scaler subscribes.
	ReclaimAfter time.Duration `split_words:"true" default:"1m" desc:"how long an entry may be neglected before it is looked after; what other consumers have is taken over at once when a scaler subscribes"`
	// PoisonAfter bounds how much harm an event does that whoever takes it dies of.
	PoisonAfter int `split_words:"true" default:"10" desc:"how many deliveries in a row may end with a crash before the event is a dead letter; 0: any number"`
	// EventsMaxAge and EventsMaxLen are 0 by default because the stream belongs to its
	// producers. What a group has not acknowledged is never removed.
	EventsMaxAge time.Duration `split_words:"true" default:"0s" desc:"how long acknowledged entries of the events stream are kept; 0: without end"`
	EventsMaxLen int64         `split_words:"true" default:"0" desc:"how many entries of the events stream are kept, if the others are acknowledged; 0: any number"`
	// MaxEventBytes bounds the memory that one event takes, here and in the scaler.
	MaxEventBytes int `split_words:"true" default:"262144" desc:"size of an entry beyond which it is rejected"`
	// ResultsMaxLen bounds the results stream. A producer that looks for a result
	// only after that many others does not find it.
	ResultsMaxLen int64 `split_words:"true" default:"10000" desc:"how many results are kept, roughly"`

	// QueueAddr must be on loopback: whoever reaches the queue may scale.
	QueueAddr string `split_words:"true" default:"127.0.0.1:7070" desc:"loopback address that the queue listens on"`
	// HealthAddr serves /healthz, /readyz, /metrics and grpc.health.v1.
	HealthAddr string `split_words:"true" default:":8081" desc:"address of health checks and metrics"`
	// DrainTimeout must be shorter than the pod's grace period.
	DrainTimeout time.Duration `split_words:"true" default:"20s" desc:"how long to wait for outcomes when told to stop"`
}

// Limits of what makes sense.
const (
	minReclaimAfter  = time.Second
	minMaxEventBytes = 1 << 10
	maxMaxEventBytes = 1 << 20 // an event must fit a message of the queue, and a pod
)

// Validate implements [daemon.Config].
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	errs = append(errs, c.Environment.Validate())
	check(c.InstanceID != "", "INSTANCE_ID is empty")
	check(c.RedisWaitReplicas >= -1, "REDIS_WAIT_REPLICAS: %d is neither a number of replicas nor -1", c.RedisWaitReplicas)
	check(c.RedisWaitTimeout >= 0, "REDIS_WAIT_TIMEOUT: %s is negative", c.RedisWaitTimeout)
	check(c.ReclaimAfter >= minReclaimAfter, "RECLAIM_AFTER: %s is less than %s", c.ReclaimAfter, minReclaimAfter)
	check(c.PoisonAfter >= 0, "POISON_AFTER: %d is negative", c.PoisonAfter)
	check(c.EventsMaxAge >= 0, "EVENTS_MAX_AGE: %s is negative", c.EventsMaxAge)
	check(c.EventsMaxLen >= 0, "EVENTS_MAX_LEN: %d is negative", c.EventsMaxLen)
	check(c.MaxEventBytes >= minMaxEventBytes && c.MaxEventBytes <= maxMaxEventBytes,
		"MAX_EVENT_BYTES: %d is not from %d to %d", c.MaxEventBytes, minMaxEventBytes, maxMaxEventBytes)
	check(c.ResultsMaxLen >= 1, "RESULTS_MAX_LEN: %d is less than 1", c.ResultsMaxLen)
	check(c.DrainTimeout >= 0, "DRAIN_TIMEOUT: %s is negative", c.DrainTimeout)
	check(isLoopback(c.QueueAddr), "QUEUE_ADDR: %q is not a loopback address with a port, such as 127.0.0.1:7070: only containers of this pod may reach the queue", c.QueueAddr)
	_, _, err := net.SplitHostPort(c.HealthAddr)
	check(err == nil, "HEALTH_ADDR: %q is not an address with a port, such as :8081", c.HealthAddr)
	return errors.Join(errs...)
}

// Replication returns whom an outcome waits for.
func (c Config) Replication() stream.Replication {
	r := stream.Replication{Replicas: c.RedisWaitReplicas, Timeout: c.RedisWaitTimeout}
	if r.Replicas < 0 {
		r.Replicas = 0
		if c.RedisSentinelMaster != "" || c.RedisCluster {
			r.Replicas = 1
		}
	}
	return r
}

func isLoopback(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
