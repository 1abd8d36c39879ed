package queuerpc

import (
	"context"
	"fmt"
	"slices"
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
	inbox     []queue.Delivery[T]      // received; some may be lost meanwhile
	returned  int                      // of the inbox, from its beginning
	verdicts  []queue.Resolution       // not yet taken
	more      chan struct{}            // holds one token while inbox may hold something
	gone      bool                     // all leases have been lost

	// taken are verdicts that are being sent, sent how many of them are. Only the
	// goroutine that sends uses them.
	taken []queue.Resolution
	sent  int
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
	conn.gathered = s.takeVerdicts
	conn.run(heartbeat, max(opts.LeaseDuration, minLease)/3, s.receive, s.loseAll)
	return s, nil
}

func (s *subscription[T]) receive(response *queuev1.ConsumeResponse) error {
	switch message := response.GetMessage().(type) {
	case *queuev1.ConsumeResponse_Delivery_:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.receiveDelivery(message.Delivery)
		for _, delivery := range response.GetMoreDeliveries() {
			s.receiveDelivery(delivery)
		}
		signal(s.more)
	case *queuev1.ConsumeResponse_Lost_:
		s.lose(message.Lost.GetLeaseId())
	}
	return nil
}

// receiveDelivery is called with mu held.
func (s *subscription[T]) receiveDelivery(message *queuev1.ConsumeResponse_Delivery) {
	lease := message.GetLeaseId()
	s.newest = lease
	if s.lostEarly[lease] {
		delete(s.lostEarly, lease)
		return
	}
	item, err := s.codec.decodeItem(message.GetItem())
	if err != nil {
		s.verdicts = append(s.verdicts, queue.Resolution{Lease: lease, Verdict: queue.Reject(ReasonUnreadable, err.Error(), nil)})
		signal(s.gathering)
		return
	}
	lost := make(chan struct{})
	s.leases[lease] = lost
	s.inbox = append(s.inbox, queue.Delivery[T]{
		Item:    item,
		Lease:   lease,
		Attempt: int(message.GetAttempt()),
		Behind:  s.codec.decodeBehind(message.GetBehind()),
		Lost:    lost,
	})
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
	s.inbox, s.returned = nil, 0
	s.gone = true
}

// Next implements [queue.Subscription].
func (s *subscription[T]) Next(ctx context.Context) (queue.Delivery[T], error) {
	deliveries, err := s.Deliveries(ctx, 1)
	if err != nil {
		return queue.Delivery[T]{}, err
	}
	return deliveries[0], nil
}

// Deliveries implements [queue.Subscription].
func (s *subscription[T]) Deliveries(ctx context.Context, most int) ([]queue.Delivery[T], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for {
		if err := s.wait(ctx, s.more); err != nil {
			return nil, err
		}
		if deliveries := s.take(most); len(deliveries) > 0 {
			return deliveries, nil
		}
	}
}

// take returns the first deliveries of the inbox whose lease still lasts.
func (s *subscription[T]) take(most int) []queue.Delivery[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := make([]queue.Delivery[T], 0, min(most, len(s.inbox)-s.returned))
	for ; s.returned < len(s.inbox) && len(taken) < most; s.returned++ {
		if _, ok := s.leases[s.inbox[s.returned].Lease]; ok {
			taken = append(taken, s.inbox[s.returned])
		}
	}
	if s.returned < len(s.inbox) {
		signal(s.more) // whoever waits beside us
	}
	if s.returned > len(s.inbox)/2 { // it may never become empty
		s.inbox, s.returned = slices.Delete(s.inbox, 0, s.returned), 0
	}
	return taken
}

// Resolve implements [queue.Subscription]. It returns when the verdict is on its
// way. Should the lease be lost before it arrives, the item is leased again.
func (s *subscription[T]) Resolve(ctx context.Context, d queue.Delivery[T], v queue.Verdict) error {
	if !v.Valid() {
		return fmt.Errorf("resolving item %s: status %d is no verdict", d.ID, v.Status)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.ended(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch _, ok := s.leases[d.Lease]; {
	case s.gone: // the leases end a moment before the stream is known to have ended
		return s.err
	case !ok:
		return queue.ErrLeaseLost
	}
	delete(s.leases, d.Lease)
	s.verdicts = append(s.verdicts, queue.Resolution{Lease: d.Lease, Verdict: v}) // no more than there are credits
	signal(s.gathering)
	return nil
}

// takeVerdicts returns a message of verdicts that are to be sent, as many as it takes,
// or nil if there are none.
func (s *subscription[T]) takeVerdicts() *queuev1.ConsumeRequest {
	if s.sent == len(s.taken) {
		clear(s.taken) // for the details in them
		s.mu.Lock()
		s.taken, s.verdicts, s.sent = s.verdicts, s.taken[:0], 0
		s.mu.Unlock()
	}
	verdicts := s.taken[s.sent:min(s.sent+batch, len(s.taken))]
	if len(verdicts) == 0 {
		return nil
	}
	messages := make([]*queuev1.ConsumeRequest_Verdict, 0, len(verdicts))
	for size := 0; len(messages) < len(verdicts) && size < batchBytes; {
		v := &verdicts[len(messages)]
		messages = append(messages, encodeVerdict(v.Lease, &v.Verdict))
		size += sizeOfVerdict(&v.Verdict)
	}
	s.sent += len(messages)
	return &queuev1.ConsumeRequest{
		Message:      &queuev1.ConsumeRequest_Verdict_{Verdict: messages[0]},
		MoreVerdicts: messages[1:],
	}
}
