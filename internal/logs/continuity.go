package logs

import (
	"fmt"
	"io"
	"time"
)

const (
	// rotationEvery is how often a kubelet looks whether a log has grown so large that
	// it is rotated: the default of containerLogMonitorInterval, less a second of slack.
	rotationEvery = 9 * time.Second
	// beginWait is how late the first read of a log may be, or the first line in it, for
	// its beginning to be certain. Kubernetes gives the beginning of a container in whole
	// seconds, and a log is only rotated once containerLogMaxSize (10 MiB) is printed.
	beginWait = 2 * time.Second
)

// An arrivalReader notes when it was given bytes last.
type arrivalReader struct {
	io.Reader
	at time.Time
}

func (r *arrivalReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.at = time.Now()
	return n, err
}

// A continuity watches one read for places where lines may be missing although the
// stream does not break.
//
// The pod log API reads a container's newest log file. A node that has rotated it away
// before the first read shows the rest as if it were all. And a read that follows goes
// on to the newest file when it has come to the end of its own: if it is so slow that
// there were two rotations meanwhile, it jumps over a file and says nothing
// (ReadLogs in k8s.io/cri-client/pkg/logs). Rotations are at least rotationEvery
// apart, and so are then the stamps on both sides of the place; and the line before
// it was that old when it came. A read that keeps up never looks like that, however
// long its worker is silent.
type continuity struct {
	in     *arrivalReader
	opened time.Time
	last   int64     // stamp of the last line, 0 before the first
	came   time.Time // when that arrived
}

// jumped reports whether the read may have passed over a file before the line of that
// stamp, which it has just read. The window has all lines before it.
func (c *continuity) jumped(stamp int64, w *window) bool {
	const apart = int64(rotationEvery)
	if c.last != 0 && stamp-c.last >= apart {
		c.last = max(c.last, w.end().Time) // it takes several lines at once
	}
	jumped := c.last != 0 && stamp-c.last >= apart &&
		c.came.UnixNano()-c.last >= apart && // the read was behind
		stamp-c.opened.UnixNano() >= apart // what the file held when it was opened is whole
	c.last, c.came = stamp, c.in.at
	return jumped
}

// A beginning is what is known about the time before a log's first line.
type beginning struct {
	// empty is until when the log was certainly empty: the instance's start, at first.
	empty time.Time
}

// doubt returns why a read that begins at the start of the log, and was opened at that
// time, may have missed what was printed before its first line. Without a line, stamp is
// zero and the log has ended.
func (b *beginning) doubt(state State, opened time.Time, stamp int64) (why string, doubtful bool) {
	if b.empty.IsZero() {
		b.empty = state.Began
	}
	if b.empty.IsZero() || opened.Before(b.empty.Add(beginWait)) {
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
// until it ended, at another time.
func (b *beginning) silent(opened, ended time.Time) {
	if !b.empty.IsZero() && opened.Before(b.empty.Add(beginWait)) && ended.After(b.empty) {
		b.empty = ended
	}
}
