package stream

import (
	"context"
	"crypto/tls"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server says where Redis is, and of which kind: a single server, or the master
// that sentinels name, or a cluster.
type Server struct {
	// Addrs are host:port of the server, of the sentinels, or of some nodes of the cluster.
	Addrs []string
	// Username and Password of the server.
	Username, Password string
	// DB is the number of the database; a cluster has only 0.
	DB int
	// SentinelMaster is the name by which sentinels know the master; without it,
	// Addrs are no sentinels.
	SentinelMaster string
	// SentinelUsername and SentinelPassword of the sentinels, if they have some.
	SentinelUsername, SentinelPassword string
	// Cluster says that Addrs are nodes of a cluster.
	Cluster bool
	// TLS is used for all connections, unless it is nil.
	TLS *tls.Config
}

// String is the kind of server and where it is, for logs.
func (s Server) String() string {
	where := strings.Join(s.Addrs, ",")
	switch {
	case s.SentinelMaster != "":
		return "master " + s.SentinelMaster + " of the sentinels " + where
	case s.Cluster:
		return "cluster at " + where
	default:
		return where
	}
}

// NewClient returns a client for a [Consumer]. It does not try again by itself,
// because the consumer's loops do, and it heeds deadlines also while it reads.
func NewClient(s Server, name string) redis.UniversalClient {
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:                 s.Addrs,
		Username:              s.Username,
		Password:              s.Password,
		DB:                    s.DB,
		MasterName:            s.SentinelMaster,
		SentinelUsername:      s.SentinelUsername,
		SentinelPassword:      s.SentinelPassword,
		IsClusterMode:         s.Cluster,
		TLSConfig:             s.TLS,
		ClientName:            name,
		MaxRetries:            -1,
		DialerRetries:         1,
		DialTimeout:           3 * time.Second,
		ReadTimeout:           3 * time.Second,
		WriteTimeout:          3 * time.Second,
		ContextTimeoutEnabled: true,
	})
}

// Quiet silences the client library, which writes its own lines to stderr about
// faults that it also returns. It is for main, as the setting is global.
func Quiet() { redis.SetLogger(discard{}) }

type discard struct{}

func (discard) Printf(context.Context, string, ...any) {}
