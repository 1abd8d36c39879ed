package queue

import (
	"context"
	"fmt"
)

// producer is the producing side of a [Memory]. What is guarded is guarded by
// the queue's mu.
type producer[T any] struct {
	queue *Memory[T]
	name  string

	done   chan struct{} // closed by Close
	outbox []*entry[T]   // guarded; some may have been settled or offered by another producer meanwhile
	more   chan struct{} // holds one token while the outbox may hold something
}

func newProducer[T any](m *Memory[T], name string) *producer[T] {
	return &producer[T]{queue: m, name: name, done: make(chan struct{}), more: make(chan struct{}, 1)}
}

func (p *producer[T]) closed() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// announce puts the outcome of an item into the outbox. It is called with mu
// held. Without anyone to tell, the outcome waits for the next Offer of the item.
func (p *producer[T]) announce(e *entry[T]) {
	if p.closed() || e.outbox == p {
		return
	}
	e.outbox = p
	p.outbox = append(p.outbox, e)
	p.wake()
}

func (p *producer[T]) wake() {
	select {
	case p.more <- struct{}{}:
	default: // there is a token already
	}
}

// Credit implements [Producer].
func (p *producer[T]) Credit(ctx context.Context) (int, error) {
	credit := 0
	for credit == 0 {
		var err error
		if credit, err = p.AwaitCredit(ctx, 0); err != nil {
			return 0, err
		}
	}
	return credit, nil
}

// AwaitCredit implements [CreditWatcher].
func (p *producer[T]) AwaitCredit(ctx context.Context, other int) (int, error) {
	m := p.queue
	for {
		m.mu.Lock()
		if p.closed() {
			m.mu.Unlock()
			return 0, ErrClosed
		}
		credit := m.credit()
		if credit != other {
			m.mu.Unlock()
			return credit, nil
		}
		if m.creditChanged == nil {
			m.creditChanged = make(chan struct{})
			m.creditSeen = credit
		}
		changed := m.creditChanged
		m.mu.Unlock()
		select {
		case <-changed:
		case <-p.done:
			return 0, ErrClosed
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Offer implements [Producer].
func (p *producer[T]) Offer(ctx context.Context, items ...Item[T]) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range items {
		if items[i].ID == "" {
			return fmt.Errorf("offering: %w", errNoID)
		}
	}
	m := p.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.closed() {
		return ErrClosed
	}
	for i := range items {
		e, known := m.items[items[i].ID]
		if !known {
			m.add(p, &items[i])
			continue
		}
		e.producer = p
		if e.state == ended {
			p.announce(e)
		}
	}
	m.dispatch()
	m.creditMayHaveChanged()
	return nil
}

// Outcome implements [Producer].
func (p *producer[T]) Outcome(ctx context.Context) (Outcome, error) {
	outcomes, err := p.Outcomes(ctx, 1)
	if err != nil {
		return Outcome{}, err
	}
	return outcomes[0], nil
}

// Outcomes implements [Producer].
func (p *producer[T]) Outcomes(ctx context.Context, most int) ([]Outcome, error) {
	for {
		if p.closed() {
			return nil, ErrClosed
		}
		select {
		case <-p.more:
			if outcomes := p.take(most); len(outcomes) > 0 {
				return outcomes, nil
			}
		case <-p.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take returns the first outcomes of the outbox that are still wanted from p.
func (p *producer[T]) take(most int) (outcomes []Outcome) {
	m := p.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	outcomes = make([]Outcome, 0, min(len(p.outbox), most))
	for len(p.outbox) > 0 && len(outcomes) < most {
		e := p.outbox[0]
		p.outbox[0] = nil
		p.outbox = p.outbox[1:]
		if e.outbox != p {
			continue // another producer offered the item and has its outcome
		}
		e.outbox = nil
		if e.state == forgotten {
			continue
		}
		outcomes = append(outcomes, e.outcome)
	}
	if len(p.outbox) > 0 {
		p.wake() // whoever waits beside us
	}
	return outcomes
}

// Settle implements [Producer].
func (p *producer[T]) Settle(ctx context.Context, ids ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.closed() {
		return ErrClosed
	}
	p.queue.settle(ids...)
	return nil
}

// Close implements [Producer].
func (p *producer[T]) Close() error {
	m := p.queue
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.closed() {
		return nil
	}
	close(p.done)
	p.outbox = nil
	m.prods--
	return nil
}
