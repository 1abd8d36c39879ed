package queuerpc

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// A Client reaches the queues of another process. It connects when it is first
// used, and again by itself; a call while there is no connection fails at once.
type Client struct {
	addr    string
	conn    *grpc.ClientConn
	service queuev1.QueueServiceClient
}

// Dial returns a client of the server at addr. It does not wait for the server.
func Dial(addr string) (*Client, error) {
	// The address is used as it is, without resolver or proxy: it is on this
	// host. The back-off is only between connections; calls do not wait for it.
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  50 * time.Millisecond,
				Multiplier: 1.6,
				Jitter:     0.2,
				MaxDelay:   time.Second,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("dialling the queue at %s: %w", addr, err)
	}
	return &Client{addr: addr, conn: conn, service: queuev1.NewQueueServiceClient(conn)}, nil
}

// Close ends the connection and everything that was opened over it.
func (c *Client) Close() error { return c.conn.Close() }

// Events is the queue of scale events.
func (c *Client) Events() queue.Queue[*scaleevent.Event] {
	return &remote[*scaleevent.Event]{client: c, codec: events}
}

// Workers is the queue of workers to follow.
func (c *Client) Workers() queue.Queue[queue.Worker] {
	return &remote[queue.Worker]{client: c, codec: workers}
}

// ReportWorkerEnd tells how a worker ended. It returns once that is stored; a caller
// that gets an error asks again.
func (c *Client) ReportWorkerEnd(ctx context.Context, end queue.WorkerEnd) error {
	_, err := c.service.ReportWorkerEnd(ctx, encodeEnd(end))
	return fromUnary(ctx, "reporting a worker's end to the queue at "+c.addr, err)
}

// remote is one topic of the server.
type remote[T any] struct {
	client *Client
	codec  codec[T]
}

// AwaitSettled implements [queue.Queue].
func (r *remote[T]) AwaitSettled(ctx context.Context, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := r.client.service.AwaitSettlement(ctx, &queuev1.AwaitSettlementRequest{Topic: r.codec.topic, ItemIds: ids})
	return fromUnary(ctx, "awaiting settlement by the queue at "+r.client.addr, err)
}

// Stats implements [queue.Queue].
func (r *remote[T]) Stats(ctx context.Context) (queue.Stats, error) {
	response, err := r.client.service.GetStats(ctx, &queuev1.GetStatsRequest{})
	if err != nil {
		return queue.Stats{}, fromUnary(ctx, "reading statistics of the queue at "+r.client.addr, err)
	}
	for _, topic := range response.GetTopics() {
		if topic.GetTopic() == r.codec.topic {
			return decodeStats(topic), nil
		}
	}
	return queue.Stats{}, fmt.Errorf("reading statistics of the queue at %s: it has no topic %s", r.client.addr, r.codec.topic)
}
