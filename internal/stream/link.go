package stream

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A link is what all loops together know of the way to Redis. It has an outage
// logged once when it begins and once when it ends, however many loops notice.
type link struct {
	log     *slog.Logger
	health  func(error)
	metrics *metrics

	mu       sync.Mutex
	reported bool            // the health function was called; guarded by mu
	away     bool            // the server is not there for us; guarded by mu
	refused  map[string]bool // what the server is there for, but refuses; guarded by mu
}

func newLink(log *slog.Logger, health func(error), m *metrics) *link {
	return &link{log: log, health: health, metrics: m, refused: map[string]bool{}}
}

// failed notes that something did not work, in words such as "reading events".
func (l *link) failed(doing string, err error) {
	err = hint(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.metrics.faults.Inc()
	l.metrics.up.Set(0)
	if isReply(err) {
		if l.refused[doing] {
			return
		}
		l.refused[doing] = true
		l.log.Warn("Redis refuses, trying again", "while", doing, "err", err)
	} else {
		if l.away {
			return
		}
		l.away = true
		if redis.HasErrorPrefix(err, "WRONGPASS") || redis.HasErrorPrefix(err, "NOAUTH") {
			l.log.Warn("Redis refuses the credentials, trying again", "while", doing, "err", err)
		} else {
			l.log.Warn("Redis is away, trying again", "while", doing, "err", err)
		}
	}
	l.reported = true
	l.health(fmt.Errorf("%s: %w", doing, err))
}

// works notes that something worked.
func (l *link) works(doing string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.away:
		l.away = false
		l.log.Info("Redis is back")
	case l.refused[doing]:
		delete(l.refused, doing)
		l.log.Info("Redis does it again", "while", doing)
	case l.reported:
		return
	}
	if len(l.refused) == 0 {
		l.reported = true
		l.metrics.up.Set(1)
		l.health(nil)
	}
}

// serverStates begin replies that are not about the command, but about a server
// that cannot serve anyone, or not us.
var serverStates = []string{"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY ", "max number of clients", "NOAUTH", "WRONGPASS"}

// isReply reports whether a server that works has refused a command.
func isReply(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		var wrong *wrongKeyError
		return errors.As(err, &wrong)
	}
	for _, state := range serverStates {
		if redis.HasErrorPrefix(err, state) {
			return false
		}
	}
	return true
}

// hint adds what to do about faults of configuration.
func hint(err error) error {
	switch {
	case redis.HasErrorPrefix(err, "WRONGPASS"), redis.HasErrorPrefix(err, "NOAUTH"):
		return fmt.Errorf("%w (check REDIS_USERNAME and REDIS_PASSWORD)", err)
	case redis.HasErrorPrefix(err, "MOVED"), redis.HasErrorPrefix(err, "CROSSSLOT"), redis.HasErrorPrefix(err, "CLUSTERDOWN"):
		return fmt.Errorf("%w (if this Redis is a cluster, set REDIS_CLUSTER and REDIS_ADDRS)", err)
	case redis.HasErrorPrefix(err, "OOM"):
		return fmt.Errorf("%w (Redis is full: raise its maxmemory, or trim streams)", err)
	case redis.HasErrorPrefix(err, "NOPERM"):
		return fmt.Errorf("%w (give the Redis user the rights of docs/event-contract.md)", err)
	default:
		return err
	}
}

// A wrongKeyError says that a key holds another kind of value than it should.
type wrongKeyError struct{ key, kind, want string }

func (e *wrongKeyError) Error() string {
	return fmt.Sprintf("key %s holds a %s, not a %s: delete it, or configure another key", e.key, e.kind, e.want)
}
