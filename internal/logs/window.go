package logs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// errMoved says that the reader must begin again at the window's new tail.
	errMoved = errors.New("the log server wants another position")
	// errAck says that a server acknowledged what it cannot have.
	errAck = errors.New("impossible acknowledgement")
)

// windowLimits bound one window and its batches.
type windowLimits struct {
	lines      int           // of a batch
	batchBytes int           // encoded size of a batch
	batches    int           // that are not acknowledged
	bytes      int           // that are not acknowledged
	linger     time.Duration // how long a batch waits for more lines
}

// A budget bounds the memory of all windows together. Over it, a window holds one
// batch at a time, of leastBatch: every log keeps moving, none takes more.
type budget struct {
	limit int64
	used  atomic.Int64
}

// leastBatch is how large a batch may grow while the budget is exceeded, encoded.
// Its first line may be larger.
const leastBatch = 4 << 10

func (b *budget) exceeded() bool { return b.used.Load() > b.limit }

// A window holds the lines of one container instance that are read and not
// acknowledged, as batches.
//
// One reader adds lines at its tail. One sender takes batches to send, and moves
// its head by what the server says. Both may be replaced at any time: the window
// is what stays.
type window struct {
	limits windowLimits
	budget *budget

	// space wakes a reader that waits for room; work wakes the sender.
	space, work chan struct{}

	mu      sync.Mutex
	batches []*batch // from the oldest; only the last may be unsealed
	sent    int      // how many of batches were sent on the current stream, since the last rewind
	reached int      // how many of batches were sent on the current stream at all
	bytes   int      // of the sealed batches
	acked   Cursor
	tail    Cursor
	seconds seconds                   // of the lines up to tail
	hint    struct{ data, lines int } // what the last sealed batch held

	// generation grows when the server wants a position that is not in the window.
	// Then everything read before is void, and stopRead ends the reading.
	generation int
	stopRead   context.CancelFunc

	resumed  bool          // the server has said where to begin
	ready    chan struct{} // closed with resumed
	finished bool          // the reader has read the whole log
	draining bool          // nothing will be added, whether finished or not
	notUntil time.Time     // the server asked for a pause until then
	progress time.Time     // when a batch in flight was last acknowledged, or the first one sent
}

func newWindow(limits windowLimits, total *budget) *window {
	return &window{
		limits: limits,
		budget: total,
		space:  make(chan struct{}, 1),
		work:   make(chan struct{}, 1),
		ready:  make(chan struct{}),
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// attach begins a reading at the tail. The window calls stop when the reading is
// void. Lines of another generation are refused.
func (w *window) attach(stop context.CancelFunc) (generation int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopRead = stop
	return w.generation
}

// end returns the cursor behind the last line that was added.
func (w *window) end() Cursor {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tail
}

// recount replaces what is known about the stamps before the tail by what a
// reader has seen of them, which is at least as much.
func (w *window) recount(generation int, seen seconds) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.generation == generation {
		w.seconds = seen
	}
}

// add appends a line, which ends with a line feed. It blocks while the window is full.
func (w *window) add(ctx context.Context, generation int, stamp int64, text []byte) error {
	for {
		w.mu.Lock()
		if w.generation != generation {
			w.mu.Unlock()
			return errMoved
		}
		last := w.open()
		if last != nil && !last.fits(stamp, text, w.allowed()) {
			w.seal()
			wake(w.work)
			last = nil
		}
		if last == nil && w.hasRoom() {
			last = w.begin(stamp)
			wake(w.work)
		}
		if last != nil {
			w.tail.advance(stamp, text, w.seconds.count(floorSecond(stamp)))
			last.add(stamp, text, w.tail)
			w.account(last)
			if len(last.lengths) == w.limits.lines {
				w.seal()
				wake(w.work)
			}
			w.mu.Unlock()
			return nil
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.space:
		}
	}
}

// open returns the batch that lines are added to, or nil.
func (w *window) open() *batch {
	if n := len(w.batches); n > 0 && !w.batches[n-1].sealed {
		return w.batches[n-1]
	}
	return nil
}

// allowed returns the limits of a batch as they are now.
func (w *window) allowed() windowLimits {
	limits := w.limits
	if w.budget.exceeded() {
		limits.batchBytes = min(limits.batchBytes, leastBatch)
	}
	return limits
}

// account charges the budget for what a batch has taken since it was last charged.
func (w *window) account(b *batch) {
	if grown := b.memory() - b.charged; grown != 0 {
		b.charged += grown
		w.budget.used.Add(int64(grown))
	}
}

// hasRoom reports whether another batch may begin.
func (w *window) hasRoom() bool {
	if len(w.batches) == 0 {
		return true
	}
	return len(w.batches) < w.limits.batches && w.bytes < w.limits.bytes && !w.budget.exceeded()
}

func (w *window) begin(stamp int64) *batch {
	b := &batch{first: w.tail.Sequence + 1, base: stamp, latest: stamp, born: time.Now()}
	if w.hint.lines > 0 && !w.budget.exceeded() {
		// Logs are steady: the next batch will be about as big as the last one.
		b.data = make([]byte, 0, w.hint.data+w.hint.data/8)
		b.lengths = make([]uint32, 0, w.hint.lines)
		b.deltas = make([]uint32, 0, w.hint.lines)
	}
	w.batches = append(w.batches, b)
	w.account(b)
	return b
}

func (w *window) seal() {
	b := w.batches[len(w.batches)-1]
	b.sealed = true
	w.hint.data, w.hint.lines = len(b.data), len(b.lengths)
	w.bytes += b.size()
}

// finish says that the reader has read the whole log.
func (w *window) finish(generation int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.generation == generation {
		w.finished = true
		wake(w.work)
	}
}

// drain says that nothing will be added any more: what is left is sent at once.
func (w *window) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.draining = true
	if w.stopRead != nil {
		w.stopRead()
	}
	wake(w.work)
}

func (w *window) isDraining() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.draining
}

// A step is what the sender is to do next.
type step int

const (
	stepSend     step = iota // send a batch
	stepComplete             // every line is acknowledged, and the log is complete
	stepDrained              // every line is acknowledged, and no more will be read
)

// next blocks until there is something to do for the sender.
func (w *window) next(ctx context.Context) (step, *batch, error) {
	var timer *time.Timer
	for {
		what, b, wait := w.try(time.Now())
		if wait == 0 {
			return what, b, nil
		}
		if timer == nil {
			timer = time.NewTimer(wait)
			defer timer.Stop()
		} else {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return 0, nil, context.Cause(ctx)
		case <-w.work:
		case <-timer.C:
		}
	}
}

// try returns what to do now, or how long to wait if nothing happens before.
func (w *window) try(now time.Time) (step, *batch, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	const idle = time.Hour
	switch {
	case len(w.batches) == 0 && w.finished:
		return stepComplete, nil, 0
	case len(w.batches) == 0 && w.draining:
		return stepDrained, nil, 0
	case w.sent == len(w.batches):
		return 0, nil, idle
	}
	if pause := w.notUntil.Sub(now); pause > 0 {
		return 0, nil, pause
	}
	b := w.batches[w.sent]
	if !b.sealed {
		if wait := b.born.Add(w.limits.linger).Sub(now); wait > 0 && !w.finished && !w.draining {
			return 0, nil, wait
		}
		w.seal()
	}
	if w.sent == 0 {
		w.progress = now
	}
	w.sent++
	w.reached = max(w.reached, w.sent)
	return stepSend, b, 0
}

// resume begins a stream: the server has everything up to the cursor and nothing
// behind it. It reports how far the reading has to go back, in lines.
func (w *window) resume(at Cursor) (lost uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent, w.reached = 0, 0
	w.notUntil = time.Time{}
	defer wake(w.work)
	first := !w.resumed
	if first {
		w.resumed = true
		close(w.ready)
	}
	if n, ok := w.boundary(at.Sequence); ok && !first {
		w.forget(n)
		return 0
	}
	if at.Sequence < w.acked.Sequence {
		lost = w.acked.Sequence - at.Sequence
	}
	w.forget(len(w.batches))
	w.acked, w.tail = at, at
	w.seconds = seconds{second: at.Second(), lines: at.LinesInSecond}
	w.finished = false
	w.generation++
	if w.stopRead != nil {
		w.stopRead()
	}
	return lost
}

// boundary returns how many batches end at or before a sequence number, if a
// batch ends exactly there or nothing lies before it.
func (w *window) boundary(sequence uint64) (n int, ok bool) {
	if sequence == w.acked.Sequence {
		return 0, true
	}
	for i, b := range w.batches {
		if b.sealed && b.end.Sequence == sequence {
			return i + 1, true
		}
	}
	return 0, false
}

// forget drops the oldest n batches.
func (w *window) forget(n int) {
	for _, b := range w.batches[:n] {
		w.acked = b.end
		if b.sealed {
			w.bytes -= b.size()
		}
		w.budget.used.Add(-int64(b.charged))
	}
	rest := copy(w.batches, w.batches[n:])
	clear(w.batches[rest:])
	w.batches = w.batches[:rest]
	w.sent, w.reached = max(0, w.sent-n), max(0, w.reached-n)
	if n > 0 {
		wake(w.space)
	}
}

// acknowledge moves the head to a sequence number that is in flight, and returns
// how many lines and bytes that were. With rewind, all later batches are sent
// again, after a pause.
func (w *window) acknowledge(sequence uint64, rewind bool, pause time.Duration) (lines, bytes uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.boundary(sequence)
	// A batch that is to be sent again may be stored in the meantime: it was sent before.
	if !ok || n > w.reached {
		sent := w.acked.Sequence
		if w.reached > 0 {
			sent = w.batches[w.reached-1].end.Sequence
		}
		return 0, 0, fmt.Errorf("%w: line %d, where line %d is acknowledged and line %d was sent",
			errAck, sequence, w.acked.Sequence, sent)
	}
	before, now := w.acked, time.Now()
	w.forget(n)
	if n > 0 {
		w.progress = now
	}
	if rewind {
		w.sent = 0
		w.notUntil = now.Add(pause)
	}
	if rewind || len(w.batches) == 0 {
		wake(w.work)
	}
	return w.acked.Sequence - before.Sequence, w.acked.Bytes - before.Bytes, nil
}

// silence returns for how long the server may stay silent before it has let a
// batch in flight wait for longer than the timeout.
func (w *window) silence(now time.Time, timeout time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sent == 0 {
		return timeout
	}
	return timeout - now.Sub(w.progress)
}

// settled returns the last acknowledged line and whether nothing waits for the server.
func (w *window) settled() (Cursor, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked, len(w.batches) == 0
}

// release gives everything back to the budget.
func (w *window) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	acked := w.acked
	w.forget(len(w.batches))
	w.acked = acked
}
