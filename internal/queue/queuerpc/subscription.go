package queuerpc

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
)

// ReasonUnreadable is why the client rejects an item that it cannot read: the
// two containers are not of one version.
const ReasonUnreadable = "unreadable"

// subscription is the client's end of a Consume stream.
type subscription[T any] struct {
	*conn[queuev1.ConsumeRequest, queuev1.ConsumeResponse]
	codec codec[T]

	mu        sync.Mutex
	leases    map[uint64]chan struct{} // the Lost channel of each
	newest    uint64                   // the last lease that was delivered
	lostEarly map[uint64]bool          // lost before they were delivered
	inbox     []queue.Delivery[T]      // received and not yet returned; some may be lost meanwhile
	more      chan struct{}            // holds one token while inbox may hold something
	gone      bool                     // all leases have been lost
}

// Subscribe implements [queue.Queue].
func (r *remote[T]) Subscribe(ctx context.Context, opts queue.SubscribeOptions) (queue.Subscription[T], error) {
	switch {
	case opts.Credits < 1:
		return nil, fmt.Errorf("subscribing with %d credits: at least 1 is needed", opts.Credits)
	case opts.Watched:
		return nil, fmt.Errorf("subscribing to the queue at %s: a client sends its own signs of life", r.client.addr)
	case opts.LeaseDuration <= 0:
		opts.LeaseDuration = queue.DefaultLeaseDuration
	}
	open := &queuev1.ConsumeRequest{Message: &queuev1.ConsumeRequest_Open_{
		Open: &queuev1.ConsumeRequest_Open{
			Topic:         r.codec.topic,
			Subscriber:    opts.Name,
			Credits:       count(opts.Credits),
			LeaseDuration: durationpb.New(max(opts.LeaseDuration, minLease)),
		},
	}}
	conn, err := connect(ctx, r.client.service.Consume, open)
	if err != nil {
		return nil, at("subscribing to", r.client.addr, err)
	}
	s := &subscription[T]{
		conn:      conn,
		codec:     r.codec,
		leases:    map[uint64]chan struct{}{},
		lostEarly: map[uint64]bool{},
		more:      make(chan struct{}, 1),
	}
	heartbeat := &queuev1.ConsumeRequest{Message: &queuev1.ConsumeRequest_Heartbeat_{
		Heartbeat: &queuev1.ConsumeRequest_Heartbeat{},
	}}
	conn.run(heartbeat, max(opts.LeaseDuration, minLease)/3, s.receive, s.loseAll, mergeVerdicts)
	return s, nil
}

func (s *subscription[T]) receive(response *queuev1.ConsumeResponse) error {
	switch message := response.GetMessage().(type) {
	case *queuev1.ConsumeResponse_Delivery_:
		for _, delivery := range append([]*queuev1.ConsumeResponse_Delivery{message.Delivery}, response.GetMoreDeliveries()...) {
			if err := s.receiveDelivery(delivery); err != nil {
				return err
			}
		}
	case *queuev1.ConsumeResponse_Lost_:
		s.lose(message.Lost.GetLeaseId())
	}
	return nil
}

func (s *subscription[T]) receiveDelivery(message *queuev1.ConsumeResponse_Delivery) error {
	item, err := s.codec.decodeItem(message.GetItem())
	if err != nil {
		// In a goroutine, because the receiver must never wait for the sender: the
		// server might be waiting for us. It ends with the stream.
		s.running.Go(func() {
			_ = s.send(s.stream.Context(),
				encodeVerdict(message.GetLeaseId(), queue.Reject(ReasonUnreadable, err.Error(), nil)))
		})
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	lease := message.GetLeaseId()
	s.newest = lease
	if s.lostEarly[lease] {
		delete(s.lostEarly, lease)
		return nil
	}
	lost := make(chan struct{})
	s.leases[lease] = lost
	s.inbox = append(s.inbox, queue.Delivery[T]{
		Item:      item,
		Lease:     lease,
		Attempt:   int(message.GetAttempt()),
		Cancelled: message.GetCancelled(),
		Lost:      lost,
	})
	signal(s.more)
	return nil
}

func (s *subscription[T]) lose(lease uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost, ok := s.leases[lease]
	switch {
	case ok:
		delete(s.leases, lease)
		close(lost)
	case lease > s.newest:
		s.lostEarly[lease] = true
	}
}

// loseAll ends all leases with the stream.
func (s *subscription[T]) loseAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for lease, lost := range s.leases {
		delete(s.leases, lease)
		close(lost)
	}
	s.inbox = nil
	s.gone = true
}

// Next implements [queue.Subscription].
func (s *subscription[T]) Next(ctx context.Context) (queue.Delivery[T], error) {
	if err := ctx.Err(); err != nil {
		return queue.Delivery[T]{}, err
	}
	for {
		if err := s.wait(ctx, s.more); err != nil {
			return queue.Delivery[T]{}, err
		}
		if d, ok := s.take(); ok {
			return d, nil
		}
	}
}

// take returns the first delivery of the inbox whose lease still lasts.
func (s *subscription[T]) take() (queue.Delivery[T], bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.inbox) > 0 {
		d := s.inbox[0]
		s.inbox[0] = queue.Delivery[T]{}
		s.inbox = s.inbox[1:]
		if _, ok := s.leases[d.Lease]; !ok {
			continue
		}
		if len(s.inbox) > 0 {
			signal(s.more) // whoever waits beside us
		}
		return d, true
	}
	return queue.Delivery[T]{}, false
}

// Resolve implements [queue.Subscription]. It returns when the verdict is on its
// way. Should the lease be lost before it arrives, the item is leased again.
func (s *subscription[T]) Resolve(ctx context.Context, d queue.Delivery[T], v queue.Verdict) error {
	switch v.Status {
	case 0, queue.Done, queue.Rejected:
	default:
		return fmt.Errorf("resolving item %s: status %d is no verdict", d.ID, v.Status)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.ended(); err != nil {
		return err
	}
	s.mu.Lock()
	lost, ok := s.leases[d.Lease]
	delete(s.leases, d.Lease)
	gone := s.gone
	s.mu.Unlock()
	switch {
	case gone: // the leases end a moment before the stream is known to have ended
		return s.err
	case !ok:
		return queue.ErrLeaseLost
	}
	err := s.send(ctx, encodeVerdict(d.Lease, v))
	if err != nil {
		// The verdict is not on its way, so the lease is still ours; with a broken
		// stream it is lost.
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.gone || s.ended() != nil {
			close(lost)
		} else {
			s.leases[d.Lease] = lost
		}
	}
	return err
}
