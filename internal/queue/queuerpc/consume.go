package queuerpc

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
)

type consumeStream = grpc.BidiStreamingServer[queuev1.ConsumeRequest, queuev1.ConsumeResponse]

// consume serves one Consume stream behind its Open. When it returns, the leases
// are back in the queue.
func consume[T any](stream consumeStream, open *queuev1.ConsumeRequest_Open, q queue.Queue[T], codec codec[T]) error {
	duration := open.GetLeaseDuration().AsDuration()
	switch {
	case open.GetCredits() == 0:
		return invalid("consuming with 0 credits: at least 1 is needed")
	case duration != 0 && duration < minLease:
		return invalid("lease_duration is %s: it must be at least %s", duration, minLease)
	}
	subscription, err := q.Subscribe(stream.Context(), queue.SubscribeOptions{
		Name:          open.GetSubscriber(),
		Credits:       int(open.GetCredits()),
		LeaseDuration: duration,
		Watched:       true,
	})
	if err != nil {
		return err
	}
	// It also ends the goroutine below, whose Recv returns when this call has.
	defer func() { _ = subscription.Close() }()
	watched, ok := subscription.(queue.WatchedSubscription[T])
	if !ok {
		return status.Errorf(codes.Internal, "the queue of %s cannot watch its subscribers", codec.topic)
	}
	if err := stream.Send(&queuev1.ConsumeResponse{Message: &queuev1.ConsumeResponse_Opened_{
		Opened: &queuev1.ConsumeResponse_Opened{},
	}}); err != nil {
		return err
	}

	received := make(chan error, 1)
	go func() { received <- receiveVerdicts(stream, watched) }()

	group, ctx := errgroup.WithContext(stream.Context())
	responses := make(chan *queuev1.ConsumeResponse, batch)
	group.Go(func() error { return first(ctx, received) })
	group.Go(func() error { return sendAll(ctx, responses, stream.Send, mergeDeliveries) })
	group.Go(func() error {
		for {
			d, err := watched.Next(ctx)
			if err != nil {
				return err
			}
			if err := hand(ctx, responses, &queuev1.ConsumeResponse{Message: &queuev1.ConsumeResponse_Delivery_{
				Delivery: &queuev1.ConsumeResponse_Delivery{
					LeaseId:   d.Lease,
					Item:      codec.encodeItem(d.Item),
					Attempt:   count(d.Attempt),
					Cancelled: d.Cancelled,
				},
			}}); err != nil {
				return err
			}
		}
	})
	group.Go(func() error {
		for {
			losses, err := watched.Losses(ctx)
			if err != nil {
				return err
			}
			for _, lease := range losses {
				if err := hand(ctx, responses, &queuev1.ConsumeResponse{Message: &queuev1.ConsumeResponse_Lost_{
					Lost: &queuev1.ConsumeResponse_Lost{LeaseId: lease},
				}}); err != nil {
					return err
				}
			}
		}
	})
	err = group.Wait()
	if !errors.Is(err, io.EOF) { // with which a subscriber closes
		watched.Break(err)
	}
	return err
}

// batch bounds how many deliveries or verdicts one message carries.
const batch = 64

func mergeDeliveries(into, next *queuev1.ConsumeResponse) bool {
	if into.GetDelivery() == nil || next.GetDelivery() == nil || len(into.GetMoreDeliveries()) == batch-1 {
		return false
	}
	into.MoreDeliveries = append(into.MoreDeliveries, next.GetDelivery())
	return true
}

func mergeVerdicts(into, next *queuev1.ConsumeRequest) bool {
	if into.GetVerdict() == nil || next.GetVerdict() == nil || len(into.GetMoreVerdicts()) == batch-1 {
		return false
	}
	into.MoreVerdicts = append(into.MoreVerdicts, next.GetVerdict())
	return true
}

func resolve[T any](ctx context.Context, subscription queue.Subscription[T], message *queuev1.ConsumeRequest_Verdict) error {
	verdict, err := decodeVerdict(message)
	if err != nil {
		return err
	}
	// The subscriber of a lost lease hears it from the Lost message.
	err = subscription.Resolve(ctx, queue.Delivery[T]{Lease: message.GetLeaseId()}, verdict)
	if err != nil && !errors.Is(err, queue.ErrLeaseLost) {
		return err
	}
	return nil
}

func receiveVerdicts[T any](stream consumeStream, subscription queue.WatchedSubscription[T]) error {
	ctx := stream.Context()
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		switch message := request.GetMessage().(type) {
		case *queuev1.ConsumeRequest_Heartbeat_:
			subscription.Heartbeat()
		case *queuev1.ConsumeRequest_Verdict_:
			if err := resolve(ctx, subscription, message.Verdict); err != nil {
				return err
			}
			for _, verdict := range request.GetMoreVerdicts() {
				if err := resolve(ctx, subscription, verdict); err != nil {
					return err
				}
			}
		default:
			return invalid("consuming: unexpected message %T", message)
		}
	}
}
