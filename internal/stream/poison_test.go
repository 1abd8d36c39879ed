package stream_test

import (
	"strconv"
	"testing"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

func poisonAfter(n int) config { return func(c *stream.Config) { c.PoisonAfter = n } }

// crash has a consumer of the name "a" read what is pending for it and end without
// a word, as often as that.
func (w *world) crash(id string, times int) {
	w.t.Helper()
	for range times {
		if err := w.rdb.Do(w.t.Context(), "XCLAIM", events, group, "a", 0, id).Err(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestAnEventThatTheMainPodDiesOfIsADeadLetterInTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", poisonAfter(3)).run()
	h := m.subscribe(1)
	id := w.send("type", "scale_up", "task_id", "t", "branch", "main")
	h.await(1)
	m.stop() // in good order, which is nobody's fault
	w.crash(id, 2)

	m = w.join("a", poisonAfter(3)).run()
	h = m.subscribe(1)
	h.await(1) // the third time
	m.stop()
	w.crash(id, 3)

	m = w.join("a", poisonAfter(3)).run()
	seen := m.finishAll(1)
	next := w.up("next")
	eventually(t, "the next event", func() bool { return len(w.resultsOf(next)) == 1 })
	eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
	if got := seen(); len(got) != 1 || got[0] != next {
		t.Errorf("it got %v, want only the next event", got)
	}
	letters := w.read(dead)
	if len(letters) != 1 || letters[0]["dead_reason"] != queue.ReasonPoison || letters[0]["dead_attempts"] != strconv.Itoa(3) || letters[0]["branch"] != "main" {
		t.Errorf("dead letters = %v", letters)
	}
	if got := w.resultsOf(id); len(got) != 1 || got[0].Reason != queue.ReasonPoison {
		t.Errorf("results = %+v", got)
	}
}
