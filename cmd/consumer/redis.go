package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// validateServer returns every problem of where Redis is.
func (c Config) validateServer() (errs []error) {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for _, addr := range c.RedisAddrs {
		_, port, err := net.SplitHostPort(addr)
		check(err == nil && port != "", "REDIS_ADDRS: %q is not an address with a port, such as redis-1:6379", addr)
	}
	several := c.RedisSentinelMaster != "" || c.RedisCluster
	check(!several || len(c.RedisAddrs) > 0, "REDIS_ADDRS is required with REDIS_SENTINEL_MASTER or REDIS_CLUSTER: host:port of sentinels or nodes")
	check(several || len(c.RedisAddrs) <= 1, "REDIS_ADDRS: there are several, so REDIS_SENTINEL_MASTER or REDIS_CLUSTER must say what they are")
	check(c.RedisSentinelMaster == "" || !c.RedisCluster, "REDIS_CLUSTER: a cluster has no sentinels: unset it, or REDIS_SENTINEL_MASTER")
	check(!c.RedisCluster || c.RedisDB == 0, "REDIS_DB: a cluster has only database 0")
	if c.RedisCluster {
		tag := hashTag(c.RedisStream)
		check(tag != "" && tag == hashTag(c.RedisResultsStream) && tag == hashTag(c.RedisDeadStream),
			"REDIS_STREAM: in a cluster, this key, REDIS_RESULTS_STREAM and REDIS_DEAD_STREAM need one hash tag, such as {otto}:scale:events, {otto}:scale:results and {otto}:scale:dead")
	}
	check((c.RedisTLSCertFile == "") == (c.RedisTLSKeyFile == ""), "REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE belong together: set both or none")
	check(c.RedisTLS || c.RedisTLSCAFile == "" && c.RedisTLSCertFile == "" && c.RedisTLSServerName == "",
		"REDIS_TLS is not set, so the other REDIS_TLS variables have no effect: set it to true, or unset them")
	return errs
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

// server returns where Redis is. It reads the files of the TLS variables.
func (c Config) server() (stream.Server, error) {
	s := stream.Server{
		Addrs: c.RedisAddrs, Username: c.RedisUsername, Password: c.RedisPassword, DB: c.RedisDB,
		SentinelMaster: c.RedisSentinelMaster, SentinelUsername: c.RedisSentinelUsername, SentinelPassword: c.RedisSentinelPassword,
		Cluster: c.RedisCluster,
	}
	if len(s.Addrs) == 0 {
		s.Addrs = []string{net.JoinHostPort(c.RedisHost, strconv.Itoa(c.RedisPort))}
	}
	if !c.RedisTLS {
		return s, nil
	}
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.RedisTLSServerName}
	var errs []error
	if c.RedisTLSCAFile != "" {
		pem, err := os.ReadFile(c.RedisTLSCAFile)
		s.TLS.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("REDIS_TLS_CA_FILE: %w", err))
		case !s.TLS.RootCAs.AppendCertsFromPEM(pem):
			errs = append(errs, fmt.Errorf("REDIS_TLS_CA_FILE: there is no certificate in %s", c.RedisTLSCAFile))
		}
	}
	if c.RedisTLSCertFile != "" {
		certificate, err := tls.LoadX509KeyPair(c.RedisTLSCertFile, c.RedisTLSKeyFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("REDIS_TLS_CERT_FILE: %w", err))
		}
		s.TLS.Certificates = []tls.Certificate{certificate}
	}
	return s, errors.Join(errs...)
}
