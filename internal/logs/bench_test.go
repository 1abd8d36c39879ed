package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// benchLine is the text of a line in the benchmarks.
var benchLine = strings.Repeat("0123456789", 12)

// A cycle is a log of n lines as Kubernetes gives it. It repeats a part that is made
// once, so that a long log costs no memory.
type cycle struct {
	part []byte
	next int
	left int // bytes
}

const cycleLines = 20000

func newCycle(n int) *cycle {
	var part bytes.Buffer
	stamp := at(0)[0]
	for range cycleLines {
		stamp = stamp.Add(3 * time.Microsecond)
		fmt.Fprintf(&part, "%s %s\n", stamp.Format("2006-01-02T15:04:05.000000000Z"), benchLine)
	}
	return &cycle{part: part.Bytes(), left: part.Len() / cycleLines * n}
}

// Read implements [io.Reader].
func (c *cycle) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.left)], c.part[c.next:])
	c.next = (c.next + n) % len(c.part)
	c.left -= n
	return n, nil
}

// benchServer is a server that keeps counts only.
func benchServer(b *testing.B) *serverRig {
	b.Helper()
	s := newServerRig(b)
	b.Cleanup(s.close)
	s.backend.Discard = true
	_, err := s.backend.RegisterWorker(b.Context(), &logsv1.RegisterWorkerRequest{Worker: &logsv1.Worker{Uid: key.WorkerUID, Name: "w-1"}})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// measure runs the work and reports lines as its unit. The time of the processor is
// what to trust on a machine that does other things as well; both ends are in it.
func measure(b *testing.B, work func() error) {
	b.Helper()
	used := func() time.Duration {
		var usage syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
			b.Fatal(err)
		}
		return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	runtime.GC()
	b.SetBytes(int64(len(benchLine)))
	b.ReportAllocs()
	before := used()
	b.ResetTimer()
	err := work()
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/line")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}

// BenchmarkRelay moves lines of 120 bytes from a log in memory through a follower
// to the reference server, over loopback.
func BenchmarkRelay(b *testing.B) {
	server := benchServer(b)
	total := &budget{limit: defaultMemoryBytes}
	m := newMetrics(prometheus.NewRegistry(), total, nil)
	f := &follower{
		followerConfig: followerConfig{
			open: func(_ context.Context, read Read) (io.ReadCloser, error) {
				if !read.Since.IsZero() {
					return nil, errBroken // the read that proves the end is not measured
				}
				return io.NopCloser(newCycle(b.N)), nil
			},
			client:  logsv1.NewLogServiceClient(server.conn),
			outage:  &outage{about: unavailable, log: slog.New(slog.DiscardHandler), up: m.serverUp},
			sources: &outage{about: unreachable, log: slog.New(slog.DiscardHandler), up: m.sourcesUp},
			metrics: m, policy: backoff.Default,
			endWait: time.Millisecond, ackTimeout: time.Minute, closeWait: time.Second,
			startWait: startWait, silence: silenceTick, probeEvery: probeEvery, rotation: time.Hour,
		},
		instance: Instance{PodUID: "uid-1", Pod: "w-1", Container: "agent"},
		window: newWindow(windowLimits{
			lines: defaultBatchLines, batchBytes: MaxBatchBytes, batches: defaultWindow, bytes: defaultWindowBytes, linger: defaultLinger,
		}, total),
		log:   slog.New(slog.DiscardHandler),
		state: func() (State, <-chan struct{}) { return State{Ended: true}, nil },
	}
	measure(b, func() error {
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- f.run(ctx, context.Background()) }()
		err := server.backend.Wait(ctx, func() bool {
			l, _ := server.backend.Log(key)
			return l.LineCount == uint64(b.N) //nolint:gosec // a count
		})
		cancel()
		if stopped := <-done; !errors.Is(stopped, context.Canceled) {
			return stopped
		}
		return err
	})
}

// BenchmarkRawStream sends the same bytes on one bare gRPC stream to the same
// server, in batches made beforehand: what the relay is measured against.
func BenchmarkRawStream(b *testing.B) {
	server := benchServer(b)
	var batches []*logsv1.StreamLogsRequest
	w := newWindow(windowLimits{lines: defaultBatchLines, batchBytes: MaxBatchBytes, batches: 1 << 30, bytes: 1 << 60, linger: time.Hour}, &budget{limit: 1 << 60})
	lines := newLineReader(newCycle(b.N), nil)
	for range b.N {
		stamp, text, err := lines.next()
		if err != nil {
			b.Fatal(err)
		}
		if err := w.add(b.Context(), w.generation, nil, stamp, text, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
	if w.open() != nil {
		w.seal()
	}
	for _, batch := range w.fresh {
		batches = append(batches, batch.message().StreamLogsRequest)
	}
	measure(b, func() error {
		stream, err := logsv1.NewLogServiceClient(server.conn).StreamLogs(b.Context())
		if err != nil {
			return err
		}
		open := &logsv1.StreamLogsRequest_Open{WorkerUid: key.WorkerUID, Container: key.Container}
		if err := stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: open}}); err != nil {
			return err
		}
		acked := make(chan error, 1)
		go func() {
			for {
				answer, err := stream.Recv()
				if err != nil || answer.GetAck().GetSequence() == uint64(b.N) { //nolint:gosec // a count
					acked <- err
					return
				}
			}
		}()
		for _, batch := range batches {
			if err := stream.Send(batch); err != nil {
				return err
			}
		}
		return <-acked
	})
}

// BenchmarkReadLines is the relay's own part: cutting, stamping, counting, batching.
func BenchmarkReadLines(b *testing.B) {
	w := newWindow(windowLimits{lines: defaultBatchLines, batchBytes: MaxBatchBytes, batches: 1 << 30, bytes: 1 << 60, linger: time.Hour}, &budget{limit: 1 << 60})
	lines := newLineReader(newCycle(b.N), nil)
	measure(b, func() error {
		for range b.N {
			stamp, text, err := lines.next()
			if err != nil {
				return err
			}
			if err := w.add(b.Context(), w.generation, nil, stamp, text, 0, nil); err != nil {
				return err
			}
			if len(w.fresh) > defaultWindow {
				w.void(w.tail)
			}
		}
		return nil
	})
}
