// Package link is the connection to the log server: TLS, the token, compression,
// proxies, how many connections there are, and what to do about one that fails.
//
// It keeps nothing. A connection is made when it is needed and again when it
// breaks, with pauses that grow and have jitter; calls fail at once meanwhile, and
// whoever makes them decides when to call again. Files are read when they are
// needed, so a certificate or token that was replaced is used from the next
// handshake or call on, without a restart.
//
// HTTPS_PROXY and NO_PROXY are obeyed, by gRPC itself: it connects with CONNECT.
// An error says what can be done about it, in the variables of the log relay.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// Options say where the log server is and how it wants to be spoken to.
type Options struct {
	// Addr is the log server, in any form that gRPC dials.
	Addr string
	// TLS encrypts the connections.
	TLS bool
	// CAFile has the certificates that may have signed the server's; without it,
	// the system's are taken.
	CAFile string
	// CertFile and KeyFile are what we show the server, both or neither.
	CertFile, KeyFile string
	// ServerName is the name in the server's certificate; without it, the address'.
	ServerName string
	// TokenFile has a bearer token that every call brings along.
	TokenFile string
	// TokenPlaintext lets the token go over a connection that is not encrypted.
	// Without it, it only does to a server on this machine.
	TokenPlaintext bool
	// Gzip compresses what is sent.
	Gzip bool
	// Connections is how many connections share the streams. Default 1.
	Connections int
	// Registry receives the metrics; nil for none.
	Registry prometheus.Registerer
	// Log receives warnings; nil for none.
	Log *slog.Logger
}

// warnPause is how long a warning is not repeated.
const warnPause = time.Hour

// A Link is some connections to the log server that are used as one. Its methods
// may be called concurrently.
type Link struct {
	options Options
	conns   []*grpc.ClientConn
	turn    atomic.Uint32
	log     *slog.Logger
	watch   *watch
	// streamWait is how long a stream may wait for its turn on a working connection
	// before that is worth a warning.
	streamWait time.Duration

	mu     sync.Mutex
	warned map[string]time.Time // when a warning was last given
}

var _ grpc.ClientConnInterface = (*Link)(nil)

// Dial prepares the connections. It connects when they are used, so a server that
// is not there is no error here; files that cannot be used are.
func Dial(options Options) (*Link, error) {
	l := &Link{options: options, log: options.Log, streamWait: 10 * time.Second, warned: map[string]time.Time{}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.watch = newWatch(options.Registry)
	security, err := newSecurity(options, l.watch, l.log)
	if err != nil {
		return nil, err
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		// A ping tells of a peer that vanished. Without streams nobody waits for
		// one, and servers punish those who ping then.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// Calls fail at once while there is no connection, and their callers decide
		// when to call again. The connection must not be lazier than they are.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: grpcbackoff.Config{
				BaseDelay: backoff.Default.Initial, Multiplier: 2, Jitter: .2, MaxDelay: backoff.Default.Max / 2,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
	}
	if options.ServerName != "" {
		dial = append(dial, grpc.WithAuthority(options.ServerName))
	}
	if options.TokenFile != "" {
		if _, err := ReadToken(options.TokenFile); err != nil {
			return nil, err
		}
		dial = append(dial, grpc.WithPerRPCCredentials(token{
			file: options.TokenFile, plaintext: options.TokenPlaintext || Loopback(options.Addr),
		}))
	}
	if options.Gzip {
		dial = append(dial, grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	}
	for range max(options.Connections, 1) {
		conn, err := grpc.NewClient(options.Addr, dial...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("dialing the log server at %s: %w", options.Addr, err), l.Close())
		}
		l.conns = append(l.conns, conn)
	}
	return l, nil
}

// Close ends all connections and the calls on them.
func (l *Link) Close() error {
	var all error
	for _, conn := range l.conns {
		all = errors.Join(all, conn.Close())
	}
	return all
}

// Run watches the connections until ctx ends, and warns when the server's receive
// window is what limits the rate.
func (l *Link) Run(ctx context.Context) error {
	ticker := time.NewTicker(l.watch.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			for _, seen := range l.watch.collect(now) {
				if seen.limited() {
					l.warn(ctx, "the log server's receive window limits the rate",
						"bytes_per_second", int64(seen.rate()), "round_trip", seen.roundTrip.String(),
						"window_bytes", seen.window, "hint", l.windowHint())
				}
			}
		}
	}
}

// warn warns, unless it has done so lately.
func (l *Link) warn(ctx context.Context, message string, args ...any) {
	l.mu.Lock()
	now := time.Now()
	again := now.Sub(l.warned[message]) < warnPause
	if !again {
		l.warned[message] = now
	}
	l.mu.Unlock()
	if !again {
		l.log.WarnContext(ctx, message, args...) //nolint:sloglint // the callers' messages are constant
	}
}

// next returns the connection whose turn it is.
func (l *Link) next() *grpc.ClientConn {
	return l.conns[int(l.turn.Add(1)-1)%len(l.conns)]
}

// Invoke makes a unary call.
func (l *Link) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return l.explain(l.next().Invoke(ctx, method, args, reply, opts...))
}

// NewStream opens a stream. It blocks while the server has no room for another
// stream on the connection.
func (l *Link) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn := l.next()
	waiting := time.AfterFunc(l.streamWait, func() {
		if conn.GetState() == connectivity.Ready {
			l.warn(ctx, "streams wait for room on their connection",
				"hint", fmt.Sprintf("the server, or a proxy before it, allows too few streams per connection: raise that, or LOG_SERVER_CONNECTIONS (now %d)", len(l.conns)))
		}
	})
	defer waiting.Stop()
	stream, err := conn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, l.explain(err)
	}
	return explainedStream{stream, l}, nil
}

// An explainedStream explains its errors.
type explainedStream struct {
	grpc.ClientStream
	link *Link
}

// RecvMsg receives a message.
func (s explainedStream) RecvMsg(m any) error { return s.link.explain(s.ClientStream.RecvMsg(m)) }
