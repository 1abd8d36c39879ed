package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

var (
	// errSilent says that the server has not answered for too long.
	errSilent = errors.New("the log server does not answer")
	// errProtocol says that the server answered something that makes no sense.
	errProtocol = errors.New("the log server breaks the protocol")
	// errEnded says that the server has ended a stream that was not complete.
	errEnded = errors.New("the log server has ended the stream")
	// errRotate says that a stream was ended because of its age.
	errRotate = errors.New("the stream is old")
)

const (
	// retryPause is how long a RETRY without a time of its own pauses the sending.
	// Without a pause, each batch that was in flight would cost a round of all others.
	retryPause = 200 * time.Millisecond
	// longestPause bounds what a server may ask for.
	longestPause = time.Minute
)

// send keeps a session with the server going until the server has the whole log,
// which is nil, or until the window is drained, which is errDraining.
func (f *follower) send(ctx context.Context) error {
	rotated := false
	for attempt := range f.policy.Attempts(ctx) {
		if attempt.Number > 1 && !rotated {
			f.metrics.reconnects.WithLabelValues("server").Inc()
		}
		if _, empty := f.window.settled(); empty && f.window.isDraining() {
			return errDraining
		}
		use := f.outage.use()
		err := f.session(ctx, attempt, &use)
		rotated = errors.Is(err, errRotate)
		switch {
		case rotated:
			f.metrics.rotations.Inc()
			attempt.Progress()
		case err == nil || errors.Is(err, errDraining):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case use.explains(ctx, err):
			f.log.DebugContext(ctx, "sending again", "err", err)
		default:
			if errors.Is(err, errProtocol) {
				f.metrics.protocolErrors.Inc()
			}
			f.log.WarnContext(ctx, "sending again", "err", err)
		}
	}
	return ctx.Err()
}

// session sends batches on one stream until the log is complete or the stream breaks.
func (f *follower) session(ctx context.Context, attempt *backoff.Attempt, use *use) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		stream    logsv1.LogService_StreamLogsClient
		completed bool
		err       error
	)
	aside(func() {
		if stream, err = f.client.StreamLogs(ctx, grpc.ForceCodecV2(newCodec())); err != nil {
			err = fmt.Errorf("opening a stream: %w", err)
			return
		}
		completed, err = f.openStream(stream, cancel)
	})
	if err != nil || completed {
		return err
	}
	use.succeeds(ctx)

	answers := make(chan *logsv1.StreamLogsResponse_Completed, 1)
	received := make(chan struct{})
	go func() {
		defer close(received)
		cancel(f.receive(stream, attempt, answers))
	}()
	stopWatching := f.watch(cancel)
	defer stopWatching()

	err = f.sendBatches(ctx, stream, answers)
	if err == nil || errors.Is(err, errDraining) || errors.Is(err, errRotate) {
		f.hangUp(stream, received)
	}
	if errors.Is(err, io.EOF) {
		<-received // it knows why
	}
	cancel(err)
	<-received
	if err != nil && !errors.Is(err, errDraining) && !errors.Is(err, errRotate) {
		// What ended the stream says more than what it did to the sending.
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
	}
	return err
}

// aside makes a call, and has it leave nothing on the caller's stack. A stack that has
// grown for one deep call stays large, and thousands of followers wait on theirs.
func aside(call func()) {
	var done sync.WaitGroup
	done.Go(call)
	done.Wait()
}

// openStream agrees with the server on where to go on. It reports whether the log is
// complete already.
func (f *follower) openStream(stream logsv1.LogService_StreamLogsClient, cancel context.CancelCauseFunc) (completed bool, err error) {
	patience := time.AfterFunc(f.ackTimeout, func() { cancel(errSilent) })
	defer patience.Stop()
	err = stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: &logsv1.StreamLogsRequest_Open{
		WorkerUid:    string(f.instance.PodUID),
		Container:    f.instance.Container,
		RestartCount: uint32(f.instance.RestartCount), //nolint:gosec // Kubernetes counts up from 0
		Init:         f.instance.Init,
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // the reason for an EOF is to be received
		return false, fmt.Errorf("opening a stream: %w", err)
	}
	first, err := stream.Recv()
	if err != nil {
		if cause := context.Cause(stream.Context()); cause != nil {
			err = cause
		}
		return false, fmt.Errorf("opening a stream: %w", err)
	}
	opened := first.GetOpened()
	if opened == nil {
		return false, fmt.Errorf("%w: it answers an Open with %T", errProtocol, first.GetMessage())
	}
	at := cursorOf(opened.GetResume())
	if lost := f.window.resume(at); lost > 0 {
		f.metrics.rewinds.Inc()
		f.log.WarnContext(stream.Context(), "the log server has lost lines that it had acknowledged", "line", at.Sequence, "lost", lost)
	}
	return opened.GetCompleted(), nil
}

// sendBatches sends what the window has until the log is complete or ctx ends.
func (f *follower) sendBatches(ctx context.Context, stream logsv1.LogService_StreamLogsClient, answers <-chan *logsv1.StreamLogsResponse_Completed) error {
	var reached uint64
	// All streams of a relay begin at about the same time. They shall not end so.
	until := time.Now().Add(f.rotation*3/4 + rand.N(f.rotation/2+1))
	for {
		what, b, err := f.window.next(ctx, until)
		if err != nil {
			return err
		}
		switch what {
		case stepDrained:
			return errDraining
		case stepRotate:
			return errRotate
		case stepComplete:
			return f.complete(ctx, stream, answers)
		case stepSend:
			err := stream.SendMsg(b.message())
			b.text.Free()
			if err != nil {
				return fmt.Errorf("sending lines: %w", err)
			}
			f.metrics.sentLines.Add(float64(len(b.lengths)))
			f.metrics.sentBytes.Add(float64(b.textBytes()))
			if b.first() > reached {
				reached = b.end.Sequence
				f.metrics.lag.Observe(time.Since(time.Unix(0, b.base)).Seconds())
			}
		}
	}
}

// receive takes the server's answers until the stream ends.
func (f *follower) receive(stream logsv1.LogService_StreamLogsClient, attempt *backoff.Attempt, answers chan<- *logsv1.StreamLogsResponse_Completed) error {
	standing := 0 // how many acknowledgements in a row have not moved
	for {
		answer, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errEnded
		case err != nil:
			return fmt.Errorf("receiving acknowledgements: %w", err)
		}
		switch {
		case answer.GetAck() != nil:
			progress, err := f.acknowledge(stream.Context(), answer.GetAck())
			if err != nil {
				return fmt.Errorf("%w: %w", errProtocol, err)
			}
			switch {
			case progress:
				attempt.Progress()
				standing = 0
			case answer.GetAck().GetVerdict() == logsv1.StreamLogsResponse_VERDICT_RETRY:
			default:
				// A server that stores several batches at once may say the same line for each.
				if standing++; standing > f.window.mostInFlight() {
					return fmt.Errorf("%w: the last %d acknowledgements all say line %d, though more lines were sent",
						errProtocol, standing, answer.GetAck().GetSequence())
				}
			}
		case answer.GetCompleted() != nil:
			select {
			case answers <- answer.GetCompleted():
			default:
				return fmt.Errorf("%w: it says Completed twice", errProtocol)
			}
		default:
			return fmt.Errorf("%w: it answers with %T", errProtocol, answer.GetMessage())
		}
	}
}

// acknowledge obeys what the server says about lines.
func (f *follower) acknowledge(ctx context.Context, ack *logsv1.StreamLogsResponse_Ack) (progress bool, err error) {
	if ack.GetSequence() == 0 && ack.GetVerdict() != logsv1.StreamLogsResponse_VERDICT_RETRY {
		return false, errors.New("it acknowledges line 0, and lines are counted from 1: a Node.js server may have " +
			"its fields' names in the wrong case (the loader's keepCase), and then reads and writes 0")
	}
	var pause time.Duration
	retry := ack.GetVerdict() == logsv1.StreamLogsResponse_VERDICT_RETRY
	switch ack.GetVerdict() {
	case logsv1.StreamLogsResponse_VERDICT_ACK, logsv1.StreamLogsResponse_VERDICT_DROP:
	case logsv1.StreamLogsResponse_VERDICT_RETRY:
		pause = min(max(ack.GetRetryAfter().AsDuration(), retryPause), longestPause)
	default:
		return false, fmt.Errorf("verdict %v", ack.GetVerdict())
	}
	lines, bytes, err := f.window.acknowledge(ack.GetSequence(), retry, pause)
	if err != nil {
		return false, err
	}
	switch {
	case ack.GetVerdict() == logsv1.StreamLogsResponse_VERDICT_DROP:
		f.metrics.droppedLines.WithLabelValues(reasonLabel(ack.GetReason())).Add(float64(lines))
		f.log.ErrorContext(ctx, "the log server refuses lines", "line", ack.GetSequence(), "lines", lines,
			"reason", ack.GetReason(), "message", ack.GetMessage())
	case retry:
		f.metrics.retries.WithLabelValues(reasonLabel(ack.GetReason())).Inc()
		f.log.DebugContext(ctx, "the log server wants lines again", "line", ack.GetSequence(), "pause", pause,
			"reason", ack.GetReason(), "message", ack.GetMessage())
		fallthrough
	default:
		f.metrics.ackedLines.Add(float64(lines))
		f.metrics.ackedBytes.Add(float64(bytes))
	}
	return lines > 0, nil
}

// reasonLabel bounds what a server can put into a metric.
func reasonLabel(reason string) string {
	if reason == "" {
		return "none"
	}
	if len(reason) > 40 {
		return "other"
	}
	for _, r := range reason {
		if (r < 'a' || r > 'z') && r != '_' {
			return "other"
		}
	}
	return reason
}

// complete compares notes with the server at the end of the log.
func (f *follower) complete(ctx context.Context, stream logsv1.LogService_StreamLogsClient, answers <-chan *logsv1.StreamLogsResponse_Completed) error {
	end, _ := f.window.settled()
	err := stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Complete_{Complete: &logsv1.StreamLogsRequest_Complete{
		LineCount: end.Sequence,
		ByteCount: end.Bytes,
		Checksum:  checksumBytes(end.Checksum),
		GapCount:  end.Gaps,
	}}})
	if err != nil {
		return fmt.Errorf("completing the log: %w", err)
	}
	patience := time.NewTimer(f.ackTimeout)
	defer patience.Stop()
	select {
	case answer := <-answers:
		if !answer.GetMatches() {
			f.metrics.mismatches.Inc()
			f.log.ErrorContext(ctx, "the log server holds something else", "message", answer.GetMessage(),
				"lines", end.Sequence, "bytes", end.Bytes, "checksum", fmt.Sprintf("%016x", end.Checksum))
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-patience.C:
		return errSilent
	}
}

// hangUp closes our side and gives the server some time to close its own. There
// are servers that never do; everything is said, so that is no error.
func (f *follower) hangUp(stream logsv1.LogService_StreamLogsClient, received <-chan struct{}) {
	if err := stream.CloseSend(); err != nil {
		return
	}
	patience := time.NewTimer(f.closeWait)
	defer patience.Stop()
	select {
	case <-received:
	case <-patience.C:
	}
}

// watch ends a stream on which batches wait for too long for an acknowledgement.
func (f *follower) watch(cancel context.CancelCauseFunc) (stop func()) {
	var (
		mu      sync.Mutex // guards the rest
		timer   *time.Timer
		stopped bool
	)
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(f.ackTimeout, func() {
		left := f.window.silence(time.Now(), f.ackTimeout)
		if left <= 0 {
			cancel(errSilent)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			timer.Reset(left)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}
