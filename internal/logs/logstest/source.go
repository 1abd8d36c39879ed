package logstest

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"
)

// A Source is the log of one container instance as a kubelet keeps it. Each read
// of it sees what is there, and, if it follows, what comes. It breaks on command.
type Source struct {
	mu      sync.Mutex
	changed chan struct{}
	lines   []sourceLine
	ended   bool
	rotated int // lines before this one are in a file that nobody reads
	reads   int
	cut     int // grows with each Cut
	cutWith error
	limit   func(read int) (bytes int, err error)
}

type sourceLine struct {
	stamp time.Time
	text  string
	torn  bool // no line end yet
}

// NewSource returns the log of an instance that has just begun.
func NewSource() *Source { return &Source{changed: make(chan struct{})} }

func (s *Source) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Print appends a line that the runtime stamps with the given time.
func (s *Source) Print(stamp time.Time, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, sourceLine{stamp: stamp, text: text})
	s.notify()
}

// PrintTorn appends the beginning of a line; it must be the last thing printed.
func (s *Source) PrintTorn(stamp time.Time, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, sourceLine{stamp: stamp, text: text, torn: true})
	s.notify()
}

// End says that the instance has ended: reads end after its last line.
func (s *Source) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.notify()
}

// Rotate puts all lines so far into another file, where no read will find them.
func (s *Source) Rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotated = len(s.lines)
}

// Cut breaks every read that goes on now. A nil error is a clean end.
func (s *Source) Cut(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut++
	s.cutWith = err
	s.notify()
}

// Limit makes each read end after some bytes, which may be within a line, with an
// error, which may be nil. The function is asked at the beginning of each read,
// which are numbered from 1; negative bytes are no limit.
func (s *Source) Limit(limit func(read int) (bytes int, err error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
}

// Reads returns how often the log was opened.
func (s *Source) Reads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// stampLayout is how the kubelet writes a stamp.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

// Open opens the log as the Kubernetes API does. Lines that are older than since
// are left out.
func (s *Source) Open(ctx context.Context, since time.Time, follow bool) io.ReadCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	r := &sourceReader{ctx: ctx, source: s, since: since, follow: follow, next: s.rotated, cut: s.cut, left: -1}
	if s.limit != nil {
		r.left, r.limitErr = s.limit(s.reads)
	}
	return r
}

type sourceReader struct {
	ctx      context.Context //nolint:containedctx // it is that of the read, which has no other place for it
	source   *Source
	since    time.Time
	follow   bool
	next     int
	cut      int
	pending  bytes.Buffer
	left     int
	limitErr error
	closed   sync.Once
}

// Read implements [io.Reader].
func (r *sourceReader) Read(p []byte) (int, error) {
	for {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		if r.left == 0 {
			return 0, orEOF(r.limitErr)
		}
		if r.pending.Len() > 0 {
			if r.left > 0 {
				p = p[:min(len(p), r.left)]
			}
			n, err := r.pending.Read(p)
			if r.left > 0 {
				r.left -= n
			}
			return n, err
		}
		wait, err := r.fill()
		if err != nil {
			return 0, err
		}
		if wait != nil {
			select {
			case <-wait:
			case <-r.ctx.Done():
			}
		}
	}
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// fill takes lines from the source, or returns a channel to wait for.
func (r *sourceReader) fill() (<-chan struct{}, error) {
	s := r.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.cut != s.cut {
		return nil, orEOF(s.cutWith)
	}
	for ; r.next < len(s.lines) && r.pending.Len() < 32<<10; r.next++ {
		l := s.lines[r.next]
		if l.torn && !s.ended && r.follow {
			break // the kubelet waits for the rest
		}
		if l.stamp.Truncate(0).Before(r.since) {
			continue
		}
		r.pending.WriteString(l.stamp.Format(stampLayout))
		r.pending.WriteByte(' ')
		r.pending.WriteString(l.text)
		if !l.torn {
			r.pending.WriteByte('\n')
		}
	}
	if r.pending.Len() > 0 {
		return nil, nil
	}
	if s.ended || !r.follow {
		return nil, io.EOF
	}
	return s.changed, nil
}

// Close implements [io.Closer].
func (r *sourceReader) Close() error {
	r.closed.Do(func() {})
	return nil
}
