package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
)

// A backlog of events on its way through consumer, queue, gRPC, verdict and back.
// `make bench` has the figure beside the bare library's; this one is to be profiled.
func BenchmarkBacklog(b *testing.B) {
	server := redistest.ForTest(b, redis.Options{})
	rdb := server.Client()
	defer rdb.Close() //nolint:errcheck // the server ends anyway
	cfg := valid()
	cfg.RedisPort, cfg.RedisPassword = server.Port, server.Password
	cfg.QueueAddr, cfg.HealthAddr = freeAddr(b), freeAddr(b)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	log := slog.New(slog.NewJSONHandler(io.Discard, nil)) //nolint:sloglint // what lines cost is to be seen
	go func() { done <- run(ctx, cfg, log) }()
	awaitReady(b, cfg.HealthAddr)
	for sent := 0; sent < b.N; {
		p := rdb.Pipeline()
		for range min(1000, b.N-sent) {
			p.XAdd(ctx, &goredis.XAddArgs{Stream: cfg.RedisStream, Values: []string{"type", "scale_up", "task_id", fmt.Sprint(sent), "repository", "acme/shop"}})
			sent++
		}
		if _, err := p.Exec(ctx); err != nil {
			b.Fatal(err)
		}
	}
	client, err := queuerpc.Dial(cfg.QueueAddr)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // the server has ended then
	b.ResetTimer()
	sub, err := client.Events().Subscribe(ctx, queue.SubscribeOptions{Name: "bench", Credits: 2048})
	if err != nil {
		b.Fatal(err)
	}
	for left := b.N; left > 0; {
		deliveries, err := sub.Deliveries(ctx, 256)
		if err != nil {
			b.Fatal(err)
		}
		for _, d := range deliveries {
			if err := sub.Resolve(ctx, d, queue.Finish("", nil)); err != nil {
				b.Fatal(err)
			}
		}
		left -= len(deliveries)
	}
	for {
		p, err := rdb.XPending(ctx, cfg.RedisStream, cfg.RedisConsumerGroup).Result()
		if err != nil {
			b.Fatal(err)
		}
		if p.Count == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.StopTimer()
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
