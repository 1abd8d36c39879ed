package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minio/crc64nvme"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/ottoscaler/ottoscaler/internal/logs"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/spool"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
	"github.com/ottoscaler/ottoscaler/test/logserver"
)

// stampLayout is how the kubelet writes a stamp.
const stampLayout = "2006-01-02T15:04:05.000000000Z"

// A sink is a log server in Go that counts lines and forgets them, on loopback.
type sink struct {
	*logserver.Server
	conn *grpc.ClientConn
	grpc *grpc.Server
}

func newSink(ctx context.Context) (*sink, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for logs: %w", err)
	}
	s := &sink{Server: &logserver.Server{Discard: true}}
	s.grpc = logserver.NewGRPCServer(s.Server)
	go s.grpc.Serve(listener) //nolint:errcheck // ends with close
	s.conn, err = grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	return s, err
}

func (s *sink) close() {
	s.conn.Close() //nolint:errcheck // everything is said
	s.grpc.Stop()
}

// await waits until the sink has so many lines of each of some workers.
func (s *sink) await(ctx context.Context, lines uint64, workers ...string) error {
	return s.Wait(ctx, func() bool {
		for _, uid := range workers {
			if l, _ := s.Log(logserver.Key{WorkerUID: uid, Container: "agent"}); l.LineCount < lines {
				return false
			}
		}
		return true
	})
}

// openFunc opens the log of a worker, as the kubelet gives it.
type openFunc func(ctx context.Context, read logs.Read) (io.ReadCloser, error)

// relay runs the product's relay, with a spool, for some workers that run, until done
// returns.
func relay(ctx context.Context, server grpc.ClientConnInterface, workers []string, open openFunc, done func(context.Context) error) (err error) {
	dir, err := os.MkdirTemp("", "ottoscaler-bench-")
	if err != nil {
		return fmt.Errorf("making a spool: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := spool.Open(dir, spool.Options{})
	if err != nil {
		return err
	}
	cluster := cachetesting.NewFakeControllerSource()
	pods, err := logs.NewPods(cluster)
	if err != nil {
		return err
	}
	items := queue.NewMemory[queue.Worker]()
	producer, err := items.Produce(ctx, "bench")
	if err != nil {
		return err
	}
	defer producer.Close() //nolint:errcheck // it is in memory
	r := logs.NewRelay(logs.Options{
		Workers: items, Pods: pods, Open: logs.OpenFunc(open), Server: server, Spool: store,
		Exists:   func(context.Context, string, string) (bool, error) { return true, nil },
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), DrainTimeout: time.Second,
	})
	running, stop := context.WithCancel(ctx)
	defer stop()
	group, running := errgroup.WithContext(running)
	group.Go(func() error { return pods.Run(running) })
	group.Go(func() error { return r.Run(running) })
	for _, uid := range workers {
		p := workerPod(uid)
		cluster.Add(p)
		if err := producer.Offer(ctx, queue.Item[queue.Worker]{ID: uid, Value: queue.Worker{Namespace: p.Namespace, Name: p.Name}}); err != nil {
			return fmt.Errorf("offering a worker: %w", err)
		}
	}
	err = done(running)
	stop()
	return errors.Join(err, group.Wait())
}

// workerPod is a worker that runs.
func workerPod(uid string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: uid, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "agent"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
			Name: "agent", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		}}},
	}
}

// longLog is a log of n lines of 120 bytes. It repeats a part, so that it costs no
// memory, and is silent after them.
type longLog struct {
	part []byte
	next int
	left int
	ctx  context.Context //nolint:containedctx // it is that of the read, which has no other place for it
}

const partLines = 20_000

var part = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	stamp, text := time.Now(), strings.Repeat("0123456789", 12)
	for range partLines {
		stamp = stamp.Add(3 * time.Microsecond)
		fmt.Fprintf(&b, "%s %s\n", stamp.UTC().Format(stampLayout), text)
	}
	return b.Bytes()
})

// Read implements [io.Reader].
func (l *longLog) Read(p []byte) (int, error) {
	if l.left == 0 {
		<-l.ctx.Done()
		return 0, l.ctx.Err()
	}
	n := copy(p[:min(len(p), l.left)], l.part[l.next:])
	l.next = (l.next + n) % len(l.part)
	l.left -= n
	return n, nil
}

// Close implements [io.Closer].
func (l *longLog) Close() error { return nil }

// logThroughput measures how many lines a second the relay moves from a log to a
// sink in the same process, beside a bare client that sends the same batches to the
// same sink. They take turns, and the best of each counts: what else the machine does
// only ever makes it slower, and the relay, with more goroutines, the more so.
func logThroughput(ctx context.Context, quick bool) ([]Row, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	n, rounds := 1_000_000, 12
	if quick {
		n, rounds = 200_000, 1
	}
	s, err := newSink(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()

	run := func(uid string) (perSecond float64, err error) {
		open := func(ctx context.Context, _ logs.Read) (io.ReadCloser, error) {
			return &longLog{part: part(), left: len(part()) / partLines * n, ctx: ctx}, nil
		}
		err = relay(ctx, s.conn, []string{uid}, open, func(ctx context.Context) error {
			if err := s.await(ctx, 1, uid); err != nil { // the relay has begun
				return err
			}
			begin := time.Now()
			err := s.await(ctx, uint64(n), uid) //nolint:gosec // a count
			perSecond = float64(n) / time.Since(begin).Seconds()
			return err
		})
		return perSecond, err
	}

	batches := bareBatches(n)
	if _, err := run("warm-up"); err != nil {
		return nil, err
	}
	var ours, raw []float64
	for i := range rounds {
		figure, err := run(fmt.Sprintf("relay-%d", i))
		if err != nil {
			return nil, err
		}
		ours = append(ours, figure)
		if figure, err = sendBare(ctx, s.conn, fmt.Sprintf("bare-%d", i), n, batches); err != nil {
			return nil, err
		}
		raw = append(raw, figure)
	}
	return []Row{{Value: slices.Max(ours), Raw: slices.Max(raw), Unit: "lines/s"}}, nil
}

// What a relay sends in haste, by the protocol's defaults.
const (
	batchLines  = 500
	batchWindow = 32 // batches that are not acknowledged
)

// bareBatches makes the batches that a relay makes of longLog. Their text is shared, so
// that they do not burden the memory of what is measured beside them.
func bareBatches(lines int) []*logsv1.StreamLogsRequest {
	var (
		batches []*logsv1.StreamLogsRequest
		blocks  [partLines / batchLines]logsv1.Batch
		sum     uint64
		size    uint64
	)
	for i, line := range slices.Collect(bytes.Lines(part())) {
		stamp, text, _ := bytes.Cut(line, []byte(" "))
		b := &blocks[i/batchLines]
		if b.BaseTime == nil {
			at, err := time.Parse(time.RFC3339Nano, string(stamp))
			if err != nil {
				panic(err) // we wrote it
			}
			b.BaseTime = timestamppb.New(at)
			b.TimeDeltas = append(b.TimeDeltas, 0)
		} else {
			b.TimeDeltas = append(b.TimeDeltas, 3000)
		}
		b.Data = append(b.Data, text...)
		b.Lengths = append(b.Lengths, uint32(len(text)-1)) //nolint:gosec // 120
	}
	for n := 0; n < lines; n += batchLines {
		block := &blocks[n/batchLines%len(blocks)]
		sum = crc64nvme.Update(sum, block.GetData())
		size += uint64(len(block.GetData()) - batchLines) //nolint:gosec // each line has a line feed
		batches = append(batches, &logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: &logsv1.Batch{
			FirstSequence: uint64(n + 1), BaseTime: block.GetBaseTime(), //nolint:gosec // a count
			Data: block.GetData(), Lengths: block.GetLengths(), TimeDeltas: block.GetTimeDeltas(),
			End: &logsv1.Position{
				Sequence: uint64(n + batchLines), Bytes: size, Checksum: binary.BigEndian.AppendUint64(nil, sum), //nolint:gosec // a count
				Time: block.GetBaseTime(), LinesInSecond: 1,
			},
		}}})
	}
	return batches
}

// sendBare sends batches on one gRPC stream, a window ahead of the acknowledgements, and
// waits for the last one.
func sendBare(ctx context.Context, conn grpc.ClientConnInterface, uid string, lines int, batches []*logsv1.StreamLogsRequest) (perSecond float64, err error) {
	stream, err := openBare(ctx, conn, uid)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	acked, window := make(chan error, 1), make(chan struct{}, batchWindow)
	go func() {
		defer close(acked)
		for stored := uint64(0); stored < uint64(lines); { //nolint:gosec // a count
			answer, err := stream.Recv()
			if err != nil {
				acked <- err
				return
			}
			for ; stored < answer.GetAck().GetSequence(); stored += batchLines {
				<-window
			}
		}
	}()
	for _, b := range batches {
		select {
		case window <- struct{}{}:
		case err := <-acked:
			return 0, fmt.Errorf("sending: %w", err)
		}
		if err := stream.Send(b); err != nil {
			return 0, fmt.Errorf("sending: %w", err)
		}
	}
	if err := <-acked; err != nil {
		return 0, fmt.Errorf("sending: %w", err)
	}
	return float64(lines) / time.Since(begin).Seconds(), nil
}

// openBare opens a stream without the product.
func openBare(ctx context.Context, conn grpc.ClientConnInterface, uid string) (logsv1.LogService_StreamLogsClient, error) {
	client := logsv1.NewLogServiceClient(conn)
	if _, err := client.RegisterWorker(ctx, &logsv1.RegisterWorkerRequest{Worker: &logsv1.Worker{Uid: uid, Name: uid}}); err != nil {
		return nil, fmt.Errorf("registering: %w", err)
	}
	stream, err := client.StreamLogs(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	open := &logsv1.StreamLogsRequest_Open{WorkerUid: uid, Container: "agent"}
	if err := stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: open}}); err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	if _, err := stream.Recv(); err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	return stream, nil
}

// The load of logLatency.
const (
	talkers    = 100
	talkEvery  = 100 * time.Millisecond
	quickTalks = 20
	talks      = 200 // of each talker
)

// logLatency measures the time from a line's stamp to the relay's receipt of its
// acknowledgement, with 100 workers that print 10 lines a second each, beside bare
// clients that send each line at once.
func logLatency(ctx context.Context, quick bool) ([]Row, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	count := talks
	if quick {
		count = quickTalks
	}
	ours, err := relayLatency(ctx, count)
	if err != nil {
		return nil, err
	}
	raw, err := bareLatency(ctx, count)
	if err != nil {
		return nil, err
	}
	at := func(all []float64, q float64) float64 { return all[int(q*float64(len(all)-1))] }
	return []Row{
		{Value: at(ours, .5), Raw: at(raw, .5), Unit: "ms"},
		{Value: at(ours, .99), Raw: at(raw, .99), Unit: "ms"},
	}, nil
}

// talk writes lines as the kubelet gives them.
func talk(ctx context.Context, out io.WriteCloser, count int) {
	ticker := time.NewTicker(talkEvery)
	defer ticker.Stop()
	defer out.Close() //nolint:errcheck // a pipe's
	for range count {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if _, err := fmt.Fprintf(out, "%s %s\n", time.Now().UTC().Format(stampLayout), strings.Repeat("0123456789", 12)); err != nil {
			return
		}
	}
	<-ctx.Done()
}

func relayLatency(ctx context.Context, count int) ([]float64, error) {
	s, err := newSink(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var workers []string
	for i := range talkers {
		workers = append(workers, fmt.Sprintf("talker-%03d", i))
	}
	open := func(ctx context.Context, _ logs.Read) (io.ReadCloser, error) {
		in, out := io.Pipe()
		go talk(ctx, out, count)
		return in, nil
	}
	watched := &stopwatch{ClientConnInterface: s.conn}
	err = relay(ctx, watched, workers, open, func(ctx context.Context) error {
		return s.await(ctx, uint64(count), workers...) //nolint:gosec // a count
	})
	watched.mu.Lock()
	defer watched.mu.Unlock()
	slices.Sort(watched.times)
	if err == nil && len(watched.times) == 0 {
		err = errors.New("no line was acknowledged")
	}
	return watched.times, err
}

func bareLatency(ctx context.Context, count int) ([]float64, error) {
	s, err := newSink(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var (
		mu    sync.Mutex
		times []float64
	)
	group, ctx := errgroup.WithContext(ctx)
	for i := range talkers {
		group.Go(func() error {
			stream, err := openBare(ctx, s.conn, fmt.Sprintf("bare-%03d", i))
			if err != nil {
				return err
			}
			w := &stopwatchStream{ClientStream: stream, watch: func(ms float64) {
				mu.Lock()
				defer mu.Unlock()
				times = append(times, ms)
			}}
			return bareTalk(ctx, w, count)
		})
	}
	err = group.Wait()
	slices.Sort(times)
	return times, err
}
