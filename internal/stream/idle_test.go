package stream_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
)

func TestAnIdleConsumerAsksRedisNoMoreThanEveryFiveSeconds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	seen := m.finishAll(4)
	w.up("t")
	eventually(t, "the event", func() bool { return len(seen()) == 1 && w.pendingCount() == 0 })
	time.Sleep(6 * time.Second) // its looks after work
	calls := func() map[string]string {
		stats, err := w.rdb.InfoMap(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		return stats["Commandstats"]
	}
	before := calls()
	const watched = 45 * time.Second
	time.Sleep(watched)
	n := 0
	for command, stat := range calls() {
		if stat == before[command] || command == "cmdstat_info" {
			continue
		}
		n += count(t, stat) - count(t, before[command])
		t.Log(command, before[command], "→", stat)
	}
	// Two more may fall into the window's ends.
	if most := int(watched/(5*time.Second)) + 2; n > most {
		t.Errorf("%d calls in %s, want no more than %d", n, watched, most)
	}
}

// count reads the number of calls of a command's statistics.
func count(t *testing.T, stat string) int {
	t.Helper()
	number, _, _ := strings.Cut(strings.TrimPrefix(stat, "calls="), ",")
	n := 0
	for _, digit := range number {
		n = n*10 + int(digit-'0')
	}
	return n
}

func TestStoppingEndsABlockedRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a")
	m.SetBlock(time.Hour)
	seen := m.run().finishAll(4)
	w.up("t")
	eventually(t, "the event", func() bool { return len(seen()) == 1 && w.pendingCount() == 0 })
	eventually(t, "a blocked read", func() bool {
		clients, err := w.rdb.Info(t.Context(), "clients").Result()
		return err == nil && strings.Contains(clients, "blocked_clients:1")
	})
	start := time.Now()
	m.stop()
	// 300 ms is what it takes where nothing else runs.
	if took := time.Since(start); took > time.Minute {
		t.Errorf("stopping took %s: it waited for the read", took)
	}
	t.Logf("stopping took %s", time.Since(start))
	if got := w.pendingCount(); got != 0 {
		t.Errorf("%d entries are pending", got)
	}
}
