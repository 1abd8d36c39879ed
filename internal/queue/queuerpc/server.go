// Package queuerpc is the queue across localhost: a server that offers the
// queues of one process, and a client whose [queue.Queue] obeys the same words.
//
// Nothing is kept here. A stream that breaks is over for both sides: the server
// returns its leases to the queue at once, and the client tells its caller
// [queue.ErrClosed].
package queuerpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// keepaliveTime is how soon a peer that is gone without a word is asked for a
// sign of life; keepaliveTimeout how long it has for the answer.
const (
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// A Server offers the queues of this process to the other containers of the pod.
type Server struct {
	queuev1.UnimplementedQueueServiceServer
	events  queue.Queue[*scaleevent.Event]
	workers queue.Queue[queue.Worker]
	ends    func(ctx context.Context, end queue.WorkerEnd) error // nil: nobody wants to know
}

// NewServer returns a server of two queues, which must be able to return a
// [queue.WatchedSubscription], as [queue.Memory] does.
func NewServer(events queue.Queue[*scaleevent.Event], workers queue.Queue[queue.Worker]) *Server {
	return &Server{events: events, workers: workers}
}

// OnWorkerEnd has f store how workers ended. Without it, nobody is told. It is
// called before the server serves.
func (s *Server) OnWorkerEnd(f func(ctx context.Context, end queue.WorkerEnd) error) { s.ends = f }

// Register adds the service to a gRPC server made elsewhere.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	queuev1.RegisterQueueServiceServer(r, s)
}

// Run listens on addr and serves until ctx is done. Streams that are open then
// break: clients are told that the queue is unavailable.
func (s *Server) Run(ctx context.Context, addr string) error {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serving the queue: %w", err)
	}
	return s.Serve(ctx, lis)
}

// Serve is [Server.Run] on a listener, which it closes.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	server := grpc.NewServer(
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true), // so that every lease is back when Serve returns
	)
	s.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving the queue: %w", err)
	case <-ctx.Done():
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serving the queue: %w", err)
		}
		return nil
	}
}

// Produce implements the service.
func (s *Server) Produce(stream grpc.BidiStreamingServer[queuev1.ProduceRequest, queuev1.ProduceResponse]) error {
	request, err := stream.Recv()
	if err != nil {
		return toStatus(err)
	}
	open := request.GetOpen()
	if open == nil {
		return invalid("a Produce stream must begin with an Open")
	}
	switch open.GetTopic() {
	case queuev1.Topic_TOPIC_SCALE_EVENTS:
		return toStatus(produce(stream, open, s.events, events))
	case queuev1.Topic_TOPIC_WORKERS:
		return toStatus(produce(stream, open, s.workers, workers))
	default:
		return invalid("producing: there is no topic %s", open.GetTopic())
	}
}

// Consume implements the service.
func (s *Server) Consume(stream grpc.BidiStreamingServer[queuev1.ConsumeRequest, queuev1.ConsumeResponse]) error {
	request, err := stream.Recv()
	if err != nil {
		return toStatus(err)
	}
	open := request.GetOpen()
	if open == nil {
		return invalid("a Consume stream must begin with an Open")
	}
	switch open.GetTopic() {
	case queuev1.Topic_TOPIC_SCALE_EVENTS:
		return toStatus(consume(stream, open, s.events, events))
	case queuev1.Topic_TOPIC_WORKERS:
		return toStatus(consume(stream, open, s.workers, workers))
	default:
		return invalid("consuming: there is no topic %s", open.GetTopic())
	}
}

// AwaitSettlement implements the service.
func (s *Server) AwaitSettlement(ctx context.Context, r *queuev1.AwaitSettlementRequest) (*queuev1.AwaitSettlementResponse, error) {
	var err error
	switch r.GetTopic() {
	case queuev1.Topic_TOPIC_SCALE_EVENTS:
		err = s.events.AwaitSettled(ctx, r.GetItemIds()...)
	case queuev1.Topic_TOPIC_WORKERS:
		err = s.workers.AwaitSettled(ctx, r.GetItemIds()...)
	default:
		return nil, invalid("awaiting settlement: there is no topic %s", r.GetTopic())
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &queuev1.AwaitSettlementResponse{}, nil
}

// ReportWorkerEnd implements the service.
func (s *Server) ReportWorkerEnd(ctx context.Context, r *queuev1.ReportWorkerEndRequest) (*queuev1.ReportWorkerEndResponse, error) {
	if s.ends != nil {
		if err := s.ends(ctx, decodeEnd(r)); err != nil {
			return nil, toStatus(err)
		}
	}
	return &queuev1.ReportWorkerEndResponse{}, nil
}

// GetStats implements the service.
func (s *Server) GetStats(ctx context.Context, _ *queuev1.GetStatsRequest) (*queuev1.GetStatsResponse, error) {
	ofEvents, err := s.events.Stats(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	ofWorkers, err := s.workers.Stats(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	return &queuev1.GetStatsResponse{Topics: []*queuev1.GetStatsResponse_TopicStats{
		encodeStats(events.topic, ofEvents),
		encodeStats(workers.topic, ofWorkers),
	}}, nil
}
