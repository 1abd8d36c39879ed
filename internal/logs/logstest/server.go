// Package logstest has the two ends of a log relay for tests: a log server and a
// source of logs, which break on command.
package logstest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minio/crc64nvme"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// A Key names the log of one container instance.
type Key struct {
	// WorkerUID is the UID of the worker's pod.
	WorkerUID string
	// Container is the container's name.
	Container string
	// RestartCount tells the instances of a container apart.
	RestartCount uint32
}

// A Log is what a [Server] holds of one container instance.
type Log struct {
	Key
	// Init says that it is an init container.
	Init bool
	// Lines are the stored lines, without line ends. A server that discards has
	// none. A gap is an empty line.
	Lines []string
	// GapCount is how many of the lines are gaps, and Gaps are these gaps, in their
	// order. A server that discards has none.
	GapCount uint64
	Gaps     []Gap
	// LineCount and ByteCount are what is stored, line ends not counted.
	LineCount, ByteCount uint64
	// Checksum is the CRC-64 of the stored lines, each with a line feed.
	Checksum uint64
	// Position is the position of the last batch, as the relay sent it.
	Position *logsv1.Position
	// Complete says that the relay called the log complete, and Matches that it
	// meant what is stored.
	Complete, Matches bool
	// Duplicates counts the lines that were sent although they were stored,
	// Dropped those that were refused for good, and Streams the streams opened.
	Duplicates, Dropped, Streams int
}

// A Gap is a place where lines are missing.
type Gap struct {
	*logsv1.Gap
	// Sequence is its place in the log.
	Sequence uint64
}

// A Worker is what a [Server] knows of one worker.
type Worker struct {
	// Registration is what the relay said at its beginning.
	Registration *logsv1.Worker
	// End is what the relay said at its end, nil before that.
	End *logsv1.FinishWorkerRequest
	// Logs are in the order of container and restart count.
	Logs []Log
}

// A Sink keeps what a [Server] receives. Its methods are called one at a time
// for one log, before the relay hears of success.
type Sink interface {
	// Register is called for each worker that is new.
	Register(worker *logsv1.Worker) error
	// Append is called with lines, each ended by a line feed, and with what the
	// log is after them.
	Append(worker *logsv1.Worker, lines []byte, now Log) error
	// Complete is called when a log is complete.
	Complete(worker *logsv1.Worker, now Log) error
	// Finish is called when a worker is.
	Finish(worker *logsv1.Worker, end *logsv1.FinishWorkerRequest) error
}

// An Action is what a [Server] does with a batch.
type Action struct {
	// Refuse keeps the batch from being stored.
	Refuse bool
	// Silent keeps back the acknowledgement.
	Silent bool
	// Cut ends the stream with this error, after the batch is stored or refused.
	Cut error
	// Delay is how long to wait first.
	Delay time.Duration
	// Answer is what to say instead of the acknowledgement, and Answers how often, if not once.
	Answer  *logsv1.StreamLogsResponse_Ack
	Answers int
}

// Faults make a [Server] misbehave. Each function may be nil, is called without
// a lock held, and may be called concurrently.
type Faults struct {
	// Call is asked first by every call, with the method's short name.
	Call func(method string) error
	// Batch is asked for each batch.
	Batch func(key Key, batch *logsv1.Batch) Action
	// Opened may change the answer to an Open.
	Opened func(key Key, opened *logsv1.StreamLogsResponse_Opened)
	// Completed is asked before the answer to a Complete, which it may keep back.
	Completed func(key Key) (silent bool)
}

// A Server implements the log protocol as a log server should, and as it should
// not, if it is told so. Its zero value is ready; it keeps everything in memory.
type Server struct {
	logsv1.UnimplementedLogServiceServer

	// Sink also receives everything, unless it is nil.
	Sink Sink
	// Discard keeps no lines in memory.
	Discard bool
	// Limits is what registered workers are told, if it is not nil.
	Limits *logsv1.Limits

	mu       sync.Mutex
	changed  chan struct{}
	faults   Faults
	workers  map[string]*Worker
	logs     map[Key]*stored
	problems []string
}

// stored is a log and what only the server needs to know of it.
type stored struct {
	Log
	ends  []mark
	owner int // the newest stream
}

// mark is the log behind a batch, to which it can be cut back.
type mark struct {
	position         *logsv1.Position
	lines, gaps      int
	lineCount, bytes uint64
	gapCount         uint64
	checksum         uint64
}

// mark returns the log as it is now.
func (l *stored) mark() mark {
	return mark{l.Position, len(l.Lines), len(l.Gaps), l.LineCount, l.ByteCount, l.GapCount, l.Checksum}
}

// checksumBytes returns a checksum as the protocol has it.
func checksumBytes(sum uint64) []byte { return binary.BigEndian.AppendUint64(nil, sum) }

// SetFaults makes the server misbehave from now on.
func (s *Server) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

func (s *Server) currentFaults(method string) (Faults, error) {
	s.mu.Lock()
	f := s.faults
	s.mu.Unlock()
	if f.Call != nil {
		return f, f.Call(method)
	}
	return f, nil
}

// Restore gives the server what an earlier one had.
func (s *Server) Restore(w Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
	for _, l := range w.Logs {
		s.logs[l.Key] = &stored{Log: l}
	}
	w.Logs = nil
	s.workers[w.Registration.GetUid()] = &w
}

// begin makes the zero value useful. The lock is held.
func (s *Server) begin() {
	if s.workers == nil {
		s.workers = map[string]*Worker{}
		s.logs = map[Key]*stored{}
	}
}

// notify wakes everybody in Wait. The lock is held.
func (s *Server) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// Wait blocks until done is true, which is asked after each change.
func (s *Server) Wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Workers returns all workers, in the order of their names.
func (s *Server) Workers() []Worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Worker
	for _, w := range s.workers {
		all = append(all, s.snapshot(w))
	}
	slices.SortFunc(all, func(a, b Worker) int {
		return cmp.Compare(a.Registration.GetName(), b.Registration.GetName())
	})
	return all
}

// Worker returns the worker with a name, or false.
func (s *Server) Worker(name string) (Worker, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		if w.Registration.GetName() == name {
			return s.snapshot(w), true
		}
	}
	return Worker{}, false
}

func (s *Server) snapshot(w *Worker) Worker {
	now := *w
	for key, l := range s.logs {
		if key.WorkerUID == w.Registration.GetUid() {
			copied := l.Log
			copied.Lines, copied.Gaps = slices.Clone(l.Lines), slices.Clone(l.Gaps)
			now.Logs = append(now.Logs, copied)
		}
	}
	slices.SortFunc(now.Logs, func(a, b Log) int {
		return cmp.Or(-cmp.Compare(btoi(a.Init), btoi(b.Init)), cmp.Compare(a.Container, b.Container), cmp.Compare(a.RestartCount, b.RestartCount))
	})
	return now
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Log returns one log, or false.
func (s *Server) Log(key Key) (Log, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.logs[key]
	if !ok {
		return Log{}, false
	}
	copied := l.Log
	copied.Lines, copied.Gaps = slices.Clone(l.Lines), slices.Clone(l.Gaps)
	return copied, true
}

// Problems returns what relays have done wrong.
func (s *Server) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// problem records that a relay did something wrong, and is the error to answer with.
func (s *Server) problem(code codes.Code, format string, args ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	s.problems = append(s.problems, text)
	return status.Error(code, text)
}

// Forget makes the server lose the lines of a log behind a line, together with
// the batch that the line is in the middle of.
func (s *Server) Forget(key Key, line uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.logs[key]
	if !ok {
		return
	}
	l.Complete, l.Matches = false, false
	for len(l.ends) > 0 && l.ends[len(l.ends)-1].position.GetSequence() > line {
		l.ends = l.ends[:len(l.ends)-1]
	}
	var last mark
	if len(l.ends) > 0 {
		last = l.ends[len(l.ends)-1]
	}
	l.Position, l.LineCount, l.ByteCount = last.position, last.lineCount, last.bytes
	l.GapCount, l.Checksum = last.gapCount, last.checksum
	l.Lines, l.Gaps = l.Lines[:last.lines], l.Gaps[:last.gaps]
	s.notify()
}

// RegisterWorker implements the protocol.
func (s *Server) RegisterWorker(_ context.Context, req *logsv1.RegisterWorkerRequest) (*logsv1.RegisterWorkerResponse, error) {
	if _, err := s.currentFaults("RegisterWorker"); err != nil {
		return nil, err
	}
	worker := req.GetWorker()
	if worker.GetUid() == "" {
		return nil, s.problem(codes.InvalidArgument, "a worker without a UID is registered")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
	if s.workers[worker.GetUid()] == nil {
		if s.Sink != nil {
			if err := s.Sink.Register(worker); err != nil {
				return nil, status.Error(codes.Unavailable, err.Error())
			}
		}
		s.workers[worker.GetUid()] = &Worker{Registration: worker}
		s.notify()
	}
	return &logsv1.RegisterWorkerResponse{Limits: s.Limits}, nil
}

// FinishWorker implements the protocol.
func (s *Server) FinishWorker(_ context.Context, req *logsv1.FinishWorkerRequest) (*logsv1.FinishWorkerResponse, error) {
	if _, err := s.currentFaults("FinishWorker"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	worker := s.workers[req.GetWorkerUid()]
	given := map[Key]bool{}
	for _, l := range req.GetIncomplete() {
		given[Key{WorkerUID: req.GetWorkerUid(), Container: l.GetContainer(), RestartCount: l.GetRestartCount()}] = true
	}
	var open []Key
	for key, l := range s.logs {
		if key.WorkerUID == req.GetWorkerUid() && !l.Complete && !given[key] {
			open = append(open, key)
		}
	}
	s.mu.Unlock()
	if worker == nil {
		return nil, s.problem(codes.FailedPrecondition, "worker %s is finished and was never registered", req.GetWorkerUid())
	}
	if len(open) > 0 {
		return nil, s.problem(codes.FailedPrecondition, "worker %s is finished before its logs %v are complete", req.GetWorkerUid(), open)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if worker.End == nil {
		for key := range given {
			if err := s.giveUp(worker, key); err != nil {
				return nil, err
			}
		}
		if s.Sink != nil {
			if err := s.Sink.Finish(worker.Registration, req); err != nil {
				return nil, status.Error(codes.Unavailable, err.Error())
			}
		}
		worker.End = req
		s.notify()
	}
	return &logsv1.FinishWorkerResponse{}, nil
}

// giveUp marks a log that the relay has given up. The lock is held.
func (s *Server) giveUp(worker *Worker, key Key) error {
	l := s.logs[key]
	if l == nil {
		l = &stored{Log: Log{Key: key}}
		s.logs[key] = l
	}
	if l.Complete {
		return nil // all of it came after all, and only the answer was lost
	}
	l.owner++ // whoever streams it is too late
	l.Complete, l.Matches = true, false
	if s.Sink != nil {
		if err := s.Sink.Complete(worker.Registration, l.Log); err != nil {
			l.Complete = false
			return status.Error(codes.Unavailable, err.Error())
		}
	}
	return nil
}

// StreamLogs implements the protocol.
func (s *Server) StreamLogs(stream logsv1.LogService_StreamLogsServer) error {
	faults, err := s.currentFaults("StreamLogs")
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return s.problem(codes.InvalidArgument, "a stream begins with %T", first.GetMessage())
	}
	l, mine, opened, err := s.open(open)
	if err != nil {
		return err
	}
	if faults.Opened != nil {
		faults.Opened(l.Key, opened)
	}
	if err := stream.Send(&logsv1.StreamLogsResponse{Message: &logsv1.StreamLogsResponse_Opened_{Opened: opened}}); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if faults, err = s.currentFaults("Recv"); err != nil {
			return err
		}
		switch {
		case req.GetBatch() != nil:
			err = s.takeBatch(stream, faults, l, mine, req.GetBatch())
		case req.GetComplete() != nil:
			err = s.takeComplete(stream, faults, l, mine, req.GetComplete())
		default:
			err = s.problem(codes.InvalidArgument, "a relay says %T", req.GetMessage())
		}
		if err != nil {
			return err
		}
	}
}

func (s *Server) open(open *logsv1.StreamLogsRequest_Open) (l *stored, mine int, opened *logsv1.StreamLogsResponse_Opened, err error) {
	key := Key{WorkerUID: open.GetWorkerUid(), Container: open.GetContainer(), RestartCount: open.GetRestartCount()}
	if key.Container == "" {
		return nil, 0, nil, s.problem(codes.InvalidArgument, "a stream names no container")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
	if s.workers[key.WorkerUID] == nil {
		s.problems = append(s.problems, fmt.Sprintf("log of worker %s, which is not registered", key.WorkerUID))
		return nil, 0, nil, status.Errorf(codes.FailedPrecondition, "worker %s is not registered", key.WorkerUID)
	}
	l = s.logs[key]
	if l == nil {
		l = &stored{Log: Log{Key: key, Init: open.GetInit()}}
		s.logs[key] = l
	}
	l.owner++
	l.Streams++
	s.notify()
	return l, l.owner, &logsv1.StreamLogsResponse_Opened{Resume: l.Position, Completed: l.Complete}, nil
}

func (s *Server) takeBatch(stream logsv1.LogService_StreamLogsServer, faults Faults, l *stored, mine int, b *logsv1.Batch) error {
	var action Action
	if faults.Batch != nil {
		action = faults.Batch(l.Key, b)
	}
	if action.Delay > 0 {
		select {
		case <-time.After(action.Delay):
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
	ack := &logsv1.StreamLogsResponse_Ack{}
	if !action.Refuse {
		var err error
		if ack, err = s.store(l, mine, b); err != nil {
			return err
		}
	}
	if action.Answer != nil {
		ack = action.Answer
		if ack.GetVerdict() == logsv1.StreamLogsResponse_VERDICT_DROP {
			s.drop(l, b)
		}
	}
	if !action.Silent && (action.Answer != nil || !action.Refuse) {
		for range max(action.Answers, 1) {
			if err := stream.Send(&logsv1.StreamLogsResponse{Message: &logsv1.StreamLogsResponse_Ack_{Ack: ack}}); err != nil {
				return err
			}
		}
	}
	return action.Cut
}

// store appends a batch and returns the answer to it.
func (s *Server) store(l *stored, mine int, b *logsv1.Batch) (*logsv1.StreamLogsResponse_Ack, error) {
	if err := s.check(b); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.owner != mine {
		return nil, status.Error(codes.Aborted, "superseded by another stream")
	}
	at := l.Position.GetSequence()
	if b.GetFirstSequence() > at+1 {
		return &logsv1.StreamLogsResponse_Ack{
			Verdict: logsv1.StreamLogsResponse_VERDICT_RETRY, Sequence: at, Reason: "gap",
			Message:    fmt.Sprintf("line %d follows line %d", b.GetFirstSequence(), at),
			RetryAfter: durationpb.New(10 * time.Millisecond),
		}, nil
	}
	ack := &logsv1.StreamLogsResponse_Ack{Verdict: logsv1.StreamLogsResponse_VERDICT_ACK, Sequence: b.GetEnd().GetSequence()}
	known := at + 1 - b.GetFirstSequence()                       // lines of b that are here already
	l.Duplicates += int(min(known, uint64(len(b.GetLengths())))) //nolint:gosec // a count of lines
	if known >= uint64(len(b.GetLengths())) {
		return ack, nil
	}
	before := *l
	text, fresh := b.GetData(), b.GetLengths()[known:]
	for _, length := range b.GetLengths()[:known] {
		text = text[length+1:]
	}
	l.LineCount += uint64(len(fresh))
	l.ByteCount += uint64(len(text) - len(fresh)) //nolint:gosec // each line has a line feed
	l.Checksum = crc64nvme.Update(l.Checksum, text)
	if rest := text; !s.Discard {
		for _, length := range fresh {
			l.Lines = append(l.Lines, string(rest[:length]))
			rest = rest[length+1:]
		}
	}
	l.Position = b.GetEnd()
	if b.GetGap() != nil {
		l.GapCount++
		if !s.Discard {
			l.Gaps = append(l.Gaps, Gap{b.GetGap(), b.GetFirstSequence()})
		}
	}
	if l.Dropped == 0 && (!bytes.Equal(checksumBytes(l.Checksum), l.Position.GetChecksum()) || l.ByteCount != l.Position.GetBytes()) {
		problem := fmt.Sprintf("%v: at line %d the relay counts %d bytes and checksum %x, the server %d and %016x",
			l.Key, l.LineCount, l.Position.GetBytes(), l.Position.GetChecksum(), l.ByteCount, l.Checksum)
		*l = before
		s.problems = append(s.problems, problem)
		return nil, status.Error(codes.InvalidArgument, problem)
	}
	if s.Sink != nil {
		if err := s.Sink.Append(s.workers[l.WorkerUID].Registration, text, l.Log); err != nil {
			*l = before
			return nil, status.Error(codes.Unavailable, err.Error())
		}
	}
	if !s.Discard {
		l.ends = append(l.ends, l.mark())
	}
	s.notify()
	return ack, nil
}

// check tells what is wrong with a batch by itself.
func (s *Server) check(b *logsv1.Batch) error {
	var sum uint64
	unended := false
	for _, length := range b.GetLengths() {
		sum += uint64(length) + 1
		unended = unended || sum > uint64(len(b.GetData())) || b.GetData()[sum-1] != '\n'
	}
	lines := uint64(len(b.GetLengths()))
	switch {
	case lines == 0:
		return s.problem(codes.InvalidArgument, "a batch is empty")
	case sum != uint64(len(b.GetData())):
		return s.problem(codes.InvalidArgument, "a batch holds %d bytes, and lines of %d bytes", len(b.GetData()), sum)
	case unended:
		return s.problem(codes.InvalidArgument, "a batch has lines that no line feed ends")
	case len(b.GetTimeDeltas()) != len(b.GetLengths()) || b.GetTimeDeltas()[0] != 0:
		return s.problem(codes.InvalidArgument, "a batch of %d lines has %d time deltas", lines, len(b.GetTimeDeltas()))
	case b.GetEnd().GetSequence() != b.GetFirstSequence()+lines-1:
		return s.problem(codes.InvalidArgument, "a batch of %d lines goes from %d to %d", lines, b.GetFirstSequence(), b.GetEnd().GetSequence())
	case b.GetGap() != nil && (lines != 1 || sum != 1):
		return s.problem(codes.InvalidArgument, "a gap comes with %d lines of %d bytes", lines, sum)
	}
	return nil
}

// drop counts a batch as refused for good; the log goes on behind it.
func (s *Server) drop(l *stored, b *logsv1.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.Dropped += len(b.GetLengths())
	l.Position = b.GetEnd()
	l.ends = append(l.ends, l.mark())
	s.notify()
}

func (s *Server) takeComplete(stream logsv1.LogService_StreamLogsServer, faults Faults, l *stored, mine int, c *logsv1.StreamLogsRequest_Complete) error {
	answer, err := s.complete(l, mine, c)
	if err != nil {
		return err
	}
	if faults.Completed != nil && faults.Completed(l.Key) {
		return nil
	}
	return stream.Send(&logsv1.StreamLogsResponse{Message: &logsv1.StreamLogsResponse_Completed_{Completed: answer}})
}

func (s *Server) complete(l *stored, mine int, c *logsv1.StreamLogsRequest_Complete) (*logsv1.StreamLogsResponse_Completed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.owner != mine {
		return nil, status.Error(codes.Aborted, "superseded by another stream")
	}
	var differs []string
	compare := func(what string, relay, server any) {
		if relay != server {
			differs = append(differs, fmt.Sprintf("%s: the relay has %v, the server %v", what, relay, server))
		}
	}
	compare("lines", c.GetLineCount(), l.LineCount)
	compare("bytes", c.GetByteCount(), l.ByteCount)
	compare("checksum", hex.EncodeToString(c.GetChecksum()), hex.EncodeToString(checksumBytes(l.Checksum)))
	compare("gaps", c.GetGapCount(), l.GapCount)
	l.Complete, l.Matches = true, len(differs) == 0
	if s.Sink != nil {
		if err := s.Sink.Complete(s.workers[l.WorkerUID].Registration, l.Log); err != nil {
			l.Complete = false
			return nil, status.Error(codes.Unavailable, err.Error())
		}
	}
	s.notify()
	return &logsv1.StreamLogsResponse_Completed{Matches: l.Matches, Message: strings.Join(differs, "; ")}, nil
}
