package queue_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

func TestAnItemThatIsCancelledIsToldSoAndWakesFromItsRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		offer(t, p, "waits", "k")
		offer(t, p, "other", "k2")
		s := watch(t, q, 2, 100*time.Hour)
		resolve := func(d queue.Delivery[string], v queue.Verdict) {
			t.Helper()
			if err := s.Resolve(t.Context(), d, v); err != nil {
				t.Fatal(err)
			}
		}
		waits, other := next(t, s), next(t, s)
		if waits.Cancelled || other.Cancelled {
			t.Error("nothing is cancelled yet")
		}
		resolve(waits, queue.RetryAfter(10*time.Hour, ""))
		begun := time.Now()
		if err := p.Offer(t.Context(), queue.Item[string]{ID: "cancels", Key: "k", Cancels: true}); err != nil {
			t.Fatal(err)
		}
		if d := next(t, s); d.ID != "waits" || !d.Cancelled || time.Since(begun) != 0 {
			t.Errorf("leased %+v after %v", d, time.Since(begun))
		} else {
			resolve(d, queue.RetryAfter(time.Minute, "")) // it has its reasons, and is told only once
		}
		if d := next(t, s); d.ID != "waits" || !d.Cancelled || time.Since(begun) != time.Minute {
			t.Errorf("leased %+v after %v", d, time.Since(begun))
		} else {
			resolve(d, queue.Finish("", nil))
		}
		if d := next(t, s); d.ID != "cancels" || d.Cancelled {
			t.Errorf("leased %+v", d)
		}
		if err := p.Offer(t.Context(), queue.Item[string]{ID: "again", Key: "k2", Cancels: true}); err != nil {
			t.Fatal(err)
		}
		resolve(other, queue.RetryAfter(time.Hour, "")) // cancelled while it was on lease
		if d := next(t, s); d.ID != "other" || !d.Cancelled || time.Since(begun) != time.Minute {
			t.Errorf("leased %+v after %v", d, time.Since(begun))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
