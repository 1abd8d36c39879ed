package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/stream"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func TestMain(m *testing.M) {
	stream.Quiet()
	m.Run()
}

const (
	events  = "otto:scale:events"
	results = "otto:scale:results"
	dead    = "otto:scale:dead"
	group   = "ottoscaler"
)

// world is a real Redis and what producers see of it.
type world struct {
	t      testing.TB
	server *redis.Server
	user   string         // whom members log in as
	where  *stream.Server // what members connect to, instead of server
	db     int            // number of the database
	// beforeSettle, if set, runs before members take an event out of their queue.
	beforeSettle func(id string)
	rdb          goredis.UniversalClient

	events, results, dead string // keys, if they are not the usual ones
}

// key returns one that was set, or the usual one.
func key(set, usual string) string {
	if set != "" {
		return set
	}
	return usual
}

func newWorld(t testing.TB, opts redis.Options) *world {
	t.Helper()
	server := redistest.ForTest(t, opts)
	rdb := server.Client()
	t.Cleanup(func() { _ = rdb.Close() }) // the server ends anyway
	return &world{t: t, server: server, rdb: rdb}
}

// use has all that follows happen in another database.
func (w *world) use(db int) {
	w.db, w.rdb = db, goredis.NewClient(&goredis.Options{Addr: w.server.Addr, Password: w.server.Password, DB: db})
	rdb := w.rdb
	w.t.Cleanup(func() { _ = rdb.Close() }) // the server ends anyway
}

// consumers returns the names that the group knows.
func (w *world) consumers() []string {
	w.t.Helper()
	all, err := w.rdb.XInfoConsumers(w.t.Context(), events, group).Result()
	if err != nil && !goredis.HasErrorPrefix(err, "NOGROUP") {
		w.t.Fatal(err)
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Name)
	}
	return names
}

func (w *world) send(pairs ...string) string {
	w.t.Helper()
	id, err := w.rdb.XAdd(w.t.Context(), &goredis.XAddArgs{Stream: key(w.events, events), Values: pairs}).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) up(task string) string {
	w.t.Helper()
	return w.send("type", "scale_up", "task_id", task)
}

func (w *world) read(key string) []map[string]string {
	w.t.Helper()
	entries, err := w.rdb.XRange(w.t.Context(), key, "-", "+").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	var all []map[string]string
	for _, entry := range entries {
		fields := map[string]string{}
		for name, value := range entry.Values {
			fields[name] = value.(string)
		}
		all = append(all, fields)
	}
	return all
}

// resultsOf returns the final results of one event.
func (w *world) resultsOf(id string) []scaleevent.Result {
	w.t.Helper()
	var of []scaleevent.Result
	for _, fields := range w.read(key(w.results, results)) {
		if r := scaleevent.ParseResult(fields); r.EventID == id && r.Final() {
			of = append(of, r)
		}
	}
	return of
}

// settled returns how many events have a final result.
func (w *world) settled() int {
	w.t.Helper()
	ids := map[string]bool{}
	for _, fields := range w.read(key(w.results, results)) {
		if r := scaleevent.ParseResult(fields); r.Final() {
			ids[r.EventID] = true
		}
	}
	return len(ids)
}

// pending returns the IDs in the PEL, by consumer.
func (w *world) pending() map[string][]string {
	w.t.Helper()
	entries, err := w.rdb.XPendingExt(w.t.Context(), &goredis.XPendingExtArgs{Stream: key(w.events, events), Group: group, Start: "-", End: "+", Count: 10000}).Result()
	if err != nil && !goredis.HasErrorPrefix(err, "NOGROUP") {
		w.t.Fatal(err)
	}
	by := map[string][]string{}
	for _, e := range entries {
		by[e.Consumer] = append(by[e.Consumer], e.ID)
	}
	return by
}

func (w *world) pendingCount() int {
	n := 0
	for _, ids := range w.pending() {
		n += len(ids)
	}
	return n
}

// eventually waits for something that other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not happen: %s", what)
}

// member is a consumer with its queue, as in one main pod.
type member struct {
	*stream.Consumer
	t     testing.TB
	queue *queue.Memory[*scaleevent.Event]
	reg   *prometheus.Registry
	log   *lines
	rdb   goredis.UniversalClient
	stop  func() // told to stop; returns when it has

	mu     sync.Mutex
	health error
}

type config func(*stream.Config)

func reclaimAfter(d time.Duration) config {
	return func(c *stream.Config) { c.ReclaimAfter = d }
}

func drainTimeout(d time.Duration) config {
	return func(c *stream.Config) { c.DrainTimeout = d }
}

func replication(replicas int, timeout time.Duration) config {
	return func(c *stream.Config) { c.Replication = stream.Replication{Replicas: replicas, Timeout: timeout} }
}

var queueFinish = queue.Finish("finished", nil)

var errStarting = errors.New("starting")

// join makes a member; run has it work.
func (w *world) join(name string, configs ...config) *member {
	w.t.Helper()
	cfg := stream.Config{
		Stream: key(w.events, events), Results: key(w.results, results), Dead: key(w.dead, dead), Group: group, Consumer: name,
		ReclaimAfter: time.Minute, MaxEventBytes: scaleevent.DefaultMaxEventBytes, ResultsMaxLen: 10000,
	}
	for _, c := range configs {
		c(&cfg)
	}
	m := &member{t: w.t, reg: prometheus.NewRegistry(), log: &lines{}, health: errStarting}
	server := stream.Server{Addrs: []string{w.server.Addr}, Username: w.user, Password: w.server.Password, DB: w.db}
	if w.where != nil {
		server = *w.where
	}
	m.rdb = stream.NewClient(server, name)
	w.t.Cleanup(func() { _ = m.rdb.Close() }) // nothing is left to write
	m.queue = queue.NewMemory[*scaleevent.Event](queue.WithGate(), queue.WithPoisonAfter(cfg.PoisonAfter), queue.WithLedger(func(ctx context.Context, id string) (bool, error) { return m.Settled(ctx, id) }))
	var q stream.Queue = m.queue
	if w.beforeSettle != nil {
		q = &watchedQueue{Queue: q, beforeSettle: w.beforeSettle}
	}
	m.Consumer = stream.New(cfg, m.rdb, func() goredis.UniversalClient { return stream.NewClient(server, name) }, q, func(err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.health = err
	}, m.reg, slog.New(slog.NewTextHandler(io.MultiWriter(m.log, testWriter{w.t}), nil)).With("member", name))
	return m
}

// watchedQueue is a queue whose Settle can be held up.
type watchedQueue struct {
	stream.Queue
	beforeSettle func(id string)
}

func (q *watchedQueue) Produce(ctx context.Context, name string) (queue.Producer[*scaleevent.Event], error) {
	p, err := q.Queue.Produce(ctx, name)
	return &watchedProducer{Producer: p, beforeSettle: q.beforeSettle}, err
}

func (q *watchedQueue) Forget(ids ...string) {
	for _, id := range ids {
		q.beforeSettle(id)
	}
	q.Queue.Forget(ids...)
}

type watchedProducer struct {
	queue.Producer[*scaleevent.Event]
	beforeSettle func(id string)
}

func (p *watchedProducer) Settle(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		p.beforeSettle(id)
	}
	return p.Producer.Settle(ctx, ids...)
}

func (m *member) run() *member {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	var once sync.Once
	m.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				m.t.Errorf("Run: %v", err)
			}
		})
	}
	m.t.Cleanup(m.stop)
	return m
}

// awaitTakeOver waits until the member, which has a subscriber, has taken over what
// others had: only one of them has one in an installation that is set up well.
func (m *member) awaitTakeOver() {
	m.t.Helper()
	eventually(m.t, "the takeover", func() bool {
		_, shut := m.queue.Gate()
		return !shut
	})
}

func (m *member) healthErr() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.health
}

// hands are a subscriber that holds what it gets until it is told what to do.
type hands struct {
	t   testing.TB
	sub queue.Subscription[*scaleevent.Event]

	mu   sync.Mutex
	held []queue.Delivery[*scaleevent.Event]
}

func (m *member) subscribe(credits int) *hands {
	m.t.Helper()
	sub, err := m.queue.Subscribe(m.t.Context(), queue.SubscribeOptions{Name: "hands", Credits: credits})
	if err != nil {
		m.t.Fatal(err)
	}
	h := &hands{t: m.t, sub: sub}
	go func() {
		for {
			d, err := sub.Next(context.Background())
			if err != nil {
				return
			}
			h.mu.Lock()
			h.held = append(h.held, d)
			h.mu.Unlock()
		}
	}()
	m.t.Cleanup(h.leave)
	return h
}

func (h *hands) leave() { _ = h.sub.Close() } // closing twice is fine

// got returns the IDs of all events that were ever held.
func (h *hands) got() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for _, d := range h.held {
		ids = append(ids, d.ID)
	}
	return ids
}

func (h *hands) await(n int) []queue.Delivery[*scaleevent.Event] {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%d deliveries", n), func() bool { return len(h.got()) >= n })
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.held)
}

func (h *hands) resolve(d queue.Delivery[*scaleevent.Event], v queue.Verdict) {
	h.t.Helper()
	if err := h.sub.Resolve(h.t.Context(), d, v); err != nil {
		h.t.Fatal(err)
	}
}

// finishAll has a subscriber that is done with everything at once. It returns the
// IDs that it has seen so far.
func (m *member) finishAll(credits int) func() []string {
	return m.serve(credits, func(context.Context) bool { return true })
}

// serve has a subscriber that is done with an event when act returns true. It
// returns the IDs of those.
func (m *member) serve(credits int, act func(ctx context.Context) bool) func() []string {
	var mu sync.Mutex
	var seen []string
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = queue.Serve(ctx, m.queue, queue.SubscribeOptions{Name: "all", Credits: credits}, slog.New(slog.DiscardHandler),
			func(ctx context.Context, d queue.Delivery[*scaleevent.Event]) queue.Verdict {
				if !act(ctx) {
					return queue.RetryAfter(0, "did not act")
				}
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, d.ID)
				return queue.Finish("finished", map[string]string{"workers": "w-" + d.ID})
			}) // it returns nil when told to stop
	}()
	m.t.Cleanup(func() { cancel(); <-done })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// lines keeps a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) with(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.Lines(l.buf.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			found = append(found, line)
		}
	}
	return found
}

// testWriter shows the log of a test that fails.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

func (m *member) metric(name string) float64 {
	m.t.Helper()
	families, err := m.reg.Gather()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "ottoscaler_stream_"+name {
			continue
		}
		total := 0.0
		for _, metric := range f.GetMetric() {
			total += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
		return total
	}
	m.t.Fatalf("no metric %s", name)
	return 0
}
