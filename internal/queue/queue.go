// Package queue joins the containers of the main pod. It leases each item to one
// subscriber at a time and hands the outcome back to whoever offered the item.
//
// It promises at-least-once delivery for as long as its process lives, and keeps
// nothing on disk: after a crash, producers offer again what they still know to
// be open. Redis' pending entries list is the truth for scale events, Kubernetes
// is the truth for workers.
package queue

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrLeaseLost says that a lease ended before its verdict came. The caller
	// must drop its result: someone else has the item.
	ErrLeaseLost = errors.New("lease lost")

	// ErrClosed says that a producer or subscription has ended, by its own Close
	// or because the way to the queue broke. The caller opens a new one.
	ErrClosed = errors.New("queue connection closed")
)

// A Queue leases items to one subscriber at a time, at least once.
//
// Both implementations, [Memory] and the client of package queuerpc, obey the
// words here; package queuetest holds them to it. All methods may be called
// concurrently.
type Queue[T any] interface {
	// Produce opens the producing side. The name appears in logs and metrics.
	Produce(ctx context.Context, name string) (Producer[T], error)

	// Subscribe opens the leasing side.
	Subscribe(ctx context.Context, opts SubscribeOptions) (Subscription[T], error)

	// AwaitSettled blocks until none of the items can be delivered again: each was
	// settled by its producer. It returns nil at once for items that were settled
	// earlier, also by an earlier process, as far as the producer's own record
	// tells (see [WithLedger]); an item that nobody knows counts as settled.
	AwaitSettled(ctx context.Context, ids ...string) error

	// Stats returns a snapshot.
	Stats(ctx context.Context) (Stats, error)
}

// A Producer offers items and hears what became of them.
//
// All methods return [ErrClosed] once the producer has ended. Nothing that it
// offered is taken back then; a new producer that offers the same IDs receives
// their outcomes.
type Producer[T any] interface {
	// Credit blocks until the subscribers would take at least one more item, and
	// returns how many. It is advice: an Offer beyond it waits in the queue.
	Credit(ctx context.Context) (int, error)

	// Offer adds items, in their order. Offering an ID that is already here adds
	// nothing and is no error, so a caller whose answer was lost may ask again; the
	// outcome goes to the newest producer that offered the ID. If the item has ended
	// and is not settled yet, its outcome is delivered again. After an error, nobody
	// knows which of several were added.
	Offer(ctx context.Context, items ...Item[T]) error

	// Outcome blocks until one of the offered items has ended. Each outcome is
	// returned once.
	Outcome(ctx context.Context) (Outcome, error)

	// Outcomes is Outcome for a caller that handles several together: it blocks as
	// that does, and returns what has ended by then, at most so many.
	Outcomes(ctx context.Context, most int) ([]Outcome, error)

	// Settle says that outcomes are stored where they cannot be lost. The queue
	// then forgets the items. Settling twice is no error.
	Settle(ctx context.Context, ids ...string) error

	// Close ends the producer. Closing twice is no error.
	Close() error
}

// A Subscription leases items.
//
// All methods return [ErrClosed] once the subscription has ended; its leases have
// then returned to the queue.
type Subscription[T any] interface {
	// Next blocks until an item is leased to the caller. It never exceeds the
	// credits of the subscription.
	Next(ctx context.Context) (Delivery[T], error)

	// Deliveries is Next for a caller that takes several together: it blocks as that
	// does, and returns what can be leased by then, at most so many.
	Deliveries(ctx context.Context, most int) ([]Delivery[T], error)

	// Resolve ends a lease with a verdict. It returns [ErrLeaseLost] when the
	// lease had ended before; a second verdict on one lease is such a case.
	Resolve(ctx context.Context, d Delivery[T], v Verdict) error

	// Close ends the subscription and returns its leases to the queue at once.
	// Closing twice is no error.
	Close() error
}

// SubscribeOptions say who subscribes and how much it takes.
type SubscribeOptions struct {
	// Name appears in logs and metrics.
	Name string
	// Credits is how many leases the subscriber holds at once; at least 1.
	Credits int
	// LeaseDuration is how long a lease outlives the subscriber's last sign of
	// life. Zero means [DefaultLeaseDuration]. Implementations send these signs
	// by themselves while the subscription is open.
	LeaseDuration time.Duration
	// DrainTimeout is how long [Serve] lets handlers finish once it was told to
	// stop. Zero means [DefaultDrainTimeout]. Subscribe ignores it.
	DrainTimeout time.Duration
	// Watched says that the caller passes on the signs of life of someone else,
	// as a server does. Subscribe then returns a [WatchedSubscription]; only
	// [Memory] can.
	Watched bool
}

// A WatchedSubscription loses its leases when Heartbeat stays out.
type WatchedSubscription[T any] interface {
	Subscription[T]

	// Heartbeat is a sign of life: every lease lasts for the lease duration from
	// now on. While it stays out for longer than that, nothing is leased.
	Heartbeat()

	// Break is Close for a subscriber that has gone without closing, which is
	// worth a warning.
	Break(cause error)

	// Losses blocks until leases have ended without a verdict, and returns each
	// once.
	Losses(ctx context.Context) ([]uint64, error)

	// ResolveAll is Resolve for many leases. It leaves out those that are lost, of
	// which Losses tells.
	ResolveAll(ctx context.Context, resolutions []Resolution) error
}

// A Resolution is the verdict on a lease.
type Resolution struct {
	// Lease as in [Delivery].
	Lease uint64
	// Verdict that ends it.
	Verdict Verdict
}

// A CreditWatcher is a [Producer] that also tells when credit shrinks. Those of
// [Memory] are.
type CreditWatcher interface {
	// AwaitCredit blocks until the credit is another than the one given, and
	// returns it. A negative one asks for the credit now.
	AwaitCredit(ctx context.Context, other int) (int, error)
}

// DefaultLeaseDuration is how long a lease lasts without a sign of life. It only
// matters for a subscriber that hangs with its connection open: a broken
// connection returns its leases at once.
const DefaultLeaseDuration = 30 * time.Second

// DefaultDrainTimeout is shorter than the 30 seconds that Kubernetes gives a pod.
const DefaultDrainTimeout = 20 * time.Second

// Item is one unit of work.
type Item[T any] struct {
	// ID identifies the item within its queue. Required.
	ID string
	// Key is the ordering key: items with the same key are leased one at a time,
	// in the order of their offers. Empty means no order.
	Key string
	// Traceparent is the W3C trace context of the item, or empty.
	Traceparent string
	// Takes says that this item may take from what those before it in its key have not
	// done yet: see [Delivery.Behind]. The order stays.
	Takes bool
	// Given is what earlier items of the key have left to this one, by their IDs. The
	// producer offers what its record tells, and the queue adds what has been settled
	// since; see [Verdict.Gives].
	Given map[string]int
	// Value is what the queue carries. What it points to stays as it is once the item was
	// offered: producer and subscriber may share it.
	Value T
}

// Delivery is an item on lease.
type Delivery[T any] struct {
	Item[T]
	// Lease identifies the lease within its subscription.
	Lease uint64
	// Attempt is 1 for the first lease of the item and grows by one with each.
	Attempt int
	// Behind are the items behind this one in its key, in their order, up to the last
	// one that takes; none if none does. They are told from the second lease on: whoever
	// cannot carry the item out now, and finds that they take all that is left of it,
	// should end it with what is done and say so in [Verdict.Gives]. A rest before a
	// retry ends when another one comes that takes. Of their values, as much is there as
	// that judgement needs.
	Behind []Item[T]
	// Lost is closed when the lease ends without a verdict.
	Lost <-chan struct{}
}

// Worker is what the workers queue carries: a worker pod whose logs are to be
// followed. The item's ID is the pod's UID.
type Worker struct {
	// Namespace and Name of the pod.
	Namespace, Name string
	// TaskID is the task that the worker belongs to.
	TaskID string
	// Pool is the worker template that it was made from.
	Pool string
	// EventID is the scale event that created it.
	EventID string
}

// Stats is a snapshot of one queue.
type Stats struct {
	// Ready items could be leased now.
	Ready int
	// Blocked items wait behind another of their ordering key, or rest before a retry.
	Blocked int
	// Leased items are held by a subscriber.
	Leased int
	// Unsettled items have an outcome that their producer has not stored yet.
	Unsettled int
	// Credits is how many more items the subscribers would take now.
	Credits int
	// Subscribers and Producers are the open ones.
	Subscribers, Producers int
	// OldestAge is how long the oldest item without an outcome has been here.
	OldestAge time.Duration
}
