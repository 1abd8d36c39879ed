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
	mu        sync.Mutex
	changed   chan struct{}
	lines     []sourceLine
	ended     bool
	rotated   int // lines before this one are in another file than the current one
	rotations int
	removed   int // lines before this one are in no file any more
	skipped   int // reads that follow pass over lines before this one
	reads     int
	cut       int // grows with each Cut
	cutWith   error
	limit     func(read int) (bytes int, err error)
	kept      int
	keptLim   func(read int) (bytes int, err error)
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

// Rotate puts all lines so far into another file, where only Kept will find them.
func (s *Source) Rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotated = len(s.lines)
	s.rotations++
}

// Remove removes the files with lines that were rotated away, but for the newest lines.
func (s *Source) Remove(but int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = max(s.removed, s.rotated-but)
}

// PrintUnseen appends a line to a file that reads which follow pass over, as they do when
// there are two rotations at once.
func (s *Source) PrintUnseen(stamp time.Time, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, sourceLine{stamp: stamp, text: text})
	s.skipped, s.rotated = len(s.lines), len(s.lines)
	s.rotations++
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

// LimitKept is Limit for Kept.
func (s *Source) LimitKept(limit func(read int) (bytes int, err error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keptLim = limit
}

// Kept opens all files that there are of the log, and tells how often it was rotated.
func (s *Source) Kept(ctx context.Context) (body io.ReadCloser, rotations int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept++
	r := newReader(ctx, s)
	r.next, r.last = s.removed, len(s.lines)
	if s.keptLim != nil {
		r.left, r.limitErr = s.keptLim(s.kept)
	}
	return r, s.rotations
}

// KeptReads returns how often Kept was called.
func (s *Source) KeptReads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
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
	r := newReader(ctx, s)
	r.since, r.follow, r.next = since, follow, s.rotated
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
	last     int // lines from this one on are not seen, unless it is 0
	cut      int
	pending  bytes.Buffer
	left     int
	limitErr error
	closed   chan struct{}
	close    func()
}

// newReader begins a read of a source that is locked.
func newReader(ctx context.Context, s *Source) *sourceReader {
	r := &sourceReader{ctx: ctx, source: s, cut: s.cut, left: -1, closed: make(chan struct{})}
	r.close = sync.OnceFunc(func() { close(r.closed) })
	return r
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
			case <-r.closed:
				return 0, io.ErrClosedPipe
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
	if r.follow {
		r.next = max(r.next, s.skipped)
	}
	for ; r.next < len(s.lines) && (r.last == 0 || r.next < r.last) && r.pending.Len() < 32<<10; r.next++ {
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
	r.close()
	return nil
}
