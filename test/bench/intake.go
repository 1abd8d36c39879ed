package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

// rig is a Redis and the consumer's binary, with this process as the subscriber.
type rig struct {
	*intake.Ground
	consumer *intake.Consumer
	client   *queuerpc.Client
	dir      string
}

func newRig(ctx context.Context) (r *rig, err error) {
	program, err := intake.Build(ctx)
	if err != nil {
		return nil, err
	}
	r = &rig{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.Ground, err = intake.Single(ctx, redis.Options{Output: os.Stderr}); err != nil {
		return r, err
	}
	if r.dir, err = os.MkdirTemp("", "ottoscaler-bench-"); err != nil {
		return r, fmt.Errorf("preparing the consumer: %w", err)
	}
	log, err := os.Create(filepath.Join(r.dir, "consumer.log"))
	if err != nil {
		return r, fmt.Errorf("preparing the consumer: %w", err)
	}
	defer log.Close() //nolint:errcheck // the consumer has it open for itself
	if r.consumer, err = intake.Start(program, intake.Options{Ground: r.Ground, Name: "bench", Log: log}); err != nil {
		return r, err
	}
	if r.client, err = queuerpc.Dial(r.consumer.QueueAddr); err != nil {
		return r, err
	}
	return r, r.consumer.AwaitReady(ctx)
}

func (r *rig) close() error {
	var errs []error
	if r.client != nil {
		errs = append(errs, r.client.Close())
	}
	if r.consumer != nil {
		errs = append(errs, r.consumer.Stop())
	}
	if r.Ground != nil {
		errs = append(errs, r.Ground.Close())
	}
	if r.dir != "" {
		errs = append(errs, os.RemoveAll(r.dir))
	}
	return errors.Join(errs...)
}

// fill adds events to a stream, as many at once as a producer in a hurry would.
func (r *rig) fill(ctx context.Context, key string, n int) error {
	for sent := 0; sent < n; {
		p := r.Redis.Pipeline()
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

func (r *rig) subscribe(ctx context.Context, credits int) (queue.Subscription[*scaleevent.Event], error) {
	return r.client.Events().Subscribe(ctx, queue.SubscribeOptions{Name: "bench", Credits: credits})
}

// throughput measures a backlog of events: from the subscription until Redis has
// every acknowledgement. The bare loop reads the same events from the same server
// by XREADGROUP COUNT 100 and acknowledges them in a pipeline; it stores no results.
// The two take turns, because others on the machine come and go.
// The second row is the processor time of an event, which others do not change much: of
// consumer and subscriber together, and of the bare loop.
func throughput(ctx context.Context, quick bool) (rows []Row, err error) {
	const n = 100_000
	rounds := 6
	if quick {
		rounds = 1
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	r, err := newRig(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()

	const rawStream = "otto:bench:raw"
	var ours, raw expense
	for range rounds {
		if err := r.fill(ctx, rawStream, n); err != nil {
			return nil, err
		}
		if err := r.Redis.XGroupCreate(ctx, rawStream, r.Group, "0").Err(); err != nil {
			return nil, fmt.Errorf("preparing the bare loop: %w", err)
		}
		if err := raw.add(usedHere, func() error { return r.bareLoop(ctx, rawStream, n) }); err != nil {
			return nil, err
		}
		if err := r.Redis.Del(ctx, rawStream).Err(); err != nil {
			return nil, fmt.Errorf("clearing up: %w", err)
		}
		if err := r.fill(ctx, r.Events, n); err != nil {
			return nil, err
		}
		if err := ours.add(r.used, func() error { return r.throughQueue(ctx, n) }); err != nil {
			return nil, err
		}
		if err := r.Redis.XTrimMaxLen(ctx, r.Events, 0).Err(); err != nil {
			return nil, fmt.Errorf("clearing up: %w", err)
		}
	}
	perEvent := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n*rounds) }
	rate := func(d time.Duration) float64 { return float64(n*rounds) / d.Seconds() }
	return []Row{
		{Unit: "events/s", Value: rate(ours.time), Raw: rate(raw.time)},
		{Unit: "µs", Value: perEvent(ours.processor), Raw: perEvent(raw.processor)},
	}, nil
}

// An expense is what something takes: time, and that of processors.
type expense struct{ time, processor time.Duration }

func (e *expense) add(used func() (time.Duration, error), f func() error) error {
	before, err := used()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := f(); err != nil {
		return err
	}
	e.time += time.Since(begin)
	after, err := used()
	e.processor += after - before
	return err
}

// throughQueue takes a backlog of events from the queue, and waits until all are
// acknowledged.
func (r *rig) throughQueue(ctx context.Context, n int) error {
	sub, err := r.subscribe(ctx, 2048)
	if err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // it never fails
	for left := n; left > 0; {
		deliveries, err := sub.Deliveries(ctx, 256)
		if err != nil {
			return fmt.Errorf("leasing: %w", err)
		}
		for _, d := range deliveries {
			if err := sub.Resolve(ctx, d, queue.Finish("", nil)); err != nil {
				return fmt.Errorf("resolving: %w", err)
			}
		}
		left -= len(deliveries)
	}
	for range (backoff.Policy{Initial: time.Millisecond, Max: 2 * time.Millisecond}).Attempts(ctx) {
		pending, err := r.Redis.XPending(ctx, r.Events, r.Group).Result()
		if err != nil {
			return fmt.Errorf("waiting for the acknowledgements: %w", err)
		}
		if pending.Count == 0 {
			return nil
		}
	}
	return ctx.Err()
}

// used is the processor time of this process and the consumer.
func (r *rig) used() (time.Duration, error) {
	here, err := usedHere()
	if err != nil {
		return 0, err
	}
	consumer, err := r.consumer.CPU()
	return here + consumer, err
}

// usedHere is the processor time of this process.
func usedHere() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("reading our processor time: %w", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

func (r *rig) bareLoop(ctx context.Context, key string, n int) error {
	for acked := 0; acked < n; {
		streams, err := r.Redis.XReadGroup(ctx, &goredis.XReadGroupArgs{Group: r.Group, Consumer: "raw", Streams: []string{key, ">"}, Count: 100, Block: time.Second}).Result()
		if err != nil {
			return fmt.Errorf("reading in the bare loop: %w", err)
		}
		p := r.Redis.Pipeline()
		for _, entry := range streams[0].Messages {
			p.XAck(ctx, key, r.Group, entry.ID)
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
	r, err := newRig(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	sub, err := r.subscribe(ctx, 256)
	if err != nil {
		return nil, err
	}
	defer sub.Close() //nolint:errcheck // it never fails
	ours, err := r.pace(ctx, r.Events, n, perSecond, func() (string, error) {
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
	if err := r.Redis.XGroupCreateMkStream(ctx, rawStream, r.Group, "0").Err(); err != nil {
		return nil, fmt.Errorf("preparing the bare reader: %w", err)
	}
	var read []goredis.XMessage
	raw, err := r.pace(ctx, rawStream, n, perSecond, func() (string, error) {
		if len(read) == 0 {
			streams, err := r.Redis.XReadGroup(ctx, &goredis.XReadGroupArgs{Group: r.Group, Consumer: "raw", Streams: []string{rawStream, ">"}, Count: 100, Block: 10 * time.Second}).Result()
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
func (r *rig) pace(ctx context.Context, key string, n, perSecond int, take func() (string, error)) ([]time.Duration, error) {
	var mu sync.Mutex
	sent, taken := map[string]time.Time{}, map[string]time.Time{}
	failed := make(chan error, 1)
	go func() {
		producer := r.Server.Client()
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
	r, err := newRig(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	sub, err := r.subscribe(ctx, 16)
	if err != nil {
		return nil, err
	}
	defer sub.Close()            //nolint:errcheck // it never fails
	time.Sleep(10 * time.Second) // what its start leaves to be done
	calls, err := r.calls(ctx)
	if err != nil {
		return nil, err
	}
	used, err := r.consumer.CPU()
	if err != nil {
		return nil, err
	}
	time.Sleep(watch)
	callsAfter, err := r.calls(ctx)
	if err != nil {
		return nil, err
	}
	usedAfter, err := r.consumer.CPU()
	if err != nil {
		return nil, err
	}
	before, err := r.consumer.Resident()
	if err != nil {
		return nil, err
	}
	if err := r.fill(ctx, r.Events, backlog); err != nil {
		return nil, err
	}
	time.Sleep(10 * time.Second) // some looks at the group
	after, err := r.consumer.Resident()
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
func (r *rig) calls(ctx context.Context) (float64, error) {
	info, err := r.Redis.InfoMap(ctx, "commandstats").Result()
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
