package logs

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// errStuck says that a read was given up because it gave nothing although there was
// something to give, or an end.
var errStuck = errors.New("the read is stuck")

// A readWatch looks at a read that is silent. A connection that is half open, somewhere
// on the way to a kubelet, looks just like a worker that prints nothing.
type readWatch struct {
	// steps grows before and after each line is added: while it is odd, the reader
	// waits for room, and it is not the read that is silent.
	steps atomic.Uint64
	stuck atomic.Bool

	mu    sync.Mutex // guards the rest
	timer *time.Timer
	ended bool
}

// watchRead begins to watch a read, which giveUp ends.
func (f *follower) watchRead(ctx context.Context, follows bool, giveUp func()) *readWatch {
	w := &readWatch{}
	var (
		last   uint64
		silent int
	)
	look := func() (again bool) {
		if now := w.steps.Load(); now != last || now%2 == 1 {
			last, silent = now, 0
			return true
		}
		silent++
		state, _ := f.state()
		switch {
		case !follows || state.Ended:
			// Nothing more will be printed: a read that is in order would have ended.
			w.stuck.Store(silent >= 2)
		case silent%silenceCheck == 0:
			w.stuck.Store(f.hasMore(ctx))
		}
		if w.stuck.Load() {
			f.metrics.stuckReads.Inc()
			giveUp()
		}
		return !w.stuck.Load()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(f.silence, func() {
		again := look()
		w.mu.Lock()
		defer w.mu.Unlock()
		if again && !w.ended {
			w.timer.Reset(f.silence)
		}
	})
	return w
}

func (w *readWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.timer.Stop()
}

// hasMore reports whether another read finds lines behind the last one.
func (f *follower) hasMore(ctx context.Context) bool {
	err := f.probe(ctx)
	return err == nil || errors.Is(err, errLost)
}

// rotated reports whether another read does not find the last line any more.
func (f *follower) rotated(ctx context.Context) bool {
	err := f.probe(ctx)
	return errors.Is(err, errLost) || errors.Is(err, errShort)
}

// inCurrent reports whether another read finds the last line, so that it is certain that
// no rotation lies between it and the next one.
func (f *follower) inCurrent(ctx context.Context) bool {
	err := f.probe(ctx)
	return err == nil || errors.Is(err, io.EOF)
}

// probeTimeout bounds one look into a log.
const probeTimeout = 30 * time.Second

// probe looks into the log by another read. The error is nil if there are lines behind
// the last one that was read, io.EOF if there are none, errLost or errShort if it is not
// there any more.
func (f *follower) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	from := f.window.end()
	state, _ := f.state()
	body, err := f.open(ctx, Read{Instance: f.instance, Since: from.Since(), Previous: state.Previous})
	if err != nil {
		return err
	}
	defer body.Close()                                      //nolint:errcheck // nothing was written
	defer context.AfterFunc(ctx, func() { body.Close() })() //nolint:errcheck // as above
	_, _, err = f.find(newLineReader(body, func() {}), from, readHow{}, noGeneration, nil)
	if errors.Is(err, errTorn) {
		return io.EOF
	}
	return err
}

// noGeneration is that of a read that adds nothing.
const noGeneration = -1
