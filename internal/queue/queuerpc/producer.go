package queuerpc

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
)

// producer is the client's end of a Produce stream.
type producer[T any] struct {
	*conn[queuev1.ProduceRequest, queuev1.ProduceResponse]
	codec codec[T]

	mu       sync.Mutex
	credit   int             // the newest from the server, less what was offered since
	changed  chan struct{}   // closed and replaced when the server sends credit
	outcomes []queue.Outcome // received and not yet returned
	more     chan struct{}   // holds one token while outcomes may hold something
}

// Produce implements [queue.Queue].
func (r *remote[T]) Produce(ctx context.Context, name string) (queue.Producer[T], error) {
	open := &queuev1.ProduceRequest{Message: &queuev1.ProduceRequest_Open_{
		Open: &queuev1.ProduceRequest_Open{Topic: r.codec.topic, Producer: name},
	}}
	conn, err := connect(ctx, r.client.service.Produce, open)
	if err != nil {
		return nil, at("producing on", r.client.addr, err)
	}
	p := &producer[T]{conn: conn, codec: r.codec, changed: make(chan struct{}), more: make(chan struct{}, 1)}
	conn.run(nil, 0, p.receive, func() {})
	return p, nil
}

func (p *producer[T]) receive(response *queuev1.ProduceResponse) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch message := response.GetMessage().(type) {
	case *queuev1.ProduceResponse_Credit_:
		p.credit = int(message.Credit.GetItems())
		close(p.changed)
		p.changed = make(chan struct{})
	case *queuev1.ProduceResponse_Outcome:
		outcome, err := decodeOutcome(message.Outcome)
		if err != nil {
			return err
		}
		p.outcomes = append(p.outcomes, outcome)
		signal(p.more)
	}
	return nil
}

// Credit implements [queue.Producer].
func (p *producer[T]) Credit(ctx context.Context) (int, error) {
	for {
		p.mu.Lock()
		credit, changed := p.credit, p.changed
		p.mu.Unlock()
		if err := p.ended(); err != nil {
			return 0, err
		}
		if credit > 0 {
			return credit, nil
		}
		if err := p.wait(ctx, changed); err != nil {
			return 0, err
		}
	}
}

// Offer implements [queue.Producer]. It returns when the items are on their way.
func (p *producer[T]) Offer(ctx context.Context, items ...queue.Item[T]) error {
	for i := range items {
		if items[i].ID == "" {
			return errors.New("offering: an item needs an ID")
		}
	}
	for i := range items {
		err := p.send(ctx, &queuev1.ProduceRequest{Message: &queuev1.ProduceRequest_Offer_{
			Offer: &queuev1.ProduceRequest_Offer{Item: p.codec.encodeItem(&items[i])},
		}})
		if err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.credit = max(0, p.credit-len(items))
	p.mu.Unlock()
	return nil
}

// Outcome implements [queue.Producer].
func (p *producer[T]) Outcome(ctx context.Context) (queue.Outcome, error) {
	outcomes, err := p.Outcomes(ctx, 1)
	if err != nil {
		return queue.Outcome{}, err
	}
	return outcomes[0], nil
}

// Outcomes implements [queue.Producer].
func (p *producer[T]) Outcomes(ctx context.Context, most int) ([]queue.Outcome, error) {
	for {
		if err := p.wait(ctx, p.more); err != nil {
			return nil, err
		}
		if outcomes := p.take(most); len(outcomes) > 0 {
			return outcomes, nil
		}
	}
}

func (p *producer[T]) take(most int) []queue.Outcome {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(most, len(p.outcomes))
	outcomes := slices.Clone(p.outcomes[:n])
	clear(p.outcomes[:n])
	p.outcomes = p.outcomes[n:]
	if len(p.outcomes) > 0 {
		signal(p.more) // whoever waits beside us
	}
	return outcomes
}

// Settle implements [queue.Producer]. It returns when the word is on its way.
func (p *producer[T]) Settle(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		err := p.send(ctx, &queuev1.ProduceRequest{Message: &queuev1.ProduceRequest_Settle_{
			Settle: &queuev1.ProduceRequest_Settle{ItemId: id},
		}})
		if err != nil {
			return err
		}
	}
	return nil
}
