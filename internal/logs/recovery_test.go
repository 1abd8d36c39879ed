package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	"github.com/ottoscaler/ottoscaler/internal/logs/nodelog"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// keptSource is what a node has of the log of a rig.
type keptSource struct {
	io.ReadCloser
	rotated []string
}

func (k keptSource) Whole() bool { return len(k.rotated) == 0 }

// A keeper is a node as a test wants it.
type keeper func(ctx context.Context) (Kept, error)

func (k keeper) Open(ctx context.Context, _ Read) (Kept, error) { return k(ctx) }

func (k keeper) Rotated(ctx context.Context, _ Read) ([]string, error) {
	kept, err := k(ctx)
	if err != nil {
		return nil, err
	}
	names := kept.(keptSource).rotated // it has no other
	return names, kept.Close()
}

// keeps lets the rig's follower read what the node has rotated away.
func (r *rig) keeps() {
	r.follow.kept = keeper(func(ctx context.Context) (Kept, error) {
		body, rotations := r.source.Kept(ctx)
		var names []string
		for n := range rotations {
			names = append(names, fmt.Sprint(n))
		}
		return keptSource{body, names}, nil
	})
}

func (r *rig) wantNoGap() {
	r.t.Helper()
	r.wantGaps()
	r.wantCount(r.metrics.inexactResumes, "inexact resumes", 0)
}

func TestWhatWasRotatedAwayIsReadAtTheNode(t *testing.T) {
	r := newTestRig(t)
	r.keeps()
	want := r.print(at(1, 1.5, 1.7)...)
	r.start(t.Context())
	r.await(3)
	want = append(want, r.print(at(1.7, 1.8, 9)...)...)
	r.await(6)
	r.source.Cut(errBroken)
	r.source.Rotate()
	want = append(want, r.print(at(9, 9.1)...)...) // in the second of the last line
	r.source.Rotate()
	want = append(want, r.print(at(9.1, 30)...)...)
	r.await(10)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	if got := r.check(want); got.Duplicates != 0 {
		t.Errorf("%d lines were sent twice, want 0", got.Duplicates)
	}
	r.wantNoGap()
}

func TestBeginningThatWasRotatedAwayIsReadAtTheNode(t *testing.T) {
	for _, rotated := range []bool{false, true} {
		r := newTestRig(t)
		r.keeps()
		now := time.Now()
		r.state.Began = now.Add(-time.Minute)
		first := -59 * time.Second
		if !rotated {
			first = -30 * time.Second // then nothing can have been before it, however late it came
		}
		want := r.print(now.Add(first), now.Add(-20*time.Second))
		if rotated {
			r.source.Rotate()
		}
		want = append(want, r.print(now)...)
		r.start(t.Context())
		r.await(3)
		r.end()
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		r.check(want)
		r.wantNoGap()
	}
}

func TestLogThatWasRotatedBeforeAnybodyCouldReadItIsReadAtTheNode(t *testing.T) {
	r := newTestRig(t)
	r.keeps()
	now := time.Now()
	r.state.Began = now
	want := r.print(now.Add(time.Millisecond))
	r.source.Rotate()
	want = append(want, r.print(now.Add(2*time.Millisecond))...)
	r.start(t.Context())
	r.await(2)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantNoGap()
}

func TestBeginningThatTheNodeHasRemovedLeavesAGap(t *testing.T) {
	r := newTestRig(t)
	r.keeps()
	now := time.Now()
	r.state.Began = now.Add(-time.Minute)
	r.print(now.Add(-59 * time.Second))
	kept := r.print(now.Add(-30*time.Second), now.Add(-20*time.Second))
	r.source.Rotate()
	r.source.Remove(2)
	want := append([]string{""}, kept...)
	want = append(want, r.print(now)...)
	r.end()
	r.run(want)
	r.wantGaps(logstest.Gap{Sequence: 1, Gap: &logsv1.Gap{Reason: reasonRotated, ToTime: timestamppb.New(now.Add(-30 * time.Second))}})
}

func TestEmptyLogThatWasNeverRotatedHasNoGap(t *testing.T) {
	r := newTestRig(t)
	r.keeps()
	r.state.Began = time.Now().Add(-time.Minute)
	r.end()
	r.run(nil)
	r.wantNoGap()
}

func TestGapStandsForWhatTheNodeHasRemoved(t *testing.T) {
	r := newTestRig(t)
	r.keeps()
	want := r.print(at(1, 2, 3)...)
	r.start(t.Context())
	r.await(3)
	r.source.Cut(errBroken)
	r.print(at(4, 5)...)
	kept := r.print(at(6, 6.1)...)
	r.source.Rotate()
	r.source.Remove(2)
	want = append(append(want, ""), kept...)
	want = append(want, r.print(at(7, 20)...)...)
	r.await(8)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantGaps(logstest.Gap{Sequence: 4, Gap: &logsv1.Gap{
		Reason: reasonRotated, FromTime: timestamppb.New(at(3)[0]), ToTime: timestamppb.New(at(6)[0]),
	}})
	r.wantCount(r.metrics.gaps.WithLabelValues(reasonRotated), "gaps", 1)
}

func TestReadThatPassedOverAFileIsMadeGood(t *testing.T) {
	r := newTestRig(t)
	r.keeps()
	now := time.Now()
	after := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	want := r.print(now)
	r.start(t.Context())
	r.await(1)
	want = append(want, r.printUnseen(after(10), after(20))...)
	want = append(want, r.print(after(30), after(31))...)
	r.await(5)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantNoGap()
}

// printUnseen prints lines that no read that follows sees.
func (r *rig) printUnseen(stamps ...time.Time) []string {
	var texts []string
	for _, stamp := range stamps {
		text := fmt.Sprintf("line at %s, the %05dth", stamp.Format("04:05.000000"), r.printed())
		r.source.PrintUnseen(stamp, text)
		texts = append(texts, text)
	}
	return texts
}

func TestReadThatPassedOverAFileLeavesAGapWithoutTheNode(t *testing.T) {
	r := newTestRig(t)
	now := time.Now()
	want := r.print(now)
	r.start(t.Context())
	r.await(1)
	r.printUnseen(now.Add(10 * time.Second))
	want = append(append(want, ""), r.print(now.Add(30*time.Second))...)
	r.await(3)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantCount(r.metrics.gaps.WithLabelValues(reasonRotated), "gaps", 1)
}

func TestSilentWorkerLeavesNoGap(t *testing.T) {
	r := newTestRig(t)
	now := time.Now()
	want := r.print(now)
	r.start(t.Context())
	r.await(1)
	want = append(want, r.print(now.Add(10*time.Second), now.Add(20*time.Second))...)
	r.await(3)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantNoGap()
}

func TestNodeThatRefusesLeavesAGapAndIsNotAskedAgain(t *testing.T) {
	for _, why := range []error{nodelog.ErrRefused, nodelog.ErrNone} {
		r := newTestRig(t)
		asked := 0
		r.follow.kept = keeper(func(context.Context) (Kept, error) {
			asked++
			return nil, fmt.Errorf("asking: %w", why)
		})
		want := r.print(at(1, 2)...)
		r.start(t.Context())
		r.await(2)
		for second := 3.0; second < 6; second++ { // a second later: only silence tells that the last line is gone
			r.source.Rotate()
			r.source.Cut(errBroken)
			want = append(append(want, ""), r.print(at(second)...)...)
			r.await(len(want))
		}
		r.end()
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		r.check(want)
		if asked != 3 { // about the beginning, and twice about the first rotation
			t.Errorf("%v: asked %d times, want 3", why, asked)
		}
	}
}

// A failingKeeper does not open logs so many times.
type failingKeeper struct {
	Keeper
	failures int
}

func (k *failingKeeper) Open(ctx context.Context, read Read) (Kept, error) {
	if k.failures--; k.failures >= 0 {
		return nil, errBroken
	}
	return k.Keeper.Open(ctx, read)
}

func TestNodeThatFailsIsAskedAgain(t *testing.T) {
	for _, row := range []struct {
		failures int
		gap      bool
	}{{1, false}, {keptTries - 1, false}, {keptTries, true}} {
		r := newTestRig(t)
		r.keeps()
		r.follow.kept = &failingKeeper{r.follow.kept, row.failures}
		want := r.print(at(1, 2)...)
		r.start(t.Context())
		r.await(2)
		r.source.Cut(errBroken)
		lost := r.print(at(3)...)
		r.source.Rotate()
		if row.gap {
			lost[0] = ""
		}
		want = append(append(want, lost...), r.print(at(5)...)...)
		r.await(4)
		r.end()
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		r.check(want)
		if got := count(r.metrics.gaps.WithLabelValues(reasonRotated)) > 0; got != row.gap {
			t.Errorf("%d failures: a gap: %t, want %t", row.failures, got, row.gap)
		}
	}
}

// Whatever breaks wherever, rotations cost nothing as long as the node has the files.
func TestLogSurvivesRotationsAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRig(t)
		defer r.close()
		r.keeps()
		// Each of the first reads breaks after some bytes, either way.
		limit := func(name string) func(int) (int, error) {
			cuts := rapid.SliceOfN(rapid.IntRange(0, 2000), 0, 4).Draw(t, name)
			return func(read int) (int, error) {
				if read > len(cuts) {
					return -1, nil
				}
				return cuts[read-1], errBroken
			}
		}
		r.source.Limit(limit("cuts"))
		r.source.LimitKept(limit("cuts at the node"))
		stamp := at(0)[0]
		r.state.Began = stamp
		want := r.print(stamp)
		running := false
		stop := func() {
			if running {
				running = false
				r.doStop()
				if err := r.finish(); err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("following: %v", err)
				}
				kept := r.follow.kept
				r.renew()
				r.follow.kept = kept
			}
		}
		for _, step := range rapid.SliceOfN(rapid.SampledFrom([]string{"print", "print", "print", "rotate", "start", "stop", "cut", "wait"}), 1, 40).Draw(t, "steps") {
			switch step {
			case "print":
				stamp = stamp.Add(time.Duration(rapid.SampledFrom([]int{0, 0, 1, 400, 1000, 2500}).Draw(t, "ms")) * time.Millisecond)
				want = append(want, r.print(stamp)...)
			case "rotate":
				r.source.Rotate()
			case "start":
				if !running {
					running = true
					r.start(r.stoppable())
				}
			case "stop":
				stop()
			case "cut":
				r.source.Cut(errBroken)
			case "wait":
				if running {
					r.await(len(want))
				}
			}
		}
		stop()
		r.end()
		r.start(context.Background())
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		r.check(want)
		r.wantNoGap()
	})
}

// stoppable returns a context that doStop ends.
func (r *rig) stoppable() context.Context {
	ctx, stop := context.WithCancel(context.Background())
	r.doStop = stop
	return ctx
}
