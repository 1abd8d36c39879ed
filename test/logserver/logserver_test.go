package logserver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/minio/crc64nvme"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
	"github.com/ottoscaler/ottoscaler/test/logserver"
)

// serve starts a server on a folder and returns a client and how to stop it.
func serve(t *testing.T, options logserver.Options) (*logserver.Server, logsv1.LogServiceClient, func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listening: %v", err)
	}
	server, end, err := logserver.Start(listener, options)
	if err != nil {
		t.Fatalf("starting a server: %v", err)
	}
	stop := func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("dialing: %v", err)
	}
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // the test is over
	t.Cleanup(stop)
	return server, logsv1.NewLogServiceClient(conn), stop
}

// A sender is a relay by hand.
type sender struct {
	t      *testing.T
	stream logsv1.LogService_StreamLogsClient
	at     *logsv1.Position
}

func register(t *testing.T, client logsv1.LogServiceClient) {
	t.Helper()
	_, err := client.RegisterWorker(t.Context(), &logsv1.RegisterWorkerRequest{Worker: &logsv1.Worker{Uid: "uid-1", Name: "w-1", TaskId: "t-1"}})
	if err != nil {
		t.Fatalf("registering: %v", err)
	}
}

func open(t *testing.T, client logsv1.LogServiceClient) (*sender, *logsv1.StreamLogsResponse_Opened) {
	t.Helper()
	stream, err := client.StreamLogs(t.Context())
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	s := &sender{t: t, stream: stream, at: &logsv1.Position{}}
	s.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: &logsv1.StreamLogsRequest_Open{WorkerUid: "uid-1", Container: "agent"}}})
	opened := s.receive().GetOpened()
	if r := opened.GetResume(); r != nil {
		s.at = r
	}
	return s, opened
}

func (s *sender) send(req *logsv1.StreamLogsRequest) {
	s.t.Helper()
	if err := s.stream.Send(req); err != nil {
		s.t.Fatalf("sending: %v", err)
	}
}

func (s *sender) receive() *logsv1.StreamLogsResponse {
	s.t.Helper()
	answer, err := s.stream.Recv()
	if err != nil {
		s.t.Fatalf("receiving: %v", err)
	}
	return answer
}

// batch sends lines and returns the answer.
func (s *sender) batch(lines ...string) *logsv1.StreamLogsResponse_Ack {
	s.t.Helper()
	b := &logsv1.Batch{FirstSequence: s.at.GetSequence() + 1, End: &logsv1.Position{}}
	end := &logsv1.Position{Sequence: s.at.GetSequence(), Bytes: s.at.GetBytes()}
	var sum uint64
	if before := s.at.GetChecksum(); before != nil {
		sum = binary.BigEndian.Uint64(before)
	}
	for _, line := range lines {
		b.Data = append(append(b.Data, line...), '\n')
		b.Lengths = append(b.Lengths, uint32(len(line))) //nolint:gosec // short
		b.TimeDeltas = append(b.TimeDeltas, 0)
		end.Sequence++
		end.Bytes += uint64(len(line))
		sum = crc64nvme.Update(sum, []byte(line+"\n"))
	}
	end.Checksum = binary.BigEndian.AppendUint64(nil, sum)
	b.End, s.at = end, end
	s.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: b}})
	return s.receive().GetAck()
}

func (s *sender) complete() *logsv1.StreamLogsResponse_Completed {
	s.t.Helper()
	s.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Complete_{Complete: &logsv1.StreamLogsRequest_Complete{
		LineCount: s.at.GetSequence(), ByteCount: s.at.GetBytes(), Checksum: s.at.GetChecksum(),
	}}})
	return s.receive().GetCompleted()
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s = %q, %v; want %q", path, got, err, want)
	}
}

func TestServerGoesOnWithItsFolder(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "w-1", "agent-0.log")
	_, client, stop := serve(t, logserver.Options{Dir: dir})
	register(t, client)
	relay, _ := open(t, client)
	if ack := relay.batch("one", "two"); ack.GetSequence() != 2 {
		t.Errorf("acknowledged %d, want 2", ack.GetSequence())
	}
	stop()
	// What a crash leaves behind the record must not stay.
	file, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("half a li"); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}

	_, client, stop = serve(t, logserver.Options{Dir: dir})
	register(t, client)
	relay, opened := open(t, client)
	if opened.GetResume().GetSequence() != 2 || opened.GetCompleted() {
		t.Fatalf("opened with %v, want line 2", opened)
	}
	relay.batch("three", "\xff")
	if answer := relay.complete(); !answer.GetMatches() {
		t.Errorf("completed: %v", answer.GetMessage())
	}
	wantFile(t, log, "one\ntwo\nthree\n\xff\n")
	if _, err := client.FinishWorker(t.Context(), &logsv1.FinishWorkerRequest{WorkerUid: "uid-1", Reason: "Evicted"}); err != nil {
		t.Errorf("finishing: %v", err)
	}
	stop()

	server, client, _ := serve(t, logserver.Options{Dir: dir})
	if _, opened := open(t, client); !opened.GetCompleted() {
		t.Error("a complete log is wanted again after a restart")
	}
	w, ok := server.Worker("w-1")
	if !ok || w.End.GetReason() != "Evicted" || len(w.Logs) != 1 || w.Logs[0].LineCount != 4 || !w.Logs[0].Matches {
		t.Errorf("worker after a restart: %+v, %v", w, ok)
	}
}

func TestServerPrintsLinesWithTheirOrigin(t *testing.T) {
	var out bytes.Buffer
	_, client, stop := serve(t, logserver.Options{Print: &out})
	register(t, client)
	relay, _ := open(t, client)
	relay.batch("one", "two")
	stop()
	if got, want := out.String(), "w-1 agent | one\nw-1 agent | two\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestServerTakesRepeatedLinesOnceAndRefusesGaps(t *testing.T) {
	server, client, _ := serve(t, logserver.Options{})
	register(t, client)
	relay, _ := open(t, client)
	start := relay.at
	relay.batch("one", "two")
	behind := relay.at
	relay.at = start
	if ack := relay.batch("one", "two", "three"); ack.GetSequence() != 3 || ack.GetVerdict() != logsv1.StreamLogsResponse_VERDICT_ACK {
		t.Errorf("lines again: %v, want an acknowledgement of line 3", ack)
	}
	relay.at = &logsv1.Position{Sequence: 9}
	if ack := relay.batch("ten"); ack.GetSequence() != 3 || ack.GetVerdict() != logsv1.StreamLogsResponse_VERDICT_RETRY {
		t.Errorf("a gap: %v, want a retry behind line 3", ack)
	}
	l, _ := server.Log(logserver.Key{WorkerUID: "uid-1", Container: "agent"})
	if len(l.Lines) != 3 || l.Duplicates != 2 {
		t.Errorf("the server has %+v", l)
	}

	// Other text under the same numbers, and a superseded stream, are refused.
	newer, _ := open(t, client)
	relay.at = behind
	relay.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: &logsv1.Batch{
		FirstSequence: 4, Data: []byte("\n"), Lengths: []uint32{0}, TimeDeltas: []uint32{0}, End: &logsv1.Position{Sequence: 4},
	}}})
	if _, err := relay.stream.Recv(); err == nil {
		t.Error("a superseded stream may still append")
	}
	newer.at = &logsv1.Position{Sequence: 3, Bytes: 1, Checksum: make([]byte, 8)}
	newer.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: &logsv1.Batch{
		FirstSequence: 4, Data: []byte("\n"), Lengths: []uint32{0}, TimeDeltas: []uint32{0}, End: &logsv1.Position{Sequence: 4},
	}}})
	if _, err := newer.stream.Recv(); err == nil || len(server.Problems()) != 1 {
		t.Errorf("a wrong checksum is accepted: %v, problems %v", err, server.Problems())
	}
}

func TestFinishBeforeCompletionIsRefused(t *testing.T) {
	_, client, _ := serve(t, logserver.Options{})
	register(t, client)
	open(t, client)
	if _, err := client.FinishWorker(context.Background(), &logsv1.FinishWorkerRequest{WorkerUid: "uid-1"}); err == nil {
		t.Error("a worker is finished although its log is open")
	}
}
