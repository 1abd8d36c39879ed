package logconformance

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/minio/crc64nvme"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// began is when the first line of every log is written: a time whose nanoseconds a
// double does not hold.
const began = 1_790_000_000

// relay is one stream, by hand. What it counts is what it has sent.
type relay struct {
	t      *testing.T
	stream logsv1.LogService_StreamLogsClient
	cancel context.CancelFunc
	opened *logsv1.StreamLogsResponse_Opened
	count  counted
}

// counted is a log as far as a relay has sent it.
type counted struct {
	sequence, bytes, gaps, sum uint64
}

func instance(uid string) *logsv1.StreamLogsRequest_Open {
	return &logsv1.StreamLogsRequest_Open{WorkerUid: uid, Container: "agent"}
}

// connect begins a stream without saying anything.
func connect(t *testing.T, client logsv1.LogServiceClient, options ...grpc.CallOption) *relay {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	stream, err := client.StreamLogs(ctx, options...)
	if err != nil {
		t.Fatalf("beginning a stream: %v", err)
	}
	return &relay{t: t, stream: stream, cancel: cancel}
}

// open begins a stream for a log. A relay that comes back counts on from the position that it is given.
func open(t *testing.T, client logsv1.LogServiceClient, log *logsv1.StreamLogsRequest_Open, options ...grpc.CallOption) *relay {
	t.Helper()
	r := connect(t, client, options...)
	r.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: log}})
	r.opened = r.receive().GetOpened()
	if r.opened == nil {
		t.Fatal("the answer to Open is not Opened")
	}
	if at := r.opened.GetResume(); at != nil {
		r.count = counted{sequence: at.GetSequence(), bytes: at.GetBytes(), gaps: at.GetGapCount()}
		if sum := at.GetChecksum(); len(sum) == 8 {
			r.count.sum = binary.BigEndian.Uint64(sum)
		}
	}
	return r
}

func (r *relay) send(req *logsv1.StreamLogsRequest) {
	r.t.Helper()
	if err := r.stream.Send(req); err != nil {
		_, ended := r.stream.Recv()
		r.t.Fatalf("sending: %v; the stream ended with %v", err, ended)
	}
}

func (r *relay) receive() *logsv1.StreamLogsResponse {
	r.t.Helper()
	answer, err := r.stream.Recv()
	if err != nil {
		r.t.Fatalf("waiting for an answer: %v", err)
	}
	return answer
}

// batch makes the next batch, and counts its lines.
func (r *relay) batch(lines ...string) *logsv1.Batch {
	b := &logsv1.Batch{
		FirstSequence: r.count.sequence + 1,
		BaseTime:      &timestamppb.Timestamp{Seconds: began + int64(r.count.sequence), Nanos: 123_456_789}, //nolint:gosec // small
	}
	for i, line := range lines {
		b.Data = append(append(b.Data, line...), '\n')
		b.Lengths = append(b.Lengths, uint32(len(line)))             //nolint:gosec // at most some MiB
		b.TimeDeltas = append(b.TimeDeltas, uint32(min(i, 1)*1_000)) //nolint:gosec // 0 or 1000
		r.count.sequence++
		r.count.bytes += uint64(len(line))
		r.count.sum = crc64nvme.Update(r.count.sum, []byte(line+"\n"))
	}
	b.End = r.position()
	return b
}

// gap makes a batch that is a gap.
func (r *relay) gap() *logsv1.Batch {
	r.count.gaps++
	b := r.batch("")
	b.Gap = &logsv1.Gap{
		Reason: "rotated", Message: "the node removed lines",
		FromTime: &timestamppb.Timestamp{Seconds: began}, ToTime: &timestamppb.Timestamp{Seconds: began + 60}, LineCount: 17,
	}
	return b
}

func (r *relay) position() *logsv1.Position {
	return &logsv1.Position{
		Sequence: r.count.sequence,
		Time:     &timestamppb.Timestamp{Seconds: began + int64(r.count.sequence), Nanos: 999_999_999}, //nolint:gosec // small
		// An odd number, for whoever computes it.
		LinesInSecond: 4_000_000_007,
		Bytes:         r.count.bytes,
		Checksum:      binary.BigEndian.AppendUint64(nil, r.count.sum),
		GapCount:      r.count.gaps,
	}
}

func (r *relay) sendBatch(b *logsv1.Batch) {
	r.t.Helper()
	r.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: b}})
}

// ack waits for an acknowledgement.
func (r *relay) ack() *logsv1.StreamLogsResponse_Ack {
	r.t.Helper()
	answer := r.receive()
	if answer.GetAck() == nil {
		r.t.Fatalf("got %v, want an acknowledgement", answer)
	}
	return answer.GetAck()
}

// stored waits until every line up to a number is acknowledged.
func (r *relay) stored(sequence uint64) {
	r.t.Helper()
	for {
		ack := r.ack()
		if ack.GetVerdict() != logsv1.StreamLogsResponse_VERDICT_ACK || ack.GetSequence() > sequence {
			r.t.Fatalf("got %v, want an acknowledgement of line %d", ack, sequence)
		}
		if ack.GetSequence() == sequence {
			return
		}
	}
}

// append sends lines as a batch and waits until they are stored.
func (r *relay) append(lines ...string) {
	r.t.Helper()
	r.sendBatch(r.batch(lines...))
	r.stored(r.count.sequence)
}

func (c counted) complete() *logsv1.StreamLogsRequest_Complete {
	return &logsv1.StreamLogsRequest_Complete{
		LineCount: c.sequence, ByteCount: c.bytes, Checksum: binary.BigEndian.AppendUint64(nil, c.sum), GapCount: c.gaps,
	}
}

func (r *relay) complete(c *logsv1.StreamLogsRequest_Complete) *logsv1.StreamLogsResponse_Completed {
	r.t.Helper()
	r.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Complete_{Complete: c}})
	answer := r.receive()
	if answer.GetCompleted() == nil {
		r.t.Fatalf("got %v, want Completed", answer)
	}
	return answer.GetCompleted()
}

// completes ends the log and fails the test unless the server has what the relay has sent.
func (r *relay) completes() {
	r.t.Helper()
	if answer := r.complete(r.count.complete()); !answer.GetMatches() {
		r.t.Errorf("the server does not hold what was sent: %s", answer.GetMessage())
	}
}

// close closes the relay's side and returns what the server ends the call with: io.EOF for success.
func (r *relay) close() error {
	r.t.Helper()
	if err := r.stream.CloseSend(); err != nil {
		r.t.Fatalf("closing: %v", err)
	}
	return r.ended()
}

// ended reads answers away until the call ends.
func (r *relay) ended() error {
	for {
		if _, err := r.stream.Recv(); err != nil {
			return err
		}
	}
}

// broken ends the stream as a relay does that is killed.
func (r *relay) broken() {
	r.cancel()
	_ = r.ended()
}

func (r *relay) wantClosed() {
	r.t.Helper()
	if err := r.close(); !errors.Is(err, io.EOF) {
		r.t.Errorf("the server ends the call with %v, want success", err)
	}
}

func wantPosition(t *testing.T, got, want *logsv1.Position) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("resume is\n  %v, want\n  %v", got, want)
	}
}
