package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// LoadRoots reads certificates of authorities.
func LoadRoots(file string) (*x509.CertPool, error) {
	content, err := os.ReadFile(file) //nolint:gosec // naming the file is what the variable is for
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("%s has no certificate in PEM", file)
	}
	return pool, nil
}

// LoadCertificate reads a certificate and its key.
func LoadCertificate(certFile, keyFile string) (tls.Certificate, error) {
	certificate, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return certificate, nil
}

// security makes connections safe, and watches them.
//
// Its TLS configuration is read from the files at each handshake. There are so few
// handshakes that nothing is gained by a watcher or a timer (as
// google.golang.org/grpc/security/advancedtls has): this way there is no moment at
// which the files are newer than what is used.
type security struct {
	credentials.TransportCredentials // of the files as they were at first, or insecure

	options Options
	watch   *watch
	log     *slog.Logger

	mu   sync.Mutex
	last *tls.Config // that could be read; nil without TLS
	bad  string      // what was last said about files that cannot be used
}

func newSecurity(options Options, w *watch, log *slog.Logger) (*security, error) {
	s := &security{TransportCredentials: insecure.NewCredentials(), options: options, watch: w, log: log}
	if !options.TLS {
		return s, nil
	}
	config, err := s.load()
	if err != nil {
		return nil, err
	}
	s.last = config
	s.TransportCredentials = credentials.NewTLS(config)
	return s, nil
}

// load reads the files.
func (s *security) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.options.CAFile != "" {
		roots, err := LoadRoots(s.options.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = roots
	}
	if s.options.CertFile != "" {
		certificate, err := LoadCertificate(s.options.CertFile, s.options.KeyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}

// current returns the configuration that the files say now. Files that cannot be
// used, because someone is writing them, leave the last one in force.
func (s *security) current(ctx context.Context) *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	config, err := s.load()
	if err == nil {
		s.last, s.bad = config, ""
		return config
	}
	if said := err.Error(); said != s.bad {
		s.bad = said
		s.log.WarnContext(ctx, "the log server's certificates stay as they were", "err", err)
	}
	return s.last
}

// ClientHandshake makes a connection safe.
func (s *security) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	inner := s.TransportCredentials
	if s.options.TLS {
		inner = credentials.NewTLS(s.current(ctx))
	}
	conn, info, err := inner.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, hinted(err, s.options.handshakeHint(err))
	}
	return &watchedConn{Conn: conn, options: &s.options, flow: s.watch.begin(), refused: make(chan struct{})}, info, nil
}

// Clone returns s, which nothing changes.
func (s *security) Clone() credentials.TransportCredentials { return s }

// A watchedConn is a connection whose frames are looked at.
type watchedConn struct {
	net.Conn
	options *Options
	flow    *flow
	greeted atomic.Bool   // the server has said something
	refused chan struct{} // closed when it ended before it did
	refusal error         // why, once refused is closed
}

// Read reads. Before the server has greeted, an error says what it may mean.
func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.greeted.CompareAndSwap(false, true) {
		if hint := c.options.greetingHint(b[:n]); hint != "" {
			return 0, hinted(errNotHTTP2, hint)
		}
	}
	c.flow.received(b[:n])
	if err == nil || c.greeted.Load() {
		return n, err
	}
	select {
	case <-c.refused: // already
	default:
		c.refusal = hinted(err, c.options.silenceHint(err))
		close(c.refused)
	}
	return n, c.refusal
}

// lastWords is how long a connection that cannot be written to may take to say why.
const lastWords = time.Second

// Write writes. Before the server has greeted, an error waits for what the server
// has to say, if it
// has: with TLS 1.3, a server looks at our certificate when we are writing already.
func (c *watchedConn) Write(b []byte) (int, error) {
	c.flow.sent(b)
	n, err := c.Conn.Write(b)
	if err == nil || c.greeted.Load() {
		return n, err
	}
	patience := time.NewTimer(lastWords)
	defer patience.Stop()
	select {
	case <-c.refused:
		return n, c.refusal
	case <-patience.C:
		return n, err
	}
}

// Close closes.
func (c *watchedConn) Close() error {
	c.flow.end()
	return c.Conn.Close()
}

// token is a bearer token in a file. It is read for each call: there is one for
// each log and two for each worker, and nothing that could be out of date.
type token struct {
	file      string
	plaintext bool
}

// ReadToken reads a token from a file, whose last line end does not belong to it.
func ReadToken(file string) (string, error) {
	content, err := os.ReadFile(file) //nolint:gosec // naming the file is what the variable is for
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(content))
	if secret == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	for _, r := range secret {
		if r <= ' ' || r > '~' {
			return "", fmt.Errorf("%s has characters that a token cannot have", file)
		}
	}
	return secret, nil
}

// GetRequestMetadata returns what a call brings along.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	secret, err := ReadToken(t.file)
	if err != nil {
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + secret}, nil
}

// RequireTransportSecurity makes gRPC refuse to send the token in plaintext.
func (t token) RequireTransportSecurity() bool { return !t.plaintext }

// errNotHTTP2 says that what answers is no gRPC server.
var errNotHTTP2 = errors.New("the server does not speak HTTP/2 here")

// ended reports whether a connection was closed rather than broken.
func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
