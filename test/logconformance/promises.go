package logconformance

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

func registeringAgain(t *testing.T, s *suite) {
	client := s.client(t)
	worker := describe("conformance-again-" + fmt.Sprint(rand.Uint64()))
	first, err := client.RegisterWorker(deadline(t), &logsv1.RegisterWorkerRequest{Worker: worker})
	if err != nil {
		t.Fatalf("registering: %v", err)
	}
	again, err := client.RegisterWorker(deadline(t), &logsv1.RegisterWorkerRequest{Worker: worker})
	if err != nil || !proto.Equal(first, again) {
		t.Errorf("registering again: %v, %v; the first answer was %v", again, err, first)
	}
	if limit := first.GetLimits().GetMaxBatchBytes(); limit > 256<<10 {
		t.Errorf("max_batch_bytes is %d; the relay never sends more than %d", limit, 256<<10)
	}
}

func workerWithoutUID(t *testing.T, s *suite) {
	if _, err := s.client(t).RegisterWorker(deadline(t), &logsv1.RegisterWorkerRequest{Worker: &logsv1.Worker{Name: "w"}}); err == nil {
		t.Error("a worker without a UID was registered: its logs would be anybody's")
	}
}

func newLog(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	if r.opened.GetResume().GetSequence() != 0 || r.opened.GetCompleted() {
		t.Errorf("a new log opens with %v, want its beginning", r.opened)
	}
}

func unknownWorker(t *testing.T, s *suite) {
	r := connect(t, s.client(t))
	r.send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: instance("conformance-nobody")}})
	wantCode(t, "a log of a worker that was never registered", r.ended(), codes.FailedPrecondition)
}

func batchFirst(t *testing.T, s *suite) {
	r := connect(t, s.client(t))
	r.sendBatch(r.batch("one"))
	wantCode(t, "a stream that begins with a batch", r.ended(), codes.InvalidArgument)
}

func linesAreAcknowledged(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	r.append("one")
	r.append("two", "three")
	r.completes()
}

func acknowledgementsGrow(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	ends := map[uint64]bool{}
	var acknowledged, sent uint64
	const batches, window = 200, 32
	for acknowledged < batches {
		for ; sent < batches && sent-acknowledged < window; sent++ {
			r.sendBatch(r.batch("a line"))
			ends[r.count.sequence] = true
		}
		ack := r.ack()
		if ack.GetVerdict() != logsv1.StreamLogsResponse_VERDICT_ACK || ack.GetSequence() <= acknowledged || !ends[ack.GetSequence()] {
			t.Fatalf("got %v after line %d; %d lines were sent, each in a batch of its own", ack, acknowledged, sent)
		}
		acknowledged = ack.GetSequence()
	}
	r.completes()
}

func positionComesBack(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	for _, lines := range [][]string{{"one"}, {"two", "three"}, {strings.Repeat("x", 70_000)}} {
		r.append(lines...)
		again := open(t, client, log)
		wantPosition(t, again.opened.GetResume(), r.position())
		r = again
	}
}

func positionWithoutTime(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	b := r.batch("one")
	b.End.Time, b.End.LinesInSecond = nil, 0
	r.sendBatch(b)
	r.stored(1)
	wantPosition(t, open(t, client, log).opened.GetResume(), b.GetEnd())
}

// The relay is killed while batches are under way: the server holds a beginning of
// them, all that it acknowledged at least, and says exactly which.
func brokenStream(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	ends := map[uint64]*logsv1.Position{}
	var acknowledged uint64
	lines := func(n int) (lines []string) {
		for i := range n {
			lines = append(lines, fmt.Sprint("line ", i))
		}
		return lines
	}
	for round := range 5 {
		r := open(t, client, log)
		at := r.opened.GetResume()
		if at.GetSequence() < acknowledged {
			t.Fatalf("round %d: resumes at line %d, but line %d was acknowledged", round, at.GetSequence(), acknowledged)
		}
		if at.GetSequence() > 0 {
			wantPosition(t, at, ends[at.GetSequence()])
		}
		for range 20 {
			b := r.batch(lines(50)...)
			ends[b.GetEnd().GetSequence()] = b.GetEnd()
			r.sendBatch(b)
		}
		for range round + 1 {
			acknowledged = max(acknowledged, r.ack().GetSequence())
			if acknowledged == r.count.sequence {
				break
			}
		}
		r.broken()
	}
	open(t, client, log).completes()
}

func heldLines(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	first := r.batch("one", "two")
	second := r.batch("three")
	for _, b := range []*logsv1.Batch{first, second, first, second} {
		r.sendBatch(b)
		ack := r.ack()
		if ack.GetVerdict() != logsv1.StreamLogsResponse_VERDICT_ACK || ack.GetSequence() < b.GetEnd().GetSequence() {
			t.Fatalf("got %v for lines up to %d, want an acknowledgement", ack, b.GetEnd().GetSequence())
		}
	}
	r.completes()
}

func heldInPart(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	start := r.count
	r.append("one", "two")
	r.count = start // the same lines again, cut into other batches
	r.append("one", "two", "three", "four")
	r.completes()
}

func missingLines(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	r.append("one", "two")
	missing, behind := r.batch("three"), r.batch("four", "five")
	r.sendBatch(behind)
	ack := r.ack()
	if ack.GetVerdict() != logsv1.StreamLogsResponse_VERDICT_RETRY || ack.GetSequence() != 2 {
		t.Fatalf("got %v for line 4 behind line 2, want RETRY 2", ack)
	}
	if ack.GetReason() == "" {
		t.Error("RETRY comes without a reason")
	}
	r.sendBatch(missing)
	r.stored(3)
	r.sendBatch(behind)
	r.stored(5)
	r.completes()
}

func supersede(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	first := open(t, client, log)
	first.append("one")
	second := open(t, s.client(t), log)
	wantPosition(t, second.opened.GetResume(), first.position())
	// The first stream goes on as a relay would that has not noticed.
	_ = first.stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: first.batch("from the first")}})
	wantCode(t, "the first of two streams", first.ended(), codes.Aborted)
	second.append("from the second")
	second.completes() // and nothing of the first's
}

func supersedeOften(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 5 {
				stream, err := client.StreamLogs(deadline(t))
				if err != nil {
					t.Errorf("beginning a stream: %v", err)
					return
				}
				_ = stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: log}})
				answer, err := stream.Recv()
				if err != nil {
					continue // another one was quicker
				}
				r := &relay{t: t, stream: stream}
				at := answer.GetOpened().GetResume()
				r.count = counted{sequence: at.GetSequence(), bytes: at.GetBytes(), gaps: at.GetGapCount()}
				if sum := at.GetChecksum(); len(sum) == 8 {
					r.count.sum = uint64(sum[0])<<56 | uint64(sum[1])<<48 | uint64(sum[2])<<40 | uint64(sum[3])<<32 |
						uint64(sum[4])<<24 | uint64(sum[5])<<16 | uint64(sum[6])<<8 | uint64(sum[7])
				}
				_ = stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: r.batch("a line of mine")}})
				if _, err := stream.Recv(); err != nil && status.Code(err) != codes.Aborted {
					t.Errorf("one of many streams ends with %v", err)
				}
			}
		})
	}
	wait.Wait()
	r := open(t, client, log)
	r.append("the last")
	r.completes()
}

func ownLogs(t *testing.T, s *suite) {
	client := s.client(t)
	uid := worker(t, client)
	logs := []*logsv1.StreamLogsRequest_Open{
		{WorkerUid: uid, Container: "prepare", Init: true},
		{WorkerUid: uid, Container: "agent"},
		{WorkerUid: uid, Container: "agent", RestartCount: 1},
		{WorkerUid: uid, Container: "agent", RestartCount: 4_294_967_295},
		{WorkerUid: uid, Container: "helper"},
		{WorkerUid: worker(t, client), Container: "agent"},
	}
	var relays []*relay
	for i, log := range logs {
		r := open(t, client, log)
		if r.opened.GetResume().GetSequence() != 0 {
			t.Errorf("log %v begins at %v: it is taken for another", log, r.opened.GetResume())
		}
		r.append(fmt.Sprint("line of log ", i))
		relays = append(relays, r)
	}
	for i, r := range relays {
		r.append(strings.Repeat("second line", i))
		r.completes()
		r.wantClosed()
	}
}

// All streams are open at the same time, and all have lines under way.
func manyWorkers(t *testing.T, s *suite) {
	client := s.client(t)
	var relays []*relay
	for range 200 {
		relays = append(relays, open(t, client, instance(worker(t, client))))
	}
	for round := range 5 {
		for i, r := range relays {
			for range 3 {
				r.sendBatch(r.batch(fmt.Sprintf("round %d of worker %d", round, i), "another line"))
			}
		}
		for _, r := range relays {
			r.stored(r.count.sequence)
		}
	}
	for _, r := range relays {
		r.completes()
		r.wantClosed()
	}
}

func linesAreBytes(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	all := make([]byte, 0, 256)
	for i := range 256 {
		if i != '\n' {
			all = append(all, byte(i))
		}
	}
	r.append(string(all), "\xff\xfe", "\x00", "half a rune \xe2\x82", "\xac the other half", "\r", " ", "\x1b[31mred\x1b[0m", "\xed\xa0\x80")
	r.completes()
}

func emptyLines(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	r.append("")
	r.append("", "", "x", "")
	r.completes()
}

func longLine(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	r.append("before")
	r.append(strings.Repeat("0123456789abcdef", 3<<20/16))
	r.append("behind")
	r.completes()
}

func largestBatch(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	for range 5 {
		lines := make([]string, 500)
		for i := range lines {
			lines[i] = strings.Repeat("x", 500)
		}
		r.sendBatch(r.batch(lines...))
	}
	r.stored(r.count.sequence)
	r.completes()
}

func streamsOfLines(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	b := r.batch("out", "err", "who knows")
	b.Streams = []logsv1.Stream{logsv1.Stream_STREAM_STDOUT, logsv1.Stream_STREAM_STDERR, logsv1.Stream_STREAM_UNSPECIFIED}
	r.sendBatch(b)
	r.stored(3)
	r.completes()
}

func gzipped(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)), grpc.UseCompressor(gzip.Name))
	r.append("one", strings.Repeat("two", 10_000))
	r.completes()
	r.wantClosed()
}

func gapIsALine(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	r.append("one")
	r.sendBatch(r.gap())
	r.stored(2)
	r.append("three")
	wantPosition(t, open(t, client, log).opened.GetResume(), r.position())

	open(t, client, log).completes() // by a relay that knows no more than the position
}

func gapOnce(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	gap := r.gap()
	for range 3 {
		r.sendBatch(gap)
		r.stored(1)
	}
	r.completes()
}

func emptyLog(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	r.completes()
	r.wantClosed()
	if opened := open(t, client, log).opened; !opened.GetCompleted() {
		t.Errorf("a complete log without lines opens with %v", opened)
	}
}

func completionCompares(t *testing.T, s *suite) {
	for _, row := range []struct {
		name   string
		change func(*logsv1.StreamLogsRequest_Complete)
		may    bool // match, if the server says that it did not look
	}{
		{"lines", func(c *logsv1.StreamLogsRequest_Complete) { c.LineCount++ }, false},
		{"bytes", func(c *logsv1.StreamLogsRequest_Complete) { c.ByteCount-- }, false},
		{"gaps", func(c *logsv1.StreamLogsRequest_Complete) { c.GapCount++ }, false},
		{"checksum", func(c *logsv1.StreamLogsRequest_Complete) { c.Checksum[7] ^= 1 }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			client := s.client(t)
			r := open(t, client, instance(worker(t, client)))
			r.append("one", "two")
			c := r.count.complete()
			row.change(c)
			answer := r.complete(c)
			if answer.GetMatches() && (!row.may || answer.GetMessage() == "") {
				t.Error("other numbers than those stored are said to match")
			}
			if answer.GetMessage() == "" {
				t.Error("a mismatch comes without a message")
			}
		})
	}
}

func staysComplete(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	r.append("one")
	if opened := open(t, client, log).opened; opened.GetCompleted() {
		t.Error("a log is complete before the relay said so")
	}
	r = open(t, client, log)
	r.completes()
	r.wantClosed()
	again := open(t, client, log)
	if !again.opened.GetCompleted() {
		t.Error("a complete log is wanted again")
	}
	wantPosition(t, again.opened.GetResume(), r.position())
	again.wantClosed()
}

func completingAgain(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	r.append("one")
	first := r.complete(r.count.complete())
	r.broken() // the answer was lost
	again := open(t, client, log)
	if second := again.complete(again.count.complete()); second.GetMatches() != first.GetMatches() {
		t.Errorf("completing again: %v, the first answer was %v", second, first)
	}
}

func halfClose(t *testing.T, s *suite) {
	client := s.client(t)
	r := open(t, client, instance(worker(t, client)))
	r.append("one")
	r.completes()
	r.wantClosed()
}

// What was sent before the relay closed its side is stored and acknowledged all the same.
func halfCloseEarly(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	r := open(t, client, log)
	for range 10 {
		r.sendBatch(r.batch("a line"))
	}
	if err := r.stream.CloseSend(); err != nil {
		t.Fatalf("closing: %v", err)
	}
	r.stored(10)
	if err := r.ended(); status.Code(err) != codes.Unknown && status.Code(err) != codes.OK { // io.EOF has no status
		t.Errorf("the server ends the call with %v", err)
	}
	wantPosition(t, open(t, client, log).opened.GetResume(), r.position())
}

func finishingAgain(t *testing.T, s *suite) {
	client := s.client(t)
	uid := worker(t, client)
	r := open(t, client, instance(uid))
	r.append("one")
	r.completes()
	r.wantClosed()
	request := &logsv1.FinishWorkerRequest{
		WorkerUid: uid, Reason: "Evicted", Message: "The node was low on memory.",
		Containers: []*logsv1.ContainerEnd{
			{Container: "agent", ExitCode: proto.Int32(137), Signal: 9, Reason: "OOMKilled", StartedTime: r.position().GetTime(), FinishedTime: r.position().GetTime()},
			{Container: "never-ran"},
		},
	}
	for range 3 {
		if _, err := client.FinishWorker(deadline(t), request); err != nil {
			t.Fatalf("finishing: %v", err)
		}
	}
	// A relay that restarted now would begin from the start, and be told that there is nothing to do.
	if _, err := client.RegisterWorker(deadline(t), &logsv1.RegisterWorkerRequest{Worker: describe(uid)}); err != nil {
		t.Errorf("registering a finished worker again: %v", err)
	}
	if opened := open(t, client, instance(uid)).opened; !opened.GetCompleted() {
		t.Errorf("the log of a finished worker opens with %v", opened)
	}
}

// A relay that has waited for too long names what it has given up, whether the server has heard of it or not.
func finishIncomplete(t *testing.T, s *suite) {
	client := s.client(t)
	uid := worker(t, client)
	r := open(t, client, instance(uid))
	r.append("one")
	r.broken()
	request := &logsv1.FinishWorkerRequest{WorkerUid: uid, Incomplete: []*logsv1.IncompleteLog{
		{Container: "agent", LostLines: 17, LostBytes: 1234}, {Container: "never-seen", Unread: true},
	}}
	for range 2 {
		if _, err := client.FinishWorker(deadline(t), request); err != nil {
			t.Fatalf("finishing: %v", err)
		}
	}
	for _, container := range []string{"agent", "never-seen"} {
		log := instance(uid)
		log.Container = container
		if opened := open(t, client, log).opened; !opened.GetCompleted() {
			t.Errorf("a log of %s that was given up opens with %v", container, opened)
		}
	}
}

func finishUnknown(t *testing.T, s *suite) {
	_, err := s.client(t).FinishWorker(deadline(t), &logsv1.FinishWorkerRequest{WorkerUid: "conformance-nobody"})
	wantCode(t, "finishing a worker that was never registered", err, codes.FailedPrecondition)
}

// What a relay with a bug sends ends its stream at most, and nobody else's.
func brokenRelay(t *testing.T, s *suite) {
	client := s.client(t)
	bystander := open(t, client, instance(worker(t, client)))
	bystander.append("one")
	for _, row := range []struct {
		name   string
		breaks func(*logsv1.Batch)
	}{
		{"lengths beyond the data", func(b *logsv1.Batch) { b.Lengths[0] = 1 << 30 }},
		{"a line that no line feed ends", func(b *logsv1.Batch) { b.Data[len("one")] = '!' }},
		{"fewer lengths than data", func(b *logsv1.Batch) { b.Lengths[0] = 1 }},
		{"a time too few", func(b *logsv1.Batch) { b.TimeDeltas = b.TimeDeltas[:1] }},
		{"an end elsewhere", func(b *logsv1.Batch) { b.End.Sequence += 5 }},
		{"no end", func(b *logsv1.Batch) { b.End = nil }},
		{"no lines", func(b *logsv1.Batch) { b.Lengths, b.TimeDeltas, b.Data = nil, nil, nil }},
	} {
		log := instance(worker(t, client))
		r := open(t, client, log)
		b := r.batch("one", "two")
		row.breaks(b)
		r.sendBatch(b)
		wantCode(t, row.name, r.ended(), codes.InvalidArgument)
		if at := open(t, client, log).opened.GetResume(); at.GetSequence() != 0 {
			t.Errorf("%s: something of it was stored: %v", row.name, at)
		}
	}
	r := open(t, client, instance(worker(t, client)))
	r.send(&logsv1.StreamLogsRequest{})
	if err := r.ended(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a message that says nothing ends with %v", err)
	}
	bystander.append("two")
	bystander.completes()
}

func restart(t *testing.T, s *suite) {
	client := s.client(t)
	log := instance(worker(t, client))
	var acknowledged *logsv1.Position
	for round := range 3 {
		r := open(t, client, log, grpc.WaitForReady(true))
		if acknowledged != nil {
			wantPosition(t, r.opened.GetResume(), acknowledged)
		}
		for range 5 {
			r.append(fmt.Sprint("round ", round), "")
		}
		acknowledged = r.position()
		if err := s.server.Restart(deadline(t)); err != nil {
			t.Fatalf("restarting the server: %v", err)
		}
		if err := r.ended(); status.Code(err) == codes.OK {
			t.Error("a stream survived the server's restart")
		}
	}
	r := open(t, client, log, grpc.WaitForReady(true))
	wantPosition(t, r.opened.GetResume(), acknowledged)
	r.completes()
}

func restartAfterEnd(t *testing.T, s *suite) {
	client := s.client(t)
	uid := worker(t, client)
	r := open(t, client, instance(uid))
	r.append("one")
	r.completes()
	r.wantClosed()
	request := &logsv1.FinishWorkerRequest{WorkerUid: uid, Containers: []*logsv1.ContainerEnd{{Container: "agent", ExitCode: proto.Int32(0)}}}
	if _, err := client.FinishWorker(deadline(t), request); err != nil {
		t.Fatalf("finishing: %v", err)
	}
	if err := s.server.Restart(deadline(t)); err != nil {
		t.Fatalf("restarting the server: %v", err)
	}
	again := open(t, client, instance(uid), grpc.WaitForReady(true))
	if !again.opened.GetCompleted() {
		t.Error("a complete log is wanted again after a restart")
	}
	if _, err := client.FinishWorker(deadline(t), request, grpc.WaitForReady(true)); err != nil {
		t.Errorf("finishing again after a restart: %v", err)
	}
}
