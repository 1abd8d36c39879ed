package logs

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	"github.com/ottoscaler/ottoscaler/internal/spool"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// away is a server that stores nothing.
var away = logstest.Faults{Call: func(string) error { return status.Error(codes.Unavailable, "away") }}

// kill leaves the follower as a relay that is killed does: with what is on disk at
// this moment, and with nothing else. The next one is without a memory.
func (r *rig) kill(t *testing.T, cancel context.CancelFunc) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(r.dir)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := r.finish(); !errors.Is(err, context.Canceled) {
		t.Errorf("a follower that is stopped: %v", err)
	}
	r.dir = dir
	r.renew()
}

func TestLogOfAServerThatKeepsUpNeverTouchesTheDisk(t *testing.T) {
	r := newSpoolRig(t, spool.Options{})
	want := r.print(tens(300)...)
	r.end()
	r.run(want)
	r.wantCount(r.metrics.spooledLines, "spooled lines", 0)
}

func TestReadingGoesOnWithoutTheServer(t *testing.T) {
	r := newSpoolRig(t, spool.Options{})
	r.follow.startWait = time.Millisecond
	r.server.backend.SetFaults(away)
	r.start(t.Context())
	want := r.print(tens(500)...) // the memory holds 20
	r.eventually("all lines are read", func() bool { return r.window.end().Sequence == 500 })
	r.source.Rotate() // the node has none of them any more
	r.server.backend.SetFaults(logstest.Faults{})
	want = append(want, r.print(at(60)...)...)
	r.await(501)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	if names, err := os.ReadDir(r.dir); err != nil || len(names) > 0 {
		t.Errorf("a complete log leaves %v, %v in the spool", names, err)
	}
}

func TestSpoolOutlivesARelayThatIsKilled(t *testing.T) {
	r := newSpoolRig(t, spool.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	r.start(ctx)
	want := r.print(tens(33)...)
	r.await(33)
	r.server.backend.SetFaults(logstest.Faults{Batch: func(logstest.Key, *logsv1.Batch) logstest.Action {
		return logstest.Action{Refuse: true, Silent: true}
	}})
	want = append(want, r.print(at(5)...)...) // in flight while it is killed
	want = append(want, r.print(tens(200)...)...)
	r.eventually("all lines are on disk", func() bool {
		r.window.mu.Lock()
		defer r.window.mu.Unlock()
		return r.window.tail.Sequence == 234 && r.window.backlog.unread() > 0 && len(r.window.fresh) == 0
	})
	r.kill(t, cancel)
	r.source.Rotate() // from now on, only the spool has them
	r.follow.startWait = time.Millisecond
	r.server.backend.SetFaults(logstest.Faults{})
	r.start(t.Context())
	r.await(234)
	want = append(want, "")
	want = append(want, r.print(at(90)...)...)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	if got := r.check(want); got.Duplicates > 5 { // one batch, of which the acknowledgement was lost
		t.Errorf("%d lines were sent twice", got.Duplicates)
	}
}

// Whatever part of the last write a killed relay leaves, the next one goes on.
func TestSpoolThatIsTornAnywhereLosesNothing(t *testing.T) {
	r := newSpoolRig(t, spool.Options{})
	r.follow.startWait = time.Millisecond
	r.server.backend.SetFaults(away)
	ctx, cancel := context.WithCancel(t.Context())
	r.start(ctx)
	want := r.print(tens(40)...)
	r.eventually("most lines are on disk", func() bool { return r.window.end().Sequence == 40 })
	cancel()
	if err := r.finish(); !errors.Is(err, context.Canceled) {
		t.Errorf("a follower that is stopped: %v", err)
	}
	r.server.backend.SetFaults(logstest.Faults{Opened: notCompleted})
	r.end()
	whole := r.dir
	path := "/uid-1/agent_0/000000000001"
	info, err := os.Stat(whole + path)
	if err != nil {
		t.Fatal(err)
	}
	for size := int64(0); size <= info.Size(); size += 37 {
		r.dir = t.TempDir()
		if err := os.CopyFS(r.dir, os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(r.dir+path, size); err != nil {
			t.Fatal(err)
		}
		r.server.backend.Forget(key, 0)
		r.renew()
		r.run(want)
		r.wantCount(r.metrics.inexactResumes, "inexact resumes", 0)
	}
}

// A record of a version that we don't know is as good as none.
func TestSpoolThatMakesNoSenseIsLeftOut(t *testing.T) {
	r := newSpoolRig(t, spool.Options{})
	store, err := spool.Open(t.TempDir(), spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log, _, err := store.OpenLog(string(r.follow.instance.PodUID), r.follow.instance.spoolName(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := log.Append([]byte("\xff\xff from the future")); err != nil {
			t.Fatal(err)
		}
	}
	log.Close()
	r.window.release(false)
	r.window = newWindow(r.window.limits, r.window.budget)
	r.follow.window = r.window
	r.follow.openSpool(store)
	want := r.print(tens(12)...)
	r.end()
	r.run(want)
	r.wantCount(r.metrics.spoolErrors, "trouble with the spool", 1)
	if used := store.Used(); used != 0 {
		t.Errorf("%d bytes are left in the spool", used)
	}
}

func TestOldestLinesAreDroppedWithAGapWhenTheSpoolIsFull(t *testing.T) {
	r := newSpoolRig(t, spool.Options{GroupBytes: 8 << 10, SegmentBytes: 1 << 10})
	r.follow.startWait = time.Millisecond
	r.follow.probeEvery = time.Millisecond
	r.server.backend.SetFaults(away)
	ctx, cancel := context.WithCancel(t.Context())
	r.start(ctx)
	want := r.print(tens(250)...)
	r.eventually("the reading pauses", func() bool { return count(r.metrics.pauses) > 0 })
	r.source.Rotate() // so that the reading hurries on
	want = append(want, r.print(tens(450)[250:]...)...)
	r.eventually("all lines are read", func() bool { return r.window.end().Sequence == 450 })
	lost := r.window.backlog.lostLines.Load()
	if lost == 0 || lost > 440 {
		t.Fatalf("%d lines are lost, want most", lost)
	}
	r.wantCount(r.metrics.lostLines.WithLabelValues(reasonSpoolFull), "lost lines", float64(lost))

	// The gap is there for the next relay, too, which cannot know the numbers.
	r.kill(t, cancel)
	r.server.backend.SetFaults(logstest.Faults{})
	r.start(t.Context())
	r.eventually("the log has its end", func() bool {
		l, _ := r.server.backend.Log(key)
		return len(l.Lines) > 0 && l.Lines[len(l.Lines)-1] == want[449]
	})
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	got, _ := r.server.backend.Log(key)
	if len(got.Gaps) == 0 || got.Gaps[0].GetReason() != reasonSpoolFull || !got.Matches {
		t.Fatalf("gaps: %v; matches: %v", got.Gaps, got.Matches)
	}
	// What is there, is in order, and the gap says what is not.
	i := 0
	for n, line := range got.Lines {
		if at := slices.IndexFunc(got.Gaps, func(g logstest.Gap) bool { return g.Sequence == uint64(n+1) }); at >= 0 { //nolint:gosec // a count
			g := got.Gaps[at]
			i += int(g.GetLineCount()) //nolint:gosec // a count
			if g.GetReason() == reasonSpoolFull && g.GetToTime().AsTime() != tens(450)[i] {
				t.Errorf("the gap before line %d ends at %v, want %v", i, g.GetToTime().AsTime(), tens(450)[i])
			}
			continue
		}
		if line != want[i] {
			t.Fatalf("line %d is %q, want %q", n+1, line, want[i])
		}
		i++
	}
	if i != len(want) {
		t.Errorf("%d lines are there or in gaps, want %d", i, len(want))
	}
}

func TestPausedReadGoesOnWithoutLossIfNothingWasRotated(t *testing.T) {
	r := newSpoolRig(t, spool.Options{GroupBytes: 8 << 10, SegmentBytes: 1 << 10})
	r.follow.startWait = time.Millisecond
	r.follow.probeEvery = 5 * time.Millisecond
	r.server.backend.SetFaults(away)
	r.start(t.Context())
	want := r.print(tens(400)...)
	reads := 0
	r.eventually("the paused reading has looked for a rotation", func() bool {
		if reads == 0 && count(r.metrics.pauses) > 0 {
			reads = r.source.Reads()
		}
		return reads > 0 && r.source.Reads() > reads+1
	})
	if end := r.window.end().Sequence; end == 400 {
		t.Error("the reading does not pause")
	}
	r.server.backend.SetFaults(logstest.Faults{})
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantCount(r.metrics.lostLines.WithLabelValues(reasonSpoolFull), "lost lines", 0)
}

// Without a spool, a slow server holds the reading back. What the node rotates away
// meanwhile leaves a gap and no silence.
func TestRotationBehindAPausedReadIsAGap(t *testing.T) {
	r := newTestRig(t)
	r.follow.probeEvery = 5 * time.Millisecond
	release := make(chan struct{})
	var closed atomic.Bool
	r.server.backend.SetFaults(logstest.Faults{Batch: func(logstest.Key, *logsv1.Batch) logstest.Action {
		if !closed.Load() {
			<-release
		}
		return logstest.Action{}
	}})
	// The read has a piece of the log in its buffer; what is behind it goes.
	want := r.print(tens(20)...)
	r.start(t.Context())
	r.eventually("the window is full", func() bool { return r.window.end().Sequence == 20 })
	r.print(at(3)...) // is read, and has no room
	r.eventually("it has no room", func() bool { return count(r.metrics.pauses) > 0 })
	r.source.Rotate()
	before := r.source.Reads()
	r.eventually("the pause has looked", func() bool { return r.source.Reads() >= before+2 })
	closed.Store(true)
	close(release)
	want = append(want, "")
	want = append(want, r.print(at(50, 51)...)...)
	r.await(23)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantGaps(logstest.Gap{Sequence: 21, Gap: &logsv1.Gap{
		Reason: reasonRotated, FromTime: timestamppb.New(tens(20)[19]), ToTime: timestamppb.New(at(50)[0]),
	}})
}

func TestStricterServerGetsSmallerBatchesFromTheSpool(t *testing.T) {
	r := newSpoolRig(t, spool.Options{})
	r.follow.startWait = time.Millisecond
	registered := make(chan struct{})
	r.follow.registered = registered
	strict := r.window.limits
	strict.batchBytes = 300
	r.follow.allowed = func() windowLimits { return strict }
	var tooLarge atomic.Int64
	r.server.backend.SetFaults(logstest.Faults{Batch: func(_ logstest.Key, b *logsv1.Batch) logstest.Action {
		if len(b.GetLengths()) > 3 {
			tooLarge.Add(1)
		}
		return logstest.Action{}
	}})
	want := r.print(tens(100)...)
	r.start(t.Context())
	r.eventually("all lines are read", func() bool { return r.window.end().Sequence == 100 })
	close(registered)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	if n := tooLarge.Load(); n > 0 {
		t.Errorf("%d batches have more lines than are allowed", n)
	}
}

func TestFullDiskHoldsTheReadingBack(t *testing.T) {
	r := newSpoolRig(t, spool.Options{})
	r.follow.startWait = time.Millisecond
	r.server.backend.SetFaults(away)
	// A folder that cannot be made: nothing can be written, as on a full disk.
	if err := os.WriteFile(r.dir+"/uid-1", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start(t.Context())
	want := r.print(tens(100)...)
	r.eventually("the spool is in trouble", func() bool { return count(r.metrics.spoolErrors) > 0 && count(r.metrics.pauses) > 0 })
	if end := r.window.end().Sequence; end >= 100 {
		t.Errorf("%d lines were read, the memory holds 20", end)
	}
	r.server.backend.SetFaults(logstest.Faults{})
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
}

func TestSilentReadOfAnEndedContainerIsGivenUp(t *testing.T) {
	r := newTestRig(t)
	r.follow.silence = 5 * time.Millisecond
	want := r.print(at(1, 2)...)
	r.start(t.Context())
	r.await(2)
	r.set(State{Ended: true}) // and the read that goes on never hears of it
	r.eventually("the read is given up", func() bool { return count(r.metrics.stuckReads) > 0 })
	r.source.End()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
}

func TestReadOverAHalfOpenConnectionIsGivenUp(t *testing.T) {
	r := newTestRig(t)
	r.follow.silence = time.Millisecond
	open := r.follow.open
	var opened atomic.Int64
	half := make(chan struct{})
	defer close(half)
	r.follow.open = func(ctx context.Context, read Read) (io.ReadCloser, error) {
		body, err := open(ctx, read)
		if opened.Add(1) == 1 {
			// Nothing comes through any more after the second line.
			return &halfOpen{ReadCloser: body, left: 2 * lineBytes, closed: make(chan struct{})}, err
		}
		return body, err
	}
	want := r.print(at(1, 2)...)
	r.start(t.Context())
	r.await(2)
	want = append(want, r.print(at(3, 4)...)...)
	r.await(4)
	r.wantCount(r.metrics.stuckReads, "stuck reads", 1)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
}

// halfOpen gives some bytes and then nothing, until it is closed.
type halfOpen struct {
	io.ReadCloser
	left   int
	closed chan struct{}
}

func (h *halfOpen) Read(p []byte) (int, error) {
	if h.left == 0 {
		<-h.closed
		return 0, os.ErrClosed
	}
	n, err := h.ReadCloser.Read(p[:min(len(p), h.left)])
	h.left -= n
	return n, err
}

func (h *halfOpen) Close() error {
	select {
	case <-h.closed:
	default:
		close(h.closed)
	}
	return h.ReadCloser.Close()
}

func TestOverdueLogIsCountedAndGivenUp(t *testing.T) {
	for _, withSpool := range []bool{false, true} {
		t.Run(strconv.FormatBool(withSpool), func(t *testing.T) {
			r := newTestRig(t)
			if withSpool {
				r = newSpoolRig(t, spool.Options{})
			}
			overdue, cancel := context.WithCancel(t.Context())
			defer cancel()
			r.follow.overdue = overdue
			r.start(t.Context())
			r.print(tens(12)...)
			r.eventually("twelve lines are acknowledged", func() bool {
				at, _ := r.window.settled()
				return at.Sequence == 12
			})
			r.server.backend.SetFaults(logstest.Faults{Batch: func(logstest.Key, *logsv1.Batch) logstest.Action {
				return logstest.Action{Refuse: true, Silent: true}
			}})
			r.print(at(5, 6, 7)...)
			r.eventually("all is read", func() bool { return r.window.end().Sequence == 15 })
			cancel()
			if err := r.finish(); !errors.Is(err, errOverdue) {
				t.Errorf("following: got %v, want %v", err, errOverdue)
			}
			if got := r.follow.left; got.lines != 3 || got.bytes == 0 || got.all {
				t.Errorf("left: %+v, want 3 lines that are not all", got)
			}
			if r.follow.acked.Sequence != 12 {
				t.Errorf("acknowledged are %d lines, want 12", r.follow.acked.Sequence)
			}
		})
	}
}
