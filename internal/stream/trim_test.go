package stream_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

func (w *world) length() int64 {
	w.t.Helper()
	n, err := w.rdb.XLen(w.t.Context(), events).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestTrimmingSparesWhatIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	for name, retention := range map[string]stream.Retention{
		"by length": {Length: 2},
		"by age":    {Age: time.Millisecond},
		"by both":   {Length: 1, Age: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			m := w.join("a", func(c *stream.Config) { c.Retention = retention })
			m.SetTrim(50 * time.Millisecond)
			h := m.run().subscribe(4)
			for i := range 10 {
				w.up(fmt.Sprint("done ", i))
				h.resolve(h.await(i + 1)[i], queue.Finish("", nil))
			}
			held := w.up("held")
			d := h.await(11)[10]
			for i := range 10 {
				w.up(fmt.Sprint("later ", i))
			}
			eventually(t, "what is acknowledged to go", func() bool { return w.length() == 11 })
			time.Sleep(300 * time.Millisecond) // some more times
			if got := w.length(); got != 11 {
				t.Errorf("%d entries are left, want the one in work and all that are behind it", got)
			}
			if entries, err := w.rdb.XRangeN(t.Context(), events, "-", "+", 1).Result(); err != nil || entries[0].ID != held {
				t.Errorf("the first entry is %v, %v, want the one in work, %s", entries, err, held)
			}
			h.resolve(d, queue.Finish("", nil))
			for i := range 10 {
				h.resolve(h.await(12 + i)[11+i], queue.Finish("", nil))
			}
			eventually(t, "the rest to go, but for what is wanted", func() bool { return w.length() <= max(1, retention.Length) })
			if got := m.metric("entries_trimmed_total"); got < 19 {
				t.Errorf("trimmed entries counted = %v", got)
			}
		})
	}
}

func TestTrimmingSparesWhatAnotherGroupHasNotRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	if err := w.rdb.XGroupCreateMkStream(t.Context(), events, "other", "0").Err(); err != nil {
		t.Fatal(err)
	}
	m := w.join("a", func(c *stream.Config) { c.Retention.Length = 1 })
	m.SetTrim(50 * time.Millisecond)
	seen := m.run().finishAll(4)
	for i := range 5 {
		w.up(fmt.Sprint(i))
	}
	eventually(t, "all events", func() bool { return len(seen()) == 5 && w.pendingCount() == 0 })
	time.Sleep(300 * time.Millisecond)
	if got := w.length(); got != 5 {
		t.Errorf("%d entries are left, want 5", got)
	}
}

// Redis 8.2 trims by acknowledgement itself. The command is chosen by asking.
func TestTrimmingAsksRedisToDoItAndKnowsWhenItCannot(t *testing.T) {
	t.Parallel()
	for name, knows := range map[string]bool{"a Redis that can": true, "a Redis that cannot": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			m := w.join("a", func(c *stream.Config) { c.Retention.Age = time.Millisecond })
			m.SetTrim(50 * time.Millisecond)
			var mu sync.Mutex
			var asked, own int
			m.rdb.AddHook(replacing(func(cmd goredis.Cmder) bool {
				if cmd.Name() != "xtrim" {
					return false
				}
				mu.Lock()
				defer mu.Unlock()
				if !strings.HasSuffix(strings.ToUpper(fmt.Sprint(cmd.Args()...)), "ACKED") {
					own++
					return false
				}
				asked++
				return knows // else the server answers, which does not know the word
			}))
			seen := m.run().finishAll(1)
			w.up("t")
			eventually(t, "the event", func() bool { return len(seen()) == 1 })
			eventually(t, "some rounds", func() bool { mu.Lock(); defer mu.Unlock(); return asked+own > 3 })
			mu.Lock()
			defer mu.Unlock()
			if knows && own > 0 || !knows && asked != 1 {
				t.Errorf("asked %d times, done by ourselves %d times", asked, own)
			}
		})
	}
}

// replacing has commands not be sent for which it returns true; they succeed.
type replacing func(goredis.Cmder) bool

func (f replacing) DialHook(next goredis.DialHook) goredis.DialHook { return next }
func (f replacing) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if f(cmd) {
			return nil
		}
		return next(ctx, cmd)
	}
}

func (f replacing) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return next
}
