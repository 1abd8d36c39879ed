// Command consumer moves scale events from a Redis stream to the pod's queue, and
// their outcomes back. It hosts the queue, for the scaler and the log-relay.
//
// It is configured by environment variables; see [Config], or run it with --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/internal/stream"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func main() { os.Exit(daemon.Main(os.Stderr, os.Args[1:], run)) }

// run serves the queue, then reads. When told to stop it goes the other way
// round: it stops reading, has outcomes stored while the queue still serves, and
// ends the queue last.
func run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if cfg.RedisConsumer == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("naming this consumer (set REDIS_CONSUMER): %w", err)
		}
		cfg.RedisConsumer = host
	}
	stream.Quiet()
	// Nearly all that an event leaves behind is garbage within a millisecond, and the
	// heap is small: by default, a sixth of the time under load goes to its collection.
	// Near the memory limit of the container the runtime collects more often by itself.
	daemon.KeepGarbage(400)
	server, err := cfg.Server()
	if err != nil {
		return daemon.Misconfigured(err)
	}
	rdb := stream.NewClient(server, "ottoscaler-consumer")
	defer rdb.Close() //nolint:errcheck // every write was answered

	reg := daemon.NewRegistry()
	health := daemon.NewHealth(reg)
	health.Require("redis", "queue")

	var consumer *stream.Consumer
	events := queue.NewMemory[*scaleevent.Event](queue.WithGate(), queue.WithPoisonAfter(cfg.PoisonAfter),
		queue.WithLedger(func(ctx context.Context, id string) (bool, error) { return consumer.Settled(ctx, id) }),
		queue.WithLogger(log), queue.WithMetrics(reg, "scale-events"),
	)
	workers := queue.NewMemory[queue.Worker](queue.WithLogger(log), queue.WithMetrics(reg, "workers"))
	consumer = stream.New(stream.Config{
		Stream: cfg.RedisStream, Results: cfg.RedisResultsStream, Dead: cfg.RedisDeadStream,
		Group: cfg.RedisConsumerGroup, Consumer: cfg.RedisConsumer,
		Owner:        stream.Owner{User: cfg.InstanceUser, Instance: cfg.InstanceID, Namespace: cfg.Namespace},
		ReclaimAfter: cfg.ReclaimAfter, PoisonAfter: cfg.PoisonAfter, Retention: stream.Retention{Age: cfg.EventsMaxAge, Length: cfg.EventsMaxLen}, MaxEventBytes: cfg.MaxEventBytes,
		ResultsMaxLen: cfg.ResultsMaxLen, Replication: cfg.Replication(), DrainTimeout: cfg.DrainTimeout,
	}, rdb, func() redis.UniversalClient { return stream.NewClient(server, "ottoscaler-reader") }, events, func(err error) { health.Report("redis", err) }, reg, log)

	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.QueueAddr)
	if err != nil {
		return fmt.Errorf("opening the queue at QUEUE_ADDR: %w", err)
	}
	health.Report("queue", nil)
	log.InfoContext(ctx, "consuming", "redis", server.String(), "stream", cfg.RedisStream,
		"group", cfg.RedisConsumerGroup, "consumer", cfg.RedisConsumer, "queue", listener.Addr().String())

	// What serves outlives ctx, until the consumer has stored what is in flight.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	services, failed := errgroup.WithContext(serving)
	services.Go(func() error {
		server := queuerpc.NewServer(events, workers)
		server.OnWorkerEnd(consumer.ReportWorkerEnd)
		return server.Serve(failed, listener)
	})
	services.Go(func() error { return health.Run(failed, cfg.HealthAddr) })

	consuming, stopConsuming := context.WithCancel(ctx)
	defer stopConsuming()
	defer context.AfterFunc(failed, stopConsuming)() // without its services it makes no sense
	err = consumer.Run(consuming)
	var foreign *stream.ForeignGroupError
	if errors.As(err, &foreign) {
		err = daemon.Misconfigured(foreign)
	}
	stopServing()
	if serr := services.Wait(); serr != nil {
		return serr
	}
	return err
}
