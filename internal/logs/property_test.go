package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// Whatever breaks wherever, the server ends up with the log as it was printed.
func TestLogSurvivesCutsAnywhere(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		r := newRig(t)
		defer r.close()
		if rapid.Bool().Draw(t, "spool") {
			var err error
			if r.dir, err = os.MkdirTemp(base, ""); err != nil {
				t.Fatalf("%v", err)
			}
			r.renew()
			if rapid.Bool().Draw(t, "full memory") { // so that lines go by way of the disk
				r.window.budget.limit = 1
			}
		}
		r.follow.ackTimeout = 200 * time.Millisecond
		r.follow.startWait = time.Duration(rapid.IntRange(0, 20).Draw(t, "start wait")) * time.Millisecond

		// Stamps go on, stand still, or step back by less than a second.
		var want []string
		stamp := at(0)[0]
		steps := rapid.SliceOfN(rapid.SampledFrom([]int{0, 0, 1, 50, 400, 990, 1000, 2500, 9000, -1, -300}), 0, 60).Draw(t, "steps")
		for i, ms := range steps {
			stamp = stamp.Add(time.Duration(ms) * time.Millisecond)
			text := fmt.Sprintf("%d %s", i, strings.Repeat("x", rapid.IntRange(0, 200).Draw(t, "length")))
			r.source.Print(stamp, text)
			want = append(want, text)
		}
		unfinished := 0
		if rapid.Bool().Draw(t, "torn") {
			unfinished = 1
			r.source.PrintTorn(stamp, "torn")
			want = append(want, "torn")
		}

		// Each of the first reads breaks after some bytes. An end that looks clean is
		// one while the container runs: afterwards it can only be believed.
		cuts := rapid.SliceOfN(rapid.IntRange(0, 4000), 0, 8).Draw(t, "cuts")
		clean := rapid.Bool().Draw(t, "clean")
		var ended atomic.Bool
		r.source.Limit(func(read int) (int, error) {
			if read > len(cuts) || (clean && (read >= shortTries || ended.Load())) {
				return -1, nil
			}
			if clean {
				return cuts[read-1], nil
			}
			return cuts[read-1], errBroken
		})

		// So does the server, at some batches.
		faults := rapid.SliceOfN(rapid.SampledFrom([]string{"ok", "ok", "lose", "break", "break unstored", "retry", "nonsense", "forget"}), 0, 10).Draw(t, "faults")
		var batches atomic.Int64
		r.server.backend.SetFaults(logstest.Faults{Batch: func(_ logstest.Key, b *logsv1.Batch) logstest.Action {
			n := int(batches.Add(1)) - 1
			if n >= len(faults) {
				return logstest.Action{}
			}
			unavailable := status.Error(codes.Unavailable, "injected")
			switch faults[n] {
			case "lose":
				return logstest.Action{Silent: true}
			case "break":
				return logstest.Action{Silent: true, Cut: unavailable}
			case "break unstored":
				return logstest.Action{Refuse: true, Cut: unavailable}
			case "retry":
				return logstest.Action{Answer: &logsv1.StreamLogsResponse_Ack{
					Verdict: logsv1.StreamLogsResponse_VERDICT_RETRY, Sequence: b.GetFirstSequence() - 1, RetryAfter: durationpb.New(time.Millisecond),
				}}
			case "nonsense":
				return logstest.Action{Answer: &logsv1.StreamLogsResponse_Ack{Verdict: logsv1.StreamLogsResponse_VERDICT_ACK, Sequence: 1 << 40}}
			case "forget":
				r.server.backend.Forget(key, b.GetFirstSequence()/2)
				return logstest.Action{Refuse: true, Cut: unavailable}
			}
			return logstest.Action{}
		}})

		// The relay restarts a few times.
		for range rapid.IntRange(0, 2).Draw(t, "restarts") {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rapid.IntRange(1, 20).Draw(t, "life"))*time.Millisecond)
			r.start(ctx)
			err := r.finish()
			cancel()
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("following: %v", err)
			}
			timeout, wait := r.follow.ackTimeout, r.follow.startWait
			r.renew()
			r.follow.ackTimeout, r.follow.startWait = timeout, wait
		}
		r.start(context.Background())
		if clean {
			r.await(len(want) - unfinished)
			ended.Store(true)
		}
		r.end()
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		r.check(want)
		if got := r.window.budget.used.Load(); got != 0 {
			t.Errorf("%d bytes are still counted as unacknowledged", got)
		}
	})
}

func TestBatchIsNeverLargerThanItsBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := windowLimits{
			lines: rapid.IntRange(1, 600).Draw(t, "lines"), batchBytes: rapid.IntRange(1024, MaxBatchBytes).Draw(t, "bytes"),
			batches: 1 << 20, bytes: 1 << 40, linger: time.Hour,
		}
		w := newWindow(limits, &budget{limit: 1 << 40})
		w.resume(Cursor{Sequence: 1 << 60, Bytes: 1 << 60, Time: 1 << 61, LinesInSecond: 1 << 31, Checksum: 1 << 63})
		stamp := int64(1 << 61)
		for range rapid.IntRange(1, 300).Draw(t, "count") {
			stamp += rapid.Int64Range(-10, 5e9).Draw(t, "step")
			text := append(make([]byte, rapid.IntRange(0, 3000).Draw(t, "length")), '\n')
			if err := w.add(context.Background(), w.generation, nil, stamp, text, 0, nil); err != nil {
				t.Fatalf("adding a line: %v", err)
			}
		}
		for _, b := range w.fresh {
			got := proto.Size(b.message().GetBatch())
			if got > b.size() {
				t.Errorf("a batch takes %d bytes, thought to be at most %d", got, b.size())
			}
			if len(b.lengths) > limits.lines || (got > limits.batchBytes && len(b.lengths) > 1) {
				t.Errorf("a batch has %d lines and %d bytes, at most %d and %d are allowed", len(b.lengths), got, limits.lines, limits.batchBytes)
			}
		}
	})
}
