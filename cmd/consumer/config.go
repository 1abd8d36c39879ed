package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
)

// Config is the environment of the consumer.
type Config struct {
	daemon.Settings

	// RedisHost is the server that producers write to. It or RedisAddrs is required.
	RedisHost string `split_words:"true" desc:"host name or address of the Redis server; required without REDIS_ADDRS"`
	// RedisPort of the server.
	RedisPort int `split_words:"true" default:"6379" desc:"port of the Redis server"`
	// RedisUsername is empty for servers that know only a password.
	RedisUsername string `split_words:"true" desc:"ACL user; empty for the default user"`
	// RedisPassword is empty for servers without one.
	RedisPassword string `split_words:"true" secret:"true" desc:"password of the user"`
	// RedisDB is the number of the database.
	RedisDB int `split_words:"true" default:"0" desc:"number of the database"`

	// RedisAddrs are the sentinels, with RedisSentinelMaster, or some nodes of the
	// cluster, with RedisCluster. They take the place of RedisHost and RedisPort.
	RedisAddrs []string `split_words:"true" desc:"host:port of sentinels or cluster nodes, separated by commas, instead of REDIS_HOST and REDIS_PORT"`
	// RedisSentinelMaster is the name that sentinels know the master by.
	RedisSentinelMaster string `split_words:"true" desc:"name of the master, if REDIS_ADDRS are sentinels"`
	// RedisSentinelUsername is empty for sentinels that know only a password, or none.
	RedisSentinelUsername string `split_words:"true" desc:"ACL user of the sentinels"`
	// RedisSentinelPassword is empty for sentinels without one.
	RedisSentinelPassword string `split_words:"true" secret:"true" desc:"password of the sentinels"`
	// RedisCluster needs keys with one hash tag, because an outcome and its
	// acknowledgement are one transaction.
	RedisCluster bool `split_words:"true" default:"false" desc:"REDIS_ADDRS are nodes of a Redis Cluster; all keys need one hash tag, as in {otto}:scale:events"`
	// RedisTLS encrypts all connections to Redis, and to sentinels.
	RedisTLS bool `envconfig:"REDIS_TLS" default:"false" desc:"use TLS"`
	// RedisTLSCAFile is for servers whose certificate no public authority has signed.
	RedisTLSCAFile string `envconfig:"REDIS_TLS_CA_FILE" desc:"PEM file of the authorities that sign the server's certificate; default: the system's"`
	// RedisTLSCertFile and RedisTLSKeyFile are for servers that ask for a certificate.
	RedisTLSCertFile string `envconfig:"REDIS_TLS_CERT_FILE" desc:"PEM file of our own certificate"`
	RedisTLSKeyFile  string `envconfig:"REDIS_TLS_KEY_FILE" desc:"PEM file of its key"`
	// RedisTLSServerName is for certificates that do not name the address.
	RedisTLSServerName string `envconfig:"REDIS_TLS_SERVER_NAME" desc:"name that the server's certificate is checked for; default: the host"`

	// InstanceUser, InstanceID and Namespace say whose installation this is. Another
	// one with the same stream and group is refused; see stream.ForeignGroupError.
	InstanceUser string `split_words:"true" desc:"developer whose installation this is, if it is one's own"`
	InstanceID   string `split_words:"true" default:"ottoscaler" desc:"this installation, within its namespace"`
	Namespace    string `split_words:"true" desc:"namespace of this installation"`

	// RedisStream is the key of the stream that events are read from.
	RedisStream string `split_words:"true" default:"otto:scale:events" desc:"stream of scale events"`
	// RedisResultsStream receives every outcome.
	RedisResultsStream string `split_words:"true" default:"otto:scale:results" desc:"stream that outcomes are written to"`
	// RedisDeadStream receives rejected events.
	RedisDeadStream string `split_words:"true" default:"otto:scale:dead" desc:"stream that rejected events are written to"`
	// RedisConsumerGroup is shared by the main pods of one installation, and by no
	// other installation: each event goes to one of them.
	RedisConsumerGroup string `split_words:"true" default:"ottoscaler" desc:"consumer group of this installation"`
	// RedisConsumer must differ between the main pods of an installation. It should
	// be the same after a restart, which then goes on at once where it ended.
	RedisConsumer string `split_words:"true" desc:"name within the group; default: the host name"`

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
	check(c.RedisHost != "" || len(c.RedisAddrs) > 0, "REDIS_HOST is required: the host name or address of the Redis server")
	errs = append(errs, c.validateServer()...)
	check(c.InstanceID != "", "INSTANCE_ID is empty")
	check(c.RedisPort >= 1 && c.RedisPort <= 65535, "REDIS_PORT: %d is not from 1 to 65535", c.RedisPort)
	check(c.RedisDB >= 0, "REDIS_DB: %d is negative", c.RedisDB)
	check(c.RedisStream != "", "REDIS_STREAM is empty")
	check(c.RedisConsumerGroup != "", "REDIS_CONSUMER_GROUP is empty")
	check(c.RedisResultsStream != "" && c.RedisResultsStream != c.RedisStream,
		"REDIS_RESULTS_STREAM: %q must be a key of its own", c.RedisResultsStream)
	check(c.RedisDeadStream != "" && c.RedisDeadStream != c.RedisStream && c.RedisDeadStream != c.RedisResultsStream,
		"REDIS_DEAD_STREAM: %q must be a key of its own", c.RedisDeadStream)
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
