package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"
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
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:                 slices.Clone(s.Addrs), // a cluster's client appends to it, and there may be several
		Username:              s.Username,
		Password:              s.Password,
		DB:                    s.DB,
		MasterName:            s.SentinelMaster,
		SentinelUsername:      s.SentinelUsername,
		SentinelPassword:      s.SentinelPassword,
		IsClusterMode:         s.Cluster,
		TLSConfig:             s.TLS,
		Dialer:                s.dial,
		ClientName:            name,
		MaxRetries:            -1,
		DialerRetries:         1,
		DialTimeout:           dialTimeout,
		ReadTimeout:           3 * time.Second,
		WriteTimeout:          3 * time.Second,
		ContextTimeoutEnabled: true,
	})
	if cluster, ok := client.(*redis.ClusterClient); ok {
		cluster.AddHook(lookAgain{cluster})
	}
	return client
}

// lookAgain has a cluster's client ask who the masters are after a call that had no
// reply. By itself it asks when a node says that it is not the one, which a dead node
// does not, or once a minute.
type lookAgain struct{ cluster *redis.ClusterClient }

// DialHook implements [redis.Hook].
func (lookAgain) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements [redis.Hook].
func (l lookAgain) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		l.after(ctx, err)
		return err
	}
}

// ProcessPipelineHook implements [redis.Hook].
func (l lookAgain) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		l.after(ctx, err)
		return err
	}
}

func (l lookAgain) after(ctx context.Context, err error) {
	var reply redis.Error
	if err != nil && !errors.As(err, &reply) {
		l.cluster.ReloadState(ctx) // it does not wait, and does so a few times a second at most
	}
}

const dialTimeout = 3 * time.Second

// silence is how long a peer is silent before the kernel asks whether it is there, at
// first and then again, and unheard how long it may leave what was sent
// unacknowledged. A host that is gone without a word is so found in five seconds also
// by a read that blocks, and Redis is not bothered.
const (
	silence = 2 * time.Second
	probes  = 3
	unheard = 5 * time.Second
)

// dial opens a connection, encrypted if that is configured.
func (s Server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence, Interval: time.Second, Count: probes},
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds()))
			})
			return errors.Join(err, cerr)
		},
	}
	if s.TLS == nil {
		return dialer.DialContext(ctx, network, addr) //nolint:wrapcheck // go-redis says what for
	}
	return (&tls.Dialer{NetDialer: dialer, Config: s.TLS}).DialContext(ctx, network, addr) //nolint:wrapcheck // as above
}

// Quiet silences the client library, which writes its own lines to stderr about
// faults that it also returns. It is for main, as the setting is global.
func Quiet() { redis.SetLogger(discard{}) }

type discard struct{}

func (discard) Printf(context.Context, string, ...any) {}
