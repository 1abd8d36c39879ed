package logs

import (
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// notCompleted makes a complete log look open.
func notCompleted(_ logstest.Key, opened *logsv1.StreamLogsResponse_Opened) { opened.Completed = false }

// tens returns so many stamps, ten a second.
func tens(n int) []time.Time {
	var stamps []time.Time
	for i := range n {
		stamps = append(stamps, at(float64(i/10)+float64(i%10/3)/10)...)
	}
	return stamps
}

// once does something to the nth batch only.
func once(nth int64, action logstest.Action) logstest.Faults {
	var batches atomic.Int64
	return logstest.Faults{Batch: func(logstest.Key, *logsv1.Batch) logstest.Action {
		if batches.Add(1) == nth {
			return action
		}
		return logstest.Action{}
	}}
}

func TestLogIsWholeAfterTheServer(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "going away")
	retry := func(sequence uint64, after time.Duration) *logsv1.StreamLogsResponse_Ack {
		return &logsv1.StreamLogsResponse_Ack{
			Verdict: logsv1.StreamLogsResponse_VERDICT_RETRY, Sequence: sequence, Reason: "disk_full", RetryAfter: durationpb.New(after),
		}
	}
	ack := func(sequence uint64) *logsv1.StreamLogsResponse_Ack {
		return &logsv1.StreamLogsResponse_Ack{Verdict: logsv1.StreamLogsResponse_VERDICT_ACK, Sequence: sequence}
	}
	for name, faults := range map[string]logstest.Faults{
		"breaks before it stores":             once(3, logstest.Action{Refuse: true, Cut: unavailable}),
		"breaks after it stored":              once(3, logstest.Action{Silent: true, Cut: unavailable}),
		"ends a stream without a reason":      once(3, logstest.Action{Cut: status.Error(codes.OK, "")}),
		"fails with an error of its own":      once(3, logstest.Action{Cut: status.Error(codes.Internal, "a bug")}),
		"keeps an acknowledgement back":       once(3, logstest.Action{Silent: true}),
		"keeps back the last acknowledgement": once(8, logstest.Action{Silent: true}),
		"asks to send again":                  once(3, logstest.Action{Refuse: true, Answer: retry(10, 0)}),
		"asks to send again later":            once(3, logstest.Action{Refuse: true, Answer: retry(10, 300*time.Millisecond)}),
		"asks to send all again":              once(1, logstest.Action{Refuse: true, Answer: retry(0, 0)}),
		"acknowledges what was not sent":      once(3, logstest.Action{Answer: ack(1000)}),
		"acknowledges the middle of a batch":  once(3, logstest.Action{Answer: ack(13)}),
		"takes an acknowledgement back":       once(3, logstest.Action{Answer: ack(5)}),
		"answers without a verdict":           once(3, logstest.Action{Answer: &logsv1.StreamLogsResponse_Ack{Sequence: 15}}),
		"is slow": {Batch: func(logstest.Key, *logsv1.Batch) logstest.Action {
			return logstest.Action{Delay: 20 * time.Millisecond}
		}},
		"does not say Completed at first":            completesAtThe(2),
		"refuses streams at first":                   refusesAtFirst("StreamLogs", unavailable),
		"does not know the worker until it recovers": refusesAtFirst("StreamLogs", status.Error(codes.FailedPrecondition, "who?")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTestRig(t)
			r.follow.ackTimeout = 300 * time.Millisecond
			r.window.limits.linger = time.Hour // all batches have five lines
			r.server.backend.SetFaults(faults)
			want := r.print(tens(40)...)
			r.end()
			r.run(want)
			if got := r.window.budget.used.Load(); got != 0 {
				t.Errorf("%d bytes are still counted as unacknowledged", got)
			}
		})
	}
}

func completesAtThe(nth int64) logstest.Faults {
	var asked atomic.Int64
	return logstest.Faults{
		Completed: func(logstest.Key) bool { return asked.Add(1) < nth },
		Opened:    notCompleted,
	}
}

func refusesAtFirst(method string, err error) logstest.Faults {
	var calls atomic.Int64
	return logstest.Faults{Call: func(called string) error {
		if called == method && calls.Add(1) < 4 {
			return err
		}
		return nil
	}}
}

func TestServerThatSaysCompletedIsLeftAlone(t *testing.T) {
	r := newTestRig(t)
	want := r.print(tens(7)...)
	r.end()
	r.run(want)
	r.renew()
	got := r.run(want)
	if got.Streams != 2 || got.Duplicates != 0 {
		t.Errorf("after a restart: %d streams, %d duplicates; want 2, 0", got.Streams, got.Duplicates)
	}
}

func TestServerRestartsInTheMiddleOfAStream(t *testing.T) {
	r := newTestRig(t)
	r.start(t.Context())
	want := r.print(tens(12)...)
	r.await(12)
	r.server.stop()
	want = append(want, r.print(at(3, 3, 3.5)...)...)
	time.Sleep(30 * time.Millisecond)
	r.server.start()
	r.await(15)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
	if got := r.source.Reads(); got > 2 {
		t.Errorf("the log was read %d times, want 2: what waits for the server is kept", got)
	}
}

func TestServerThatForgetsIsSentTheLinesAgain(t *testing.T) {
	for _, remembers := range []uint64{0, 5, 17} {
		r := newTestRig(t)
		r.start(t.Context())
		want := r.print(tens(33)...)
		r.await(33)
		r.server.stop()
		r.server.backend.Forget(key, remembers)
		r.server.start()
		want = append(want, r.print(at(5)...)...)
		r.await(34)
		r.end()
		if err := r.finish(); err != nil {
			t.Errorf("following: %v", err)
		}
		r.check(want)
		r.wantCount(r.metrics.rewinds, "rewinds", 1)
	}
}

func TestRefusedLinesAreCountedAndSkipped(t *testing.T) {
	r := newTestRig(t)
	r.window.limits.linger = time.Hour
	r.server.backend.SetFaults(once(2, logstest.Action{Refuse: true, Answer: &logsv1.StreamLogsResponse_Ack{
		Verdict: logsv1.StreamLogsResponse_VERDICT_DROP, Sequence: 10, Reason: "quota",
	}}))
	want := r.print(tens(20)...)
	r.end()
	r.start(t.Context())
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	got, _ := r.server.backend.Log(key)
	if got.LineCount != 15 || got.Lines[5] != want[10] {
		t.Errorf("the server has %d lines, the 6th is %q; want 15, %q", got.LineCount, got.Lines[5], want[10])
	}
	r.wantCount(r.metrics.droppedLines.WithLabelValues("quota"), "dropped lines", 5)
	r.wantCount(r.metrics.mismatches, "mismatched logs", 1)
}

func TestWindowBoundsWhatIsInMemory(t *testing.T) {
	r := newTestRig(t)
	r.window.limits.linger = time.Hour
	release := make(chan struct{})
	r.server.backend.SetFaults(logstest.Faults{Batch: func(logstest.Key, *logsv1.Batch) logstest.Action {
		<-release
		return logstest.Action{}
	}})
	want := r.print(tens(200)...)
	r.start(t.Context())
	r.eventually("the window is full", func() bool { return r.window.end().Sequence == 20 })
	time.Sleep(50 * time.Millisecond)
	if got := r.window.end().Sequence; got != 20 { // 4 batches of 5 lines
		t.Errorf("%d lines were read while the server took none, want 20", got)
	}
	close(release)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check(want)
}

func TestOldStreamIsReplacedWithoutLoss(t *testing.T) {
	r := newTestRig(t)
	r.follow.rotation = 20 * time.Millisecond
	r.start(t.Context())
	var want []string
	for n := range 20 {
		want = append(want, r.print(tens(200)[n*10:n*10+10]...)...)
		r.await(len(want))
		if n == 10 {
			r.eventually("a silent stream is replaced, too", func() bool { return count(r.metrics.rotations) > 0 })
		}
	}
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	if got := r.check(want); got.Duplicates > 0 || got.Streams < 2 {
		t.Errorf("%d lines were sent twice, on %d streams; want 0, on several", got.Duplicates, got.Streams)
	}
	r.wantCount(r.metrics.reconnects.WithLabelValues("server"), "reconnects", 0)
}

// Servers that understand nothing of what they are sent must not keep a log waiting
// in silence.
func TestAcknowledgementsThatGoNowhereBreakTheProtocol(t *testing.T) {
	for name, sequence := range map[string]uint64{
		"zero, as with names in the wrong case": 0,
		"the same line for ever":                5,
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestRig(t)
			r.window.limits.linger = time.Hour
			var confused atomic.Bool
			confused.Store(true)
			r.server.backend.SetFaults(logstest.Faults{Batch: func(_ logstest.Key, b *logsv1.Batch) logstest.Action {
				if !confused.Load() || b.GetEnd().GetSequence() <= sequence {
					return logstest.Action{}
				}
				return logstest.Action{Answers: 2, Answer: &logsv1.StreamLogsResponse_Ack{Verdict: logsv1.StreamLogsResponse_VERDICT_ACK, Sequence: sequence}}
			}})
			want := r.print(tens(60)...)
			r.start(t.Context())
			r.eventually("the protocol is broken", func() bool { return count(r.metrics.protocolErrors) > 0 })
			confused.Store(false)
			r.end()
			if err := r.finish(); err != nil {
				t.Errorf("following: %v", err)
			}
			r.check(want)
		})
	}
}
