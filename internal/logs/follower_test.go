package logs

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

func TestEveryLineArrivesOnceAndInOrder(t *testing.T) {
	r := newTestRig(t)
	want := r.print(at(0, 0.1, 0.1, 0.9, 1, 7, 7.5, 30, 30, 30.000001, 31, 40)...)
	r.end()
	got := r.run(want)
	if got.Duplicates != 0 || got.Streams != 1 {
		t.Errorf("%d lines were sent twice, on %d streams; want 0 and 1", got.Duplicates, got.Streams)
	}
}

func TestLogWithoutLinesIsComplete(t *testing.T) {
	r := newTestRig(t)
	r.end()
	r.run(nil)
}

func TestLinesArriveWhileTheContainerRuns(t *testing.T) {
	r := newTestRig(t)
	r.start(t.Context())
	want := r.print(at(1, 2)...)
	r.await(2)
	want = append(want, r.print(at(3)...)...)
	r.await(3)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
}

func TestReadResumesWithinASecondOfEqualStamps(t *testing.T) {
	for _, cause := range []error{errBroken, nil} { // nil: a clean end while the container runs
		r := newTestRig(t)
		want := r.print(at(1, 1, 1, 1)...)
		r.start(t.Context())
		r.await(4)
		r.source.Cut(cause)
		want = append(want, r.print(at(1, 1, 1)...)...)
		r.await(7)
		r.source.Cut(cause)
		want = append(want, r.print(at(1, 2)...)...)
		r.end()
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		if got := r.check(want); got.Duplicates != 0 {
			t.Errorf("%d lines were sent twice, want 0", got.Duplicates)
		}
		r.wantCount(r.metrics.inexactResumes, "inexact resumes", 0)
	}
}

func TestCleanEndWhileTheContainerRunsIsNoEnd(t *testing.T) {
	r := newTestRig(t)
	r.start(t.Context())
	want := r.print(at(1)...)
	r.await(1)
	for second := 2.0; second < 6; second++ {
		r.source.Cut(nil)
		want = append(want, r.print(at(second)...)...)
		r.await(len(want))
	}
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
}

func TestLineThatIsTornByABrokenReadIsReadAgain(t *testing.T) {
	for _, cause := range []error{io.ErrUnexpectedEOF, nil} {
		r := newTestRig(t)
		want := r.print(at(1, 1.5, 2, 2, 3)...)
		r.source.Limit(func(read int) (int, error) {
			if read > 40 {
				return -1, nil
			}
			return lineBytes*2/3*read + 7, cause
		})
		r.start(t.Context())
		r.await(5)
		r.end()
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		r.check(want)
	}
}

func TestLastLineWithoutALineEndCountsOnceTheContainerHasEnded(t *testing.T) {
	r := newTestRig(t)
	want := r.print(at(1)...)
	r.source.PrintTorn(at(2)[0], "no line end")
	r.start(t.Context())
	r.await(1)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(append(want, "no line end"))

	// A relay that restarts now finds that line as the last one.
	r.server.backend.SetFaults(logstest.Faults{Opened: notCompleted})
	r.renew()
	r.run(append(want, "no line end"))
	r.wantCount(r.metrics.inexactResumes, "inexact resumes", 0)
}

func TestStampsOutOfOrderLoseNothing(t *testing.T) {
	// Stdout and stderr are stamped before they meet in the log.
	r := newTestRig(t)
	want := r.print(at(0.9, 1.00001, 0.99999, 1.00002, 0.99998, 1.2, 2.1, 1.9999)...)
	r.end()
	for n := range len(want) {
		r.server.backend.Forget(key, 0)
		reads := 0
		r.source.Limit(func(int) (int, error) {
			if reads++; reads == 1 {
				return lineBytes*n + 30, errBroken
			}
			return -1, nil
		})
		r.renew()
		r.run(want)
		r.wantCount(r.metrics.inexactResumes, "inexact resumes", 0)
	}
}

func TestReadGoesOnByTimeAfterARotation(t *testing.T) {
	r := newTestRig(t)
	want := r.print(at(1, 1.5, 1.7)...)
	r.start(t.Context())
	r.await(3)
	r.source.Rotate()
	r.source.Cut(errBroken)
	want = append(want, "") // the gap
	want = append(want, r.print(at(1.8, 1.9, 5)...)...)
	r.await(7)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	r.wantGaps(logstest.Gap{Sequence: 4, Gap: &logsv1.Gap{
		Reason: reasonRotated, FromTime: timestamppb.New(at(1.7)[0]), ToTime: timestamppb.New(at(1.8)[0]),
	}})
	r.wantCount(r.metrics.inexactResumes, "inexact resumes", 1)
	r.wantCount(r.metrics.gaps.WithLabelValues(reasonRotated), "gaps", 1)

	// The second of the gap is counted anew: whoever goes on within it finds its place.
	for n := uint64(5); n <= 6; n++ {
		r.server.backend.SetFaults(logstest.Faults{Opened: notCompleted})
		r.server.backend.Forget(key, n)
		r.renew()
		r.run(want)
		r.wantCount(r.metrics.inexactResumes, "inexact resumes of the next relay", 0)
	}
}

func TestKubeletNoticesAreNoLines(t *testing.T) {
	r := newTestRig(t)
	want := r.print(at(1, 2)...)
	opens := 0
	open := r.follow.open
	r.follow.open = func(ctx context.Context, read Read) (io.ReadCloser, error) {
		body, err := open(ctx, read)
		if opens++; opens < 4 {
			return io.NopCloser(io.MultiReader(io.LimitReader(body, lineBytes), strings.NewReader("failed to create fsnotify watcher: too many open files"))), err
		}
		return body, err
	}
	r.end()
	r.run(want)
}

func TestLogThatTheKubeletHasNotIsGivenUpAfterTheEnd(t *testing.T) {
	r := newTestRig(t)
	r.follow.open = func(context.Context, Read) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("unable to retrieve container logs for containerd://1234")), nil
	}
	r.end()
	r.run([]string{""})
	r.wantGaps(logstest.Gap{Sequence: 1, Gap: &logsv1.Gap{Reason: reasonTruncated}})
	r.wantCount(r.metrics.truncated, "truncated logs", 1)
}

func TestLogThatWentWithItsContainerIsWholeIfItsEndWasSeen(t *testing.T) {
	for _, row := range []struct {
		what     string
		finished time.Duration // when the process ended, from when the read did
		whole    bool
	}{
		{"the read ended with the process", -time.Second, true},
		{"the read ended before", time.Hour, false},
	} {
		t.Run(row.what, func(t *testing.T) {
			r := newTestRig(t)
			want := r.print(at(1, 2)...)
			first := true
			open := r.follow.open
			r.follow.open = func(ctx context.Context, read Read) (io.ReadCloser, error) {
				if first {
					first = false
					return open(ctx, read)
				}
				return io.NopCloser(strings.NewReader("unable to retrieve container logs for containerd://1234")), nil
			}
			r.start(t.Context())
			r.await(2)
			r.mu.Lock()
			r.state.Finished = time.Now().Add(row.finished)
			r.mu.Unlock()
			r.end()
			if err := r.finish(); err != nil {
				t.Errorf("following: %v", err)
			}
			if row.whole {
				r.check(want)
				r.wantGaps()
				return
			}
			r.check(append(want, ""))
			r.wantCount(r.metrics.gaps.WithLabelValues(reasonTruncated), "gaps", 1)
		})
	}
}

func TestPodThatVanishesEndsItsLogs(t *testing.T) {
	r := newTestRig(t)
	want := r.print(at(1, 2)...)
	r.start(t.Context())
	r.await(2)
	r.follow.open = nil // nobody may ask for the log of a pod that is gone
	r.set(State{Ended: true, Gone: true})
	r.source.Cut(errBroken)
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(append(want, ""))
	r.wantGaps(logstest.Gap{Sequence: 3, Gap: &logsv1.Gap{Reason: reasonTruncated, FromTime: timestamppb.New(at(2)[0])}})
	r.wantCount(r.metrics.truncated, "truncated logs", 1)
}

func TestFollowerWithoutAMemoryGoesOnWhereTheServerIs(t *testing.T) {
	r := newTestRig(t)
	var want []string
	for n := range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		r.renew()
		r.start(ctx)
		second := float64(n)
		want = append(want, r.print(at(second, second+.6, second+.6, second+.5)...)...)
		r.await(len(want))
		want = append(want, r.print(at(second+.6)...)...) // it may or may not arrive yet
		cancel()
		if err := r.finish(); !errors.Is(err, context.Canceled) {
			t.Errorf("a follower that is stopped: got %v, want %v", err, context.Canceled)
		}
	}
	r.renew()
	r.end()
	if got := r.run(want); got.Duplicates > 0 {
		t.Errorf("%d lines were sent twice, want 0", got.Duplicates)
	}
}

func TestDrainedFollowerHasSentWhatItRead(t *testing.T) {
	r := newTestRig(t)
	r.window.limits.linger = time.Hour
	want := r.print(at(1, 2, 3)...) // not a full batch: only the drain sends it
	r.start(t.Context())
	r.eventually("three lines are read", func() bool { return r.window.end().Sequence == 3 })
	r.doDrain()
	if err := r.finish(); !errors.Is(err, errDraining) {
		t.Errorf("a drained follower: got %v, want %v", err, errDraining)
	}
	if got, _ := r.server.backend.Log(key); got.LineCount != 3 || got.Complete {
		t.Errorf("the server has %d lines, complete %v; want 3, false", got.LineCount, got.Complete)
	}
	r.renew()
	r.end()
	r.run(want)
}
