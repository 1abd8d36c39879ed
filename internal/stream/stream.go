// Package stream is the Redis consumer group: it reads scale events, offers them
// to the queue, and stores what became of them.
//
// Redis' pending-entries list (PEL) is the truth. An entry is in it from the
// moment it is read until its outcome is stored, in one transaction with its
// acknowledgement. A crash at any point therefore loses nothing; it leaves entries
// in the PEL, which this consumer reads again when it starts, and which another
// consumer takes over when this one does not come back. An entry may be delivered
// again for that reason, and its result may be written twice if the reply to that
// write was lost.
//
// A consumer reads only what the queue has credit for. One whose queue has no
// subscriber is a standby: it reads nothing, and lets others have what it holds.
package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// Config says what to read, as whom, and where results go. All fields but Owner and Replication are required.
type Config struct {
	// Stream is the key that events are read from.
	Stream string
	// Results is the key of the stream that every outcome is written to.
	Results string
	// Dead is the key of the stream that rejected events are written to.
	Dead string
	// Group is the consumer group. It is made if it does not exist, to begin with
	// the first entry of the stream.
	Group string
	// Consumer is our name in the group. No one else may use it at the same time.
	Consumer string
	// Owner is the installation that the group belongs to; see [ForeignGroupError].
	// The zero value claims nothing and looks at no claim.
	Owner Owner
	// ReclaimAfter is how long an entry may stay in the PEL without a sign of life
	// from its consumer before the active one takes it over, if it did not do so
	// when it became the active one. Entries of a consumer that is silent altogether
	// are taken over after 10 seconds, if that is less.
	ReclaimAfter time.Duration
	// PoisonAfter is how often an event is delivered in vain, each time ended by a
	// crash, before it becomes a dead letter. Zero means without end.
	PoisonAfter int
	// Retention is how much of Stream is kept.
	Retention Retention
	// MaxEventBytes is the size beyond which an entry is rejected unread.
	MaxEventBytes int
	// ResultsMaxLen is how many results are kept, roughly.
	ResultsMaxLen int64
	// Replication is whom an outcome waits for. The zero value trusts the master alone.
	Replication Replication
	// DrainTimeout is how long Run waits for outcomes after it was told to stop.
	DrainTimeout time.Duration
}

// Queue is what a consumer needs of the queue: its own way in, and whether there
// is a way out.
type Queue interface {
	Produce(ctx context.Context, name string) (queue.Producer[*scaleevent.Event], error)
	Stats(ctx context.Context) (queue.Stats, error)
	// Gate, Open, Losses, Ended and Forget are as in [queue.Memory].
	Gate() (turn int, shut bool)
	Open(turn int)
	Losses(id string) int
	Ended(id string) bool
	Forget(ids ...string)
}

// A Consumer moves events from the stream to the queue and outcomes back. Make one
// with [New]; [Consumer.Run] does the work.
type Consumer struct {
	cfg     Config
	pace    pace
	rdb     redis.UniversalClient // for everything that answers at once
	reads   *blockingReads        // for reads that block
	queue   Queue
	log     *slog.Logger
	metrics *metrics
	link    *link

	// replay asks the reader to read our own pending entries again. It holds one
	// request; a second one adds nothing.
	replay chan struct{}
	// gateShut wakes the reader when the queue's gate is shut. It holds one token.
	gateShut chan struct{}

	mu       sync.Mutex
	inFlight map[string]*flight // what is in the queue, by entry ID; guarded by mu
	// halfRejected are the rejections of which Redis took a part, by entry ID, so that the
	// next try does not store that again; guarded by mu.
	halfRejected map[string]settlement
	landed       chan struct{} // closed and replaced when inFlight shrinks; guarded by mu
	restored     int           // counts how often restorePending ran; guarded by mu
	lastRead     string        // the highest entry ID that we have read; guarded by mu
	// unreported are events in the order in which they were accepted, of which some
	// have ended meanwhile; guarded by mu. unreportedMore holds a token while there
	// may be some. reporting is held while some are reported.
	unreported     []*flight
	unreportedMore chan struct{}
	reporting      sync.Mutex

	// offering is held while events are offered, and while they are let go of.
	offering sync.Mutex
	// stoodBy is set when events were let go of, until the reader knows. It is set
	// with offering held; the reader offers nothing while it is set.
	stoodBy atomic.Bool
	// paused is what we last knew of a pause; pauseChecked is when, in Unix nanoseconds.
	paused       atomic.Bool
	pauseChecked atomic.Int64
	following    following
	replicating  chan struct{} // a token of each that waits for replicas
	confirming   confirming
	// own is where the reader goes on in our own pending entries: empty when it has
	// read them all. Only the reader uses it.
	own string
	// items is what accept offers, again and again. Only the reader uses it.
	items []queue.Item[*scaleevent.Event]
	// noAcked says that this Redis cannot trim by acknowledgement. Only the keeper uses it.
	noAcked bool
}

// A flight is an event between its acceptance and its stored outcome.
type flight struct {
	event    scaleevent.Event
	accepted time.Time
	// All of these are guarded by the consumer's mu.
	settling  bool // its outcome is being stored
	reporting bool // that it was accepted is being stored
	reported  bool // that it was accepted is stored
}

// maxInFlight bounds what we hold in memory, whatever the queue would take. Beyond
// it, what is ours already waits in the PEL, and what is new in the stream. What is
// ours heeds no other bound: it waits better in the queue, whose events are shown
// to be cared for, than in the PEL, where someone else may claim it.
const maxInFlight = 4096

// pace is how often things are done. It follows from [Config.ReclaimAfter].
type pace struct {
	report   time.Duration // between two times that accepted events are reported
	block    time.Duration // a read for new entries
	watch    time.Duration // between two looks whether the queue has a subscriber
	look     time.Duration // between two looks at the group
	trim     time.Duration // between two times that the stream is trimmed
	idle     time.Duration // between two looks at it when there is nothing to be seen
	beat     time.Duration // between two signs of life, while something is in flight
	standby  time.Duration // without a subscriber, until we let go of what we hold
	vanished time.Duration // without a sign of life, until a consumer counts as gone
	refresh  time.Duration // an entry's idle time at which we say that we still have it
	reclaim  time.Duration // between two looks for entries that nobody cares for
	forget   time.Duration // without a sign of life, until the name of a consumer without entries is removed
}

// paceFor keeps one order: a consumer lets go of what it holds before it counts as
// gone, and says that it still has an entry before that may be reclaimed.
func paceFor(reclaimAfter time.Duration) pace {
	vanished := min(10*time.Second, reclaimAfter)
	return pace{
		report:   50 * time.Millisecond,
		block:    block,
		watch:    100 * time.Millisecond,
		look:     vanished / 2,
		trim:     time.Minute,
		idle:     2 * vanished,
		beat:     vanished / 5,
		standby:  vanished / 2,
		vanished: vanished,
		refresh:  reclaimAfter / 3,
		reclaim:  reclaimAfter / 2,
		forget:   24 * time.Hour, // every pod has a name of its own, so they would pile up
	}
}

// New returns a consumer that uses rdb, made by [NewClient], and makes clients of
// the same server with dial for reads that block. The health function hears nil
// when Redis answers and an error when it does not; it is called on changes only.
// Metrics go to reg.
func New(cfg Config, rdb redis.UniversalClient, dial func() redis.UniversalClient, q Queue, health func(error), reg prometheus.Registerer, log *slog.Logger) *Consumer {
	m := newMetrics(reg)
	return &Consumer{
		cfg:          cfg,
		pace:         paceFor(cfg.ReclaimAfter),
		rdb:          rdb,
		reads:        &blockingReads{dial: dial},
		queue:        q,
		log:          log,
		metrics:      m,
		link:         newLink(log, health, m),
		replay:       make(chan struct{}, 1),
		gateShut:     make(chan struct{}, 1),
		inFlight:     map[string]*flight{},
		halfRejected: map[string]settlement{},
		landed:       make(chan struct{}),
		replicating:  make(chan struct{}, mostReplicated),

		unreportedMore: make(chan struct{}, 1),
	}
}

// settlers is how many transactions store outcomes at the same time: more than one,
// so that an outcome that Redis refuses does not hold up all others.
const settlers = 4

// Run consumes until ctx ends. Then it stops reading and stores outcomes for as
// long as events are in flight and a subscriber has them, at most for the drain
// timeout; what is in flight after that stays in the PEL. It returns nil when told
// to stop, and an error only if the queue has ended before or the group belongs to
// somebody else, in which case nothing was read.
func (c *Consumer) Run(ctx context.Context) error {
	producer, err := c.queue.Produce(ctx, "stream/"+c.cfg.Consumer)
	if err != nil {
		return fmt.Errorf("opening the queue: %w", err)
	}
	if err := c.awaitClaim(ctx); err != nil {
		return errors.Join(err, producer.Close())
	}
	// What is in flight is looked after until it has landed, so this outlives ctx.
	settling, stopSettling := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSettling()

	intake, ctx := errgroup.WithContext(ctx)
	intake.Go(func() error { return c.runReader(ctx, producer) })
	intake.Go(func() error { return c.runKeeper(ctx) })
	intake.Go(func() error { return c.runSubscribers(ctx) })

	outflow, settling := errgroup.WithContext(settling)
	outflow.Go(func() error { return c.runPresence(settling) })
	outflow.Go(func() error { return c.runReporter(settling) })
	for range settlers {
		outflow.Go(func() error { return c.runSettler(settling, producer) })
	}

	err = intake.Wait()
	if err == nil {
		c.drain(settling)
	}
	stopSettling()
	err = errors.Join(err, outflow.Wait())
	c.leave(ctx)
	return errors.Join(err, producer.Close())
}

// leave says of what we leave behind that it is not to blame.
func (c *Consumer) leave(ctx context.Context) {
	ids := c.flyingIDs()
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	c.log.InfoContext(ctx, "leaving events for the next consumer", "events", len(ids))
	if err := c.takeBack(ctx, ids); err != nil {
		c.log.WarnContext(ctx, "events that are left behind count as delivered in vain", "err", err)
	}
}

// drain waits until nothing is in flight that could still land.
func (c *Consumer) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DrainTimeout)
	defer cancel()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		n, landed := c.flying()
		stats, err := c.queue.Stats(ctx)
		// Without a subscriber and with every outcome stored, no more will come.
		if n == 0 || err != nil || (stats.Subscribers == 0 && stats.Unsettled == 0) {
			break
		}
		select {
		case <-landed:
		case <-look.C:
		case <-ctx.Done():
		}
	}
}

// flying returns how many events are in flight, and what is closed when one lands.
func (c *Consumer) flying() (int, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.inFlight), c.landed
}

// takeOff puts events in flight, and returns those that were not. They are to be
// reported, also those that were read before: a crash may have come between.
func (c *Consumer) takeOff(flights []*flight) []*flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	off := flights[:0]
	for _, f := range flights {
		if _, flying := c.inFlight[f.event.ID]; !flying {
			c.inFlight[f.event.ID] = f
			off = append(off, f)
		}
	}
	if len(off) > 0 {
		if c.unreported = append(c.unreported, off...); len(c.unreported) > 2*maxInFlight { // the reporter is behind
			c.unreported = slices.DeleteFunc(c.unreported, func(f *flight) bool { return c.inFlight[f.event.ID] != f })
		}
		select {
		case c.unreportedMore <- struct{}{}:
		default: // there is a token already
		}
	}
	return off
}

// look returns an event in flight, or nil.
func (c *Consumer) look(id string) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inFlight[id]
}

// land takes an event out of flight.
func (c *Consumer) land(id string) { c.landAll([]string{id}, 0) }

// landAll is land for many. It returns true if they may have been put back into the
// PEL since restored was as given.
func (c *Consumer) landAll(ids []string, restored int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		delete(c.inFlight, id)
	}
	close(c.landed)
	c.landed = make(chan struct{})
	return c.restored != restored
}

// every calls f now and then once in each period, until ctx ends.
func every(ctx context.Context, period time.Duration, f func()) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for ctx.Err() == nil {
		f()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// requestReplay has the reader read our own pending entries again, before it
// reads new ones.
func (c *Consumer) requestReplay() {
	select {
	case c.replay <- struct{}{}:
		c.reads.interrupt()
	default: // it was asked already
	}
}
