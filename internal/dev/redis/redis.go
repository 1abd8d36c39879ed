// Package redis runs a real redis-server for tests, benchmarks and the demo.
//
// A server has a port and a password of its own, listens on loopback unless told
// otherwise, and is ended by the process ID that it was given: several run side
// by side, and no other Redis of the machine is touched.
package redis

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/process"
)

// Options say what kind of server is needed. The zero value is a server on
// loopback that forgets everything when it stops.
type Options struct {
	// Dir holds data and, with Detach, the record of the server. It is created. By
	// default it is a temporary folder, which Stop removes.
	Dir string
	// Detach has the server outlive this process. A later Start with the same Dir
	// finds it again, with the same port and password. It needs Dir.
	Detach bool
	// Bind are the addresses to listen on; 127.0.0.1 by default. The first one is
	// the Host of the server.
	Bind []string
	// AppendOnly has the server answer a write only once it is on disk, so that all
	// that was answered survives Kill and Restart.
	AppendOnly bool
	// Password of the default user; by default, one is made up.
	Password string
	// Config are further lines of the server's configuration.
	Config []string
	// Output receives a line before anything that takes long.
	Output io.Writer
}

// Server is a redis-server that was started by [Start]. Its methods may not be
// called concurrently, except Client.
type Server struct {
	// Addr is Host and Port together, as a client wants it.
	Addr string
	// Host is the first address that the server listens on.
	Host string
	// Port is the same on all addresses, and after Restart.
	Port int
	// Password of the default user.
	Password string

	program string
	opts    Options
	ownDir  bool     // Dir is ours to remove
	extra   []string // lines of configuration, of RestartAs
	child   *child
	daemon  *process.Process
}

// Start runs a server and waits until it answers. If no redis-server is on PATH
// and this is root on Debian, it installs the package.
func Start(ctx context.Context, opts Options) (*Server, error) {
	if opts.Detach && opts.Dir == "" {
		return nil, errors.New("starting redis-server: a detached one needs a folder to be found again")
	}
	if len(opts.Bind) == 0 {
		opts.Bind = []string{"127.0.0.1"}
	}
	program, err := find(ctx, opts.Output)
	if err != nil {
		return nil, err
	}
	s := &Server{Host: opts.Bind[0], program: program, opts: opts}
	if opts.Dir == "" {
		if s.opts.Dir, err = os.MkdirTemp("", "ottoscaler-redis-"); err != nil {
			return nil, fmt.Errorf("starting redis-server: %w", err)
		}
		s.ownDir = true
	} else if s.opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
		return nil, fmt.Errorf("starting redis-server: %w", err)
	} else if err := os.MkdirAll(s.opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("starting redis-server: %w", err)
	}

	if opts.Detach {
		found, err := s.attach(ctx)
		if err != nil || found {
			return s, err
		}
	}
	if err := s.startAnywhere(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// startAnywhere starts the server on a free port. Someone else may take the port
// between our look and the server's, so it has three tries.
func (s *Server) startAnywhere(ctx context.Context) error {
	if s.Password = s.opts.Password; s.Password == "" {
		s.Password = rand.Text()
	}
	var errs []error
	for range 3 {
		port, err := freePort(ctx, s.opts.Bind)
		if err != nil {
			return fmt.Errorf("starting redis-server: %w", err)
		}
		s.setPort(port)
		if err = s.run(ctx); err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Server) setPort(port int) {
	s.Port = port
	s.Addr = net.JoinHostPort(s.Host, strconv.Itoa(port))
}

// Client returns a client of the server. Closing it is up to the caller, and of
// no importance when the program ends anyway.
func (s *Server) Client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.Addr, Password: s.Password, ContextTimeoutEnabled: true})
}

// Kill ends the server as a crash would. What it wrote stays in its folder.
func (s *Server) Kill() error { return s.end(0) }

// Freeze stops the server's process where it is, as SIGSTOP does, until [Server.Thaw].
// Its connections stay, and nothing answers. It must not be detached.
func (s *Server) Freeze() error { return s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	if err := s.child.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("sending %v to redis-server: %w", sig, err)
	}
	return nil
}

// AwaitMaster waits until the server, a replica, has become a master.
func (s *Server) AwaitMaster(ctx context.Context) error {
	client := s.Client()
	defer client.Close() //nolint:errcheck // it only asks
	for range (backoff.Policy{Initial: 10 * time.Millisecond, Max: 100 * time.Millisecond}).Attempts(ctx) {
		role, err := client.Info(ctx, "replication").Result()
		if err == nil && strings.Contains(role, "role:master") {
			return nil
		}
	}
	return fmt.Errorf("waiting for the replica to be the master: %w", ctx.Err())
}

// Restart ends the server, if it runs, in good order and starts it again on the
// same port. It only remembers what it held if AppendOnly was given.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.end(stopGrace); err != nil {
		return err
	}
	return s.run(ctx)
}

// RestartAs is Restart with further lines of configuration, such as replicaof.
func (s *Server) RestartAs(ctx context.Context, lines ...string) error {
	s.extra = lines
	return s.Restart(ctx)
}

// Stop ends the server in good order and removes what [Start] created for it.
// Stopping twice is no error.
func (s *Server) Stop() error {
	err := s.end(stopGrace)
	if s.ownDir {
		err = errors.Join(err, os.RemoveAll(s.opts.Dir))
	} else if s.opts.Detach {
		if rerr := os.Remove(s.configFile()); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// stopGrace is how long the server has for its last words.
const stopGrace = 5 * time.Second

func (s *Server) end(grace time.Duration) error {
	if s.daemon != nil {
		daemon := s.daemon
		s.daemon = nil
		if err := daemon.Stop(context.Background(), grace); err != nil {
			return fmt.Errorf("stopping redis-server: %w", err)
		}
	}
	if s.child != nil {
		s.child.stop(grace)
		s.child = nil
	}
	return nil
}

// config is the server's configuration. It is never on a command line, where
// everyone on the machine could read the password.
func (s *Server) config() string {
	appendOnly := "no"
	if s.opts.AppendOnly {
		appendOnly = "yes"
	}
	lines := []string{
		"bind " + strings.Join(s.opts.Bind, " "),
		"port " + strconv.Itoa(s.Port),
		"requirepass " + s.Password,
		"dir " + strconv.Quote(s.opts.Dir),
		`save ""`,
		"appendonly " + appendOnly,
		// With everysec, its default, what is answered during a slow fsync waits in the
		// server's memory for up to two seconds (aof_buffer_length of INFO).
		"appendfsync always",
		"daemonize no",
	}
	return strings.Join(slices.Concat(lines, s.opts.Config, s.extra), "\n") + "\n"
}

func (s *Server) configFile() string { return filepath.Join(s.opts.Dir, "redis.conf") }

// ProcessName is the name of a detached server's record within its folder; see [process.Find].
const ProcessName = "redis-server"

// run starts the server as configured and waits until it answers.
func (s *Server) run(ctx context.Context) error {
	var ended func() (string, bool)
	if s.opts.Detach {
		if err := os.WriteFile(s.configFile(), []byte(s.config()), 0o600); err != nil {
			return fmt.Errorf("starting redis-server: %w", err)
		}
		daemon, err := process.Start(process.Spec{Dir: s.opts.Dir, Name: ProcessName, Args: []string{s.program, s.configFile()}})
		if err != nil {
			return err
		}
		s.daemon = daemon
		ended = func() (string, bool) { return "see " + process.LogFile(s.opts.Dir, ProcessName), !daemon.Alive() }
	} else {
		c, err := startChild(s.program, s.config(), "-")
		if err != nil {
			return err
		}
		s.child = c
		ended = c.ended
	}
	return s.await(ctx, ended)
}

// await waits until the server answers, or has ended instead.
func (s *Server) await(ctx context.Context, ended func() (string, bool)) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := redis.NewClient(&redis.Options{
		Addr: s.Addr, Password: s.Password, MaxRetries: -1, DialerRetries: 1, DialTimeout: time.Second, ContextTimeoutEnabled: true,
	})
	defer client.Close() //nolint:errcheck // it only held connections
	var dialer net.Dialer
	var err error
	for range (backoff.Policy{Initial: 5 * time.Millisecond, Max: 100 * time.Millisecond}).Attempts(ctx) {
		// go-redis complains on stderr about a port that is closed, so look first.
		var conn net.Conn
		if conn, err = dialer.DialContext(ctx, "tcp", s.Addr); err == nil {
			if err = errors.Join(conn.Close(), client.Ping(ctx).Err()); err == nil {
				return nil
			}
		}
		if why, gone := ended(); gone {
			return errors.Join(fmt.Errorf("starting redis-server on port %d: it ended at once: %s", s.Port, why), s.end(0))
		}
	}
	return errors.Join(fmt.Errorf("waiting for redis-server on %s: %w", s.Addr, err), s.end(0))
}

// attach finds the server that an earlier process left in the folder.
func (s *Server) attach(ctx context.Context) (found bool, err error) {
	s.daemon, err = process.Find(s.opts.Dir, ProcessName)
	if err != nil || s.daemon == nil {
		return false, err
	}
	config, err := os.ReadFile(s.configFile())
	if err != nil {
		return false, fmt.Errorf("finding redis-server again: %w", err)
	}
	for line := range strings.Lines(string(config)) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name {
		case "port":
			port, err := strconv.Atoi(value)
			if err != nil {
				return false, fmt.Errorf("finding redis-server again: reading %s: %w", s.configFile(), err)
			}
			s.setPort(port)
		case "requirepass":
			s.Password = value
		}
	}
	if string(config) != s.config() { // other addresses, or another kind of memory
		if err := s.end(stopGrace); err != nil {
			return false, err
		}
		return true, s.run(ctx)
	}
	daemon := s.daemon
	return true, s.await(ctx, func() (string, bool) { return "see its log", !daemon.Alive() })
}

// A child is a server that must not outlive this process.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once cmd has ended
	out  *tail
}

func startChild(program, config string, args ...string) (*child, error) {
	c := &child{cmd: exec.Command(program, args...), done: make(chan struct{}), out: &tail{}}
	c.cmd.Stdin = strings.NewReader(config)
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	// The kernel ends it if we are killed, and a terminal's ^C is ours alone to handle.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting redis-server: %w", err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait() // how it ended is in its output
	}()
	return c, nil
}

func (c *child) ended() (string, bool) {
	select {
	case <-c.done:
		return c.out.String(), true
	default:
		return "", false
	}
}

func (c *child) stop(grace time.Duration) {
	if grace > 0 {
		_ = c.cmd.Process.Signal(syscall.SIGTERM) // one that has ended is what we want
		select {
		case <-c.done:
			return
		case <-time.After(grace):
		}
	}
	_ = c.cmd.Process.Kill() // as above
	<-c.done
}

// A tail keeps the last of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.buf.Len() > 4<<10 {
		t.buf.Next(t.buf.Len() - 2<<10)
	}
	return t.buf.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.buf.String())
}

// freePort returns a port that is free on all hosts.
func freePort(ctx context.Context, hosts []string) (int, error) {
	var lc net.ListenConfig
	first, err := lc.Listen(ctx, "tcp", net.JoinHostPort(hosts[0], "0"))
	if err != nil {
		return 0, fmt.Errorf("finding a free port: %w", err)
	}
	defer first.Close() //nolint:errcheck // nothing was written
	port := first.Addr().(*net.TCPAddr).Port
	for _, host := range hosts[1:] {
		other, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return 0, fmt.Errorf("finding a free port: %w", err)
		}
		if err := other.Close(); err != nil {
			return 0, fmt.Errorf("finding a free port: %w", err)
		}
	}
	return port, nil
}
