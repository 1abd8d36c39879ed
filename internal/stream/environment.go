package stream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// An Environment is the variables that say where an installation's events are: which
// Redis, and which keys. The consumer reads them, and whoever looks after its streams.
type Environment struct {
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

	// RedisStream is the key of the stream that events are read from.
	RedisStream string `split_words:"true" default:"otto:scale:events" desc:"stream of scale events"`
	// RedisResultsStream receives every outcome.
	RedisResultsStream string `split_words:"true" default:"otto:scale:results" desc:"stream that outcomes are written to"`
	// RedisDeadStream receives rejected events.
	RedisDeadStream string `split_words:"true" default:"otto:scale:dead" desc:"stream that rejected events are written to"`
	// RedisConsumerGroup is shared by the main pods of one installation, and by no
	// other installation: each event goes to one of them.
	RedisConsumerGroup string `split_words:"true" default:"ottoscaler" desc:"consumer group of this installation"`
}

// Validate returns every problem, naming the variable.
func (e Environment) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(e.RedisHost != "" || len(e.RedisAddrs) > 0, "REDIS_HOST is required: the host name or address of the Redis server")
	for _, addr := range e.RedisAddrs {
		_, port, err := net.SplitHostPort(addr)
		check(err == nil && port != "", "REDIS_ADDRS: %q is not an address with a port, such as redis-1:6379", addr)
	}
	several := e.RedisSentinelMaster != "" || e.RedisCluster
	check(!several || len(e.RedisAddrs) > 0, "REDIS_ADDRS is required with REDIS_SENTINEL_MASTER or REDIS_CLUSTER: host:port of sentinels or nodes")
	check(several || len(e.RedisAddrs) <= 1, "REDIS_ADDRS: there are several, so REDIS_SENTINEL_MASTER or REDIS_CLUSTER must say what they are")
	check(e.RedisSentinelMaster == "" || !e.RedisCluster, "REDIS_CLUSTER: a cluster has no sentinels: unset it, or REDIS_SENTINEL_MASTER")
	check(!e.RedisCluster || e.RedisDB == 0, "REDIS_DB: a cluster has only database 0")
	if e.RedisCluster {
		tag := hashTag(e.RedisStream)
		check(tag != "" && tag == hashTag(e.RedisResultsStream) && tag == hashTag(e.RedisDeadStream),
			"REDIS_STREAM: in a cluster, this key, REDIS_RESULTS_STREAM and REDIS_DEAD_STREAM need one hash tag, such as {otto}:scale:events, {otto}:scale:results and {otto}:scale:dead")
	}
	check((e.RedisTLSCertFile == "") == (e.RedisTLSKeyFile == ""), "REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE belong together: set both or none")
	check(e.RedisTLS || e.RedisTLSCAFile == "" && e.RedisTLSCertFile == "" && e.RedisTLSServerName == "",
		"REDIS_TLS is not set, so the other REDIS_TLS variables have no effect: set it to true, or unset them")
	check(e.RedisPort >= 1 && e.RedisPort <= 65535, "REDIS_PORT: %d is not from 1 to 65535", e.RedisPort)
	check(e.RedisDB >= 0, "REDIS_DB: %d is negative", e.RedisDB)
	check(e.RedisStream != "", "REDIS_STREAM is empty")
	check(e.RedisConsumerGroup != "", "REDIS_CONSUMER_GROUP is empty")
	check(e.RedisResultsStream != "" && e.RedisResultsStream != e.RedisStream,
		"REDIS_RESULTS_STREAM: %q must be a key of its own", e.RedisResultsStream)
	check(e.RedisDeadStream != "" && e.RedisDeadStream != e.RedisStream && e.RedisDeadStream != e.RedisResultsStream,
		"REDIS_DEAD_STREAM: %q must be a key of its own", e.RedisDeadStream)
	return errors.Join(errs...)
}

// hashTag is the part of a key that says which slot of a cluster it is in, or "".
// See https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags.
func hashTag(key string) string {
	_, rest, found := strings.Cut(key, "{")
	tag, _, closed := strings.Cut(rest, "}")
	if !found || !closed {
		return ""
	}
	return tag
}

// Server returns where Redis is. It reads the files of the TLS variables.
func (e Environment) Server() (Server, error) {
	s := Server{
		Addrs: e.RedisAddrs, Username: e.RedisUsername, Password: e.RedisPassword, DB: e.RedisDB,
		SentinelMaster: e.RedisSentinelMaster, SentinelUsername: e.RedisSentinelUsername, SentinelPassword: e.RedisSentinelPassword,
		Cluster: e.RedisCluster,
	}
	if len(s.Addrs) == 0 {
		s.Addrs = []string{net.JoinHostPort(e.RedisHost, strconv.Itoa(e.RedisPort))}
	}
	if !e.RedisTLS {
		return s, nil
	}
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: e.RedisTLSServerName}
	var errs []error
	if e.RedisTLSCAFile != "" {
		pem, err := os.ReadFile(e.RedisTLSCAFile)
		s.TLS.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("REDIS_TLS_CA_FILE: %w", err))
		case !s.TLS.RootCAs.AppendCertsFromPEM(pem):
			errs = append(errs, fmt.Errorf("REDIS_TLS_CA_FILE: there is no certificate in %s", e.RedisTLSCAFile))
		}
	}
	if e.RedisTLSCertFile != "" {
		certificate, err := tls.LoadX509KeyPair(e.RedisTLSCertFile, e.RedisTLSKeyFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("REDIS_TLS_CERT_FILE: %w", err))
		}
		s.TLS.Certificates = []tls.Certificate{certificate}
	}
	return s, errors.Join(errs...)
}
