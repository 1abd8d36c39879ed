package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/logs/link"
	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	"github.com/ottoscaler/ottoscaler/internal/spool"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// A fatalist is what *testing.T and *rapid.T have in common here.
type fatalist interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// A serverRig is a log server on a real port that can be stopped and started.
type serverRig struct {
	t       fatalist
	backend *logstest.Server
	addr    string
	conn    *link.Link
	grpc    *grpc.Server
	options []grpc.ServerOption
}

func newServerRig(t fatalist) *serverRig { return newServerRigWith(t, link.Options{}) }

// newServerRigWith starts a server with the given options, and dials it with others.
func newServerRigWith(t fatalist, how link.Options, options ...grpc.ServerOption) *serverRig {
	t.Helper()
	s := &serverRig{t: t, backend: &logstest.Server{}, addr: "127.0.0.1:0", options: options}
	s.start()
	how.Addr = s.addr
	conn, err := link.Dial(how)
	if err != nil {
		t.Fatalf("dialing: %v", err)
	}
	s.conn = conn
	return s
}

func (s *serverRig) start() {
	s.t.Helper()
	var listener net.Listener
	var err error
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if listener, err = net.Listen("tcp", s.addr); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		s.t.Fatalf("listening: %v", err)
	}
	s.addr = listener.Addr().String()
	s.grpc = grpc.NewServer(s.options...)
	logsv1.RegisterLogServiceServer(s.grpc, s.backend)
	go s.grpc.Serve(listener) //nolint:errcheck // ends with Stop
}

func (s *serverRig) stop() { s.grpc.Stop() }

func (s *serverRig) close() {
	s.conn.Close() //nolint:errcheck // the test is over
	s.stop()
}

// A rig follows one instance from a scripted source to a scripted server.
type rig struct {
	t       fatalist
	server  *serverRig
	source  *logstest.Source
	metrics *metrics
	window  *window
	follow  *follower
	drain   context.Context //nolint:containedctx // see follower.run
	doDrain context.CancelFunc
	doStop  context.CancelFunc // see stoppable
	done    chan error

	// dir is where the spool lies, or empty for none. The bounds may be changed before renew.
	dir    string
	bounds spool.Options

	mu      sync.Mutex
	state   State
	changed chan struct{}
}

var key = logstest.Key{WorkerUID: "uid-1", Container: "agent"}

func newRig(t fatalist) *rig {
	t.Helper()
	r := &rig{t: t, server: newServerRig(t), source: logstest.NewSource(), changed: make(chan struct{})}
	_, err := r.server.backend.RegisterWorker(context.Background(), &logsv1.RegisterWorkerRequest{
		Worker: &logsv1.Worker{Uid: key.WorkerUID, Name: "w-1"},
	})
	if err != nil {
		t.Fatalf("registering: %v", err)
	}
	r.renew()
	return r
}

// renew makes another follower without a memory, as a relay that has restarted would.
func (r *rig) renew() {
	total := &budget{limit: 64 << 20}
	var store *spool.Store
	if r.dir != "" {
		var err error
		if store, err = spool.Open(r.dir, r.bounds); err != nil {
			r.t.Fatalf("opening the spool: %v", err)
		}
	}
	r.metrics = newMetrics(prometheus.NewRegistry(), total, store)
	r.window = newWindow(windowLimits{lines: 5, batchBytes: 4 << 10, batches: 4, bytes: 16 << 10, linger: time.Millisecond}, total)
	r.drain, r.doDrain = context.WithCancel(context.Background())
	r.follow = &follower{
		followerConfig: followerConfig{
			open: func(ctx context.Context, read Read) (io.ReadCloser, error) {
				return r.source.Open(ctx, read.Since, read.Follow), nil
			},
			client:     logsv1.NewLogServiceClient(r.server.conn),
			outage:     &outage{about: unavailable, log: slog.New(slog.DiscardHandler), up: r.metrics.serverUp},
			sources:    &outage{about: unreachable, log: slog.New(slog.DiscardHandler), up: r.metrics.sourcesUp},
			metrics:    r.metrics,
			policy:     backoff.Policy{Initial: time.Millisecond, Max: 10 * time.Millisecond},
			endWait:    10 * time.Millisecond,
			ackTimeout: 5 * time.Second,
			closeWait:  50 * time.Millisecond,
			startWait:  patience,
			silence:    patience,
			probeEvery: patience,
			rotation:   time.Hour,
		},
		instance: Instance{PodUID: "uid-1", Pod: "w-1", Container: "agent"},
		window:   r.window,
		log:      slog.New(slog.DiscardHandler),
		state: func() (State, <-chan struct{}) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.state, r.changed
		},
	}
	if store == nil {
		return
	}
	if r.follow.openSpool(store) == nil {
		r.t.Fatalf("the spool cannot be opened")
	}
}

// newSpoolRig is a rig with a spool.
func newSpoolRig(t *testing.T, bounds spool.Options) *rig {
	t.Helper()
	r := newTestRig(t)
	r.dir, r.bounds = t.TempDir(), bounds
	r.renew()
	return r
}

func (r *rig) close() { r.server.close() }

// set changes what the cluster says.
func (r *rig) set(s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = s
	close(r.changed)
	r.changed = make(chan struct{})
}

// end ends the instance, first in the log and then in the cluster, as it happens.
func (r *rig) end() {
	r.source.End()
	r.mu.Lock()
	state := r.state
	r.mu.Unlock()
	state.Ended = true
	r.set(state)
}

func (r *rig) start(ctx context.Context) {
	r.done = make(chan error, 1)
	f, drain := r.follow, r.drain
	go func() { r.done <- f.run(ctx, drain) }()
}

// finish waits for the follower to be done.
func (r *rig) finish() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		l, _ := r.server.backend.Log(key)
		r.t.Fatalf("the follower is not done after %v; the server has %d lines, problems %v", patience, l.LineCount, r.server.backend.Problems())
		return nil
	}
}

// lineBytes is how long each line of print is in the log, with its stamp.
const lineBytes = 65

// print prints lines with the given stamps and returns their texts.
func (r *rig) print(stamps ...time.Time) []string {
	var texts []string
	for _, stamp := range stamps {
		text := fmt.Sprintf("line at %s, the %05dth", stamp.Format("04:05.000000"), r.printed())
		r.source.Print(stamp, text)
		texts = append(texts, text)
	}
	return texts
}

var printed struct {
	sync.Mutex
	n int
}

func (r *rig) printed() int {
	printed.Lock()
	defer printed.Unlock()
	printed.n++
	return printed.n
}

// await waits until the server has so many lines.
func (r *rig) await(lines int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := r.server.backend.Wait(ctx, func() bool {
		l, _ := r.server.backend.Log(key)
		return l.LineCount >= uint64(lines) //nolint:gosec // a count
	})
	if err != nil {
		l, _ := r.server.backend.Log(key)
		r.t.Fatalf("the server has %d lines, want %d; problems %v", l.LineCount, lines, r.server.backend.Problems())
	}
}

// eventually waits for a condition that nothing tells of.
func (r *rig) eventually(what string, condition func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// check compares what the server has with what was printed.
func (r *rig) check(want []string) logstest.Log {
	r.t.Helper()
	got, _ := r.server.backend.Log(key)
	if !slices.Equal(got.Lines, want) {
		r.t.Errorf("lines at the server (-want +got):\n%s", cmp.Diff(want, got.Lines))
	}
	if !got.Complete || !got.Matches {
		r.t.Errorf("complete = %v, matches = %v, want both", got.Complete, got.Matches)
	}
	if problems := r.server.backend.Problems(); len(problems) > 0 {
		r.t.Errorf("the server complains: %v", problems)
	}
	return got
}

// wantGaps compares the gaps in the log, and that they count as nothing else.
func (r *rig) wantGaps(want ...logstest.Gap) {
	r.t.Helper()
	got, _ := r.server.backend.Log(key)
	for i := range got.Gaps {
		got.Gaps[i].Message = "" // for humans
	}
	if diff := cmp.Diff(want, got.Gaps, protocmp.Transform()); diff != "" {
		r.t.Errorf("gaps at the server (-want +got):\n%s", diff)
	}
}

// run starts the follower, waits for its end, and checks what the server has.
func (r *rig) run(want []string) logstest.Log {
	r.t.Helper()
	r.start(context.Background())
	if err := r.finish(); err != nil {
		r.t.Errorf("following: %v", err)
	}
	return r.check(want)
}

func (r *rig) wantCount(c prometheus.Collector, name string, want float64) {
	r.t.Helper()
	if got := testutil.ToFloat64(c); got != want {
		r.t.Errorf("%s = %v, want %v", name, got, want)
	}
}

// at returns stamps at so many seconds after a certain minute.
func at(seconds ...float64) []time.Time {
	var stamps []time.Time
	for _, s := range seconds {
		stamps = append(stamps, time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC).Add(time.Duration(s*float64(time.Second))))
	}
	return stamps
}

var errBroken = errors.New("connection reset by peer")

func newTestRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	t.Cleanup(r.close)
	return r
}

// count returns the value of a counter.
func count(c prometheus.Collector) float64 { return testutil.ToFloat64(c) }
