package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// MasterName is what the sentinel of a [Watched] calls its master.
const MasterName = "otto"

// Watched is a master and its replica, and a sentinel that makes the replica the
// master when the master is gone.
type Watched struct {
	// Master and Replica as they were at first.
	Master, Replica *Server
	// Addr of the sentinel.
	Addr string

	dir      string
	sentinel *child
}

// StartWatched starts them, and waits until the sentinel knows both.
func StartWatched(ctx context.Context, opts Options) (w *Watched, err error) {
	w = &Watched{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Stop())
		}
	}()
	opts.Password = rand.Text()
	opts.Config = append([]string{"masterauth " + opts.Password, "repl-diskless-sync-delay 0"}, opts.Config...)
	if w.Master, err = Start(ctx, opts); err != nil {
		return w, err
	}
	opts.Config = append([]string{fmt.Sprintf("replicaof %s %d", w.Master.Host, w.Master.Port)}, opts.Config...)
	if w.Replica, err = Start(ctx, opts); err != nil {
		return w, err
	}
	port, err := freePort(ctx, []string{w.Master.Host})
	if err != nil {
		return w, err
	}
	w.Addr = net.JoinHostPort(w.Master.Host, strconv.Itoa(port))
	// A sentinel keeps what it knows in the file of its configuration.
	if w.dir, err = os.MkdirTemp("", "ottoscaler-sentinel-"); err != nil {
		return w, fmt.Errorf("starting a sentinel: %w", err)
	}
	file := filepath.Join(w.dir, "sentinel.conf")
	config := fmt.Sprintf("bind %s\nport %d\nsentinel monitor %[3]s %[4]s %[5]d 1\nsentinel auth-pass %[3]s %[6]s\nsentinel down-after-milliseconds %[3]s 500\nsentinel failover-timeout %[3]s 3000\n",
		w.Master.Host, port, MasterName, w.Master.Host, w.Master.Port, opts.Password)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return w, fmt.Errorf("starting a sentinel: %w", err)
	}
	if w.sentinel, err = startChild(w.Master.program, "", file, "--sentinel"); err != nil {
		return w, err
	}
	client := redis.NewSentinelClient(&redis.Options{Addr: w.Addr})
	defer client.Close() //nolint:errcheck // it only asked
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for range (backoff.Policy{Initial: 20 * time.Millisecond, Max: 200 * time.Millisecond}).Attempts(ctx) {
		if replicas, err := client.Replicas(ctx, MasterName).Result(); err == nil && len(replicas) == 1 {
			return w, nil
		}
	}
	return w, fmt.Errorf("waiting for the sentinel to know the replica: %w", ctx.Err())
}

// Stop ends all three.
func (w *Watched) Stop() error {
	var errs []error
	if w.sentinel != nil {
		w.sentinel.stop(0) // it holds nothing that anybody needs
	}
	for _, s := range []*Server{w.Replica, w.Master} {
		if s != nil {
			errs = append(errs, s.Stop())
		}
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}
