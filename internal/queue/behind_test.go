package queue_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

func takes(t *testing.T, p queue.Producer[string], id, key string) {
	t.Helper()
	if err := p.Offer(t.Context(), queue.Item[string]{ID: id, Key: key, Takes: true}); err != nil {
		t.Fatalf("offering %s: %v", id, err)
	}
}

func resolve(t *testing.T, s queue.Subscription[string], d queue.Delivery[string], v queue.Verdict) {
	t.Helper()
	if err := s.Resolve(t.Context(), d, v); err != nil {
		t.Fatalf("resolving %s: %v", d.ID, err)
	}
}

func idsOf(items []queue.Item[string]) (ids []string) {
	for _, item := range items {
		ids = append(ids, item.ID)
	}
	return ids
}

func giving(gives map[string]int) queue.Verdict {
	v := queue.Finish("", nil)
	v.Gives = gives
	return v
}

func TestAnItemThatRestsIsWokenByOneThatTakesAndToldWhatIsBehindIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		offer(t, p, "waits", "k")
		offer(t, p, "other", "k2")
		s := watch(t, q, 2, 100*time.Hour)
		waits, other := next(t, s), next(t, s)
		resolve(t, s, waits, queue.RetryAfter(10*time.Hour, ""))
		begun := time.Now()
		again := func(id string, rested time.Duration, behind ...string) queue.Delivery[string] {
			t.Helper()
			d := next(t, s)
			if d.ID != id || time.Since(begun) != rested {
				t.Errorf("leased %s after %v, want %s after %v", d.ID, time.Since(begun), id, rested)
			}
			if diff := cmp.Diff(behind, idsOf(d.Behind)); diff != "" {
				t.Errorf("behind %s (-want +got):\n%s", d.ID, diff)
			}
			return d
		}
		offer(t, p, "between", "k")
		takes(t, p, "takes", "k")
		d := again("waits", 0, "between", "takes")
		resolve(t, s, d, queue.RetryAfter(time.Minute, "")) // it has its reasons, and is told only once
		offer(t, p, "not told", "k")
		d = again("waits", time.Minute, "between", "takes")
		takes(t, p, "takes more", "k") // while it is on lease
		resolve(t, s, d, queue.RetryAfter(time.Minute, ""))
		d = again("waits", time.Minute, "between", "takes", "not told", "takes more")
		resolve(t, s, d, queue.Finish("", nil))
		for _, id := range []string{"between", "takes", "not told", "takes more"} {
			resolve(t, s, again(id, time.Minute), queue.Finish("", nil)) // a first lease tells nothing
		}

		takes(t, p, "another", "k2")
		resolve(t, s, other, queue.RetryAfter(time.Hour, "")) // not told on its first lease
		again("other", time.Minute, "another")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWhatAnItemGivesIsThereWhenTheNextOfItsKeyIsLeased(t *testing.T) {
	q := queue.NewMemory[string]()
	p, s := produce(t, q), watch(t, q, 2, time.Hour)
	if err := p.Offer(t.Context(), queue.Item[string]{ID: "a", Key: "k"}, queue.Item[string]{ID: "b", Key: "k"},
		queue.Item[string]{ID: "c", Key: "k", Takes: true, Given: map[string]int{"before": 5}}); err != nil {
		t.Fatal(err)
	}
	blocked := func(want int) {
		t.Helper()
		if stats, err := q.Stats(t.Context()); err != nil || stats.Blocked != want || stats.Ready != 0 {
			t.Errorf("%d blocked and %d ready (%v), want %d and 0", stats.Blocked, stats.Ready, err, want)
		}
	}
	resolve(t, s, next(t, s), giving(map[string]int{"c": 2, "gone": 1}))
	blocked(2)
	o, err := p.Outcome(t.Context())
	if diff := cmp.Diff(map[string]int{"c": 2, "gone": 1}, o.Gives); err != nil || diff != "" {
		t.Errorf("outcome: %v (-want +got):\n%s", err, diff)
	}
	blocked(2)
	settle := func(id string) {
		t.Helper()
		if err := p.Settle(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	settle("a")
	resolve(t, s, next(t, s), queue.RetryAfter(0, ""))
	b := next(t, s)
	if diff := cmp.Diff([]queue.Item[string]{{ID: "c", Key: "k", Takes: true, Given: map[string]int{"before": 5, "a": 2}}}, b.Behind); diff != "" {
		t.Errorf("behind b (-want +got):\n%s", diff)
	}
	resolve(t, s, b, giving(map[string]int{"c": 1}))
	blocked(1)
	settle("b")
	if c := next(t, s); c.ID != "c" || !cmp.Equal(c.Given, map[string]int{"before": 5, "a": 2, "b": 1}) {
		t.Errorf("leased %s, given %v", c.ID, c.Given)
	}
}

// Somebody else has all of them then, and finds in the producer's record what was given.
func TestAnItemThatGivesAndIsForgottenGivesNothing(t *testing.T) {
	q := queue.NewMemory[string]()
	p, s := produce(t, q), watch(t, q, 1, time.Hour)
	offer(t, p, "a", "k")
	takes(t, p, "b", "k")
	resolve(t, s, next(t, s), giving(map[string]int{"b": 1}))
	if !q.Ended("a") || q.Ended("b") || q.Ended("c") {
		t.Errorf("ended: a %t, b %t, c %t; want only a", q.Ended("a"), q.Ended("b"), q.Ended("c"))
	}
	q.Forget("a")
	if b := next(t, s); b.ID != "b" || len(b.Given) > 0 {
		t.Errorf("leased %s, given %v", b.ID, b.Given)
	}
}
