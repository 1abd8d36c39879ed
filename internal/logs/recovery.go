package logs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/logs/nodelog"
)

var (
	// errLate says that the beginning of the log may have been rotated away before it was
	// read for the first time, and that the node may have it still.
	errLate = errors.New("the log was first read late")
	// errJumped says the same of what lies between two lines of a read.
	errJumped = errors.New("the read may have passed over a file")
)

// A readHow says how to read on.
type readHow struct {
	// kept reads the files that the node has, those included that it has rotated away, as
	// far as they go, instead of following the log.
	kept bool
	// byTime goes on by time, because the last line is not found.
	byTime bool
}

// A recovery is how it stands with reading what the node has rotated away.
//
// Wherever a log could not be read on behind its last line, all of what the node has kept
// of it is read, by the same rules: the last line is looked for in there. If it is found,
// nothing is missing, because no file between two that were read can be; if not, there is
// a gap, and behind it is the oldest line that the node has. Then the log is followed
// again, from behind the last line of that.
type recovery struct {
	failures int
	// idle says that the last such read brought nothing: another one would not either.
	idle bool
	// until is when it is tried again after it was given up.
	until time.Time
}

const (
	// keptTries is how often in a row the files of a node may fail to be read although
	// the log itself can be, before the log is followed without them.
	keptTries = 5
	// givenUpFor is how long.
	givenUpFor = 5 * time.Minute
)

// recoverable reports whether it is worth to ask the node for what it has rotated away.
func (f *follower) recoverable() bool {
	return f.kept != nil && !time.Now().Before(f.recovery.until)
}

// done says that what the node has was read to its end.
func (r *recovery) done(progress bool) { r.failures, r.idle = 0, !progress }

// failed says that it was not, and returns how to read on.
func (r *recovery) failed(ctx context.Context, log *slog.Logger, was readHow, progress bool, err error) readHow {
	r.idle = false
	switch {
	case progress:
		r.failures = 0
	case !was.byTime && (errors.Is(err, errLost) || errors.Is(err, errShort)):
		return readHow{kept: true, byTime: true} // the last line is gone: from the oldest one behind it
	case errors.Is(err, nodelog.ErrRefused) || errors.Is(err, nodelog.ErrNone):
		r.until = time.Now().Add(givenUpFor)
	default:
		if r.failures++; r.failures == 1 {
			log.WarnContext(ctx, "reading the rotated log again", "err", err)
		}
		if r.failures == keptTries {
			r.failures, r.until = 0, time.Now().Add(givenUpFor)
		}
	}
	return readHow{}
}

// openLog opens the log, or all that the node has of it. It tells whether that certainly
// begins with the first line that was printed. If it certainly does not, and the node may
// have that, the error is errLate.
func (f *follower) openLog(ctx context.Context, from Cursor, state State, read Read, how readHow) (body io.ReadCloser, whole bool, err error) {
	if how.kept {
		kept, err := f.kept.Open(ctx, read)
		if err != nil {
			return nil, false, err
		}
		return kept, kept.Whole(), nil
	}
	if !f.recoverable() {
		body, err = f.open(ctx, read)
		return body, false, err
	}
	opened := time.Now()
	var known []string
	var knownErr error
	if from.Sequence > 0 {
		known, knownErr = f.kept.Rotated(ctx, read)
	}
	if body, err = f.open(ctx, read); err != nil {
		return nil, false, err
	}
	if from.Sequence == 0 {
		known, knownErr = f.kept.Rotated(ctx, read)
		if knownErr == nil && len(known) > 0 || knownErr != nil && f.beginning.late(state, opened) {
			body.Close() //nolint:errcheck // it was only read
			return nil, false, errLate
		}
		whole = knownErr == nil
	}
	if read.Follow && knownErr == nil {
		body = newGate(body, known, func() ([]string, error) { return f.kept.Rotated(ctx, read) })
	}
	return body, whole, nil
}

// pauseOf returns how a read is held back. Files of the node that are open stay, and need
// not be hurried for.
func (f *follower) pauseOf(how readHow) *pause {
	rotated := f.rotated
	if how.kept {
		rotated = func(context.Context) bool { return false }
	}
	return &pause{rotated: rotated, every: f.probeEvery, count: f.metrics.pauses}
}

// A search is the part of a read that follows in which the last line is looked for. It
// ends when nothing comes for a while: the line is not in the log any more, and a worker
// that is silent now would have us wait for its next line to find out. A nil search has
// no end.
type search struct {
	over   chan struct{}
	failed atomic.Bool
}

// searchFor begins the search of a read, which giveUp ends.
func (f *follower) searchFor(from Cursor, follows bool, how readHow, in *arrivalReader, giveUp func()) *search {
	if from.Sequence == 0 || !follows || how != (readHow{}) || f.recovery.idle {
		return nil
	}
	s := &search{over: make(chan struct{})}
	go func() {
		for quiet := time.Duration(0); quiet < f.endWait; quiet = time.Since(time.Unix(0, in.at.Load())) {
			timer := time.NewTimer(f.endWait - quiet)
			select {
			case <-timer.C:
			case <-s.over:
				timer.Stop()
				return
			}
		}
		s.failed.Store(true)
		giveUp()
	}()
	return s
}

// end ends a search, if that was not done yet, and reports whether it came to its end
// without the line.
func (s *search) end() (failed bool) {
	if s == nil {
		return false
	}
	select {
	case <-s.over:
	default:
		close(s.over)
	}
	return s.failed.Load()
}
