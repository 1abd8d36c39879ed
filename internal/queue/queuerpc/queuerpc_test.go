package queuerpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuetest"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a queue server that tests stop and start again.
type server struct {
	events  *queue.Memory[*scaleevent.Event]
	workers *queue.Memory[queue.Worker]
	addr    string
	stop    func()
}

// listen takes a port of this host.
func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return lis
}

// start serves new, empty queues on addr until stop is called or the test ends.
func start(t testing.TB, addr string, opts ...queue.Option) *server {
	t.Helper()
	s := &server{events: queue.NewMemory[*scaleevent.Event](opts...), workers: queue.NewMemory[queue.Worker](opts...)}
	lis := listen(t, addr)
	s.addr = lis.Addr().String()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- queuerpc.NewServer(s.events, s.workers).Serve(ctx, lis) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func dial(t testing.TB, addr string) *queuerpc.Client {
	t.Helper()
	client, err := queuerpc.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("closing the client: %v", err)
		}
	})
	return client
}

func worker(n int) queue.Worker {
	return queue.Worker{
		Namespace: "ci", Name: fmt.Sprintf("w-%d", n), TaskID: "build-7", Pool: "default", EventID: "1700000000000-0",
	}
}

func workerItem(n int) queue.Item[queue.Worker] {
	return queue.Item[queue.Worker]{ID: fmt.Sprintf("uid-%d", n), Key: "", Value: worker(n)}
}

func TestWorkersOverTheNetworkObeyTheContract(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) queue.Queue[queue.Worker] {
		return dial(t, start(t, "127.0.0.1:0").addr).Workers()
	}, func(id string) queue.Worker { return queue.Worker{Namespace: "ci", Name: "w-" + id, TaskID: "build-7"} })
}

func TestEventsOverTheNetworkObeyTheContract(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) queue.Queue[*scaleevent.Event] {
		return dial(t, start(t, "127.0.0.1:0").addr).Events()
	}, func(id string) *scaleevent.Event {
		one := 1
		return &scaleevent.Event{ID: id, Type: scaleevent.ScaleUp, TaskID: "task of " + id, Pool: "default", PodCount: &one}
	})
}

func TestAnEventArrivesAsItWasSent(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	q := dial(t, s.addr).Events()
	event, err := scaleevent.Parse("1700000000000-0", map[string]string{
		"type": "scale_up", "job_id": "build-7", "count": "3", "priority": "10", "expires_at": "2099-01-01T00:00:00Z",
		"image": "registry.example/agents/go:1", "command": "[\"make\",\"test\"]", "env.CI_JOB": "ü\n", "cpu": "500m", "memory": "1Gi",
		"repository": "ottoscaler/ottoscaler", "commit_sha": "abc", "team": "platform",
	})
	if err != nil {
		t.Fatal(err)
	}
	p, sub := produce(t, q), subscribe(t, q, 1)
	want := queue.Item[*scaleevent.Event]{ID: event.ID, Key: event.OrderingKey(), Traceparent: event.Traceparent, Value: &event}
	if err := p.Offer(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, next(t, sub).Item); diff != "" {
		t.Errorf("the event has changed on its way (-sent +received):\n%s", diff)
	}
}

func produce[T any](t testing.TB, q queue.Queue[T]) queue.Producer[T] {
	t.Helper()
	p, err := q.Produce(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func subscribe[T any](t testing.TB, q queue.Queue[T], credits int) queue.Subscription[T] {
	t.Helper()
	s, err := q.Subscribe(t.Context(), queue.SubscribeOptions{Name: "test", Credits: credits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func next[T any](t testing.TB, s queue.Subscription[T]) queue.Delivery[T] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := s.Next(ctx)
	if err != nil {
		t.Fatalf("waiting for an item: %v", err)
	}
	return d
}

func outcome[T any](t testing.TB, p queue.Producer[T]) queue.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	o, err := p.Outcome(ctx)
	if err != nil {
		t.Fatalf("waiting for an outcome: %v", err)
	}
	return o
}

// eventually waits until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// road is a connection that breaks on command: a TCP proxy.
type road struct {
	addr string

	mu      sync.Mutex
	conns   []net.Conn
	muted   bool // what clients send is swallowed
	running sync.WaitGroup
}

func newRoad(t testing.TB, to string) *road {
	t.Helper()
	lis := listen(t, "127.0.0.1:0")
	r := &road{addr: lis.Addr().String()}
	r.running.Go(func() {
		for {
			near, err := lis.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, near, far)
			r.mu.Unlock()
			r.running.Go(func() { r.carry(near, far, true) })
			r.running.Go(func() { r.carry(far, near, false) })
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		r.cut()
		r.running.Wait()
	})
	return r
}

func (r *road) carry(from, to net.Conn, fromClient bool) {
	defer func() { _ = from.Close(); _ = to.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		swallow := fromClient && r.muted
		r.mu.Unlock()
		if swallow {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut breaks every connection that is open now.
func (r *road) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.conns {
		_ = conn.Close()
	}
	r.conns = nil
}

// mute swallows what clients send from now on.
func (r *road) mute(muted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.muted = muted
}

func TestACutConnectionReturnsItsLeasesAtOnce(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	r := newRoad(t, s.addr)
	near, far := dial(t, s.addr).Workers(), dial(t, r.addr).Workers()
	p := produce(t, near)
	if err := p.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	dying := subscribe(t, far, 1)
	d := next(t, dying)
	r.cut()
	select {
	case <-d.Lost:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody told the holder that its lease is lost")
	}
	if err := dying.Resolve(t.Context(), d, queue.Finish("", nil)); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("verdict over the cut connection: got %v, want ErrClosed", err)
	}
	if _, err := dying.Next(t.Context()); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("next over the cut connection: got %v, want ErrClosed", err)
	}
	if again := next(t, subscribe(t, near, 1)); again.ID != d.ID || again.Attempt != 2 {
		t.Errorf("next is %s, attempt %d; want %s, attempt 2", again.ID, again.Attempt, d.ID)
	}
}

// records takes what a queue logs, one line for each record at info or above.
type records struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *records) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(line)
}

func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func TestAnOrderlyEndIsNoWarning(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(r *road, s queue.Subscription[queue.Worker])
		want string
	}{
		"close": {func(_ *road, s queue.Subscription[queue.Worker]) { _ = s.Close() }, `level=INFO msg="leases returned"`},
		"cut":   {func(r *road, _ queue.Subscription[queue.Worker]) { r.cut() }, `level=WARN msg="leases returned"`},
	} {
		t.Run(name, func(t *testing.T) {
			log := &records{}
			s := start(t, "127.0.0.1:0", queue.WithLogger(slog.New(slog.NewTextHandler(log, nil))))
			r := newRoad(t, s.addr)
			p := produce(t, dial(t, s.addr).Workers())
			for n := range 2 {
				if err := p.Offer(t.Context(), workerItem(n)); err != nil {
					t.Fatal(err)
				}
			}
			leaving := subscribe(t, dial(t, r.addr).Workers(), 2)
			next(t, leaving)
			next(t, leaving)
			tc.end(r, leaving)
			next(t, subscribe(t, dial(t, s.addr).Workers(), 1)) // once it is back
			if got := log.String(); !strings.Contains(got, tc.want) || !strings.Contains(got, "leases=2") || strings.Count(got, "\n") != 1 {
				t.Errorf("the queue logs %q, want one line with %q about 2 leases", got, tc.want)
			}
		})
	}
}

// A subscriber that stops hands each item to the next one: the queue must not
// lease it to the old one again, over the stream that is still open.
func TestADrainCostsNoAttempt(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	near := dial(t, s.addr).Workers()
	p := produce(t, near)
	for n := range 2 {
		if err := p.Offer(t.Context(), workerItem(n)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	began := make(chan struct{}, 2)
	served := make(chan error, 1)
	go func() {
		opts := queue.SubscribeOptions{Name: "draining", Credits: 2}
		served <- queue.Serve(ctx, dial(t, s.addr).Workers(), opts, slog.New(slog.DiscardHandler), func(_ context.Context, d queue.Delivery[queue.Worker]) queue.Verdict {
			began <- struct{}{}
			<-ctx.Done()
			if d.ID == workerItem(0).ID {
				time.Sleep(300 * time.Millisecond) // the stream stays open for that long
			}
			return queue.RetryAfter(0, "stopping")
		})
	}()
	<-began
	<-began
	stop()
	if err := <-served; err != nil {
		t.Errorf("serving: %v", err)
	}
	heir := subscribe(t, near, 2)
	for range 2 {
		if d := next(t, heir); d.Attempt != 2 {
			t.Errorf("%s is leased to the next subscriber as attempt %d, want 2", d.ID, d.Attempt)
		}
	}
}

func TestAVerdictThatIsLostOnItsWayIsAskedForAgain(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	r := newRoad(t, s.addr)
	near, far := dial(t, s.addr).Workers(), dial(t, r.addr).Workers()
	p := produce(t, near)
	if err := p.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, far, 1)
	d := next(t, sub)
	r.mute(true)
	if err := sub.Resolve(t.Context(), d, queue.Finish("never heard", nil)); err != nil {
		t.Fatalf("the verdict could not be sent: %v", err)
	}
	r.cut()
	r.mute(false)
	var again queue.Subscription[queue.Worker]
	eventually(t, func() (err error) {
		again, err = far.Subscribe(t.Context(), queue.SubscribeOptions{Name: "again", Credits: 1})
		return err
	})
	defer func() { _ = again.Close() }()
	if err := again.Resolve(t.Context(), next(t, again), queue.Finish("heard", nil)); err != nil {
		t.Fatal(err)
	}
	if o := outcome(t, p); o.Message != "heard" || o.Attempts != 2 {
		t.Errorf("outcome = %+v, want the second verdict after 2 attempts", o)
	}
}

func TestAnOutcomeThatIsLostOnItsWayIsToldToWhoOffersAgain(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	r := newRoad(t, s.addr)
	near, far := dial(t, s.addr).Workers(), dial(t, r.addr).Workers()
	p, sub := produce(t, far), subscribe(t, near, 1)
	if err := p.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	d := next(t, sub)
	r.cut()
	if _, err := p.Outcome(t.Context()); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("outcome over the cut connection: got %v, want ErrClosed", err)
	}
	if err := p.Offer(t.Context(), workerItem(2)); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("offer over the cut connection: got %v, want ErrClosed", err)
	}
	if err := sub.Resolve(t.Context(), d, queue.Finish("", nil)); err != nil {
		t.Fatal(err)
	}
	again := produce(t, near)
	if err := again.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	if o := outcome(t, again); o.ItemID != "uid-1" || o.Attempts != 1 {
		t.Errorf("outcome = %+v, want that of uid-1 after 1 attempt", o)
	}
}

func TestASubscriberWithoutHeartbeatsLosesItsLease(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	r := newRoad(t, s.addr)
	near, far := dial(t, s.addr).Workers(), dial(t, r.addr).Workers()
	p := produce(t, near)
	if err := p.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	hanging, err := far.Subscribe(t.Context(), queue.SubscribeOptions{Name: "hanging", Credits: 1, LeaseDuration: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hanging.Close() }()
	d := next(t, hanging)
	time.Sleep(1500 * time.Millisecond)
	select {
	case <-d.Lost:
		t.Fatal("the lease was lost in spite of heartbeats")
	default:
	}
	r.mute(true)
	if again := next(t, subscribe(t, near, 1)); again.ID != d.ID || again.Attempt != 2 {
		t.Errorf("next is %s, attempt %d; want %s, attempt 2", again.ID, again.Attempt, d.ID)
	}
	select {
	case <-d.Lost:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody told the holder that its lease is lost")
	}
	if err := hanging.Resolve(t.Context(), d, queue.Finish("", nil)); !errors.Is(err, queue.ErrLeaseLost) {
		t.Errorf("verdict on the lost lease: got %v, want ErrLeaseLost", err)
	}
	r.cut() // or Close would wait for the swallowed goodbye
}

func TestAQueueThatIsNotThereIsToldAtOnce(t *testing.T) {
	lis := listen(t, "127.0.0.1:0")
	addr := lis.Addr().String()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	q := dial(t, addr).Workers()
	for name, call := range map[string]func() error{
		"Produce": func() error { _, err := q.Produce(t.Context(), "test"); return err },
		"Subscribe": func() error {
			_, err := q.Subscribe(t.Context(), queue.SubscribeOptions{Name: "test", Credits: 1})
			return err
		},
		"AwaitSettled": func() error { return q.AwaitSettled(t.Context(), "a") },
		"Stats":        func() error { _, err := q.Stats(t.Context()); return err },
	} {
		began := time.Now()
		err := call()
		if err == nil || !strings.Contains(err.Error(), addr) || status.Code(err) != codes.Unavailable {
			t.Errorf("%s: got %v, want an error that names %s and is Unavailable", name, err, addr)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s took %s to fail", name, took)
		}
	}
}

func TestServeOutlivesARestartOfTheServer(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	client := dial(t, s.addr)
	var buf bytes.Buffer
	log := slog.New(slog.NewTextHandler(&buf, nil))
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	leased := make(chan string, 10)
	go func() {
		served <- queue.Serve(ctx, client.Workers(), queue.SubscribeOptions{Name: "log-relay", Credits: 10}, log,
			func(ctx context.Context, d queue.Delivery[queue.Worker]) queue.Verdict {
				leased <- d.ID
				if d.ID == "uid-1" {
					<-ctx.Done() // follows its logs until the server goes away
				}
				return queue.Finish("", nil)
			})
	}()
	p := produce(t, client.Workers())
	if err := p.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	if id := <-leased; id != "uid-1" {
		t.Fatalf("leased %s, want uid-1", id)
	}
	s.stop()
	if _, err := p.Outcome(t.Context()); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("outcome after the server's end: got %v, want ErrClosed", err)
	}
	start(t, s.addr) // empty: the producer knows what is open
	eventually(t, func() (err error) {
		p, err = client.Workers().Produce(t.Context(), "again")
		return err
	})
	defer func() { _ = p.Close() }()
	if err := p.Offer(t.Context(), workerItem(2)); err != nil {
		t.Fatal(err)
	}
	if id := <-leased; id != "uid-2" {
		t.Fatalf("leased %s, want uid-2", id)
	}
	if o := outcome(t, p); o.ItemID != "uid-2" {
		t.Errorf("outcome = %+v, want that of uid-2", o)
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("serve returned %v, want nil when told to stop", err)
	}
	if text := buf.String(); strings.Count(text, "queue is unreachable") != 1 || strings.Count(text, "connected to the queue again") != 1 {
		t.Errorf("log says:\n%s\nwant one outage and one all-clear", text)
	}
}

func TestCloseLetsArriveWhatWasSent(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	q := dial(t, s.addr).Workers()
	for n := range 50 {
		p, sub := produce(t, q), subscribe(t, q, 1)
		if err := p.Offer(t.Context(), workerItem(n)); err != nil {
			t.Fatal(err)
		}
		if err := sub.Resolve(t.Context(), next(t, sub), queue.Finish("", nil)); err != nil {
			t.Fatal(err)
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
		if err := p.Settle(t.Context(), outcome(t, p).ItemID); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		stats, err := s.workers.Stats(t.Context())
		if err != nil || stats != (queue.Stats{}) {
			t.Fatalf("round %d: statistics are %+v (%v), want none", n, stats, err)
		}
	}
}

func TestBytesThatAreNoTextDoNotBreakTheStream(t *testing.T) {
	q := dial(t, start(t, "127.0.0.1:0").addr).Workers()
	p, sub := produce(t, q), subscribe(t, q, 1)
	if err := p.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	verdict := queue.Reject("bad", "the API server said \xff\xfe", map[string]string{"body": "a\xffb"})
	if err := sub.Resolve(t.Context(), next(t, sub), verdict); err != nil {
		t.Fatal(err)
	}
	if o := outcome(t, p); o.Message != "the API server said \uFFFD" || o.Details["body"] != "a\uFFFDb" {
		t.Errorf("outcome = %+v, want replacement characters", o)
	}
}

func TestAnItemThatCannotBeReadIsRejected(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	p := produce(t, s.events)
	// As if a newer consumer had let an event pass that this scaler does not know.
	item := queue.Item[*scaleevent.Event]{ID: "1-0", Value: &scaleevent.Event{Type: "scale_sideways"}}
	if err := p.Offer(t.Context(), item); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, dial(t, s.addr).Events(), 1)
	if o := outcome(t, p); o.Status != queue.Rejected || o.Reason != queuerpc.ReasonUnreadable || o.Message == "" {
		t.Errorf("outcome = %+v, want a rejection as unreadable", o)
	}
	if err := p.Offer(t.Context(), queue.Item[*scaleevent.Event]{ID: "2-0", Value: &scaleevent.Event{Type: scaleevent.ScaleUp, Pool: "default"}}); err != nil {
		t.Fatal(err)
	}
	if d := next(t, sub); d.ID != "2-0" {
		t.Errorf("next is %s, want 2-0", d.ID)
	}
}

// rawClient speaks the protocol without our client, to say what it never would.
func rawClient(t *testing.T, addr string) queuev1.QueueServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return queuev1.NewQueueServiceClient(conn)
}

func TestMessagesOutOfOrderEndTheStreamAsInvalid(t *testing.T) {
	client := rawClient(t, start(t, "127.0.0.1:0").addr)
	openProduce := &queuev1.ProduceRequest{Message: &queuev1.ProduceRequest_Open_{Open: &queuev1.ProduceRequest_Open{Topic: queuev1.Topic_TOPIC_WORKERS}}}
	offer := func(item *queuev1.Item) *queuev1.ProduceRequest {
		return &queuev1.ProduceRequest{Message: &queuev1.ProduceRequest_Offer_{Offer: &queuev1.ProduceRequest_Offer{Item: item}}}
	}
	aWorker := &queuev1.Item_Worker{Worker: &queuev1.Worker{Name: "w"}}
	for name, requests := range map[string][]*queuev1.ProduceRequest{
		"an offer before the open":   {offer(&queuev1.Item{Id: "a", Payload: aWorker})},
		"no topic":                   {{Message: &queuev1.ProduceRequest_Open_{Open: &queuev1.ProduceRequest_Open{}}}},
		"a second open":              {openProduce, openProduce},
		"an empty message":           {openProduce, {}},
		"an item without ID":         {openProduce, offer(&queuev1.Item{Payload: aWorker})},
		"an item without payload":    {openProduce, offer(&queuev1.Item{Id: "a"})},
		"an item of the other topic": {openProduce, offer(&queuev1.Item{Id: "a", Payload: &queuev1.Item_ScaleEvent{ScaleEvent: &queuev1.ScaleEvent{}}})},
	} {
		t.Run("producing: "+name, func(t *testing.T) {
			stream, err := client.Produce(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wantInvalid(t, stream, requests)
		})
	}

	openConsume := func(credits uint32, lease time.Duration) *queuev1.ConsumeRequest {
		return &queuev1.ConsumeRequest{Message: &queuev1.ConsumeRequest_Open_{Open: &queuev1.ConsumeRequest_Open{
			Topic: queuev1.Topic_TOPIC_WORKERS, Credits: credits, LeaseDuration: durationpb.New(lease),
		}}}
	}
	for name, requests := range map[string][]*queuev1.ConsumeRequest{
		"a heartbeat before the open": {{Message: &queuev1.ConsumeRequest_Heartbeat_{}}},
		"no topic":                    {{Message: &queuev1.ConsumeRequest_Open_{Open: &queuev1.ConsumeRequest_Open{Credits: 1}}}},
		"no credits":                  {openConsume(0, 0)},
		"a lease of a millisecond":    {openConsume(1, time.Millisecond)},
		"a second open":               {openConsume(1, 0), openConsume(1, 0)},
		"a verdict without decision":  {openConsume(1, 0), {Message: &queuev1.ConsumeRequest_Verdict_{Verdict: &queuev1.ConsumeRequest_Verdict{LeaseId: 1}}}},
	} {
		t.Run("consuming: "+name, func(t *testing.T) {
			stream, err := client.Consume(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wantInvalid(t, stream, requests)
		})
	}

	if _, err := client.AwaitSettlement(t.Context(), &queuev1.AwaitSettlementRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("awaiting settlement without a topic: got %v, want InvalidArgument", err)
	}
}

func wantInvalid[Req, Resp any](t *testing.T, stream grpc.BidiStreamingClient[Req, Resp], requests []*Req) {
	t.Helper()
	for _, request := range requests {
		if err := stream.Send(request); err != nil {
			break // the stream has ended: Recv says why
		}
	}
	for {
		if _, err := stream.Recv(); err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("the stream ended with %v, want InvalidArgument", err)
			}
			return
		}
	}
}

// A verdict on a lease that was lost says nothing about who holds it now.
func TestAVerdictOnALostLeaseIsIgnored(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	stream, err := rawClient(t, s.addr).Consume(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []*queuev1.ConsumeRequest{
		{Message: &queuev1.ConsumeRequest_Open_{Open: &queuev1.ConsumeRequest_Open{Topic: queuev1.Topic_TOPIC_WORKERS, Credits: 1}}},
		{Message: &queuev1.ConsumeRequest_Verdict_{Verdict: &queuev1.ConsumeRequest_Verdict{
			LeaseId: 7, Decision: &queuev1.ConsumeRequest_Verdict_Done{Done: &queuev1.ConsumeRequest_Done{}},
		}}},
	} {
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
	}
	p := produce(t, s.workers)
	if err := p.Offer(t.Context(), workerItem(1)); err != nil {
		t.Fatal(err)
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			t.Fatalf("the stream ended: %v", err)
		}
		if response.GetDelivery().GetItem().GetId() == "uid-1" {
			return
		}
	}
}
