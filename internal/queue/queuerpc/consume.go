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
	responses := make(chan *queuev1.ConsumeResponse)
	group.Go(func() error { return first(ctx, received) })
	group.Go(func() error { return sendAll(ctx, responses, stream.Send) })
	group.Go(func() error {
		for {
			deliveries, err := watched.Deliveries(ctx, batch)
			if err != nil {
				return err
			}
			for len(deliveries) > 0 {
				response, n := encodeDeliveries(deliveries, codec)
				if err := hand(ctx, responses, response); err != nil {
					return err
				}
				deliveries = deliveries[n:]
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

// A message costs more than what is in it, so what comes together is sent together:
// up to batch deliveries or verdicts, and no further one once they have batchBytes,
// because gRPC refuses messages of more than 4 MiB.
const (
	batch      = 256
	batchBytes = 1 << 20
)

// encodeDeliveries puts as many deliveries into one message as it takes, and returns
// how many.
func encodeDeliveries[T any](deliveries []queue.Delivery[T], codec codec[T]) (*queuev1.ConsumeResponse, int) {
	messages := make([]*queuev1.ConsumeResponse_Delivery, 0, len(deliveries))
	size := 0
	for i := range deliveries {
		if size >= batchBytes {
			break
		}
		d := &deliveries[i]
		behind, more := codec.encodeBehind(d.Behind)
		size += codec.size(d.Value) + sizeOfGiven*len(d.Given) + more
		messages = append(messages, &queuev1.ConsumeResponse_Delivery{
			LeaseId: d.Lease,
			Item:    codec.encodeItem(&d.Item),
			Attempt: count(d.Attempt),
			Behind:  behind,
		})
	}
	return &queuev1.ConsumeResponse{
		Message:        &queuev1.ConsumeResponse_Delivery_{Delivery: messages[0]},
		MoreDeliveries: messages[1:],
	}, len(messages)
}

// resolveAll ends leases with the verdicts of one message. The subscriber of a lost
// lease hears it from the Lost message.
func resolveAll[T any](ctx context.Context, subscription queue.WatchedSubscription[T], first *queuev1.ConsumeRequest_Verdict, more []*queuev1.ConsumeRequest_Verdict) error {
	resolutions := make([]queue.Resolution, 1+len(more))
	for i := range resolutions {
		message := first
		if i > 0 {
			message = more[i-1]
		}
		verdict, err := decodeVerdict(message)
		if err != nil {
			return err
		}
		resolutions[i] = queue.Resolution{Lease: message.GetLeaseId(), Verdict: verdict}
	}
	return subscription.ResolveAll(ctx, resolutions)
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
			if err := resolveAll(ctx, subscription, message.Verdict, request.GetMoreVerdicts()); err != nil {
				return err
			}
		default:
			return invalid("consuming: unexpected message %T", message)
		}
	}
}
