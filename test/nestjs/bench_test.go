package nestjs_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

const (
	benchLineBytes = 120
	benchBatch     = 500 // lines, what the relay sends under load
	benchWindow    = 32  // batches, the protocol's default
	benchLines     = 500_000
)

// BenchmarkServer is what the server takes from a bare gRPC client: lines/s that are
// acknowledged, which is on its disk. Beside it, the same client and a bare server in
// Go that acknowledges and forgets: what gRPC and this machine give.
//
//	go test ./test/nestjs -run '^$' -bench . -benchtime 1x
func BenchmarkServer(b *testing.B) {
	for _, streams := range []int{1, 8, 50} {
		b.Run(fmt.Sprintf("nestjs/streams=%d", streams), func(b *testing.B) {
			server := &program{dir: b.TempDir(), addr: freeAddr(b)}
			if err := server.begin(b.Context()); err != nil {
				b.Fatal(err)
			}
			measure(b, server.addr, streams)
			if err := server.stop(syscall.SIGTERM); err != nil {
				b.Fatal(err)
			}
			// Of its whole life, which begins with half a second of loading.
			used := server.command.ProcessState.UserTime() + server.command.ProcessState.SystemTime()
			b.ReportMetric(float64(used.Microseconds())/float64(b.N)/benchLines, "server-µs/line")
		})
		b.Run(fmt.Sprintf("bare-go/streams=%d", streams), func(b *testing.B) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			server := grpc.NewServer()
			logsv1.RegisterLogServiceServer(server, forgetful{})
			go server.Serve(listener) //nolint:errcheck // ends with Stop
			defer server.Stop()
			measure(b, listener.Addr().String(), streams)
		})
	}
}

// measure sends benchLines over some streams, b.N times.
func measure(b *testing.B, addr string, streams int) {
	b.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // measured already
	client := logsv1.NewLogServiceClient(conn)
	batches := benchLines / benchBatch / streams
	for n := 0; b.Loop(); n++ {
		group, ctx := errgroup.WithContext(b.Context())
		for i := range streams {
			group.Go(func() error { return sendLog(ctx, client, fmt.Sprintf("uid-%d-%d", n, i), batches) })
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	lines := float64(b.N) * float64(batches*benchBatch*streams)
	b.ReportMetric(lines/b.Elapsed().Seconds(), "lines/s")
	b.ReportMetric(0, "ns/op")
}

// sendLog sends the whole log of a worker, at most a window ahead, and has it completed.
func sendLog(ctx context.Context, client logsv1.LogServiceClient, uid string, batches int) error {
	if _, err := client.RegisterWorker(ctx, &logsv1.RegisterWorkerRequest{Worker: &logsv1.Worker{Uid: uid, Name: uid}}); err != nil {
		return err
	}
	stream, err := client.StreamLogs(ctx)
	if err != nil {
		return err
	}
	open := &logsv1.StreamLogsRequest_Open{WorkerUid: uid, Container: "agent"}
	if err := stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: open}}); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	line := strings.Repeat("x", benchLineBytes)
	batch := &logsv1.Batch{Data: []byte(strings.Repeat(line, benchBatch)), TimeDeltas: make([]uint32, benchBatch)}
	text := []byte(strings.Repeat(line+"\n", benchBatch))
	for range benchBatch {
		batch.Lengths = append(batch.Lengths, benchLineBytes)
	}
	var sum, sent, acknowledged uint64
	for acknowledged < uint64(batches)*benchBatch { //nolint:gosec // positive
		if sent < uint64(batches)*benchBatch && sent-acknowledged < benchWindow*benchBatch { //nolint:gosec // positive
			sum = crc64.Update(sum, table, text)
			batch.FirstSequence = sent + 1
			sent += benchBatch
			batch.End = &logsv1.Position{Sequence: sent, Bytes: sent * benchLineBytes, Checksum: binary.BigEndian.AppendUint64(nil, sum)}
			if err := stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: batch}}); err != nil {
				return err
			}
			continue
		}
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		acknowledged = answer.GetAck().GetSequence()
	}
	complete := &logsv1.StreamLogsRequest_Complete{LineCount: sent, ByteCount: sent * benchLineBytes, Checksum: binary.BigEndian.AppendUint64(nil, sum)}
	if err := stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Complete_{Complete: complete}}); err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	if !answer.GetCompleted().GetMatches() {
		return fmt.Errorf("the server does not hold what was sent: %s", answer.GetCompleted().GetMessage())
	}
	return stream.CloseSend()
}

var table = crc64.MakeTable(crc64.ECMA)

// forgetful acknowledges everything and keeps nothing.
type forgetful struct {
	logsv1.UnimplementedLogServiceServer
}

// RegisterWorker implements the protocol.
func (forgetful) RegisterWorker(context.Context, *logsv1.RegisterWorkerRequest) (*logsv1.RegisterWorkerResponse, error) {
	return &logsv1.RegisterWorkerResponse{}, nil
}

// StreamLogs implements the protocol.
func (forgetful) StreamLogs(stream logsv1.LogService_StreamLogsServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF { //nolint:errorlint // gRPC returns it as it is
			return nil
		}
		if err != nil {
			return err
		}
		answer := &logsv1.StreamLogsResponse{}
		switch {
		case request.GetBatch() != nil:
			answer.Message = &logsv1.StreamLogsResponse_Ack_{Ack: &logsv1.StreamLogsResponse_Ack{
				Verdict: logsv1.StreamLogsResponse_VERDICT_ACK, Sequence: request.GetBatch().GetEnd().GetSequence(),
			}}
		case request.GetComplete() != nil:
			answer.Message = &logsv1.StreamLogsResponse_Completed_{Completed: &logsv1.StreamLogsResponse_Completed{Matches: true}}
		default:
			answer.Message = &logsv1.StreamLogsResponse_Opened_{Opened: &logsv1.StreamLogsResponse_Opened{}}
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}
