package stream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// faultSays waits until the consumer reports a fault with these words.
func (m *member) faultSays(words ...string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("a fault that says %q", words), func() bool {
		err := m.healthErr()
		return err != nil && !errors.Is(err, errStarting) && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(err.Error(), w) })
	})
}

// onceEach checks that each event has one result and was carried out once.
func (w *world) onceEach(seen []string, ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		if got := len(w.resultsOf(id)); got != 1 {
			w.t.Errorf("event %s has %d results, want 1", id, got)
		}
		n := 0
		for _, s := range seen {
			if s == id {
				n++
			}
		}
		if n != 1 {
			w.t.Errorf("event %s was carried out %d times", id, n)
		}
	}
}

func TestAFaultOfRedisIsReportedAndOutlived(t *testing.T) {
	t.Parallel()
	config := func(name, value string) func(*world) error {
		return func(w *world) error { return w.rdb.ConfigSet(t.Context(), name, value).Err() }
	}
	for name, row := range map[string]struct {
		begin, end func(w *world) error
		says       []string
	}{
		"out of memory": {config("maxmemory", "1"), config("maxmemory", "0"), []string{"OOM", "maxmemory"}},
		"a master that became a replica": {
			func(w *world) error { return w.rdb.ReplicaOf(t.Context(), "127.0.0.1", "1").Err() },
			func(w *world) error { return w.rdb.ReplicaOf(t.Context(), "NO", "ONE").Err() },
			[]string{"READONLY"},
		},
		"a right that is missing": {
			func(w *world) error { return w.rdb.Do(t.Context(), "ACL", "SETUSER", "default", "-xack").Err() },
			func(w *world) error { return w.rdb.Do(t.Context(), "ACL", "SETUSER", "default", "+@all").Err() },
			[]string{"NOPERM", "docs/event-contract.md"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			m := w.join("a")
			m.SetBlock(time.Second)
			release := make(chan struct{})
			seen := m.run().serve(4, func(ctx context.Context) bool {
				select {
				case <-release:
					return true
				case <-ctx.Done():
					return false
				}
			})
			id := w.up("before")
			eventually(t, "the event to be in work", func() bool { return w.pendingCount() == 1 })
			if err := row.begin(w); err != nil {
				t.Fatal(err)
			}
			close(release) // its outcome comes while the fault lasts
			m.faultSays(row.says...)
			faults := m.metric("faults_total")
			time.Sleep(2 * time.Second)
			if got := m.metric("faults_total") - faults; got > 60 {
				t.Errorf("%v faults in two seconds: it does not back off", got)
			}
			if err := row.end(w); err != nil {
				t.Fatal(err)
			}
			next := w.up("after")
			eventually(t, "both results", func() bool { return len(w.resultsOf(id)) > 0 && len(w.resultsOf(next)) > 0 })
			eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
			eventually(t, "health", func() bool { return m.healthErr() == nil })
			w.onceEach(seen(), id, next)
		})
	}
}

func TestARestartedRedisIsWaitedForWhileItLoads(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{AppendOnly: true, Config: []string{"key-load-delay 1000", "loading-process-events-interval-bytes 1024"}})
	m := w.join("a")
	m.SetBlock(time.Second)
	seen := m.run().finishAll(4)
	before := w.up("before")
	eventually(t, "the event", func() bool { return len(w.resultsOf(before)) == 1 })
	fill := w.rdb.Pipeline()
	for i := range 4000 {
		fill.Set(t.Context(), fmt.Sprint("filler-", i), strings.Repeat("x", 100), 0)
	}
	if _, err := fill.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	back := make(chan error, 1)
	go func() { back <- w.server.Restart(context.Background()) }()
	eventually(t, "the words of a server that loads", func() bool {
		return len(m.log.with("LOADING")) > 0 || m.healthErr() != nil && strings.Contains(m.healthErr().Error(), "LOADING") || len(back) > 0
	})
	if err := <-back; err != nil {
		t.Fatal(err)
	}
	after := w.up("after")
	eventually(t, "the next event", func() bool { return len(w.resultsOf(after)) == 1 })
	eventually(t, "health", func() bool { return m.healthErr() == nil })
	w.onceEach(seen(), before, after)
}

func TestARedisThatForgotEverythingIsBegunAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{}) // without persistence
	m := w.join("a")
	m.SetBlock(time.Second)
	seen := m.run().finishAll(4)
	before := w.up("before")
	eventually(t, "the event", func() bool { return slices.Contains(seen(), before) })
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := w.up("after") // perhaps before the group is back
	eventually(t, "the next event", func() bool { return len(w.resultsOf(after)) == 1 })
	w.onceEach(seen(), after)
}

func TestAStreamThatIsDeletedWhileItIsReadIsBegunAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	seen := m.finishAll(4)
	before := w.up("before")
	eventually(t, "the event", func() bool { return len(w.resultsOf(before)) == 1 })
	if err := w.rdb.Del(t.Context(), events).Err(); err != nil {
		t.Fatal(err)
	}
	after := w.up("after")
	eventually(t, "the next event", func() bool { return len(w.resultsOf(after)) == 1 })
	w.onceEach(seen(), before, after)
}

func TestAConnectionThatIsDeadWithoutAWordLosesNothing(t *testing.T) {
	t.Parallel()
	for name, die := range map[string]func(p *redis.Proxy) error{
		"and its host acknowledges what is sent": func(p *redis.Proxy) error { p.Cut(); return nil },
		"and so is its host":                     (*redis.Proxy).Vanish,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			p, err := redis.NewProxy(w.server.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close() //nolint:errcheck // nothing was written
			w.where = &stream.Server{Addrs: []string{p.Addr}, Password: w.server.Password}
			m := w.join("a")
			m.SetBlock(time.Second)
			seen := m.run().finishAll(4)
			before := w.up("before")
			eventually(t, "the event", func() bool { return len(w.resultsOf(before)) == 1 })
			if err := die(p); errors.Is(err, syscall.EPERM) {
				t.Fatal("a connection dies without a word only for whoever has CAP_NET_ADMIN: run this as root, or " +
					"unshare --map-root-user --net sh -c 'ip link set lo up && go test ./internal/stream'")
			} else if err != nil {
				t.Fatal(err)
			}
			// Redis gives it to a reader that never sees it.
			lost := w.up("lost on the way")
			eventually(t, "the event all the same", func() bool { return len(w.resultsOf(lost)) == 1 })
			eventually(t, "health", func() bool { return m.healthErr() == nil })
			w.onceEach(seen(), before, lost)
		})
	}
}

func TestConnectionsThatAreClosedAllTheTimeLoseNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	seen := m.finishAll(16)
	var ids []string
	for i := range 300 {
		ids = append(ids, w.up(fmt.Sprint("t", i%10)))
		if i%10 == 0 {
			if err := w.rdb.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err(); err != nil && !errors.Is(err, goredis.Nil) {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	eventually(t, "all results", func() bool { return w.settled() >= len(ids) && w.pendingCount() == 0 })
	eventually(t, "health", func() bool { return m.healthErr() == nil })
	w.onceEach(seen(), ids...)
}

func TestWhatLandsWhileItsGroupIsMadeAgainDoesNotActTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a")
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.rdb.AddHook(beforeCommand(func(cmd goredis.Cmder) {
		if cmd.Name() == "xclaim" && slices.Contains(cmd.Args(), any("FORCE")) {
			once.Do(func() {
				close(reached)
				<-goOn
			})
		}
	}))
	h := m.run().subscribe(4)
	id := w.up("t")
	d := h.await(1)[0]
	if err := w.rdb.XGroupDestroy(t.Context(), events, group).Err(); err != nil {
		t.Fatal(err)
	}
	<-reached // the new group is there, and the entry is about to be put back into it
	h.resolve(d, queueFinish)
	eventually(t, "the event to be settled", func() bool { return len(m.log.with("event settled")) == 1 })
	time.Sleep(100 * time.Millisecond) // it lands
	close(goOn)
	next := w.up("next")
	h.resolve(h.await(2)[1], queueFinish)
	eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
	w.onceEach(h.got(), id, next)
}
