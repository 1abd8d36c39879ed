package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	stream = "otto:bench:events"
	group  = "bench"
)

// intake is a Redis and the consumer's binary, with this process as the subscriber.
type intake struct {
	server *redis.Server
	rdb    *goredis.Client
	cmd    *exec.Cmd
	client *queuerpc.Client
	dir    string
}

func newIntake(ctx context.Context) (in *intake, err error) {
	root, err := source.Root(ctx)
	if err != nil {
		return nil, err
	}
	binary := filepath.Join(root, "bin", "consumer")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/consumer")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the consumer: %w\n%s", err, out)
	}
	in = &intake{}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	if in.server, err = redis.Start(ctx, redis.Options{Output: os.Stderr}); err != nil {
		return in, err
	}
	in.rdb = in.server.Client()
	if in.dir, err = os.MkdirTemp("", "ottoscaler-bench-"); err != nil {
		return in, fmt.Errorf("preparing the consumer: %w", err)
	}
	queueAddr, err := freeAddr()
	if err != nil {
		return in, err
	}
	healthAddr, err := freeAddr()
	if err != nil {
		return in, err
	}
	log, err := os.Create(filepath.Join(in.dir, "consumer.log"))
	if err != nil {
		return in, fmt.Errorf("preparing the consumer: %w", err)
	}
	defer log.Close() //nolint:errcheck // the consumer has it open for itself
	in.cmd = exec.Command(binary)
	in.cmd.Env = append(os.Environ(), "REDIS_HOST="+in.server.Host, "REDIS_PORT="+strconv.Itoa(in.server.Port), "REDIS_PASSWORD="+in.server.Password,
		"REDIS_STREAM="+stream, "REDIS_RESULTS_STREAM=otto:bench:results", "REDIS_DEAD_STREAM=otto:bench:dead", "REDIS_CONSUMER_GROUP="+group,
		"REDIS_CONSUMER=bench", "QUEUE_ADDR="+queueAddr, "HEALTH_ADDR="+healthAddr, "LOG_FORMAT=json")
	in.cmd.Stdout, in.cmd.Stderr = log, log
	in.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := in.cmd.Start(); err != nil {
		return in, fmt.Errorf("starting the consumer: %w", err)
	}
	if in.client, err = queuerpc.Dial(queueAddr); err != nil {
		return in, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for range (backoff.Policy{Initial: 10 * time.Millisecond, Max: 100 * time.Millisecond}).Attempts(ctx) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+healthAddr+"/readyz", nil)
		if err != nil {
			return in, err
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK {
			return in, nil
		}
	}
	return in, fmt.Errorf("waiting for the consumer: %w", ctx.Err())
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

func (in *intake) close() error {
	var errs []error
	if in.client != nil {
		errs = append(errs, in.client.Close())
	}
	if in.cmd != nil && in.cmd.Process != nil {
		errs = append(errs, in.cmd.Process.Signal(syscall.SIGTERM), in.cmd.Wait())
	}
	if in.server != nil {
		errs = append(errs, in.server.Stop())
	}
	if in.dir != "" {
		errs = append(errs, os.RemoveAll(in.dir))
	}
	return errors.Join(errs...)
}

// fill adds events to a stream, as many at once as a producer in a hurry would.
func (in *intake) fill(ctx context.Context, key string, n int) error {
	for sent := 0; sent < n; {
		p := in.rdb.Pipeline()
		for range min(1000, n-sent) {
			p.XAdd(ctx, &goredis.XAddArgs{Stream: key, Values: []string{"type", "scale_up", "task_id", "task-" + strconv.Itoa(sent), "repository", "acme/shop", "commit_sha", "4f2a9c1"}})
			sent++
		}
		if _, err := p.Exec(ctx); err != nil {
			return fmt.Errorf("filling stream %s: %w", key, err)
		}
	}
	return nil
}

func (in *intake) subscribe(ctx context.Context, credits int) (queue.Subscription[scaleevent.Event], error) {
	return in.client.Events().Subscribe(ctx, queue.SubscribeOptions{Name: "bench", Credits: credits})
}

// throughput measures a backlog of events: from the subscription until Redis has
// every acknowledgement. The bare loop reads the same events from the same server
// by XREADGROUP COUNT 100 and acknowledges them in a pipeline; it stores no results.
// The second row is the processor time of an event, which others on the machine do not
// change much: of consumer and subscriber together, and of the bare loop.
func throughput(ctx context.Context, quick bool) (rows []Row, err error) {
	n := 200_000
	if quick {
		n = 50_000
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	in, err := newIntake(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.close()) }()

	const rawStream = "otto:bench:raw"
	if err := in.fill(ctx, rawStream, n); err != nil {
		return nil, err
	}
	if err := in.rdb.XGroupCreate(ctx, rawStream, group, "0").Err(); err != nil {
		return nil, fmt.Errorf("preparing the bare loop: %w", err)
	}
	begin, ownUsed := time.Now(), usedHere()
	if err := in.bareLoop(ctx, rawStream, n); err != nil {
		return nil, err
	}
	raw, rawUsed := time.Since(begin), usedHere()-ownUsed
	if err := in.rdb.Del(ctx, rawStream).Err(); err != nil {
		return nil, fmt.Errorf("clearing up: %w", err)
	}

	if err := in.fill(ctx, stream, n); err != nil {
		return nil, err
	}
	consumerUsed, err := in.cpu()
	if err != nil {
		return nil, err
	}
	begin, ownUsed = time.Now(), usedHere()
	sub, err := in.subscribe(ctx, 2048)
	if err != nil {
		return nil, err
	}
	defer sub.Close() //nolint:errcheck // it never fails
	for left := n; left > 0; {
		deliveries, err := sub.Deliveries(ctx, 256)
		if err != nil {
			return nil, fmt.Errorf("leasing: %w", err)
		}
		for _, d := range deliveries {
			if err := sub.Resolve(ctx, d, queue.Finish("", nil)); err != nil {
				return nil, fmt.Errorf("resolving: %w", err)
			}
		}
		left -= len(deliveries)
	}
	for range (backoff.Policy{Initial: time.Millisecond, Max: 2 * time.Millisecond}).Attempts(ctx) {
		pending, err := in.rdb.XPending(ctx, stream, group).Result()
		if err != nil {
			return nil, fmt.Errorf("waiting for the acknowledgements: %w", err)
		}
		if pending.Count == 0 {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ours, used := time.Since(begin), usedHere()-ownUsed
	consumerUsedAfter, err := in.cpu()
	if err != nil {
		return nil, err
	}
	used += consumerUsedAfter - consumerUsed
	perEvent := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	rate := func(d time.Duration) float64 { return float64(n) / d.Seconds() }
	return []Row{
		{Unit: "events/s", Value: rate(ours), Raw: rate(raw)},
		{Unit: "µs", Value: perEvent(used), Raw: perEvent(rawUsed)},
	}, nil
}

// usedHere is the processor time of this process.
func usedHere() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // it only fails for wrong arguments
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (in *intake) bareLoop(ctx context.Context, key string, n int) error {
	for acked := 0; acked < n; {
		streams, err := in.rdb.XReadGroup(ctx, &goredis.XReadGroupArgs{Group: group, Consumer: "raw", Streams: []string{key, ">"}, Count: 100, Block: time.Second}).Result()
		if err != nil {
			return fmt.Errorf("reading in the bare loop: %w", err)
		}
		p := in.rdb.Pipeline()
		for _, entry := range streams[0].Messages {
			p.XAck(ctx, key, group, entry.ID)
			acked++
		}
		if _, err := p.Exec(ctx); err != nil {
			return fmt.Errorf("acknowledging in the bare loop: %w", err)
		}
	}
	return nil
}

// latency measures events at an even pace: from before XADD until the subscriber
// has the lease. The bare reader's figure is until XREADGROUP returns the entry.
func latency(ctx context.Context, quick bool) (rows []Row, err error) {
	const perSecond = 1000
	n := 15 * perSecond
	if quick {
		n = 4 * perSecond
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	in, err := newIntake(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	sub, err := in.subscribe(ctx, 256)
	if err != nil {
		return nil, err
	}
	defer sub.Close() //nolint:errcheck // it never fails
	ours, err := in.pace(ctx, stream, n, perSecond, func() (string, error) {
		d, err := sub.Next(ctx)
		if err != nil {
			return "", fmt.Errorf("leasing: %w", err)
		}
		return d.ID, sub.Resolve(ctx, d, queue.Finish("", nil))
	})
	if err != nil {
		return nil, err
	}
	const rawStream = "otto:bench:raw"
	if err := in.rdb.XGroupCreateMkStream(ctx, rawStream, group, "0").Err(); err != nil {
		return nil, fmt.Errorf("preparing the bare reader: %w", err)
	}
	var read []goredis.XMessage
	raw, err := in.pace(ctx, rawStream, n, perSecond, func() (string, error) {
		if len(read) == 0 {
			streams, err := in.rdb.XReadGroup(ctx, &goredis.XReadGroupArgs{Group: group, Consumer: "raw", Streams: []string{rawStream, ">"}, Count: 100, Block: 10 * time.Second}).Result()
			if err != nil {
				return "", fmt.Errorf("reading with the bare reader: %w", err)
			}
			read = streams[0].Messages
		}
		id := read[0].ID
		read = read[1:]
		return id, nil
	})
	if err != nil {
		return nil, err
	}
	row := func(q float64) Row {
		return Row{Unit: "ms", Value: report.Milliseconds(report.Quantile(ours, q)), Raw: report.Milliseconds(report.Quantile(raw, q))}
	}
	return []Row{row(0.5), row(0.99)}, nil
}

// pace adds n events, so many a second, and returns how long each took to be taken.
func (in *intake) pace(ctx context.Context, key string, n, perSecond int, take func() (string, error)) ([]time.Duration, error) {
	var mu sync.Mutex
	sent, taken := map[string]time.Time{}, map[string]time.Time{}
	failed := make(chan error, 1)
	go func() {
		producer := in.server.Client()
		defer producer.Close() //nolint:errcheck // every write was answered
		begin := time.Now()
		for i := range n {
			if wait := time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(perSecond))); wait > 0 {
				time.Sleep(wait)
			}
			before := time.Now()
			id, err := producer.XAdd(ctx, &goredis.XAddArgs{Stream: key, Values: []string{"type", "scale_up", "task_id", "task-" + strconv.Itoa(i)}}).Result()
			if err != nil {
				failed <- fmt.Errorf("adding an event: %w", err)
				return
			}
			mu.Lock()
			sent[id] = before
			mu.Unlock()
		}
		failed <- nil
	}()
	for range n {
		id, err := take()
		if err != nil {
			return nil, err
		}
		at := time.Now()
		mu.Lock()
		taken[id] = at
		mu.Unlock()
	}
	if err := <-failed; err != nil {
		return nil, err
	}
	took := make([]time.Duration, 0, n)
	for id, at := range taken {
		took = append(took, at.Sub(sent[id]))
	}
	slices.Sort(took)
	return took[len(took)/20:], nil // without the quickest: there are warm-up effects at both ends
}

// idle measures what a consumer with a subscriber and nothing to do costs, and what
// a backlog that nobody takes adds to its memory. There is nothing to compare with:
// the column beside it is the bound.
func idle(ctx context.Context, quick bool) (rows []Row, err error) {
	watch, backlog := time.Minute, 100_000
	if quick {
		watch = 20 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	in, err := newIntake(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	sub, err := in.subscribe(ctx, 16)
	if err != nil {
		return nil, err
	}
	defer sub.Close()            //nolint:errcheck // it never fails
	time.Sleep(10 * time.Second) // what its start leaves to be done
	calls, err := in.calls(ctx)
	if err != nil {
		return nil, err
	}
	used, err := in.cpu()
	if err != nil {
		return nil, err
	}
	time.Sleep(watch)
	callsAfter, err := in.calls(ctx)
	if err != nil {
		return nil, err
	}
	usedAfter, err := in.cpu()
	if err != nil {
		return nil, err
	}
	before, err := in.resident()
	if err != nil {
		return nil, err
	}
	if err := in.fill(ctx, stream, backlog); err != nil {
		return nil, err
	}
	time.Sleep(10 * time.Second) // some looks at the group
	after, err := in.resident()
	if err != nil {
		return nil, err
	}
	return []Row{
		{Unit: "calls", Value: (callsAfter - calls) / watch.Seconds() * 5, Raw: 1},
		{Unit: "% of a core", Value: 100 * (usedAfter - used).Seconds() / watch.Seconds(), Raw: 0.5},
		{Unit: "MiB", Value: before, Raw: 25},
		{Unit: "MiB", Value: after, Raw: before},
	}, nil
}

// calls returns how many commands Redis has carried out, but for those that ask so.
func (in *intake) calls(ctx context.Context) (float64, error) {
	info, err := in.rdb.InfoMap(ctx, "commandstats").Result()
	if err != nil {
		return 0, fmt.Errorf("reading the statistics of Redis: %w", err)
	}
	total := 0.0
	for command, stat := range info["Commandstats"] {
		if command == "cmdstat_info" {
			continue
		}
		n, _, _ := strings.Cut(strings.TrimPrefix(stat, "calls="), ",")
		calls, err := strconv.ParseFloat(n, 64)
		if err != nil {
			return 0, fmt.Errorf("reading the statistics of Redis: %w", err)
		}
		total += calls
	}
	return total, nil
}

// cpu returns what processor time the consumer has used. The kernel counts it in
// hundredths of a second.
func (in *intake) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", in.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading the consumer's processor time: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, fmt.Errorf("reading the consumer's processor time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// resident returns how much memory the consumer has, in MiB.
func (in *intake) resident() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", in.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading the consumer's memory: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		return 0, fmt.Errorf("reading the consumer's memory: %w", err)
	}
	return kib / 1024, nil
}
