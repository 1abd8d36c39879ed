package queue_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

var errDied = errors.New("it died")

func TestAnItemThatItsSubscribersDieOfIsRejected(t *testing.T) {
	q := queue.NewMemory[string](queue.WithPoisonAfter(3))
	p := produce(t, q)
	offer(t, p, "poison", "k")
	offer(t, p, "behind", "k")
	die := func() {
		s := watch(t, q, 1, time.Hour)
		if d := next(t, s); d.ID != "poison" {
			t.Fatalf("leased %s", d.ID)
		}
		s.Break(errDied)
	}
	die()
	die()
	s := watch(t, q, 1, time.Hour)
	if err := s.Resolve(t.Context(), next(t, s), queue.RetryAfter(0, "")); err != nil { // a verdict: it is not to blame
		t.Fatal(err)
	}
	if d := next(t, s); d.ID != "poison" {
		t.Fatalf("leased %s", d.ID)
	}
	if err := s.Close(); err != nil { // in good order: nor is it now
		t.Fatal(err)
	}
	die()
	die()
	if got := q.Losses("poison"); got != 2 {
		t.Errorf("losses = %d, want 2", got)
	}
	die()
	o, err := p.Outcome(t.Context())
	if err != nil || o.ItemID != "poison" || o.Status != queue.Rejected || o.Reason != queue.ReasonPoison || o.Attempts != 7 {
		t.Errorf("outcome = %+v, %v", o, err)
	}
	if d := next(t, watch(t, q, 1, time.Hour)); d.ID != "behind" {
		t.Errorf("then comes %s", d.ID)
	}
}

func TestAGateStaysShutUntilItsProducerOpensIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string](queue.WithGate())
		p := produce(t, q)
		offer(t, p, "a", "")
		nothing := func(s queue.Subscription[string], when string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if d, err := s.Next(ctx); err == nil {
				t.Errorf("%s, %s is leased", when, d.ID)
			}
		}
		s := watch(t, q, 1, time.Hour)
		nothing(s, "before it was opened")
		if credit, err := p.Credit(t.Context()); err != nil || credit < 1 {
			t.Errorf("credit = %d, %v: nobody comes to open the gate", credit, err)
		}
		turn, shut := q.Gate()
		if !shut {
			t.Error("the gate is open at first")
		}
		q.Open(turn)
		if d := next(t, s); d.ID != "a" {
			t.Errorf("leased %s", d.ID)
		}
		other := watch(t, q, 1, time.Hour)
		_ = s.Close() // never fails
		if d := next(t, other); d.ID != "a" {
			t.Errorf("while there is another subscriber, leased %s", d.ID)
		}
		_ = other.Close() // never fails
		s = watch(t, q, 1, time.Hour)
		q.Open(turn) // of the time before
		nothing(s, "after nobody was there")
	})
}
