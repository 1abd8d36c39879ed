package stream_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

func TestAPauseHoldsEventsInRedisAndOutlivesARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	seen := m.finishAll(4)
	before := w.up("before")
	eventually(t, "work", func() bool { return slices.Contains(seen(), before) })

	key := stream.PauseKey(events, group)
	if err := w.rdb.Set(t.Context(), key, "a test", 0).Err(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // what the reader knows may be as old as that
	want := []string{w.up("t"), w.send("type", "scale_down", "task_id", "t")}
	eventually(t, "the pause to be known", func() bool { return m.metric("paused") == 1 })
	m.stop()

	again := w.join("a").run()
	seenAgain := again.finishAll(4)
	eventually(t, "the pause to be known again", func() bool { return again.metric("paused") == 1 })
	want = append(want, w.up("t"))
	time.Sleep(500 * time.Millisecond)
	if got := append(seen(), seenAgain()...); len(got) != 1 {
		t.Errorf("while paused, %d events were carried out, want the one before", len(got))
	}
	if err := w.rdb.Del(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all events", func() bool { return len(seenAgain()) == len(want) })
	if diff := cmp.Diff(want, seenAgain()); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if got := again.metric("paused"); got != 0 {
		t.Errorf("after the pause, the gauge says %v", got)
	}
}
