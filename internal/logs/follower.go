package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/mask"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// A Read says what to read of a log.
type Read struct {
	Instance
	// Since is the time of the oldest line that is wanted, a whole second; zero
	// for all lines.
	Since time.Time
	// Previous asks for the container's previous log.
	Previous bool
	// Follow asks to go on until the container ends.
	Follow bool
	// Stream asks for one stream of the container alone: Stdout or Stderr, or "" for
	// both in the order of the log. See [Cluster.Splits].
	Stream string
	// Node is the address of the node that has the log, or empty where that is not known.
	Node string
}

// OpenFunc opens a log as Kubernetes gives it: each line begins with its time stamp
// and a space. It is a function so that tests can break a log at will.
type OpenFunc func(ctx context.Context, read Read) (io.ReadCloser, error)

var (
	// errLost says that a read has passed the place of the line that it was to go on behind.
	errLost = errors.New("the last line is not in the log any more")
	// errShort says that a read has ended before that place.
	errShort = errors.New("the log ends before its last line")
)

const (
	// endWait is how long an instance whose log has ended may still be called
	// running before its log is opened again. Kubernetes tells of an end a little
	// later than the log does, and a log that is opened too early might be the
	// next instance's.
	endWait = 5 * time.Second
	// lastTries is how often the log of an ended instance is tried when the
	// kubelet says that it has none.
	lastTries = 8
	// goneTries is how often, when an earlier read has seen the end of the log.
	goneTries = 2
	// startWait is how long the reading of a log waits for the server to say where to go
	// on. Without that it begins where the spool ends: the node does not wait with its
	// rotations until the server is back.
	startWait = 3 * time.Second
	// silenceTick is how often a read is looked at that gives nothing. If the instance
	// has ended meanwhile, the read is stuck.
	silenceTick = 15 * time.Second
	// silenceCheck is after how many silent looks a read of a running instance is
	// compared with what another read finds.
	silenceCheck = 20
	// shortTries is how often a log may end before the line to go on behind until
	// that line counts as lost: a connection that breaks can look like an end.
	shortTries = 3
)

// followerConfig is what all followers share.
type followerConfig struct {
	open       OpenFunc
	kept       Keeper                         // nil if what a node has rotated away is not read
	splits     func(ctx context.Context) bool // whether open gives one stream alone; nil if not
	client     logsv1.LogServiceClient
	outage     *outage // of the log server
	sources    *outage // of the cluster
	metrics    *metrics
	policy     backoff.Policy
	endWait    time.Duration
	startWait  time.Duration
	silence    time.Duration // see silenceTick
	probeEvery time.Duration
	rotation   time.Duration // how old a stream may become
	ackTimeout time.Duration
	closeWait  time.Duration
}

// A follower moves the log of one instance to the server.
type follower struct {
	followerConfig
	instance Instance
	// state returns what the cluster says, and a channel that is closed when it changes.
	state  func() (State, <-chan struct{})
	window *window
	log    *slog.Logger
	// registered is closed when the server knows the worker, and allowed says then what
	// it allows. Nil if it knows it already.
	registered <-chan struct{}
	allowed    func() windowLimits
	// overdue ends when nobody waits any longer for the log to be complete. Nil for never.
	overdue context.Context //nolint:containedctx // it is a signal that costs no goroutine to wait for
	// mask returns what hides secrets in lines; nil for nothing.
	mask func() *mask.Masker
	// beginning is what is known about the time before the first line.
	beginning beginning
	// recovery is how it stands with reading what the node has rotated away.
	recovery recovery

	// What run leaves: the last acknowledged line, and, if the log is overdue, what was
	// read behind it, and whether that is all there was.
	acked Cursor
	left  struct {
		lines, bytes uint64
		all          bool
	}
}

// errDraining says that a log isn't complete because the relay is to stop.
var errDraining = errors.New("the relay is shutting down")

// errOverdue says that a log isn't complete, and that nobody waits for it any longer.
var errOverdue = errors.New("the log server has not acknowledged the log in time")

// run returns nil once the server has the whole log. When drain ends it
// sends what is read and returns errDraining. Otherwise it ends with ctx.
func (f *follower) run(ctx, drain context.Context) error {
	f.metrics.followers.Inc()
	defer f.metrics.followers.Dec()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read := make(chan struct{})
	go func() {
		defer close(read)
		f.read(ctx)
	}()
	defer context.AfterFunc(drain, f.window.drain)()
	sending, stop := context.WithCancel(ctx)
	defer stop()
	if f.overdue != nil {
		defer context.AfterFunc(f.overdue, stop)()
	}
	err := f.awaitRegistration(sending, drain)
	if err == nil {
		err = f.send(sending)
	}
	if err != nil && sending.Err() != nil && ctx.Err() == nil {
		err = errOverdue
	}
	cancel()
	<-read
	f.acked, _ = f.window.settled()
	if errors.Is(err, errOverdue) {
		f.left.lines, f.left.bytes, f.left.all = f.window.left()
		f.metrics.lostLines.WithLabelValues("drain_deadline").Add(float64(f.left.lines))
	}
	f.window.release(err == nil || errors.Is(err, errOverdue))
	return err
}

// awaitRegistration returns when the server knows the worker. What is read meanwhile
// goes to the spool.
func (f *follower) awaitRegistration(ctx, drain context.Context) error {
	if f.registered == nil {
		return nil
	}
	select {
	case <-f.registered:
		f.window.allow(f.allowed())
		return nil
	case <-drain.Done():
		return errDraining
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read puts the log into the window, from wherever the server wants it, as often
// as the server wants it, until ctx ends.
func (f *follower) read(ctx context.Context) {
	patience := time.NewTimer(f.startWait)
	select {
	case <-f.window.ready:
	case <-patience.C:
	case <-ctx.Done():
	}
	patience.Stop()
	for ctx.Err() == nil {
		reading, stop := context.WithCancel(ctx)
		generation := f.window.attach(stop)
		if f.readAll(reading, generation) {
			f.window.finish(generation)
		}
		<-reading.Done()
		stop()
	}
}

// readAll keeps the reading going and reports whether the log was read to its
// end: by a read that began when the instance had ended, and found nothing new.
func (f *follower) readAll(ctx context.Context, generation int) bool {
	var (
		failures int
		short    int
		how      readHow
		atEnd    bool      // the last read came to the end of the log
		came     time.Time // when a read came there last
	)
	for attempt := range f.policy.Attempts(ctx) {
		if f.window.isDraining() {
			return false
		}
		if attempt.Number > 1 {
			f.metrics.reconnects.WithLabelValues("kubelet").Inc()
		}
		state, _ := f.state()
		if state.Gone {
			if !atEnd {
				f.truncated(ctx, generation, "the pod or its log is gone")
			}
			return true
		}
		use := f.sources.use()
		progress, err := f.readOnce(ctx, generation, state, how, &use)
		if progress {
			attempt.Progress()
			failures = 0
		}
		was := how
		how = readHow{byTime: how.byTime && !how.kept && !progress}
		if was.kept && err == nil {
			f.recovery.done(progress)
		}
		if atEnd = err == nil; atEnd {
			came = time.Now()
		}
		switch {
		case ctx.Err() != nil || errors.Is(err, errMoved):
			return false
		case err == nil && state.Ended && !progress:
			if why, doubtful := f.beginning.doubt(state, use.begun, 0); doubtful && f.window.end().Sequence == 0 {
				if !was.kept && f.recoverable() {
					how = readHow{kept: true}
					continue
				}
				f.gap(ctx, generation, reasonRotated, why, nil)
			}
			if was.byTime && !f.window.end().behindGap() {
				f.gap(ctx, generation, reasonRotated, "the last line was not found again, and none came after it", nil)
			}
			return true
		case err == nil && state.Ended:
			continue // one more read proves that nothing is left
		case was.kept && err == nil:
			continue // what came meanwhile is followed
		case was.kept:
			how = f.recovery.failed(ctx, f.log, was, progress, err)
			continue
		case f.recoverable() && (errors.Is(err, errLate) || !f.recovery.idle && doubtful(err)):
			how = readHow{kept: true}
			continue
		case errors.Is(err, errLate) || errors.Is(err, errJumped):
			continue
		case errors.Is(err, errDoubt):
			how.byTime = true
			continue
		case err == nil || errors.Is(err, errLost) || errors.Is(err, errShort):
			if errors.Is(err, errShort) {
				short++
			} else {
				short = 0
			}
			f.recovery.idle = false
			if !state.Ended && f.awaitEnd(ctx) {
				continue // with the new state; should it be the same log, then exactly
			}
			how.byTime = !f.recoverable() && (errors.Is(err, errLost) || short >= shortTries)
			continue
		}
		if failures++; !use.explains(ctx, err) && failures == 1 {
			f.log.WarnContext(ctx, "reading again", "err", err)
		}
		// The log of a container goes with it, as when its pod is deleted. A read that ended
		// when the process had, and not before, has seen all of it.
		whole := !state.Finished.IsZero() && !came.Before(state.Finished)
		if state.Ended && unreadable(err) && (failures >= lastTries || whole && failures >= goneTries) {
			if !whole {
				f.truncated(ctx, generation, err.Error())
			}
			return true
		}
	}
	return false
}

// awaitEnd reports whether the cluster says within endWait that the instance has ended.
func (f *follower) awaitEnd(ctx context.Context) bool {
	timer := time.NewTimer(f.endWait)
	defer timer.Stop()
	for {
		state, changed := f.state()
		if state.Ended {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (f *follower) truncated(ctx context.Context, generation int, reason string) {
	f.metrics.truncated.Inc()
	f.gap(ctx, generation, reasonTruncated, reason, nil)
}

// gap puts a gap into the log.
func (f *follower) gap(ctx context.Context, generation int, reason, message string, to *timestamppb.Timestamp) {
	f.metrics.gaps.WithLabelValues(reason).Inc()
	f.log.WarnContext(ctx, "lines may be missing", "reason", reason, "message", message, "line", f.window.end().Sequence)
	f.window.addGap(generation, &logsv1.Gap{Reason: reason, Message: message, ToTime: to})
}

// doubtful reports whether a read has ended because it may have missed lines.
func doubtful(err error) bool {
	return errors.Is(err, errLost) || errors.Is(err, errShort) || errors.Is(err, errDoubt) || errors.Is(err, errJumped)
}

// unreachable reports whether an error is about the way to the logs, and not an
// answer about one of them.
func unreachable(err error) bool {
	var notice *noticeError
	var answer apierrors.APIStatus
	return !errors.As(err, &notice) && !errors.As(err, &answer)
}

// unreadable reports whether the kubelet says that there is no such log.
func unreadable(err error) bool {
	var notice *noticeError
	return errors.As(err, &notice) || apierrors.IsNotFound(err) || apierrors.IsBadRequest(err)
}

// readOnce reads from the window's tail until the log ends, in which case the
// error is nil, or breaks. It reports whether it has added lines.
func (f *follower) readOnce(ctx context.Context, generation int, state State, how readHow, use *use) (progress bool, err error) {
	from, opened := f.window.end(), time.Now()
	read := Read{Instance: f.instance, Since: from.Since(), Previous: state.Previous, Follow: !state.Ended, Node: state.Node}
	body, whole, err := f.openLog(ctx, from, state, read, how)
	if err != nil {
		return false, err
	}
	if !how.kept { // else it is a node that has given it
		use.succeeds(ctx)
	}
	defer body.Close() //nolint:errcheck // nothing was written
	// A read that is blocked in its body does not see ctx by itself.
	defer context.AfterFunc(ctx, func() { body.Close() })() //nolint:errcheck // as above
	watched := continuity{in: &arrivalReader{Reader: body}, opened: opened}
	lines := newLineReader(watched.in, f.metrics.cutLines.Inc)
	lines.mask = f.mask
	if !how.kept && f.splits != nil && f.splits(ctx) {
		lines.labels = newLabels(ctx, f.open, read)
		defer lines.labels.close()
	}
	hold := f.pauseOf(how)
	watch := f.watchRead(ctx, read.Follow && !how.kept, func() { body.Close() }) //nolint:errcheck // as above
	defer watch.stop()

	more := lines
	if lines.mask != nil || lines.labels != nil {
		more = nil // each line is looked at
	}
	search := f.searchFor(from, read.Follow, how, watched.in, func() { body.Close() }) //nolint:errcheck // as above
	stamp, text, err := f.find(lines, from, how, generation, search)
	if search.end() {
		return false, errShort
	}
	if from.Sequence == 0 && err == nil && !whole {
		if why, doubtful := f.beginning.doubt(state, opened, stamp); doubtful {
			f.gap(ctx, generation, reasonRotated, why, timestamp(stamp))
		}
	}
	for ; err == nil; stamp, text, err = lines.next() {
		if !how.kept && watched.suspects(stamp, f.window) && !f.inCurrent(ctx) {
			if f.recoverable() {
				return progress, errJumped
			}
			f.gap(ctx, generation, reasonRotated, "the log was read so slowly that the node may have put away a part of it", timestamp(stamp))
		}
		watch.steps.Add(1)
		if err := f.window.add(ctx, generation, hold, stamp, text, lines.stream, more); err != nil {
			return progress, err
		}
		watch.steps.Add(1)
		progress = true
	}
	if watch.stuck.Load() {
		return progress, errStuck
	}
	if how.kept {
		f.metrics.recoveredLines.Add(float64(f.window.end().Sequence - from.Sequence))
	}
	if from.Sequence == 0 && !progress {
		f.beginning.silent(opened, time.Now(), whole && errors.Is(err, io.EOF))
	}
	switch {
	case errors.Is(err, io.EOF):
		return progress, nil
	case errors.Is(err, errTorn) && !state.Ended:
		// The rest of the line is yet to be written. It is read again as a whole.
		return progress, nil
	case errors.Is(err, errTorn):
		return true, f.window.add(ctx, generation, hold, stamp, text, lines.stream, nil)
	case doubtful(err):
		return progress, err
	default:
		return progress, fmt.Errorf("reading the log: %w", err)
	}
}

// find returns the first line behind the cursor. It ends the search when the cursor is found.
func (f *follower) find(lines *lineReader, from Cursor, how readHow, generation int, search *search) (int64, []byte, error) {
	if from.Sequence == 0 {
		return lines.next()
	}
	var (
		seen     seconds
		headless error
		earlier  bool  // there was a line of an earlier second
		before   int64 // stamp of the line before, or 0
	)
	// The second of the last line may have begun in another file. Then its lines are not
	// counted right, and among equal stamps it may be taken for another one.
	unsure := func(stamp int64) bool {
		return !how.kept && generation != noGeneration && !earlier && (before == 0 || before == stamp) && f.recoverable() && !f.recovery.idle
	}
	for {
		stamp, text, err := lines.next()
		var noStamp *noticeError
		switch {
		case errors.As(err, &noStamp) && seen.lines == 0:
			// It may be the rest of a line of which the beginning is older than
			// what was asked for. If it is a notice, no line follows.
			headless = err
			continue
		case errors.Is(err, io.EOF) && seen.lines == 0 && headless != nil:
			return 0, nil, headless
		case errors.Is(err, io.EOF) && !how.byTime:
			return 0, nil, errShort
		case err != nil && !errors.Is(err, errTorn):
			return 0, nil, err
		}
		second := floorSecond(stamp)
		switch count := seen.count(stamp); {
		case from.behindGap() && stamp < from.Time:
		case from.behindGap() && stamp == from.Time:
			seen.lines-- // it will be counted when it is added
			f.window.recount(generation, seen)
			return stamp, text, err
		case from.behindGap() && !how.byTime:
			return 0, nil, errLost
		case how.byTime && stamp > from.Time:
			f.metrics.inexactResumes.Inc()
			why := "the node has put away a part of the log that may not have been read to its end"
			if how.kept {
				why = "the node has removed a part of the log before it was read"
			}
			f.gap(context.Background(), generation, reasonRotated, why, timestamp(stamp))
			seen.lines-- // it will be counted when it is added
			f.window.recount(generation, seen)
			return stamp, text, err
		case how.byTime:
		case second == from.Second() && count == from.LinesInSecond && stamp == from.Time && unsure(stamp):
			return 0, nil, errLost
		case second == from.Second() && count == from.LinesInSecond && stamp == from.Time:
			f.window.recount(generation, seen)
			if err != nil { // the last line of an ended log may have no line end
				return 0, nil, io.EOF
			}
			if search.end() {
				return 0, nil, errShort
			}
			return lines.next()
		case second == from.Second() && count >= from.LinesInSecond, second > from.Second()+1:
			return 0, nil, errLost
		}
		before, earlier = stamp, earlier || second < from.Second()
	}
}
