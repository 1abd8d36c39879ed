package queuerpc

import (
	"context"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
)

type produceStream = grpc.BidiStreamingServer[queuev1.ProduceRequest, queuev1.ProduceResponse]

// produce serves one Produce stream behind its Open. Only the loop in sendAll
// sends, and only one goroutine receives, as gRPC demands.
func produce[T any](stream produceStream, open *queuev1.ProduceRequest_Open, q queue.Queue[T], codec codec[T]) error {
	producer, err := q.Produce(stream.Context(), open.GetProducer())
	if err != nil {
		return err
	}
	// It also ends the goroutine below, whose Recv returns when this call has.
	defer func() { _ = producer.Close() }()
	if err := stream.Send(&queuev1.ProduceResponse{Message: &queuev1.ProduceResponse_Opened_{
		Opened: &queuev1.ProduceResponse_Opened{},
	}}); err != nil {
		return err
	}

	received := make(chan error, 1)
	go func() { received <- receiveOffers(stream, producer, codec) }()

	group, ctx := errgroup.WithContext(stream.Context())
	responses := make(chan *queuev1.ProduceResponse)
	group.Go(func() error { return first(ctx, received) })
	group.Go(func() error { return sendAll(ctx, responses, stream.Send) })
	group.Go(func() error {
		for {
			outcome, err := producer.Outcome(ctx)
			if err != nil {
				return err
			}
			if err := hand(ctx, responses, encodeOutcome(outcome)); err != nil {
				return err
			}
		}
	})
	if watcher, ok := producer.(queue.CreditWatcher); ok {
		group.Go(func() error {
			for credit := -1; ; {
				var err error
				if credit, err = watcher.AwaitCredit(ctx, credit); err != nil {
					return err
				}
				if err := hand(ctx, responses, &queuev1.ProduceResponse{Message: &queuev1.ProduceResponse_Credit_{
					Credit: &queuev1.ProduceResponse_Credit{Items: count(credit)},
				}}); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

func receiveOffers[T any](stream produceStream, producer queue.Producer[T], codec codec[T]) error {
	ctx := stream.Context()
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		switch message := request.GetMessage().(type) {
		case *queuev1.ProduceRequest_Offer_:
			item, err := codec.decodeItem(message.Offer.GetItem())
			if err != nil {
				return invalid("%v", err)
			}
			if err := producer.Offer(ctx, item); err != nil {
				return err
			}
		case *queuev1.ProduceRequest_Settle_:
			if err := producer.Settle(ctx, message.Settle.GetItemId()); err != nil {
				return err
			}
		default:
			return invalid("producing: unexpected message %T", message)
		}
	}
}

// first returns the first value of results. It is never nil, so that the others
// of an error group end with it.
func first(ctx context.Context, results <-chan error) error {
	select {
	case err := <-results:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hand gives a message to sendAll.
func hand[M any](ctx context.Context, to chan<- M, message M) error {
	select {
	case to <- message:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sendAll is the one place of a stream that sends.
func sendAll[M any](ctx context.Context, messages <-chan M, send func(M) error) error {
	for {
		select {
		case message := <-messages:
			if err := send(message); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
