package logs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/spool"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
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
// batch at a time to send, of leastBatch, and with a spool one more to read into: every log
// keeps moving, none takes more.
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
//
// Between what is in flight and what was read last, there may be more on disk than
// fits in memory: the backlog. Until the server lags behind, there is none, and
// batches go from the reader to the sender without touching the disk.
type window struct {
	limits  windowLimits
	budget  *budget
	backlog *backlog // nil without a spool

	// space wakes a reader that waits for room; work wakes the sender.
	space, work chan struct{}

	mu      sync.Mutex
	batches []*batch // from the oldest, all numbered: those that were sent or will be next
	sent    int      // how many of batches were sent on the current stream, since the last rewind
	reached int      // how many of batches were sent on the current stream at all
	fresh   []*batch // what was read last, behind the backlog; only the last may be unsealed
	bytes   int      // of the sealed ones of both
	acked   Cursor
	tail    Cursor                    // numbered as if nothing had ever been dropped; see batch.end
	seconds seconds                   // of the lines up to tail
	hint    struct{ data, lines int } // what the last sealed batch held
	flush   *time.Timer               // set while something in memory is to be kept on disk, too

	// generation grows when the server wants a position that is not in the window.
	// Then everything read before is void, and stopRead ends the reading.
	generation int
	stopRead   context.CancelFunc

	resumed  bool          // the server has said where to begin
	ready    chan struct{} // closed with resumed
	finished bool          // the reader has read the whole log
	draining bool          // nothing will be added, whether finished or not
	released bool          // nobody reads or sends any more
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

// restore gives a new window what an earlier relay has left in the spool. Its last record
// says where to read on.
func (w *window) restore(b *backlog, last []byte) error {
	w.backlog = b
	if last == nil {
		return nil
	}
	newest, err := decode(last)
	if err != nil {
		return err
	}
	oldest, err := b.next()
	if err != nil {
		return err
	}
	w.acked, w.tail = oldest.start, newest.end
	w.seconds = seconds{second: w.tail.Second(), lines: w.tail.LinesInSecond}
	w.load(oldest)
	return nil
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

// add appends a line, which ends with a line feed. It blocks while there is no
// room, and then tells a pause about it. With more, it takes further lines that fit in
// the same batch.
func (w *window) add(ctx context.Context, generation int, pause *pause, stamp int64, text []byte, stream logsv1.Stream, more *lineReader) error {
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
		var patience time.Duration
		if last == nil {
			if patience = w.makeRoom(stamp, pause); patience == 0 && !pause.doubtful() {
				last = w.begin(stamp)
				wake(w.work)
			}
		}
		if last != nil {
			w.append(last, stamp, text, stream)
			if more != nil {
				limits := w.allowed()
				for stamp, text, ok := more.peek(); ok && last.fits(stamp, text, limits); stamp, text, ok = more.peek() {
					w.append(last, stamp, text, logsv1.Stream_STREAM_UNSPECIFIED)
					more.take()
				}
			}
			w.account(last)
			if len(last.lengths) == w.limits.lines {
				w.seal()
				wake(w.work)
			}
			w.mu.Unlock()
			return nil
		}
		w.mu.Unlock()
		if patience == 0 {
			return errDoubt
		}
		timer := time.NewTimer(patience)
		select {
		case <-ctx.Done():
		case <-w.space:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause.look(ctx)
	}
}

// append appends a line to a batch.
func (w *window) append(b *batch, stamp int64, text []byte, stream logsv1.Stream) {
	w.tail.advance(stamp, w.seconds.count(stamp))
	b.add(stamp, text, stream, w.tail)
}

// addGap appends a gap. It never blocks: it is small, and nothing may be left out
// in silence.
func (w *window) addGap(generation int, gap *logsv1.Gap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.generation != generation {
		return
	}
	if w.open() != nil {
		w.seal()
	}
	if w.tail.Sequence > 0 {
		gap.FromTime = timestamp(w.tail.Time)
	}
	b := newGap(w.tail, gap)
	// Whoever goes on behind the gap finds the line that ended it, and needs no other gap.
	b.end.Time, b.end.LinesInSecond = w.tail.Time+1, 0
	if gap.GetToTime() != nil {
		b.end.Time = nanos(gap.GetToTime())
	}
	w.tail = b.end
	w.fresh = append(w.fresh, b)
	w.bytes += b.size()
	w.account(b)
	w.keepSoon()
	wake(w.work)
}

// open returns the batch that lines are added to, or nil.
func (w *window) open() *batch {
	if n := len(w.fresh); n > 0 && !w.fresh[n-1].sealed {
		return w.fresh[n-1]
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

// makeRoom returns 0 if another batch may begin, else for how long to wait for room
// before asking again. Where the server lags behind, it moves batches to the spool.
func (w *window) makeRoom(stamp int64, pause *pause) time.Duration {
	lagging := w.backlog.unread() > 0
	if w.hasRoom() && !lagging {
		return 0
	}
	if w.backlog == nil {
		return pause.begin(true)
	}
	if !lagging {
		oldest := w.oldest()
		if left := spillAge - time.Since(oldest.born); left > 0 {
			return left // the server may just be about to take it
		}
	}
	if w.backlog.log.Pressed() && !pause.hurries(stamp) {
		return pause.begin(false)
	}
	if err := w.spill(); err != nil {
		if !errors.Is(err, spool.ErrFull) {
			w.backlog.trouble("keeping lines", err)
		}
		return pause.begin(true)
	}
	return 0
}

// hasRoom reports whether another batch may begin in memory.
func (w *window) hasRoom() bool {
	n := len(w.batches) + len(w.fresh)
	return n == 0 || (n < w.limits.batches && w.bytes < w.limits.bytes && !w.budget.exceeded())
}

// oldest returns the oldest batch in memory, or nil.
func (w *window) oldest() *batch {
	switch {
	case len(w.batches) > 0:
		return w.batches[0]
	case len(w.fresh) > 0:
		return w.fresh[0]
	}
	return nil
}

func (w *window) begin(stamp int64) *batch {
	b := &batch{start: w.tail, base: stamp, latest: stamp, born: time.Now()}
	if w.hint.lines > 0 && !w.budget.exceeded() {
		// Logs are steady: the next batch will be about as big as the last one.
		b.data = texts.text(w.hint.data + w.hint.data/8)
		b.lengths = make([]uint32, 0, w.hint.lines)
		b.deltas = make([]uint32, 0, w.hint.lines)
	}
	w.fresh = append(w.fresh, b)
	w.account(b)
	w.keepSoon()
	return b
}

func (w *window) seal() {
	b := w.fresh[len(w.fresh)-1]
	b.seal()
	w.tail = b.end
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
	stepRotate               // what was sent is acknowledged, and the stream is old enough
)

// next blocks until there is something to do for the sender, whose stream is to be
// ended at a time. A batch's text is to be freed once it was sent.
func (w *window) next(ctx context.Context, until time.Time) (step, *batch, error) {
	var timer *time.Timer
	for {
		what, b, wait := w.try(time.Now(), until)
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
func (w *window) try(now, until time.Time) (step, *batch, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	age := until.Sub(now)
	idle := max(age, time.Millisecond)
	if age <= 0 {
		idle = time.Hour // until an acknowledgement
	}
	switch empty := w.empty(); {
	case empty && w.finished:
		return stepComplete, nil, 0
	case empty && w.draining:
		return stepDrained, nil, 0
	}
	if age <= 0 {
		if w.sent == 0 {
			return stepRotate, nil, 0
		}
		return 0, nil, idle
	}
	if pause := w.notUntil.Sub(now); pause > 0 {
		return 0, nil, min(pause, idle)
	}
	if w.sent == len(w.batches) {
		if wait := w.refill(now); wait > 0 {
			return 0, nil, min(wait, idle)
		}
	}
	if w.sent == len(w.batches) {
		return 0, nil, idle
	}
	b := w.batches[w.sent]
	if w.sent == 0 {
		w.progress = now
	}
	w.sent++
	w.reached = max(w.reached, w.sent)
	b.text.Ref() // it may be acknowledged while it is sent, if it was sent before
	return stepSend, b, 0
}

// empty reports whether every line that was read is acknowledged.
func (w *window) empty() bool {
	return len(w.batches) == 0 && len(w.fresh) == 0 && w.backlog.unread() == 0
}

// refill takes the next batch to send, if there is one and the server may have one
// more, or returns how long to wait for one that is not full.
func (w *window) refill(now time.Time) time.Duration {
	const idle = time.Hour
	inFlight := 0
	for _, b := range w.batches {
		inFlight += b.size()
	}
	if n := len(w.batches); n > 0 && (n >= w.limits.batches || inFlight >= w.limits.bytes) {
		return idle
	}
	if w.backlog.unread() > 0 {
		if len(w.batches) > 0 && w.budget.exceeded() {
			return idle // it is safe where it is
		}
		w.refillFromDisk()
		return 0
	}
	if len(w.fresh) == 0 {
		return idle
	}
	b := w.fresh[0]
	if !b.sealed {
		if wait := b.born.Add(w.limits.linger).Sub(now); wait > 0 && !w.finished && !w.draining {
			return wait
		}
		w.seal()
	}
	w.fresh[0] = nil
	w.fresh = w.fresh[1:]
	if len(w.fresh) == 0 {
		w.fresh = nil
	}
	b.renumber(w.numbered())
	if parts := b.split(w.limits); len(parts) > 1 { // the server has become stricter
		w.bytes -= b.size()
		w.budget.used.Add(-int64(b.charged))
		for _, part := range parts {
			w.take(part)
		}
		return 0
	}
	w.batches = append(w.batches, b)
	return 0
}

// numbered returns the cursor behind the last batch that has its final numbers.
func (w *window) numbered() Cursor {
	if n := len(w.batches); n > 0 {
		return w.batches[n-1].end
	}
	return w.acked
}

// take appends a batch from the backlog to those that are sent next.
func (w *window) take(b *batch) {
	b.renumber(w.numbered())
	for _, part := range b.split(w.limits) {
		w.batches = append(w.batches, part)
		w.bytes += part.size()
		w.account(part)
	}
}

// allow changes the limits to what the server wants, which is known only once it
// has answered.
func (w *window) allow(limits windowLimits) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limits = limits
}

// left counts the lines that were read and are not acknowledged, and reports whether
// they are all that was left.
func (w *window) left() (lines, bytes uint64, all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	count := func(b *batch) {
		if b.gap == nil {
			lines += uint64(len(b.lengths))
			bytes += uint64(b.textBytes()) //nolint:gosec // each line has a line feed
		}
	}
	for _, b := range slices.Concat(w.batches, w.fresh) {
		count(b)
	}
	for w.backlog.unread() > 0 { // nobody will send it
		b, err := w.backlog.next()
		if err != nil {
			break
		}
		count(b)
	}
	return lines, bytes, w.finished
}

// refillFromDisk takes the oldest batch of the backlog. If it cannot be read, what
// lies behind it is read from the kubelet again.
func (w *window) refillFromDisk() {
	b, err := w.backlog.next()
	if err != nil {
		w.backlog.trouble("reading the spool", err)
		w.void(w.numbered())
		return
	}
	w.load(b)
}

// load takes a batch from the backlog. A gap was made when nobody looked at what lies
// behind it.
func (w *window) load(b *batch) {
	w.take(b)
	if b.gap == nil || b.gap.GetToTime() != nil {
		return
	}
	switch behind, err := w.backlog.next(); {
	case err == nil:
		b.gap.ToTime = timestamp(behind.base)
		w.take(behind)
	case len(w.fresh) > 0:
		b.gap.ToTime = timestamp(w.fresh[0].base)
	}
}

// resume begins a stream: the server has everything up to the cursor and nothing
// behind it. It reports how far the reading has to go back, in lines.
func (w *window) resume(at Cursor) (lost uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent, w.reached = 0, 0
	w.notUntil = time.Time{}
	defer wake(w.work)
	if !w.resumed {
		w.resumed = true
		close(w.ready)
	}
	before := w.acked.Sequence
	if w.locate(at) {
		return 0
	}
	if at.Sequence < before {
		lost = before - at.Sequence
	}
	w.forget(len(w.batches))
	w.acked = at
	w.void(at)
	return lost
}

// locate moves the head to where the server is, if that lies between two batches
// of what was read. The batches behind it get the numbers that follow the server's.
func (w *window) locate(at Cursor) bool {
	// What counts the same lines is the same place. After a restart, or when another relay
	// was at work meanwhile, the same place may have another number.
	for _, same := range []func(Cursor) bool{
		func(c Cursor) bool { return c.Sequence == at.Sequence && c.Checksum == at.Checksum },
		func(c Cursor) bool { return c.Sequence > 0 && c.place() == at.place() },
	} {
		if same(w.acked) {
			w.goOn(0, at)
			return true
		}
		for i, b := range w.batches {
			if same(b.end) {
				w.goOn(i+1, at)
				return true
			}
		}
	}
	for w.backlog.unread() > 0 {
		b, err := w.backlog.next()
		if err != nil {
			return false
		}
		w.forget(len(w.batches)) // it is behind them, or nowhere
		w.take(b)
		if b.end.place() == at.place() {
			w.goOn(len(w.batches), at)
			return true
		}
	}
	for i, b := range w.fresh {
		if b.sealed && b.end.place() == at.place() {
			w.forget(len(w.batches))
			w.batches = append(w.batches, w.fresh[:i+1]...)
			w.fresh = append([]*batch(nil), w.fresh[i+1:]...)
			w.goOn(i+1, at)
			return true
		}
	}
	return false
}

// goOn forgets the oldest n batches and goes on with the server's numbers.
func (w *window) goOn(n int, at Cursor) {
	w.forget(n)
	// The server's own word for the place is not taken: it may have lost some of the time.
	at.Time, at.LinesInSecond = w.acked.Time, w.acked.LinesInSecond
	w.acked = at
	for _, b := range w.batches {
		b.renumber(at)
		at = b.end
	}
}

// void forgets everything that was read behind the numbered batches, and has it read
// again from a cursor.
func (w *window) void(from Cursor) {
	for _, b := range w.fresh {
		if b.sealed {
			w.bytes -= b.size()
		}
		w.budget.used.Add(-int64(b.charged))
	}
	w.fresh = nil
	w.backlog.reset()
	for _, b := range w.batches {
		b.kept, b.record = false, 0
	}
	w.tail = from
	w.seconds = seconds{second: from.Second(), lines: from.LinesInSecond}
	w.finished = false
	w.generation++
	if w.stopRead != nil {
		w.stopRead()
	}
	wake(w.space)
	w.keepSoon()
}

// boundary returns how many batches end at or before a sequence number, if a
// batch ends exactly there or nothing lies before it.
func (w *window) boundary(sequence uint64) (n int, ok bool) {
	if sequence == w.acked.Sequence {
		return 0, true
	}
	for i, b := range w.batches {
		if b.end.Sequence == sequence {
			return i + 1, true
		}
	}
	return 0, false
}

// forget drops the oldest n batches.
func (w *window) forget(n int) {
	var done uint64
	for _, b := range w.batches[:n] {
		w.acked = b.end
		w.bytes -= b.size()
		w.budget.used.Add(-int64(b.charged))
		b.text.Free()
		done = max(done, b.record)
	}
	w.backlog.trim(done)
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
	if rewind || w.sent == 0 || w.sent == len(w.batches) {
		wake(w.work) // there may be room for more
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

// mostInFlight returns how many batches may wait for an acknowledgement.
func (w *window) mostInFlight() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.limits.batches
}

// settled returns the last acknowledged line and whether nothing waits for the server.
func (w *window) settled() (Cursor, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked, w.empty()
}

// release ends the window. What it has read and nobody has acknowledged stays in the
// spool, if there is one and the log is not complete.
func (w *window) release(complete bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.released = true
	if w.flush != nil {
		w.flush.Stop()
		w.flush = nil
	}
	if w.backlog != nil {
		if !complete {
			if w.open() != nil {
				w.seal()
			}
			if err := w.spill(); err != nil {
				w.backlog.trouble("keeping lines", err)
			}
		}
		w.backlog.end(complete)
	}
	for _, b := range slices.Concat(w.batches, w.fresh) {
		w.budget.used.Add(-int64(b.charged))
	}
	w.batches, w.fresh, w.backlog, w.bytes, w.sent, w.reached = nil, nil, nil, 0, 0, 0
}
