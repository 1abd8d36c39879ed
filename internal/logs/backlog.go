package logs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/spool"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// spillAge is how long a line waits for its acknowledgement in memory alone. After that
// it is kept on disk as well, so that it outlives the relay and makes room for what
// the worker prints meanwhile. A server that keeps up never makes a log touch the disk.
const spillAge = 250 * time.Millisecond

// The reasons of gaps.
const (
	reasonRotated   = "rotated"
	reasonSpoolFull = "spool_full"
	reasonTruncated = "truncated"
)

// A backlog is a window's part of the spool. A nil backlog has nothing and takes nothing.
type backlog struct {
	log     *spool.Log
	metrics *metrics
	logger  *slog.Logger

	lostLines, lostBytes atomic.Uint64
}

// openBacklog opens what an earlier relay has left of a log, or an empty backlog, and
// returns its last record.
func openBacklog(store *spool.Store, in Instance, m *metrics, logger *slog.Logger) (*backlog, []byte, error) {
	b := &backlog{metrics: m, logger: logger}
	log, last, err := store.OpenLog(string(in.PodUID), in.spoolName(), b.fold)
	b.log = log
	return b, last, err
}

// openSpool gives the follower its part of the spool, with what an earlier relay has left
// in it. If that cannot be read, it is left out: the kubelet may have it still. If the disk
// is in trouble, the follower goes on without, and the answer is nil.
func (f *follower) openSpool(store *spool.Store) *backlog {
	b, last, err := openBacklog(store, f.instance, f.metrics, f.log)
	if err != nil {
		b.trouble("opening the spool", err)
		return nil
	}
	if err := f.window.restore(b, last); err != nil {
		b.trouble("reading what is left in the spool", err)
		b.reset()
	}
	return b
}

func (b *backlog) unread() int64 {
	if b == nil {
		return 0
	}
	return b.log.Unread()
}

// next returns the oldest batch that was not returned.
func (b *backlog) next() (*batch, error) {
	record, id, err := b.log.Next()
	if err != nil {
		return nil, err
	}
	next, err := decode(record)
	if err != nil {
		return nil, err
	}
	next.record, next.kept, next.born = id, true, time.Now()
	return next, nil
}

func (b *backlog) trim(id uint64) {
	if b == nil || id == 0 {
		return
	}
	if err := b.log.Trim(id); err != nil {
		b.trouble("trimming the spool", err)
	}
}

func (b *backlog) reset() {
	if b == nil {
		return
	}
	if err := b.log.Reset(); err != nil {
		b.trouble("emptying the spool", err)
	}
}

func (b *backlog) end(complete bool) {
	if !complete {
		b.log.Close()
		return
	}
	if err := b.log.Remove(); err != nil {
		b.trouble("removing from the spool", err)
	}
}

// trouble tells of an error that costs no line by itself.
func (b *backlog) trouble(what string, err error) {
	b.metrics.spoolErrors.Inc()
	b.logger.Warn("trouble with the spool", "doing", what, "err", err)
}

// fold makes the gap that stands for the batches of some records.
func (b *backlog) fold(records [][]byte) []byte {
	var (
		folded *batch
		last   Cursor
		fresh  struct{ lines, bytes uint64 } // what is lost by this fold
		gap    = &logsv1.Gap{Reason: reasonSpoolFull}
	)
	for _, record := range records {
		part, err := decode(record)
		if err != nil {
			continue // it was counted by its checksum; a version that we don't know is lost like the rest
		}
		if folded == nil {
			if part.start.Sequence > 0 {
				gap.FromTime = timestamp(part.start.Time)
			}
			folded = newGap(part.start, gap)
		}
		if part.gap != nil {
			gap.LineCount += part.gap.GetLineCount()
			gap.ByteCount += part.gap.GetByteCount()
		} else {
			fresh.lines += uint64(len(part.lengths))
			fresh.bytes += uint64(part.textBytes()) //nolint:gosec // each line has a line feed
		}
		last = part.end
	}
	if folded == nil {
		folded = newGap(Cursor{}, gap)
	}
	gap.LineCount += fresh.lines
	gap.ByteCount += fresh.bytes
	gap.Message = fmt.Sprintf("%d lines were dropped because the log server had not taken them in time", gap.GetLineCount())
	folded.end.Time, folded.end.LinesInSecond = last.Time, last.LinesInSecond

	b.metrics.gaps.WithLabelValues(reasonSpoolFull).Inc()
	b.metrics.lostLines.WithLabelValues(reasonSpoolFull).Add(float64(fresh.lines))
	if b.lostLines.Add(fresh.lines) == fresh.lines {
		b.logger.Error("the spool is full: the oldest lines are dropped until the log server takes some", "lines", fresh.lines)
	}
	b.lostBytes.Add(fresh.bytes)
	record, err := folded.encode()
	if err != nil {
		panic(err) // it has no text that could be malformed
	}
	return record
}

// spill writes to the spool what is only in memory, from the oldest, and takes from
// memory what is not to be sent next.
func (w *window) spill() error {
	for _, b := range w.batches {
		if b.kept {
			continue
		}
		if err := w.write(b); err != nil {
			return err
		}
		w.backlog.log.Skip(b.record)
	}
	n := 0
	defer func() {
		clear(w.fresh[:n])
		if w.fresh = w.fresh[n:]; len(w.fresh) == 0 {
			w.fresh = nil
		}
		if n > 0 {
			wake(w.work)
		}
	}()
	for ; n < len(w.fresh) && w.fresh[n].sealed; n++ {
		b := w.fresh[n]
		if err := w.write(b); err != nil {
			return err
		}
		w.bytes -= b.size()
		w.budget.used.Add(-int64(b.charged))
	}
	return nil
}

func (w *window) write(b *batch) error {
	record, err := b.encode()
	if err != nil {
		return err
	}
	if b.record, err = w.backlog.log.Append(record); err != nil {
		return err
	}
	b.kept = true
	w.backlog.metrics.spooledLines.Add(float64(len(b.lengths)))
	return nil
}

// keepSoon makes sure that what is in memory alone is on disk before long, unless it
// is acknowledged before.
func (w *window) keepSoon() {
	if w.backlog != nil && w.flush == nil && !w.released {
		w.flush = time.AfterFunc(4*spillAge, w.keep)
	}
}

func (w *window) keep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush = nil
	if w.released {
		return
	}
	unkept := func() *batch {
		for _, b := range w.batches {
			if !b.kept {
				return b
			}
		}
		if len(w.fresh) > 0 {
			return w.fresh[0]
		}
		return nil
	}
	b := unkept()
	if b != nil && time.Since(b.born) >= spillAge {
		if last := w.open(); last != nil && time.Since(last.born) >= spillAge {
			w.seal()
		}
		if err := w.spill(); err != nil && !errors.Is(err, spool.ErrFull) && !errors.Is(err, io.EOF) {
			w.backlog.trouble("keeping lines", err)
		}
	}
	if unkept() != nil {
		w.keepSoon()
	}
}
