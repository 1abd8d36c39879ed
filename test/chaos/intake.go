package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const (
	eventStream  = "otto:chaos:events"
	resultStream = "otto:chaos:results"
	deadStream   = "otto:chaos:dead"
	intakeGroup  = "chaos"
)

// An intake is a Redis, a consumer as a process, a producer that adds events at an
// even pace, and a subscriber in this process that carries them out, as the scaler
// does: an effect leaves a trace, and an event whose trace is there has no further
// effect. The trace is removed as soon as the queue says that the event is settled, as
// the scaler lets go of a worker then. An event that comes after that acts twice.
type intake struct {
	server *redis.Server
	rdb    *goredis.Client
	binary string
	log    *os.File
	addr   string
	cmd    *exec.Cmd
	name   int // number of main pods so far
	client *queuerpc.Client
	stop   func() // the subscriber

	mu      sync.Mutex
	sent    []string            // guarded by mu
	effects map[string]int      // by event: how often it acted; guarded by mu
	traces  map[string]bool     // by event; guarded by mu
	order   map[string][]string // by task: its events, as their effects were made; guarded by mu
	tasks   map[string]string   // by event; guarded by mu
}

func newIntake(ctx context.Context) (in *intake, err error) {
	root, err := source.Root(ctx)
	if err != nil {
		return nil, err
	}
	in = &intake{
		binary: filepath.Join(root, "bin", "consumer"), effects: map[string]int{}, traces: map[string]bool{}, order: map[string][]string{}, tasks: map[string]string{},
		stop: func() {},
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", in.binary, "./cmd/consumer")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the consumer: %w\n%s", err, out)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	if in.server, err = redis.Start(ctx, redis.Options{AppendOnly: true, Config: []string{"appendfsync always"}, Output: os.Stderr}); err != nil {
		return in, err
	}
	in.rdb = in.server.Client()
	if in.log, err = os.CreateTemp("", "ottoscaler-chaos-*.log"); err != nil {
		return in, fmt.Errorf("preparing the consumer: %w", err)
	}
	if err := in.startPod(); err != nil {
		return in, err
	}
	return in, in.subscribe(ctx)
}

// startPod starts the consumer of a new main pod, at a queue address of its own.
func (in *intake) startPod() (err error) {
	in.name++
	if in.addr, err = loopback(); err != nil {
		return err
	}
	return in.start()
}

// start starts the consumer of the same main pod, again.
func (in *intake) start() error {
	health, err := loopback()
	if err != nil {
		return err
	}
	in.cmd = exec.Command(in.binary)
	in.cmd.Env = append(os.Environ(), "REDIS_HOST="+in.server.Host, "REDIS_PORT="+strconv.Itoa(in.server.Port), "REDIS_PASSWORD="+in.server.Password,
		"REDIS_STREAM="+eventStream, "REDIS_RESULTS_STREAM="+resultStream, "REDIS_DEAD_STREAM="+deadStream, "REDIS_CONSUMER_GROUP="+intakeGroup,
		"REDIS_CONSUMER=pod-"+strconv.Itoa(in.name), "QUEUE_ADDR="+in.addr, "HEALTH_ADDR="+health, "RESULTS_MAX_LEN=10000000",
		"POISON_AFTER=0") // the crashes are ours, hundreds of them
	in.cmd.Stdout, in.cmd.Stderr = in.log, in.log
	in.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := in.cmd.Start(); err != nil {
		return fmt.Errorf("starting the consumer: %w", err)
	}
	return nil
}

func loopback() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

func (in *intake) kill() error {
	if err := in.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing the consumer: %w", err)
	}
	_ = in.cmd.Wait() // it was killed
	return nil
}

// subscribe serves the consumer's queue, until stop.
func (in *intake) subscribe(ctx context.Context) (err error) {
	client, err := queuerpc.Dial(in.addr)
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
		handle := func(ctx context.Context, d queue.Delivery[scaleevent.Event]) queue.Verdict {
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

func (in *intake) handle(ctx, outlasting context.Context, d queue.Delivery[scaleevent.Event]) queue.Verdict {
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
		go in.forget(outlasting, d.ID)
	}
	return queue.Finish("", nil)
}

// forget removes a trace once its event is settled, whichever main pod says so.
func (in *intake) forget(ctx context.Context, id string) {
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
func (in *intake) produce(ctx context.Context, every time.Duration) {
	rdb := goredis.NewClient(&goredis.Options{Addr: in.server.Addr, Password: in.server.Password, MaxRetries: -1, DialerRetries: 1, DialTimeout: time.Second})
	defer rdb.Close() //nolint:errcheck // every write was answered, or counts as not made
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		task := strconv.Itoa(n % 10)
		id, err := rdb.XAdd(ctx, &goredis.XAddArgs{Stream: eventStream, Values: []string{"type", "scale_up", "task_id", task}}).Result()
		if err != nil {
			continue // an event whose XADD failed was not promised
		}
		in.mu.Lock()
		in.sent = append(in.sent, id)
		in.tasks[id] = task
		in.mu.Unlock()
	}
}

// probe adds one event and returns how long it took to have its effect.
func (in *intake) probe(ctx context.Context, begin time.Time) (time.Duration, error) {
	var id string
	for range (backoff.Policy{Initial: 5 * time.Millisecond, Max: 20 * time.Millisecond}).Attempts(ctx) {
		if id == "" {
			added, err := in.rdb.XAdd(ctx, &goredis.XAddArgs{Stream: eventStream, Values: []string{"type", "scale_up", "task_id", "probe"}}).Result()
			if err != nil {
				continue // Redis is not back yet
			}
			id = added
			in.mu.Lock()
			in.sent = append(in.sent, id)
			in.tasks[id] = "probe"
			in.mu.Unlock()
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
func (in *intake) count(ctx context.Context) (h harm, err error) {
	for range (backoff.Policy{Initial: 20 * time.Millisecond, Max: 100 * time.Millisecond}).Attempts(ctx) {
		groups, err := in.rdb.XInfoGroups(ctx, eventStream).Result()
		if err == nil && len(groups) == 1 && groups[0].Pending == 0 && groups[0].Lag == 0 {
			break
		}
	}
	if ctx.Err() != nil {
		return h, fmt.Errorf("waiting for all events to be acknowledged, see %s: %w", in.log.Name(), ctx.Err())
	}
	finals := map[string]int{}
	for last := "-"; ; {
		entries, err := in.rdb.XRangeN(ctx, resultStream, last, "+", 1000).Result()
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
		if in.effects[id] == 0 || finals[id] == 0 {
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

// later compares entry IDs.
func later(a, b string) bool {
	var x, y [2]uint64
	_, errA := fmt.Sscanf(a, "%d-%d", &x[0], &x[1])
	_, errB := fmt.Sscanf(b, "%d-%d", &y[0], &y[1])
	if errA != nil || errB != nil {
		return true // no ID of Redis: that is a fault, too
	}
	return x[0] > y[0] || x[0] == y[0] && x[1] > y[1]
}

func (in *intake) close() error {
	in.stop()
	var errs []error
	if in.cmd != nil && in.cmd.ProcessState == nil {
		errs = append(errs, in.cmd.Process.Signal(syscall.SIGTERM))
		if err := in.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("stopping the consumer: %w", err))
		}
	}
	if in.server != nil {
		errs = append(errs, in.server.Stop())
	}
	err := errors.Join(errs...)
	if in.log != nil && err == nil {
		err = errors.Join(in.log.Close(), os.Remove(in.log.Name()))
	}
	return err
}

// disrupt runs a fault again and again under load. Each time is at a random moment,
// and is over when an event that was sent after it has had its effect.
func disrupt(times, quick int, strike func(ctx context.Context, in *intake) error) func(context.Context, string, bool) (Row, error) {
	return func(ctx context.Context, name string, isQuick bool) (row Row, err error) {
		if isQuick {
			times = quick
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(times)*15*time.Second)
		defer cancel()
		in, err := newIntake(ctx)
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

// intakeFaults are the rows that need no cluster.
var intakeFaults = []struct {
	name string
	run  func(ctx context.Context, name string, quick bool) (Row, error)
}{
	{"intake: consumer killed at a random moment", disrupt(200, 20, func(_ context.Context, in *intake) error {
		if err := in.kill(); err != nil {
			return err
		}
		return in.start()
	})},
	{"intake: main pod lost, another one takes over", disrupt(20, 4, func(ctx context.Context, in *intake) error {
		if err := in.kill(); err != nil {
			return err
		}
		in.stop()
		if err := in.startPod(); err != nil { // of another name
			return err
		}
		return in.subscribe(ctx)
	})},
	{"intake: subscriber lost and back", disrupt(20, 4, func(ctx context.Context, in *intake) error {
		in.stop()
		return in.subscribe(ctx)
	})},
	{"intake: Redis killed and restarted, with persistence", disrupt(10, 2, func(ctx context.Context, in *intake) error {
		return errors.Join(in.server.Kill(), in.server.Restart(ctx))
	})},
	{"intake: all connections to Redis closed", disrupt(50, 5, func(ctx context.Context, in *intake) error {
		return in.rdb.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err()
	})},
	{"intake: consumer group destroyed", disrupt(10, 2, func(ctx context.Context, in *intake) error {
		return in.rdb.XGroupDestroy(ctx, eventStream, intakeGroup).Err()
	})},
	{"intake: Redis becomes a replica for a second", disrupt(5, 1, func(ctx context.Context, in *intake) error {
		err := in.rdb.ReplicaOf(ctx, "127.0.0.1", "1").Err()
		return errors.Join(err, sleep(ctx, time.Second), in.rdb.ReplicaOf(ctx, "NO", "ONE").Err())
	})},
	{"intake: Redis out of memory for a second", disrupt(5, 1, func(ctx context.Context, in *intake) error {
		err := in.rdb.ConfigSet(ctx, "maxmemory", "1").Err()
		return errors.Join(err, sleep(ctx, time.Second), in.rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	})},
}
