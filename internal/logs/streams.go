package logs

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

const (
	// labelWait is how long a line waits to be seen on stdout or stderr. After one
	// that was not, none waits until one is: telling apart must not hold up reading.
	labelWait = 250 * time.Millisecond
	// labelSlack is by how much the stamps of two streams may be out of order.
	labelSlack = 2 * time.Second
	// mostAhead is how many lines stdout and stderr may be ahead of the log, each.
	mostAhead = 4096
)

// splitStreams are the streams as the API calls them, and as we do.
var splitStreams = [...]struct {
	name  string
	label logsv1.Stream
}{
	{corev1.LogStreamStdout, logsv1.Stream_STREAM_STDOUT},
	{corev1.LogStreamStderr, logsv1.Stream_STREAM_STDERR},
}

// labels tells where the lines of one reading were written to.
//
// The log itself, with both streams in the order of its file, decides which lines
// there are and in what order, as it does without labels. Beside it, stdout and
// stderr are read by themselves, and a line gets its label when the same text with
// the same stamp, to the nanosecond, is found in one of them. Two streams that
// are merged by stamp would not do: they have no common order where stamps are
// equal or step back, so another reading could number the lines differently. A
// label that is missing, late or ambiguous costs the label and nothing else.
type labels struct {
	cancel context.CancelFunc
	group  sync.WaitGroup
	seed   maphash.Seed

	mu      sync.Mutex
	streams [len(splitStreams)]stream
	at      int64         // the newest stamp that a label was asked for
	changed chan struct{} // closed and replaced when there is news for whoever waits
	lagging bool          // the last line was not found in time
}

// A stream is what is known of stdout or stderr.
type stream struct {
	lines  map[lineKey]int // that are read, and not found in the log yet
	count  int
	newest int64
	swept  int64 // lines with older stamps are removed
	ended  bool
}

// A lineKey is a line, but for the chance of one in 2^64 that another has the
// same hash, on top of the same nanosecond.
type lineKey struct {
	stamp int64
	hash  uint64
}

// newLabels begins to read stdout and stderr as a log is read. It must be closed.
func newLabels(ctx context.Context, open OpenFunc, read Read) *labels {
	ctx, cancel := context.WithCancel(ctx)
	l := &labels{cancel: cancel, seed: maphash.MakeSeed(), changed: make(chan struct{})}
	for i, s := range splitStreams {
		l.streams[i].lines = map[lineKey]int{}
		one := read
		one.Stream = s.name
		l.group.Go(func() { l.read(ctx, open, one, &l.streams[i]) })
	}
	return l
}

func (l *labels) close() {
	l.cancel()
	l.group.Wait()
}

// news wakes everybody who waits. The lock is held.
func (l *labels) news() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// read reads one stream until it ends or breaks. It is not tried again: the log is
// opened anew often enough.
func (l *labels) read(ctx context.Context, open OpenFunc, read Read, s *stream) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		s.ended = true
		l.news()
	}()
	body, err := open(ctx, read)
	if err != nil {
		return
	}
	defer body.Close()                                      //nolint:errcheck // nothing was written
	defer context.AfterFunc(ctx, func() { body.Close() })() //nolint:errcheck // as above
	lines := newLineReader(body, func() {})
	for ctx.Err() == nil {
		stamp, text, err := lines.raw()
		var noStamp *noticeError
		switch {
		case errors.As(err, &noStamp):
			continue // a part of a line that the kubelet has torn: its stream had others between
		case err != nil && !errors.Is(err, errTorn):
			return
		}
		if !l.add(ctx, s, lineKey{stamp, maphash.Bytes(l.seed, text)}) {
			return
		}
	}
}

// add takes a line of a stream, as soon as there is room. It is false when ctx has ended.
func (l *labels) add(ctx context.Context, s *stream, key lineKey) bool {
	for {
		l.mu.Lock()
		stale := l.at - int64(labelSlack)
		s.newest = max(s.newest, key.stamp)
		if s.count >= mostAhead && stale >= s.swept+int64(time.Second) {
			s.swept = stale
			for old, n := range s.lines {
				if old.stamp < stale {
					s.count -= n
					delete(s.lines, old)
				}
			}
		}
		if s.count < mostAhead || key.stamp < stale {
			if key.stamp >= stale {
				s.lines[key]++
				s.count++
			}
			l.news()
			l.mu.Unlock()
			return true
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// of returns where a line of the log was written to. Each line must be asked for
// once, in the order of the log.
func (l *labels) of(stamp int64, text []byte) logsv1.Stream {
	key := lineKey{stamp, maphash.Bytes(l.seed, text)}
	var patience <-chan time.Time
	for {
		l.mu.Lock()
		l.at = max(l.at, stamp)
		label, wait := l.find(key)
		changed := l.changed
		l.mu.Unlock()
		if !wait {
			return label
		}
		if patience == nil {
			timer := time.NewTimer(labelWait)
			defer timer.Stop()
			patience = timer.C
		}
		select {
		case <-changed:
		case <-patience:
			l.mu.Lock()
			l.lagging = true
			l.mu.Unlock()
		}
	}
}

// find looks for a line in the streams, and says whether it is worth to wait for it.
// The lock is held.
func (l *labels) find(key lineKey) (label logsv1.Stream, wait bool) {
	past := true // the streams have come further than the line
	for i := range l.streams {
		s := &l.streams[i]
		if n := s.lines[key]; n > 0 {
			if n == 1 {
				delete(s.lines, key)
			} else {
				s.lines[key] = n - 1
			}
			if s.count--; s.count == mostAhead-1 {
				l.news()
			}
			l.lagging = false
			return splitStreams[i].label, false
		}
		past = past && (s.ended || s.newest > key.stamp+int64(labelSlack))
	}
	if past || l.lagging {
		l.news() // who is ahead may have become stale
		return logsv1.Stream_STREAM_UNSPECIFIED, false
	}
	return logsv1.Stream_STREAM_UNSPECIFIED, true
}

// probePod is the name of no pod.
const probePod = "ottoscaler-probe"

// probeAgain is how long an API server that has not answered is not asked again.
const probeAgain = time.Minute

// Splits reports whether the API server gives stdout and stderr by themselves. That is
// alpha (PodLogsQuerySplitStreams, KEP-3288) and usually forbidden. It asks once: for a
// log that is not there, because the parameters are looked at first. An API server
// that does not know the parameter would give both streams each time; it is known by
// what it does not refuse. One that does not answer is asked again a minute later, for
// all logs wait while it is asked.
func (c *Cluster) Splits(ctx context.Context) bool {
	c.probe.Lock()
	defer c.probe.Unlock()
	if !c.probed && time.Since(c.asked) > probeAgain {
		_, nonsense := c.ask(ctx, "Nonsense")
		_, sense := c.ask(ctx, corev1.LogStreamStdout)
		c.probed = (apierrors.IsInvalid(nonsense) || apierrors.IsNotFound(nonsense)) &&
			(apierrors.IsInvalid(sense) || apierrors.IsNotFound(sense))
		c.splits = apierrors.IsInvalid(nonsense) && apierrors.IsNotFound(sense)
		if ctx.Err() == nil { // else it is not known how long an answer takes
			c.asked = time.Now()
		}
	}
	return c.splits
}

func (c *Cluster) ask(ctx context.Context, stream string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.log(probePod, &corev1.PodLogOptions{Stream: &stream}).DoRaw(ctx)
}
