package queuerpc_test

import (
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// An item's whole way, offer → lease → verdict → outcome → settle, one after the
// other: two round trips over loopback at least. Beside it is what gRPC needs
// for one empty unary call, twice.
func BenchmarkRoundTrip(b *testing.B) {
	b.Run("queue", func(b *testing.B) {
		q := dial(b, start(b, "127.0.0.1:0").addr).Workers()
		p, sub := produce(b, q), subscribe(b, q, 1)
		n := 0
		for b.Loop() {
			n++
			if err := p.Offer(b.Context(), workerItem(n)); err != nil {
				b.Fatal(err)
			}
			if err := sub.Resolve(b.Context(), next(b, sub), queue.Finish("", nil)); err != nil {
				b.Fatal(err)
			}
			if err := p.Settle(b.Context(), outcome(b, p).ItemID); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("two unary calls", func(b *testing.B) {
		client := echo(b)
		for b.Loop() {
			for range 2 {
				if _, err := client.Check(b.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// Items in flight at once, as in a burst. Beside it are as many unary calls.
func BenchmarkThroughput(b *testing.B) {
	for _, atOnce := range []int{64, 1000} {
		b.Run(fmt.Sprintf("queue, %d at once", atOnce), func(b *testing.B) {
			q := dial(b, start(b, "127.0.0.1:0").addr).Workers()
			p, sub := produce(b, q), subscribe(b, q, atOnce)
			go func() {
				for {
					d, err := sub.Next(b.Context())
					if err != nil {
						return
					}
					if sub.Resolve(b.Context(), d, queue.Finish("", nil)) != nil {
						return
					}
				}
			}()
			slots := make(chan struct{}, atOnce)
			go func() {
				for n := range b.N {
					slots <- struct{}{}
					if p.Offer(b.Context(), workerItem(n)) != nil {
						return
					}
				}
			}()
			for range b.N {
				if err := p.Settle(b.Context(), outcome(b, p).ItemID); err != nil {
					b.Fatal(err)
				}
				<-slots
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
		})
	}
	b.Run("unary calls, 64 at once", func(b *testing.B) {
		client := echo(b)
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := client.Check(b.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	})
}

// echo is a bare gRPC server with the smallest unary call there is.
func echo(b *testing.B) grpc_health_v1.HealthClient {
	b.Helper()
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	lis := listen(b, "127.0.0.1:0")
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			b.Errorf("serving: %v", err)
		}
	})
	return grpc_health_v1.NewHealthClient(conn)
}
