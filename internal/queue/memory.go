package queue

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// A Ledger is a producer's own record: it says whether an item was settled, also
// by an earlier process. An item that it does not know counts as settled.
type Ledger func(ctx context.Context, id string) (settled bool, err error)

// An Option changes how [NewMemory] makes a queue.
type Option func(*options)

type options struct {
	ledger Ledger
	log    *slog.Logger
	reg    prometheus.Registerer
	topic  string
	poison int
	gated  bool
}

// WithLedger lets AwaitSettled ask the producer's record about items that the
// queue does not hold.
func WithLedger(ledger func(ctx context.Context, id string) (settled bool, err error)) Option {
	return func(o *options) { o.ledger = ledger }
}

// WithLogger has the queue log the leases that it loses.
func WithLogger(log *slog.Logger) Option {
	return func(o *options) { o.log = log }
}

// WithMetrics registers the queue's metrics, all labelled with the topic.
func WithMetrics(reg prometheus.Registerer, topic string) Option {
	return func(o *options) { o.reg, o.topic = reg, topic }
}

// ReasonPoison is why the queue itself rejects an item; see [WithPoisonAfter].
const ReasonPoison = "poison"

// WithPoisonAfter has an item rejected once so many of its leases in a row were
// lost: whoever takes it seems to die of it. A verdict, also one that asks for a
// retry, begins the count anew, and so does the orderly end of a subscription. Zero
// means never.
func WithPoisonAfter(leases int) Option {
	return func(o *options) { o.poison = leases }
}

// WithGate has the queue lease nothing once it has had no subscriber, until its
// producer has said that it may; see [Memory.Gate].
func WithGate() Option {
	return func(o *options) { o.gated = true }
}

// Memory is a [Queue] in this process' memory. No operation takes longer when it
// holds more items, but for the lease of an item that comes back, with which those
// behind it are told.
//
// It holds every item from its first Offer to its Settle. An item that ended
// while nobody listened stays for as long as its producer does not offer it
// again or settle it; such items do not count against the credit, so it is the
// producer's record, not the queue, that bounds them.
type Memory[T any] struct {
	options
	metrics *metrics

	mu       sync.Mutex
	items    map[string]*entry[T] // every item until it is settled, by ID
	lanes    map[string]*lane[T]  // the ordering keys in use
	open     *list.List           // of *entry[T]: the items without outcome, oldest offer first
	ready    *list.List           // of *entry[T]: the items that could be leased now
	idle     *list.List           // of *subscription[T]: those that would take an item now, whose turn it is first
	leased   int
	subs     map[*subscription[T]]struct{} // the open ones
	credits  int                           // the sum of their credits
	prods    int
	turn     int                   // counts how often the gate was shut
	shut     bool                  // nothing is leased
	awaiting map[string][]*awaiter // calls of AwaitSettled, by item

	served        []*waiter[T]  // by the dispatch that is under way
	creditChanged chan struct{} // closed when credit has changed; nil while nobody waits for that
	creditSeen    int           // what those who wait have seen
}

// entry is an item and where it is on its way.
type entry[T any] struct {
	item     Item[T]
	producer *producer[T] // the newest that offered it
	lane     *lane[T]     // nil without ordering key, and once it has ended and gives nothing
	offered  time.Time
	attempts int
	lost     int // leases in a row that ended without a verdict
	state    state
	// joined is how many items that take had come to its lane before it, itself
	// included, and told how many had when those behind it were last told.
	joined, told int

	inOpen  *list.Element // set until it has ended
	inLane  *list.Element // set while it is in its lane
	inReady *list.Element // set while it is ready

	rest    *time.Timer  // set while it rests
	lease   *lease[T]    // set while it is leased
	outcome Outcome      // set when it has ended
	outbox  *producer[T] // whose outbox holds the outcome, if any does
}

type state int

const (
	waiting state = iota // behind another item of its lane
	resting              // before a retry
	ready
	leased
	ended
	forgotten // and not among the items any more
)

// lane is an ordering key. The item at its front is the one that is ready, leased
// or resting, or has ended and gives something that is not settled yet; all others wait.
type lane[T any] struct {
	key   string
	items list.List // of *entry[T]
	takes int       // how many items that take have come
}

type lease[T any] struct {
	id    uint64
	entry *entry[T]
	sub   *subscription[T]
	since time.Time
	lost  chan struct{}
}

// NewMemory returns an empty queue.
func NewMemory[T any](opts ...Option) *Memory[T] {
	m := &Memory[T]{
		options:  options{log: slog.New(slog.DiscardHandler)},
		items:    map[string]*entry[T]{},
		lanes:    map[string]*lane[T]{},
		open:     list.New(),
		ready:    list.New(),
		idle:     list.New(),
		subs:     map[*subscription[T]]struct{}{},
		awaiting: map[string][]*awaiter{},
	}
	for _, opt := range opts {
		opt(&m.options)
	}
	m.shut = m.gated
	m.metrics = newMetrics(m.reg, m.topic, m.stats, m.oldestLease)
	return m
}

// Gate reports whether the queue leases nothing because it has had no subscriber,
// which it does only with [WithGate]. Meanwhile someone else may have served what
// it holds: the producer looks into that, and then calls Open with the turn.
func (m *Memory[T]) Gate() (turn int, shut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.turn, m.shut
}

// Open has the queue lease again, unless its gate was shut anew since that turn.
func (m *Memory[T]) Open(turn int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.turn == turn {
		m.shut = false
		m.dispatch()
		m.creditMayHaveChanged()
	}
}

// Losses returns how many leases of an item in a row were lost; see [WithPoisonAfter].
func (m *Memory[T]) Losses(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.items[id]; ok {
		return e.lost
	}
	return 0
}

// Ended reports whether the queue has an outcome of an item that is not settled yet.
func (m *Memory[T]) Ended(id string) bool {
	known, isOpen := m.lookUp(id)
	return known && !isOpen
}

// Forget takes items out of the queue that are left to somebody else. It is not
// [Producer.Settle]: whoever awaits their settlement goes on waiting.
func (m *Memory[T]) Forget(ids ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if e, ok := m.items[id]; ok {
			m.forget(e)
		}
	}
	m.dispatch()
	m.creditMayHaveChanged()
}

// Produce implements [Queue].
func (m *Memory[T]) Produce(ctx context.Context, name string) (Producer[T], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prods++
	return newProducer(m, name), nil
}

// Subscribe implements [Queue].
func (m *Memory[T]) Subscribe(ctx context.Context, opts SubscribeOptions) (Subscription[T], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opts.Credits < 1 {
		return nil, fmt.Errorf("subscribing with %d credits: at least 1 is needed", opts.Credits)
	}
	if opts.LeaseDuration <= 0 {
		opts.LeaseDuration = DefaultLeaseDuration
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := newSubscription(m, opts)
	m.subs[s] = struct{}{}
	m.credits += s.credits
	m.creditMayHaveChanged()
	return s, nil
}

// AwaitSettled implements [Queue].
func (m *Memory[T]) AwaitSettled(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if err := m.awaitSettled(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// awaiter is a call of AwaitSettled that waits for one item.
type awaiter struct {
	settled bool // guarded by the queue's mu
	wake    context.CancelFunc
}

func (m *Memory[T]) awaitSettled(ctx context.Context, id string) error {
	waitCtx, wake := context.WithCancel(ctx)
	defer wake()
	a := &awaiter{wake: wake}
	m.mu.Lock()
	m.awaiting[id] = append(m.awaiting[id], a)
	m.mu.Unlock()
	defer m.stopAwaiting(id, a)

	// Settle wakes us. The attempts are for an item that is settled elsewhere, or
	// whose producer went away between storing its outcome and saying so.
	for range backoff.Default.Attempts(waitCtx) {
		known, isOpen := m.lookUp(id)
		if isOpen {
			continue
		}
		if m.ledger == nil {
			if known {
				continue
			}
			return nil
		}
		settled, err := m.ledger(waitCtx, id)
		if err != nil {
			if waitCtx.Err() != nil {
				break
			}
			return fmt.Errorf("asking whether item %s is settled: %w", id, err)
		}
		if settled {
			m.settle(id)
			return nil
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.settled {
		return nil
	}
	return ctx.Err()
}

func (m *Memory[T]) lookUp(id string) (known, isOpen bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, known := m.items[id]
	return known, known && e.state != ended
}

func (m *Memory[T]) stopAwaiting(id string, a *awaiter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.DeleteFunc(m.awaiting[id], func(other *awaiter) bool { return other == a })
	if len(left) == 0 {
		delete(m.awaiting, id)
		return
	}
	m.awaiting[id] = left
}

// Stats implements [Queue].
func (m *Memory[T]) Stats(ctx context.Context) (Stats, error) {
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	return m.stats(), nil
}

func (m *Memory[T]) stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Stats{
		Ready:       m.ready.Len(),
		Blocked:     m.open.Len() - m.ready.Len() - m.leased,
		Leased:      m.leased,
		Unsettled:   len(m.items) - m.open.Len(),
		Credits:     m.credit(),
		Subscribers: len(m.subs),
		Producers:   m.prods,
	}
	if oldest := m.open.Front(); oldest != nil {
		s.OldestAge = time.Since(oldest.Value.(*entry[T]).offered)
	}
	return s
}

// oldestLease is how long the oldest lease has lasted. It looks at all of them, which
// only the metrics ask for.
func (m *Memory[T]) oldestLease() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	oldest := now
	for s := range m.subs {
		for _, l := range s.leases {
			if l.since.Before(oldest) {
				oldest = l.since
			}
		}
	}
	return now.Sub(oldest)
}

// All methods below are called with mu held, unless they say otherwise.

// maxOpen is how many open items the queue asks for, as a multiple of its
// subscribers' credits. Items behind another of their ordering key take no
// subscriber's time, so the events of one stuck task must not keep those of all
// others out; but they take memory.
const maxOpen = 16

// credit is how many more items the subscribers would take. While the gate is shut
// it is never zero for them, so that the producer comes to open it.
func (m *Memory[T]) credit() int {
	least := 0
	if m.shut && len(m.subs) > 0 {
		least = 1
	}
	return max(least, min(m.credits-m.ready.Len()-m.leased, maxOpen*m.credits-m.open.Len()))
}

// creditMayHaveChanged is called after every change of what credit is made of.
func (m *Memory[T]) creditMayHaveChanged() {
	if m.creditChanged != nil && m.credit() != m.creditSeen {
		close(m.creditChanged)
		m.creditChanged = nil
	}
}

// add takes in an item that is not here yet. The caller dispatches.
func (m *Memory[T]) add(p *producer[T], item *Item[T]) {
	e := &entry[T]{item: *item, producer: p, offered: time.Now()}
	m.items[item.ID] = e
	e.inOpen = m.open.PushBack(e)
	m.metrics.offers.Inc()
	if item.Key != "" {
		l := m.lanes[item.Key]
		if l == nil {
			l = &lane[T]{key: item.Key}
			m.lanes[item.Key] = l
		}
		e.lane = l
		e.inLane = l.items.PushBack(e)
		if item.Takes {
			l.takes++
		}
		e.joined, e.told = l.takes, l.takes
		if l.items.Len() > 1 {
			e.state = waiting
			if first := l.items.Front().Value.(*entry[T]); item.Takes && first.state == resting {
				first.rest.Stop()
				first.rest = nil
				m.makeReady(first)
			}
			return
		}
	}
	m.makeReady(e)
}

// maxBehind bounds how many items are told of those behind one: as many as a consumer
// of the stream has in flight.
const maxBehind = 4096

// behind returns the items behind one in its lane, up to the last one that takes.
func (e *entry[T]) behind() []Item[T] {
	var items []Item[T]
	n := 0
	for at := e.inLane.Next(); at != nil && len(items) < maxBehind; at = at.Next() {
		item := at.Value.(*entry[T]).item
		items = append(items, item)
		if item.Takes {
			n = len(items)
		}
	}
	return items[:n]
}

func (m *Memory[T]) makeReady(e *entry[T]) {
	e.state = ready
	e.inReady = m.ready.PushBack(e)
}

// makeReadyFirst puts an item before all others that are ready: it has had its
// turn already.
func (m *Memory[T]) makeReadyFirst(e *entry[T]) {
	e.state = ready
	e.inReady = m.ready.PushFront(e)
}

// dispatch leases items for as long as there is one and someone who takes it.
func (m *Memory[T]) dispatch() {
	for !m.shut && m.ready.Len() > 0 && m.idle.Len() > 0 {
		e := m.ready.Front().Value.(*entry[T])
		m.ready.Remove(e.inReady)
		e.inReady = nil
		s := m.idle.Front().Value.(*subscription[T])
		w := s.waiters.Front().Value.(*waiter[T])
		if len(w.taken) == 0 {
			m.served = append(m.served, w)
		}
		w.taken = append(w.taken, m.leaseTo(e, s))
		if len(w.taken) == w.most {
			w.leave()
		}
		s.placeInIdle()
		if s.inIdle != nil {
			m.idle.MoveToBack(s.inIdle) // they take turns
		}
	}
	for _, w := range m.served {
		w.leave()
		close(w.served)
	}
	clear(m.served)
	m.served = m.served[:0]
}

func (m *Memory[T]) leaseTo(e *entry[T], s *subscription[T]) Delivery[T] {
	now := time.Now()
	e.attempts++
	if e.attempts == 1 {
		m.metrics.wait.Observe(now.Sub(e.offered).Seconds())
	}
	m.metrics.leases.Inc()
	if e.attempts > 1 {
		m.metrics.redeliveries.Inc()
	}
	s.lastLease++
	l := &lease[T]{id: s.lastLease, entry: e, sub: s, since: now, lost: make(chan struct{})}
	s.leases[l.id] = l
	e.state = leased
	e.lease = l
	m.leased++
	d := Delivery[T]{Item: e.item, Lease: l.id, Attempt: e.attempts, Lost: l.lost}
	// Most items are carried out at once, and need not know.
	if e.attempts > 1 && e.lane != nil && e.lane.takes > e.joined {
		d.Behind = e.behind()
		e.told = e.lane.takes
	}
	return d
}

// endLease takes the item away from its subscriber.
func (m *Memory[T]) endLease(l *lease[T]) {
	delete(l.sub.leases, l.id)
	l.entry.lease = nil
	m.leased--
	l.sub.placeInIdle()
}

// lose returns leases of one subscription to the queue, to be leased again
// before everything else, in the order in which they were leased. All together
// are one line of the log.
func (m *Memory[T]) lose(s *subscription[T], leases []*lease[T], level slog.Level, why string) {
	if len(leases) > 0 {
		m.log.Log(context.Background(), level, "leases returned", "topic", m.topic, "subscriber", s.name,
			"leases", len(leases), "reason", why)
	}
	slices.SortFunc(leases, func(a, b *lease[T]) int { return cmp.Compare(b.id, a.id) })
	for _, l := range leases {
		m.loseOne(l, why)
		e := l.entry
		if e.lost++; level < slog.LevelWarn {
			e.lost = 0
		}
		if m.poison > 0 && e.lost >= m.poison {
			m.end(e, Reject(ReasonPoison, fmt.Sprintf(
				"%d leases in a row ended without a verdict, the last one because: %s", e.lost, why), nil))
			continue
		}
		m.makeReadyFirst(e)
	}
	m.dispatch()
	m.creditMayHaveChanged()
}

func (m *Memory[T]) loseOne(l *lease[T], why string) {
	m.endLease(l)
	close(l.lost)
	l.sub.noteLoss(l.id)
	m.metrics.lost.Inc()
	m.log.Debug("lease lost", "topic", m.topic, "item", l.entry.item.ID, "attempt", l.entry.attempts,
		"subscriber", l.sub.name, "reason", why)
}

// resolve ends a lease with a verdict. The caller dispatches.
func (m *Memory[T]) resolve(l *lease[T], v Verdict) {
	e := l.entry
	e.lost = 0
	m.endLease(l)
	m.metrics.verdict(v)
	if v.Status == 0 {
		m.retry(e, v.After)
	} else {
		m.end(e, v)
	}
}

func (m *Memory[T]) retry(e *entry[T], after time.Duration) {
	if after <= 0 || e.lane != nil && e.told < e.lane.takes {
		m.makeReady(e)
		return
	}
	e.state = resting
	var rest *time.Timer
	rest = time.AfterFunc(after, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if e.rest != rest {
			return // settled or woken meanwhile
		}
		e.rest = nil
		m.makeReady(e)
		m.dispatch()
		m.creditMayHaveChanged()
	})
	e.rest = rest
}

// end gives the item its outcome and lets the next of its lane go, unless it gives
// something: then its settlement does that.
func (m *Memory[T]) end(e *entry[T], v Verdict) {
	m.leave(e)
	if len(v.Gives) == 0 {
		m.leaveLane(e)
	}
	e.outcome = Outcome{
		ItemID:   e.item.ID,
		Status:   v.Status,
		Reason:   v.Reason,
		Message:  v.Message,
		Attempts: e.attempts,
		Details:  v.Details,
		Gives:    v.Gives,
	}
	var zero T
	e.item.Value = zero // the producer knows it, and nobody else will ask
	e.producer.announce(e)
}

// leave takes an item out of all lists of open items.
func (m *Memory[T]) leave(e *entry[T]) {
	e.state = ended
	m.open.Remove(e.inOpen)
	e.inOpen = nil
	if e.inReady != nil {
		m.ready.Remove(e.inReady)
		e.inReady = nil
	}
	if e.rest != nil {
		e.rest.Stop()
		e.rest = nil
	}
}

// leaveLane lets the next of an item's lane go, if it has one.
func (m *Memory[T]) leaveLane(e *entry[T]) {
	l := e.lane
	if l == nil {
		return
	}
	wasFirst := l.items.Front() == e.inLane
	l.items.Remove(e.inLane)
	e.inLane, e.lane = nil, nil
	switch next := l.items.Front(); {
	case next == nil:
		delete(m.lanes, l.key)
	case wasFirst:
		m.makeReady(next.Value.(*entry[T]))
	}
}

// settle forgets items for good. It takes mu itself.
func (m *Memory[T]) settle(ids ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	settled := 0
	for _, id := range ids {
		for _, a := range m.awaiting[id] {
			a.settled = true
			a.wake()
		}
		if e, ok := m.items[id]; ok {
			m.give(e)
			m.forget(e)
			settled++
		}
	}
	m.metrics.settled.Add(float64(settled))
	m.dispatch()
	m.creditMayHaveChanged()
}

// give hands what an item gives to those that it names.
func (m *Memory[T]) give(from *entry[T]) {
	for to, n := range from.outcome.Gives {
		e, ok := m.items[to]
		if !ok {
			continue // its producer has the record
		}
		given := maps.Clone(e.item.Given) // others may be reading it
		if given == nil {
			given = make(map[string]int, 1)
		}
		given[from.item.ID] = n
		e.item.Given = given
	}
}

// forget removes an item.
func (m *Memory[T]) forget(e *entry[T]) {
	delete(m.items, e.item.ID)
	if e.state != ended {
		// Its producer knows of an outcome that we do not, or that somebody else has it.
		if e.lease != nil {
			m.loseOne(e.lease, "settled")
		}
		m.leave(e)
	}
	e.state = forgotten
	m.leaveLane(e)
}

var errNoID = errors.New("an item needs an ID")
