package process

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// logLines is how much of a log is shown when its process has failed.
const logLines = 8

// ErrDied says that a process ended while it was being waited for.
var ErrDied = errors.New("it died")

// Await asks ready again and again until it returns nil. It gives up when one of
// the processes dies, or when they took too long; the error then has the last
// lines of the log of the one that died, or of the first.
func (g Group) Await(ctx context.Context, timeout time.Duration, ready func(context.Context) error, specs ...Spec) error {
	told := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready after %v", timeout))
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		for _, s := range specs {
			_, running, findErr := g.Find(s)
			if findErr != nil {
				return findErr
			}
			if !running {
				return s.failed(ErrDied)
			}
		}
		select {
		case <-told.Done():
			return fmt.Errorf("waiting for %s: %w", specs[0].Name, context.Cause(told))
		case <-ctx.Done():
			return specs[0].failed(fmt.Errorf("%w: %w", context.Cause(ctx), err))
		case <-time.After(pause):
		}
	}
}

// failed words what happened to a process.
func (s Spec) failed(err error) error {
	return fmt.Errorf("starting %s: %w; the end of %s:\n%s", s.Name, err, s.Log, Tail(s.Log, logLines))
}
