package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// pauses returns the time between n+1 attempts.
func pauses(t *testing.T, p backoff.Policy, n int, during func(*backoff.Attempt)) []time.Duration {
	t.Helper()
	var all []time.Duration
	last := time.Now()
	for attempt := range p.Attempts(t.Context()) {
		if attempt.Number > 1 {
			all = append(all, time.Since(last))
		}
		last = time.Now()
		if len(all) == n {
			break
		}
		during(attempt)
	}
	return all
}

func TestPausesGrowToTheMaximumWithJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := backoff.Policy{Initial: time.Second, Max: 8 * time.Second}
		got := pauses(t, p, 8, func(*backoff.Attempt) {})
		curve := time.Second
		distinct := map[time.Duration]bool{}
		for i, pause := range got {
			if pause < curve/2 || pause > curve*3/2 {
				t.Errorf("pause %d is %s, want between %s and %s", i+1, pause, curve/2, curve*3/2)
			}
			distinct[pause] = true
			curve = min(2*curve, p.Max)
		}
		if len(distinct) < len(got)/2 {
			t.Errorf("pauses are %v: where is the jitter?", got)
		}
	})
}

func TestProgressMakesTheNextPauseAShortOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := backoff.Policy{Initial: time.Second, Max: time.Hour}
		got := pauses(t, p, 10, func(a *backoff.Attempt) {
			if a.Number == 8 {
				a.Progress()
			}
		})
		if got[6] < 32*time.Second {
			t.Errorf("pause 7 is %s, want a long one", got[6])
		}
		if got[7] > 3*time.Second/2 {
			t.Errorf("the pause after progress is %s, want about 1s", got[7])
		}
		if got[8] > 3*time.Second {
			t.Errorf("the pause after the short one is %s, want about 2s", got[8])
		}
	})
}

func TestAttemptsAreNumberedFromOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := 1
		pauses(t, backoff.Default, 5, func(a *backoff.Attempt) {
			if a.Number != want {
				t.Errorf("attempt number = %d, want %d", a.Number, want)
			}
			want++
		})
	})
}

func TestAttemptsEndWithTheContextInTheMiddleOfAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began, n := time.Now(), 0
		for range (backoff.Policy{Initial: time.Hour, Max: time.Hour}).Attempts(ctx) {
			n++
		}
		if n != 1 || time.Since(began) != time.Minute {
			t.Errorf("%d attempts in %s, want 1 in 1m", n, time.Since(began))
		}
	})
}

func TestNoAttemptIsMadeOnceTheContextIsDone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range backoff.Default.Attempts(ctx) {
		t.Fatal("an attempt was made")
	}
}
