// Package backoff is the one way to try again: exponential pauses with jitter
// that end with the context. Nothing else in the product sleeps before a retry.
package backoff

import (
	"context"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Policy says how long to pause between attempts.
type Policy struct {
	// Initial is the pause after the first attempt, before jitter.
	Initial time.Duration
	// Max bounds a pause, before jitter.
	Max time.Duration
}

// Default suits services on the same machine or network: a tenth of a second at
// first, ten seconds at most.
var Default = Policy{Initial: 100 * time.Millisecond, Max: 10 * time.Second}

// Pause returns how long to rest after the given number of attempts, with jitter,
// for a caller that lets someone else wait.
func (p Policy) Pause(attempts int) time.Duration {
	pause := p.Max
	if doublings := max(attempts-1, 0); doublings < 32 && p.Initial<<doublings < p.Max {
		pause = p.Initial << doublings
	}
	return pause/2 + rand.N(max(pause, 1))
}

// Attempts yields one [Attempt] for each try, without end. It pauses between
// them, half as long to one and a half times as long as the exponential curve
// says, and stops when ctx is done.
func (p Policy) Attempts(ctx context.Context) iter.Seq[*Attempt] {
	return func(yield func(*Attempt) bool) {
		curve := &backoff.ExponentialBackOff{
			InitialInterval:     p.Initial,
			RandomizationFactor: backoff.DefaultRandomizationFactor,
			Multiplier:          2,
			MaxInterval:         p.Max,
		}
		curve.Reset()
		attempt := &Attempt{Number: 1}
		for ctx.Err() == nil && yield(attempt) {
			if attempt.progress {
				curve.Reset()
				attempt.progress = false
			}
			pause := time.NewTimer(curve.NextBackOff())
			select {
			case <-ctx.Done():
				pause.Stop()
				return
			case <-pause.C:
			}
			attempt.Number++
		}
	}
}

// An Attempt is one try.
type Attempt struct {
	// Number is 1 for the first try.
	Number   int
	progress bool
}

// Progress says that the try achieved something before it failed, so that the
// next pause is a short one again. It must be called before the try ends.
func (a *Attempt) Progress() { a.progress = true }
