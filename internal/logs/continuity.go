package logs

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

const (
	// rotationEvery is how often a kubelet looks at most whether a log has grown so large
	// that it is rotated: the least containerLogMonitorInterval that is allowed (3 s; the
	// default is 10 s), less a second of slack.
	rotationEvery = 2 * time.Second
	// beginWait is how late the first read of a log may be, or the first line in it, for
	// its beginning to be certain. Kubernetes gives the beginning of a container in whole
	// seconds, and a log is only rotated once containerLogMaxSize (10 MiB) is printed.
	beginWait = 2 * time.Second
)

// An arrivalReader notes when it was given bytes last, in nanoseconds since 1970.
type arrivalReader struct {
	io.Reader
	at atomic.Int64
}

func (r *arrivalReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.at.Store(time.Now().UnixNano())
	return n, err
}

// A continuity watches one read for places where lines may be missing although the
// stream does not break.
//
// The pod log API reads a container's newest log file. A node that has rotated it away
// before the first read shows the rest as if it were all. And a read that follows goes
// on to the newest file when it has come to the end of its own, at a sign of the next
// one. If there were two rotations meanwhile, it passes over a file and says nothing. So
// it does when the first one came before it had read its file to the end for the first
// time: it begins to look for signs only then (ReadLogs in k8s.io/cri-client/pkg/logs).
// Rotations are at least rotationEvery apart, and so are then the stamps on both sides of
// the place. The second case can be but the first such place of a read; in the first case,
// the line before it was that old when it came.
type continuity struct {
	in      *arrivalReader
	opened  time.Time
	last    int64 // stamp of the last line, 0 before the first
	came    int64 // when that arrived
	settled bool  // there was such a place
}

// suspects reports whether the read may have passed over a file before the line of that
// stamp, which it has just read. The window has all lines before it.
func (c *continuity) suspects(stamp int64, w *window) bool {
	const apart = int64(rotationEvery)
	if c.last != 0 && stamp-c.last >= apart {
		c.last = max(c.last, w.end().Time) // it takes several lines at once
	}
	silence := c.last != 0 && stamp-c.last >= apart &&
		stamp-c.opened.UnixNano() >= apart // what the file held when it was opened is whole
	behind := c.came-c.last >= apart
	suspect := silence && (behind || !c.settled)
	c.settled = c.settled || silence
	c.last, c.came = stamp, c.in.at.Load()
	return suspect
}

// A beginning is what is known about the time before a log's first line.
type beginning struct {
	// empty is until when the log was certainly empty: the instance's start, at first.
	empty time.Time
}

// late reports whether a read that begins at the start of the log, and was opened at that
// time, may have missed something, whatever its first line is.
func (b *beginning) late(state State, opened time.Time) bool {
	if b.empty.IsZero() {
		b.empty = state.Began
	}
	return !b.empty.IsZero() && !opened.Before(b.empty.Add(beginWait))
}

// doubt returns why a read that begins at the start of the log, and was opened at that
// time, may have missed what was printed before its first line. Without a line, stamp is
// zero and the log has ended.
func (b *beginning) doubt(state State, opened time.Time, stamp int64) (why string, doubtful bool) {
	if !b.late(state, opened) {
		return "", false
	}
	late := opened.Sub(b.empty).Round(time.Second)
	switch {
	case stamp != 0 && time.Unix(0, stamp).Before(b.empty.Add(beginWait)):
		return "", false
	case stamp == 0 && !state.Finished.IsZero() && state.Finished.Before(b.empty.Add(beginWait)):
		return "", false // nothing is rotated that soon, and nothing after the end
	case stamp == 0:
		return fmt.Sprintf("the log is empty, and was first read %v late: the node may have put away what was in it", late), true
	default:
		return fmt.Sprintf("the log was first read %v late: the node may have put away its beginning", late), true
	}
}

// silent says that a read from the start of the log, opened at that time, gave no line
// until it ended, at another time; or that it was all that there was when it was opened.
func (b *beginning) silent(opened, ended time.Time, whole bool) {
	if whole {
		b.empty = opened
		return
	}
	if !b.empty.IsZero() && opened.Before(b.empty.Add(beginWait)) && ended.After(b.empty) {
		b.empty = ended
	}
}
