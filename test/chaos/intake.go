package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/intake"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// An arena is a Redis, a consumer as a process, a producer that adds events at an
// even pace, and a subscriber in this process that carries them out, as the scaler
// does: an effect leaves a trace, and an event whose trace is there has no further
// effect. The trace is removed as soon as the queue says that the event is settled, as
// the scaler lets go of a worker then. An event that comes after that acts twice.
type arena struct {
	*intake.Ground
	program  string
	log      *os.File
	consumer *intake.Consumer
	name     int // number of main pods so far
	client   *queuerpc.Client
	stop     func() // the subscriber

	mu        sync.Mutex
	sent      []string            // guarded by mu
	effects   map[string]int      // by event: how often it acted; guarded by mu
	traces    map[string]bool     // by event; guarded by mu
	order     map[string][]string // by task: its events, as their effects were made; guarded by mu
	forgotten string              // Redis itself has forgotten what is not behind this ID; guarded by mu
}

// A setting makes the Redis of a row.
type setting func(ctx context.Context) (*intake.Ground, error)

// durable is a server that has written down what it has answered.
func durable(config ...string) setting {
	return func(ctx context.Context) (*intake.Ground, error) {
		return intake.Single(ctx, redis.Options{AppendOnly: true, Config: config, Output: os.Stderr})
	}
}

func newArena(ctx context.Context, on setting) (in *arena, err error) {
	in = &arena{effects: map[string]int{}, traces: map[string]bool{}, order: map[string][]string{}, stop: func() {}}
	if in.program, err = intake.Build(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	if in.Ground, err = on(ctx); err != nil {
		return in, err
	}
	if in.log, err = os.CreateTemp("", "ottoscaler-chaos-*.log"); err != nil {
		return in, fmt.Errorf("preparing the consumer: %w", err)
	}
	if err := in.startPod(""); err != nil {
		return in, err
	}
	return in, in.subscribe(ctx)
}

// startPod starts the consumer of a new main pod, at a queue address of its own, or
// again that of the same main pod at the address that it had.
func (in *arena) startPod(addr string) (err error) {
	if addr == "" {
		in.name++
	}
	in.consumer, err = intake.Start(in.program, intake.Options{
		Ground: in.Ground, Name: "pod-" + strconv.Itoa(in.name), QueueAddr: addr, Log: in.log,
		Env: []string{"RESULTS_MAX_LEN=10000000", "POISON_AFTER=0"}, // the crashes are ours, hundreds of them
	})
	return err
}

// subscribe serves the consumer's queue, until stop.
func (in *arena) subscribe(ctx context.Context) (err error) {
	client, err := queuerpc.Dial(in.consumer.QueueAddr)
	if err != nil {
		return err
	}
	in.mu.Lock()
	in.client = client
	in.mu.Unlock()
	parent := ctx
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() {
		handle := func(ctx context.Context, d queue.Delivery[*scaleevent.Event]) queue.Verdict {
			return in.handle(ctx, parent, d)
		}
		_ = queue.Serve(ctx, client.Events(), queue.SubscribeOptions{Name: "chaos", Credits: 64}, slog.New(slog.DiscardHandler), handle) // it returns nil when told to stop
	})
	in.stop = func() {
		cancel()
		serving.Wait()
		_ = client.Close() // nobody listens any more
	}
	return nil
}

func (in *arena) handle(ctx, outlasting context.Context, d queue.Delivery[*scaleevent.Event]) queue.Verdict {
	pause := time.NewTimer(rand.N(4 * time.Millisecond)) // as if it asked an API server
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return queue.RetryAfter(0, "stopped")
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.traces[d.ID] {
		in.traces[d.ID] = true
		in.effects[d.ID]++
		in.order[d.Value.TaskID] = append(in.order[d.Value.TaskID], d.ID)
		go in.removeTrace(outlasting, d.ID)
	}
	return queue.Finish("", nil)
}

// removeTrace removes a trace once its event is settled, whichever main pod says so.
func (in *arena) removeTrace(ctx context.Context, id string) {
	for range backoff.Default.Attempts(ctx) {
		in.mu.Lock()
		client := in.client
		in.mu.Unlock()
		if client.Events().AwaitSettled(ctx, id) == nil {
			in.mu.Lock()
			delete(in.traces, id)
			in.mu.Unlock()
			return
		}
	}
}

// produce adds events of ten tasks until ctx ends, however often Redis refuses.
func (in *arena) produce(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		_, _ = in.send(ctx, strconv.Itoa(n%10)) // an event whose XADD failed was not promised
	}
}

// send adds an event. Where there is a replica, an event is promised only when that has
// it, too: Redis answers before.
func (in *arena) send(ctx context.Context, task string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	master, err := in.Master(ctx)
	if err != nil {
		return "", fmt.Errorf("adding an event: %w", err)
	}
	p := master.Pipeline()
	added := p.XAdd(ctx, &goredis.XAddArgs{Stream: in.Events, Values: []string{"type", "scale_up", "task_id", task}})
	var replicas *goredis.Cmd
	if in.Watched != nil || in.Replica != nil {
		replicas = p.Do(ctx, "WAIT", 1, 1000)
	}
	if _, err := p.Exec(ctx); err != nil {
		if cluster, ok := in.Redis.(*goredis.ClusterClient); ok {
			cluster.ReloadState(ctx) // it has not seen the error
		}
		return "", fmt.Errorf("adding an event: %w", err)
	}
	if replicas != nil {
		if n, err := replicas.Int(); err != nil || n < 1 {
			return "", errors.New("adding an event: no replica has it")
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.sent = append(in.sent, added.Val())
	return added.Val(), nil
}

// forget has Redis do something that makes it forget events, and keeps in mind which:
// those that it was told of up to then.
func (in *arena) forget(ctx context.Context, do func(p goredis.Pipeliner)) error {
	var now *goredis.TimeCmd
	for range backoff.Default.Attempts(ctx) { // a client may need a moment to find it back
		_, err := in.Redis.TxPipelined(ctx, func(p goredis.Pipeliner) error {
			do(p)
			now = p.Time(ctx)
			return nil
		})
		if err == nil {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("having Redis forget: %w", err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.forgotten = fmt.Sprintf("%d-%d", now.Val().UnixMilli(), uint64(1<<63))
	return nil
}

// probe adds one event and returns how long it took to have its effect.
func (in *arena) probe(ctx context.Context, begin time.Time) (time.Duration, error) {
	var id string
	for range (backoff.Policy{Initial: 5 * time.Millisecond, Max: 20 * time.Millisecond}).Attempts(ctx) {
		if id == "" {
			var err error
			if id, err = in.send(ctx, "probe"); err != nil {
				continue // Redis is not back yet
			}
		}
		in.mu.Lock()
		done := in.effects[id] > 0
		in.mu.Unlock()
		if done {
			return time.Since(begin), nil
		}
	}
	return 0, fmt.Errorf("event %s, sent after the fault, has no effect, see %s: %w", id, in.log.Name(), ctx.Err())
}

// count waits until all is settled, and counts what the faults did.
func (in *arena) count(ctx context.Context) (h harm, err error) {
	for range (backoff.Policy{Initial: 20 * time.Millisecond, Max: 100 * time.Millisecond}).Attempts(ctx) {
		// The lag of the group is not to be had after a failover.
		stream, err := in.Redis.XInfoStream(ctx, in.Events).Result()
		groups, gerr := in.Redis.XInfoGroups(ctx, in.Events).Result()
		if err == nil && gerr == nil && len(groups) == 1 && groups[0].Pending == 0 && groups[0].LastDeliveredID == stream.LastGeneratedID {
			break
		}
	}
	if ctx.Err() != nil {
		return h, fmt.Errorf("waiting for all events to be acknowledged, see %s: %w", in.log.Name(), ctx.Err())
	}
	finals := map[string]int{}
	for last := "-"; ; {
		entries, err := in.Redis.XRangeN(ctx, in.Results, last, "+", 1000).Result()
		if err != nil {
			return h, fmt.Errorf("reading results: %w", err)
		}
		for _, entry := range entries {
			if entry.Values["status"] == scaleevent.StatusDone {
				finals[fmt.Sprint(entry.Values["event_id"])]++
			}
		}
		if len(entries) < 1000 {
			break
		}
		last = "(" + entries[len(entries)-1].ID
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, id := range in.sent {
		if later(id, in.forgotten) && (in.effects[id] == 0 || finals[id] == 0) {
			h.lost++
		}
		if in.effects[id] > 1 {
			h.duplicated++
		}
	}
	for _, ids := range in.order {
		for i := 1; i < len(ids); i++ {
			if later(ids[i-1], ids[i]) {
				h.reordered++
			}
		}
	}
	return h, nil
}

// later compares entry IDs. Every one is later than none.
func later(a, b string) bool {
	if b == "" {
		return true
	}
	var x, y [2]uint64
	_, errA := fmt.Sscanf(a, "%d-%d", &x[0], &x[1])
	_, errB := fmt.Sscanf(b, "%d-%d", &y[0], &y[1])
	if errA != nil || errB != nil {
		return true // no ID of Redis: that is a fault, too
	}
	return x[0] > y[0] || x[0] == y[0] && x[1] > y[1]
}

func (in *arena) close() error {
	in.stop()
	var errs []error
	if in.consumer != nil {
		errs = append(errs, in.consumer.Stop())
	}
	if in.Ground != nil {
		errs = append(errs, in.Ground.Close())
	}
	err := errors.Join(errs...)
	if in.log != nil && err == nil {
		err = errors.Join(in.log.Close(), os.Remove(in.log.Name()))
	}
	return err
}

// disrupt runs a fault again and again under load. Each time is at a random moment,
// and is over when an event that was sent after it has had its effect.
func disrupt(on setting, times, quick int, strike func(ctx context.Context, in *arena) error) func(context.Context, string, bool) (Row, error) {
	return func(ctx context.Context, name string, isQuick bool) (row Row, err error) {
		if isQuick {
			times = quick
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(times)*15*time.Second)
		defer cancel()
		in, err := newArena(ctx, on)
		if err != nil {
			return row, err
		}
		defer func() { err = errors.Join(err, in.close()) }()
		if _, err := in.probe(ctx, time.Now()); err != nil {
			return row, err
		}
		producing, stop := context.WithCancel(ctx)
		var producer sync.WaitGroup
		producer.Go(func() { in.produce(producing, 2*time.Millisecond) })
		row = Row{Name: name, Runs: times}
		var recoveries []time.Duration
		for range times {
			if err = sleep(ctx, rand.N(50*time.Millisecond)); err != nil {
				break
			}
			begin := time.Now()
			if err = strike(ctx, in); err != nil {
				break
			}
			var took time.Duration
			if took, err = in.probe(ctx, begin); err != nil {
				break
			}
			recoveries = append(recoveries, took)
		}
		stop()
		producer.Wait()
		if err != nil {
			return row, err
		}
		h, err := in.count(ctx)
		if err != nil {
			return row, err
		}
		row.Events = len(in.sent)
		row.Lost, row.Duplicated, row.Reordered = h.lost, h.duplicated, h.reordered
		row.RecoveryP50 = report.Milliseconds(report.Quantile(recoveries, 0.5))
		row.RecoveryMax = report.Milliseconds(report.Quantile(recoveries, 1))
		fmt.Fprintf(os.Stderr, "%s: %d times under load, %d events\n", name, times, row.Events)
		return row, nil
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// intakeFaults are the rows that need no cluster of Kubernetes.
var intakeFaults = []struct {
	name string
	run  func(ctx context.Context, name string, quick bool) (Row, error)
}{
	{"intake: consumer killed at a random moment", disrupt(durable(), 200, 20, func(_ context.Context, in *arena) error {
		return errors.Join(in.consumer.Kill(), in.startPod(in.consumer.QueueAddr))
	})},
	{"intake: main pod lost, another one takes over", disrupt(durable(), 20, 4, func(ctx context.Context, in *arena) error {
		if err := in.consumer.Kill(); err != nil {
			return err
		}
		in.stop()
		return errors.Join(in.startPod(""), in.subscribe(ctx))
	})},
	{"intake: subscriber lost and back", disrupt(durable(), 20, 4, func(ctx context.Context, in *arena) error {
		in.stop()
		return in.subscribe(ctx)
	})},
	{"intake: Redis killed and restarted, with persistence", disrupt(durable(), 10, 2, func(ctx context.Context, in *arena) error {
		return errors.Join(in.Server.Kill(), in.Server.Restart(ctx))
	})},
	{"intake: Redis killed and restarted, loading for a second", disrupt(loading, 5, 1, func(ctx context.Context, in *arena) error {
		return errors.Join(in.Server.Kill(), in.Server.Restart(ctx))
	})},
	{"intake: Redis killed and restarted, without persistence", disrupt(forgetful, 10, 2, func(ctx context.Context, in *arena) error {
		err := errors.Join(in.Server.Kill(), in.Server.Restart(ctx))
		return errors.Join(err, in.forget(ctx, func(goredis.Pipeliner) {}))
	})},
	{"intake: FLUSHALL", disrupt(durable(), 10, 2, func(ctx context.Context, in *arena) error {
		return in.forget(ctx, func(p goredis.Pipeliner) { p.FlushAll(ctx) })
	})},
	{"intake: stream deleted", disrupt(durable(), 10, 2, func(ctx context.Context, in *arena) error {
		return in.forget(ctx, func(p goredis.Pipeliner) { p.Del(ctx, in.Events) })
	})},
	{"intake: all connections to Redis closed", disrupt(durable(), 50, 5, func(ctx context.Context, in *arena) error {
		return in.Redis.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err()
	})},
	{"intake: connections dead without a word", disrupt(behindProxy, 5, 1, func(_ context.Context, in *arena) error {
		return in.Proxy.Vanish()
	})},
	{"intake: consumer group destroyed", disrupt(durable(), 10, 2, func(ctx context.Context, in *arena) error {
		return in.Redis.XGroupDestroy(ctx, in.Events, in.Group).Err()
	})},
	{"intake: Redis becomes a replica for a second", disrupt(durable(), 5, 1, func(ctx context.Context, in *arena) error {
		err := in.Redis.ReplicaOf(ctx, "127.0.0.1", "1").Err()
		return errors.Join(err, sleep(ctx, time.Second), in.Redis.ReplicaOf(ctx, "NO", "ONE").Err())
	})},
	{"intake: Redis out of memory for a second", disrupt(durable(), 5, 1, func(ctx context.Context, in *arena) error {
		err := in.Redis.ConfigSet(ctx, "maxmemory", "1").Err()
		return errors.Join(err, sleep(ctx, time.Second), in.Redis.ConfigSet(ctx, "maxmemory", "0").Err())
	})},
	{"intake: master killed, failover by a sentinel", disrupt(watched, 20, 1, failOver)},
	{"intake: slot moves to another node of a cluster", disrupt(clustered, 10, 2, func(ctx context.Context, in *arena) error {
		_, err := in.Cluster.Move(ctx, in.Events)
		return err
	})},
	{"intake: node of a cluster killed, its replica takes over", disrupt(replicated, 5, 1, takeOver)},
}

// forgetful is a server that keeps nothing on disk.
func forgetful(ctx context.Context) (*intake.Ground, error) {
	return intake.Single(ctx, redis.Options{Output: os.Stderr})
}

// loading is a server that takes a second to load what it has written down.
func loading(ctx context.Context) (*intake.Ground, error) {
	g, err := durable("key-load-delay 1000", "loading-process-events-interval-bytes 1024")(ctx)
	if err != nil {
		return nil, err
	}
	p := g.Redis.Pipeline()
	for i := range 1000 {
		p.Set(ctx, "filler-"+strconv.Itoa(i), strings.Repeat("x", 100), 0)
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("filling Redis: %w", err), g.Close())
	}
	return g, nil
}

// behindProxy is a server that the consumer reaches through a proxy.
func behindProxy(ctx context.Context) (*intake.Ground, error) {
	return intake.BehindProxy(ctx, redis.Options{AppendOnly: true, Output: os.Stderr})
}

func watched(ctx context.Context) (*intake.Ground, error) {
	return intake.Sentinel(ctx, redis.Options{AppendOnly: true, Output: os.Stderr})
}

func clustered(ctx context.Context) (*intake.Ground, error) {
	return intake.Cluster(ctx, redis.Options{AppendOnly: true, Output: os.Stderr})
}

func replicated(ctx context.Context) (*intake.Ground, error) {
	return intake.ReplicatedCluster(ctx, redis.Options{AppendOnly: true, Output: os.Stderr})
}

// failOver kills the master and waits until there is another. Then the killed one
// returns as its replica, for the next time.
func failOver(ctx context.Context, in *arena) error {
	master, replica := in.Watched.Master, in.Watched.Replica
	if err := errors.Join(master.Kill(), replica.AwaitMaster(ctx)); err != nil {
		return err
	}
	in.Watched.Master, in.Watched.Replica = replica, master
	return master.RestartAs(ctx, fmt.Sprintf("replicaof %s %d", replica.Host, replica.Port))
}

// takeOver is failOver in a cluster, which makes the killed node a replica by itself.
func takeOver(ctx context.Context, in *arena) error {
	owner, replica := in.Owner, in.Replica
	if err := errors.Join(owner.Kill(), replica.AwaitMaster(ctx)); err != nil {
		return err
	}
	in.Owner, in.Replica = replica, owner
	return owner.Restart(ctx)
}
