// Package queuetest holds every [queue.Queue] to the words of its contract, and
// has a queue that breaks on command.
package queuetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// patience bounds what must happen; impatience how long we watch that nothing does.
const (
	patience   = 20 * time.Second
	impatience = 30 * time.Millisecond
)

// Run tests a queue. Each call of newQueue returns an empty one without ledger;
// value makes what it carries in the item
// of an ID.
func Run[T any](t *testing.T, newQueue func(t *testing.T) queue.Queue[T], value func(id string) T) {
	t.Helper()
	for name, test := range map[string]func(*fixture[T]){
		"an item goes to a subscriber and its outcome to the producer":         (*fixture[T]).roundTrip,
		"a rejection tells its reason":                                         (*fixture[T]).rejection,
		"offering an ID twice adds nothing":                                    (*fixture[T]).offerTwice,
		"an outcome is told again to who offers the item again":                (*fixture[T]).outcomeAgain,
		"the newest producer hears the outcome":                                (*fixture[T]).newestProducer,
		"an outcome waits for a producer that went away":                       (*fixture[T]).outcomeWaits,
		"items of one key come one at a time and in order":                     (*fixture[T]).keyInOrder,
		"different keys run side by side":                                      (*fixture[T]).keysInParallel,
		"a retried item rests and keeps its key":                               (*fixture[T]).retryKeepsKey,
		"a retry at once comes at once":                                        (*fixture[T]).retryAtOnce,
		"closing a subscription returns its leases to the front of their keys": (*fixture[T]).leasesReturn,
		"returned leases come before everything else, in their order":          (*fixture[T]).leasesReturnFirst,
		"a second verdict on one lease is a lost lease":                        (*fixture[T]).secondVerdict,
		"a closed producer says so":                                            (*fixture[T]).closedProducer,
		"a closed subscription says so":                                        (*fixture[T]).closedSubscription,
		"closing wakes those who wait":                                         (*fixture[T]).closeWakes,
		"a context wakes those who wait":                                       (*fixture[T]).contextWakes,
		"credit is what the subscribers would take":                            (*fixture[T]).credit,
		"a subscriber never holds more leases than its credits":                (*fixture[T]).creditsBound,
		"subscribers share the items":                                          (*fixture[T]).share,
		"an item is settled once its producer says so":                         (*fixture[T]).awaitSettled,
		"an item that nobody knows counts as settled":                          (*fixture[T]).awaitUnknown,
		"settling twice is no error":                                           (*fixture[T]).settleTwice,
		"a settled item may be offered afresh":                                 (*fixture[T]).offerAfterSettle,
		"settling an item that is still open drops it":                         (*fixture[T]).settleOpen,
		"an item that comes back is told what is behind it":                    (*fixture[T]).behind,
		"what an item gives is settled before the next of its key is leased":   (*fixture[T]).gives,
		"an item without ID is refused":                                        (*fixture[T]).noID,
		"a subscription without credits is refused":                            (*fixture[T]).noCredits,
		"statistics count every item once":                                     (*fixture[T]).stats,
		"nothing is lost or swapped among many producers and subscribers":      (*fixture[T]).crowd,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			test(&fixture[T]{T: t, ctx: ctx, queue: newQueue(t), value: value})
		})
	}
}

// fixture is a queue under test, with steps that fail the test when they fail.
type fixture[T any] struct {
	*testing.T
	ctx   context.Context //nolint:containedctx // lives as long as the test
	queue queue.Queue[T]
	value func(id string) T
}

func (f *fixture[T]) must(err error, doing string) {
	f.Helper()
	if err != nil {
		f.Fatalf("%s: %v", doing, err)
	}
}

func (f *fixture[T]) produce() queue.Producer[T] {
	f.Helper()
	p, err := f.queue.Produce(f.ctx, f.Name())
	f.must(err, "producing")
	f.Cleanup(func() {
		if err := p.Close(); err != nil {
			f.Errorf("closing the producer: %v", err)
		}
	})
	return p
}

func (f *fixture[T]) subscribe(credits int) queue.Subscription[T] {
	f.Helper()
	s, err := f.queue.Subscribe(f.ctx, queue.SubscribeOptions{Name: f.Name(), Credits: credits})
	f.must(err, "subscribing")
	f.Cleanup(func() {
		if err := s.Close(); err != nil {
			f.Errorf("closing the subscription: %v", err)
		}
	})
	return s
}

func (f *fixture[T]) item(n int, key string) queue.Item[T] {
	id := fmt.Sprintf("item-%d", n)
	return queue.Item[T]{ID: id, Key: key, Value: f.value(id)}
}

func (f *fixture[T]) offer(p queue.Producer[T], items ...queue.Item[T]) {
	f.Helper()
	for _, item := range items {
		f.must(p.Offer(f.ctx, item), "offering "+item.ID)
	}
}

func (f *fixture[T]) next(s queue.Subscription[T]) queue.Delivery[T] {
	f.Helper()
	d, err := s.Next(f.ctx)
	f.must(err, "waiting for an item")
	return d
}

func (f *fixture[T]) nextIs(s queue.Subscription[T], id string, attempt int) queue.Delivery[T] {
	f.Helper()
	d := f.next(s)
	if d.ID != id || d.Attempt != attempt {
		f.Fatalf("next is %s, attempt %d; want %s, attempt %d", d.ID, d.Attempt, id, attempt)
	}
	return d
}

func (f *fixture[T]) nothingNext(s queue.Subscription[T]) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, impatience)
	defer cancel()
	if d, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		f.Fatalf("next is %s (%v), want nothing", d.ID, err)
	}
}

func (f *fixture[T]) resolve(s queue.Subscription[T], d queue.Delivery[T], v queue.Verdict) {
	f.Helper()
	f.must(s.Resolve(f.ctx, d, v), "resolving "+d.ID)
}

func (f *fixture[T]) outcome(p queue.Producer[T]) queue.Outcome {
	f.Helper()
	o, err := p.Outcome(f.ctx)
	f.must(err, "waiting for an outcome")
	return o
}

func (f *fixture[T]) outcomeIs(p queue.Producer[T], id string) {
	f.Helper()
	if o := f.outcome(p); o.ItemID != id {
		f.Fatalf("the outcome is of %s, want %s", o.ItemID, id)
	}
}

func (f *fixture[T]) noOutcome(p queue.Producer[T]) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, impatience)
	defer cancel()
	if o, err := p.Outcome(ctx); !errors.Is(err, context.DeadlineExceeded) {
		f.Fatalf("there is an outcome of %q (%v), want none", o.ItemID, err)
	}
}

// statsBecome waits for the statistics, because an Offer over the network only
// promises to be on its way.
func (f *fixture[T]) statsBecome(want queue.Stats) {
	f.Helper()
	for {
		got, err := f.queue.Stats(f.ctx)
		if err != nil {
			f.Fatalf("statistics stay away from %+v: %v", want, err)
		}
		got.OldestAge = 0
		if got == want {
			return
		}
		select {
		case <-f.ctx.Done():
			f.Fatalf("statistics are %+v, want %+v", got, want)
		case <-time.After(time.Millisecond):
		}
	}
}

func (f *fixture[T]) wantErr(got, want error, doing string) {
	f.Helper()
	if !errors.Is(got, want) {
		f.Errorf("%s: got %v, want %v", doing, got, want)
	}
}

func (f *fixture[T]) roundTrip() {
	p, s := f.produce(), f.subscribe(1)
	want := queue.Item[T]{ID: "a", Key: "k", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Value: f.value("a")}
	f.offer(p, want)
	d := f.next(s)
	if diff := cmp.Diff(want, d.Item); diff != "" {
		f.Errorf("the item has changed on its way (-offered +delivered):\n%s", diff)
	}
	if d.Attempt != 1 {
		f.Errorf("first lease: attempt = %d, want 1", d.Attempt)
	}
	f.resolve(s, d, queue.Finish("2 workers made", map[string]string{"workers": "w-1,w-2"}))
	wantOutcome := queue.Outcome{
		ItemID: "a", Status: queue.Done, Message: "2 workers made", Attempts: 1,
		Details: map[string]string{"workers": "w-1,w-2"},
	}
	if diff := cmp.Diff(wantOutcome, f.outcome(p)); diff != "" {
		f.Errorf("outcome (-want +got):\n%s", diff)
	}
	f.noOutcome(p)
}

func (f *fixture[T]) rejection() {
	p, s := f.produce(), f.subscribe(1)
	f.offer(p, f.item(1, ""))
	f.resolve(s, f.next(s), queue.Reject("no_pool", "there is no pool x", map[string]string{"pool": "x"}))
	want := queue.Outcome{
		ItemID: "item-1", Status: queue.Rejected, Reason: "no_pool", Message: "there is no pool x", Attempts: 1,
		Details: map[string]string{"pool": "x"},
	}
	if diff := cmp.Diff(want, f.outcome(p)); diff != "" {
		f.Errorf("outcome (-want +got):\n%s", diff)
	}
}

func (f *fixture[T]) offerTwice() {
	p, s := f.produce(), f.subscribe(5)
	f.offer(p, f.item(1, ""), f.item(1, ""))
	d := f.next(s)
	f.offer(p, f.item(1, ""))
	f.nothingNext(s)
	f.resolve(s, d, queue.Finish("", nil))
	f.outcomeIs(p, "item-1")
	f.noOutcome(p)
}

func (f *fixture[T]) outcomeAgain() {
	p, s := f.produce(), f.subscribe(1)
	f.offer(p, f.item(1, ""))
	f.resolve(s, f.next(s), queue.Finish("done", nil))
	first := f.outcome(p)
	f.offer(p, f.item(1, ""))
	if diff := cmp.Diff(first, f.outcome(p)); diff != "" {
		f.Errorf("the outcome has changed (-first +second):\n%s", diff)
	}
	f.nothingNext(s)
}

func (f *fixture[T]) newestProducer() {
	older, newer, s := f.produce(), f.produce(), f.subscribe(1)
	f.offer(older, f.item(1, ""))
	d := f.next(s)
	f.offer(newer, f.item(1, ""), f.item(2, ""))
	f.statsBecome(queue.Stats{Leased: 1, Ready: 1, Subscribers: 1, Producers: 2})
	f.resolve(s, d, queue.Finish("", nil))
	f.outcomeIs(newer, "item-1")
	f.noOutcome(older)
}

func (f *fixture[T]) outcomeWaits() {
	p, s := f.produce(), f.subscribe(1)
	f.offer(p, f.item(1, ""))
	d := f.next(s)
	f.must(p.Close(), "closing the producer")
	f.resolve(s, d, queue.Finish("", nil))
	f.statsBecome(queue.Stats{Unsettled: 1, Credits: 1, Subscribers: 1})
	again := f.produce()
	f.noOutcome(again)
	f.offer(again, f.item(1, ""))
	f.outcomeIs(again, "item-1")
}

func (f *fixture[T]) keyInOrder() {
	p, s := f.produce(), f.subscribe(10)
	const n = 20
	for i := range n {
		f.offer(p, f.item(i, "k"))
	}
	for i := range n {
		d := f.nextIs(s, fmt.Sprintf("item-%d", i), 1)
		if i%5 == 0 {
			f.nothingNext(s)
		}
		f.resolve(s, d, queue.Finish("", nil))
	}
}

func (f *fixture[T]) keysInParallel() {
	p, s := f.produce(), f.subscribe(10)
	f.offer(p, f.item(1, "a"), f.item(2, "a"), f.item(3, "b"), f.item(4, ""), f.item(5, ""))
	for _, id := range []string{"item-1", "item-3", "item-4", "item-5"} {
		f.nextIs(s, id, 1)
	}
	f.nothingNext(s)
}

func (f *fixture[T]) retryKeepsKey() {
	p, s := f.produce(), f.subscribe(10)
	f.offer(p, f.item(1, "k"), f.item(2, "k"), f.item(3, "other"))
	first := f.nextIs(s, "item-1", 1)
	f.nextIs(s, "item-3", 1)
	const rest = 20 * impatience // long enough for a machine that is busy with other things
	f.resolve(s, first, queue.RetryAfter(rest, "not yet"))
	resolved := time.Now()
	f.nothingNext(s)
	second := f.nextIs(s, "item-1", 2)
	if rested := time.Since(resolved); rested < rest/2 {
		f.Errorf("the item rested for %s, want about %s", rested, rest)
	}
	f.resolve(s, second, queue.Finish("", nil))
	f.nextIs(s, "item-2", 1)
	if o := f.outcome(p); o.Attempts != 2 {
		f.Errorf("outcome: attempts = %d, want 2", o.Attempts)
	}
}

func (f *fixture[T]) retryAtOnce() {
	p, s := f.produce(), f.subscribe(1)
	f.offer(p, f.item(1, ""))
	for attempt := 1; attempt <= 3; attempt++ {
		f.resolve(s, f.nextIs(s, "item-1", attempt), queue.RetryAfter(0, ""))
	}
	f.noOutcome(p)
}

func (f *fixture[T]) leasesReturn() {
	p, dying := f.produce(), f.subscribe(10)
	f.offer(p, f.item(1, "k"), f.item(2, "k"))
	d := f.next(dying)
	f.must(dying.Close(), "closing the subscription")
	select {
	case <-d.Lost:
	case <-f.ctx.Done():
		f.Fatal("nobody told the holder that its lease is lost")
	}
	f.wantErr(dying.Resolve(f.ctx, d, queue.Finish("too late", nil)), queue.ErrClosed, "resolving on the closed subscription")
	s := f.subscribe(10)
	f.resolve(s, f.nextIs(s, "item-1", 2), queue.Finish("", nil))
	f.nextIs(s, "item-2", 1)
}

func (f *fixture[T]) leasesReturnFirst() {
	p, dying := f.produce(), f.subscribe(3)
	for i := 1; i <= 5; i++ {
		f.offer(p, f.item(i, ""))
	}
	for range 3 {
		f.next(dying)
	}
	f.must(dying.Close(), "closing the subscription")
	s := f.subscribe(5)
	for i := 1; i <= 5; i++ {
		attempt := 1
		if i <= 3 {
			attempt = 2
		}
		f.nextIs(s, fmt.Sprintf("item-%d", i), attempt)
	}
}

func (f *fixture[T]) secondVerdict() {
	p, s := f.produce(), f.subscribe(2)
	f.offer(p, f.item(1, ""))
	d := f.next(s)
	f.resolve(s, d, queue.Finish("first", nil))
	f.wantErr(s.Resolve(f.ctx, d, queue.Finish("second", nil)), queue.ErrLeaseLost, "second verdict")
	if o := f.outcome(p); o.Message != "first" {
		f.Errorf("outcome: message = %q, want the first verdict's", o.Message)
	}
}

func (f *fixture[T]) closedProducer() {
	p := f.produce()
	f.must(p.Close(), "closing")
	f.must(p.Close(), "closing again")
	_, err := p.Credit(f.ctx)
	f.wantErr(err, queue.ErrClosed, "Credit")
	f.wantErr(p.Offer(f.ctx, f.item(1, "")), queue.ErrClosed, "Offer")
	_, err = p.Outcome(f.ctx)
	f.wantErr(err, queue.ErrClosed, "Outcome")
	f.wantErr(p.Settle(f.ctx, "item-1"), queue.ErrClosed, "Settle")
	f.statsBecome(queue.Stats{})
}

func (f *fixture[T]) closedSubscription() {
	s := f.subscribe(1)
	f.must(s.Close(), "closing")
	f.must(s.Close(), "closing again")
	_, err := s.Next(f.ctx)
	f.wantErr(err, queue.ErrClosed, "Next")
	f.wantErr(s.Resolve(f.ctx, queue.Delivery[T]{Lease: 1}, queue.Finish("", nil)), queue.ErrClosed, "Resolve")
	f.statsBecome(queue.Stats{})
}

func (f *fixture[T]) closeWakes() {
	p, s := f.produce(), f.subscribe(1)
	f.offer(p, f.item(1, "")) // takes the only credit
	f.next(s)
	errs := make(chan error, 3)
	go func() { _, err := p.Outcome(f.ctx); errs <- err }()
	go func() { _, err := s.Next(f.ctx); errs <- err }()
	idle := f.produce()
	f.statsBecome(queue.Stats{Leased: 1, Subscribers: 1, Producers: 2})
	go func() {
		for { // an announcement of the credit before may still be on its way
			if _, err := idle.Credit(f.ctx); err != nil {
				errs <- err
				return
			}
		}
	}()
	pause(impatience)
	f.must(p.Close(), "closing the producer")
	f.must(idle.Close(), "closing the idle producer")
	f.must(s.Close(), "closing the subscription")
	for range 3 {
		f.wantErr(<-errs, queue.ErrClosed, "a waiting call")
	}
}

func (f *fixture[T]) contextWakes() {
	p := f.produce()
	f.offer(p, f.item(1, "k"))
	s := f.subscribe(1)
	f.next(s)
	f.statsBecome(queue.Stats{Leased: 1, Subscribers: 1, Producers: 1})
	pause(impatience) // for the news that there is no credit
	for name, call := range map[string]func(ctx context.Context) error{
		"Credit":       func(ctx context.Context) error { _, err := p.Credit(ctx); return err },
		"Outcome":      func(ctx context.Context) error { _, err := p.Outcome(ctx); return err },
		"Next":         func(ctx context.Context) error { _, err := s.Next(ctx); return err },
		"AwaitSettled": func(ctx context.Context) error { return f.queue.AwaitSettled(ctx, "item-1") },
	} {
		ctx, cancel := context.WithTimeout(f.ctx, impatience)
		f.wantErr(call(ctx), context.DeadlineExceeded, name)
		cancel()
		ctx, cancel = context.WithCancel(f.ctx)
		cancel()
		f.wantErr(call(ctx), context.Canceled, name)
	}
}

func (f *fixture[T]) creditBecomes(p queue.Producer[T], want int) {
	f.Helper()
	for {
		got, err := p.Credit(f.ctx)
		if err != nil {
			f.Fatalf("credit never became %d: %v", want, err)
		}
		if got == want {
			return
		}
		pause(time.Millisecond)
	}
}

func (f *fixture[T]) credit() {
	p := f.produce()
	ctx, cancel := context.WithTimeout(f.ctx, impatience)
	defer cancel()
	if n, err := p.Credit(ctx); !errors.Is(err, context.DeadlineExceeded) {
		f.Errorf("credit without subscribers = %d (%v), want to wait", n, err)
	}
	one := f.subscribe(3)
	f.creditBecomes(p, 3)
	two := f.subscribe(2)
	f.creditBecomes(p, 5)
	f.offer(p, f.item(1, "k"), f.item(2, "k")) // the second is blocked: nobody could take it
	f.creditBecomes(p, 4)
	holder, held := f.nextOfEither(one, two)
	f.resolve(holder, held, queue.RetryAfter(time.Hour, "")) // nor one that rests
	f.creditBecomes(p, 5)
	f.must(p.Settle(f.ctx, "item-1"), "settling") // the second is not blocked any more
	f.creditBecomes(p, 4)
	f.must(one.Close(), "closing one subscription")
	f.creditBecomes(p, 1)
}

// nextOfEither waits for an item that one of two subscriptions gets.
func (f *fixture[T]) nextOfEither(one, two queue.Subscription[T]) (queue.Subscription[T], queue.Delivery[T]) {
	f.Helper()
	for f.ctx.Err() == nil {
		for _, s := range []queue.Subscription[T]{one, two} {
			ctx, cancel := context.WithTimeout(f.ctx, impatience)
			d, err := s.Next(ctx)
			cancel()
			if err == nil {
				return s, d
			}
		}
	}
	f.Fatal("neither gets an item")
	return nil, queue.Delivery[T]{}
}

func (f *fixture[T]) creditsBound() {
	p, s := f.produce(), f.subscribe(2)
	f.offer(p, f.item(1, ""), f.item(2, ""), f.item(3, ""))
	f.nextIs(s, "item-1", 1)
	second := f.nextIs(s, "item-2", 1)
	f.nothingNext(s)
	f.resolve(s, second, queue.Finish("", nil))
	f.nextIs(s, "item-3", 1)
}

func (f *fixture[T]) share() {
	p, one, two := f.produce(), f.subscribe(1), f.subscribe(1)
	f.offer(p, f.item(1, ""), f.item(2, ""))
	got := map[string]bool{f.next(one).ID: true, f.next(two).ID: true}
	if len(got) != 2 {
		f.Errorf("two subscribers hold %v, want both items", got)
	}
}

func (f *fixture[T]) awaitSettled() {
	p, s := f.produce(), f.subscribe(2)
	f.offer(p, f.item(1, ""), f.item(2, ""))
	settled := make(chan error, 1)
	one, two := f.next(s), f.next(s)
	go func() { settled <- f.queue.AwaitSettled(f.ctx, "item-1", "item-2") }()
	waits := func(when string) {
		f.Helper()
		select {
		case err := <-settled:
			f.Fatalf("AwaitSettled returned (%v) %s", err, when)
		case <-time.After(impatience):
		}
	}
	waits("while both items were leased")
	f.resolve(s, one, queue.Finish("", nil))
	f.resolve(s, two, queue.Finish("", nil))
	f.outcome(p)
	f.outcome(p)
	waits("while no outcome was stored")
	f.must(p.Settle(f.ctx, "item-2"), "settling")
	waits("while one outcome was not stored")
	f.must(p.Settle(f.ctx, "item-1"), "settling")
	f.must(<-settled, "awaiting settlement")
	f.must(f.queue.AwaitSettled(f.ctx, "item-1"), "awaiting what is settled")
	f.statsBecome(queue.Stats{Credits: 2, Subscribers: 1, Producers: 1})
}

func (f *fixture[T]) awaitUnknown() {
	f.must(f.queue.AwaitSettled(f.ctx, "never heard of"), "awaiting an unknown item")
	f.must(f.queue.AwaitSettled(f.ctx), "awaiting nothing")
}

func (f *fixture[T]) settleTwice() {
	p, s := f.produce(), f.subscribe(1)
	f.offer(p, f.item(1, ""))
	f.resolve(s, f.next(s), queue.Finish("", nil))
	f.outcome(p)
	for _, id := range []string{"item-1", "item-1", "never heard of"} {
		f.must(p.Settle(f.ctx, id), "settling "+id)
	}
	f.statsBecome(queue.Stats{Credits: 1, Subscribers: 1, Producers: 1})
}

func (f *fixture[T]) offerAfterSettle() {
	p, s := f.produce(), f.subscribe(1)
	for range 2 {
		f.offer(p, f.item(1, ""))
		f.resolve(s, f.nextIs(s, "item-1", 1), queue.Finish("", nil))
		f.outcomeIs(p, "item-1")
		f.must(p.Settle(f.ctx, "item-1"), "settling")
	}
}

func (f *fixture[T]) settleOpen() {
	p, s := f.produce(), f.subscribe(1)
	f.offer(p, f.item(1, "k"), f.item(2, "k"), f.item(3, "k"))
	held := f.nextIs(s, "item-1", 1)
	f.must(p.Settle(f.ctx, "item-2"), "settling a waiting item")
	f.must(p.Settle(f.ctx, "item-1"), "settling a leased item")
	select {
	case <-held.Lost:
	case <-f.ctx.Done():
		f.Fatal("nobody told the holder that its lease is lost")
	}
	f.wantErr(s.Resolve(f.ctx, held, queue.Finish("", nil)), queue.ErrLeaseLost, "verdict on the settled item")
	f.nextIs(s, "item-3", 1)
	f.noOutcome(p)
}

func (f *fixture[T]) behind() {
	p, s := f.produce(), f.subscribe(1)
	waits, between, takes, more := f.item(1, "k"), f.item(2, "k"), f.item(3, "k"), f.item(4, "k")
	takes.Takes = true
	takes.Given = map[string]int{"earlier": 3}
	f.offer(p, waits, between, takes, more)
	first := f.nextIs(s, "item-1", 1)
	f.statsBecome(queue.Stats{Leased: 1, Blocked: 3, Subscribers: 1, Producers: 1})
	if len(first.Behind) > 0 {
		f.Errorf("the first lease tells that %v are behind", first.Behind)
	}
	f.resolve(s, first, queue.RetryAfter(time.Hour, "")) // it is told at once
	second := f.nextIs(s, "item-1", 2)
	if len(second.Behind) != 2 || second.Behind[0].ID != "item-2" || second.Behind[0].Takes || second.Behind[1].ID != "item-3" || !second.Behind[1].Takes {
		f.Fatalf("behind it are %v, want item-2 and item-3, which takes", second.Behind)
	}
	if diff := cmp.Diff(takes.Given, second.Behind[1].Given); diff != "" {
		f.Errorf("what the item behind it was given (-want +got):\n%s", diff)
	}
	f.resolve(s, second, queue.Finish("", nil))
	f.resolve(s, f.nextIs(s, "item-2", 1), queue.Finish("", nil))
	if diff := cmp.Diff(takes, f.nextIs(s, "item-3", 1).Item); diff != "" {
		f.Errorf("the item has changed on its way (-offered +delivered):\n%s", diff)
	}
}

func (f *fixture[T]) gives() {
	p, s := f.produce(), f.subscribe(2)
	f.offer(p, f.item(1, "k"), f.item(2, "k"))
	v := queue.Finish("", nil)
	v.Gives = map[string]int{"item-2": 4}
	f.resolve(s, f.nextIs(s, "item-1", 1), v)
	if diff := cmp.Diff(v.Gives, f.outcome(p).Gives); diff != "" {
		f.Errorf("what is given has changed on its way (-given +told):\n%s", diff)
	}
	f.nothingNext(s)
	f.must(p.Settle(f.ctx, "item-1"), "settling")
	if diff := cmp.Diff(map[string]int{"item-1": 4}, f.nextIs(s, "item-2", 1).Given); diff != "" {
		f.Errorf("what was given (-want +got):\n%s", diff)
	}
}

func (f *fixture[T]) noID() {
	p := f.produce()
	if err := p.Offer(f.ctx, queue.Item[T]{Value: f.value("")}); err == nil {
		f.Error("an item without ID was taken")
	}
	f.offer(p, f.item(1, "")) // the producer is none the worse for it
}

func (f *fixture[T]) noCredits() {
	if _, err := f.queue.Subscribe(f.ctx, queue.SubscribeOptions{Name: "idler"}); err == nil {
		f.Error("a subscription without credits was taken")
	}
}

func (f *fixture[T]) stats() {
	p, s := f.produce(), f.subscribe(3)
	f.offer(p, f.item(1, "a"), f.item(2, "a"), f.item(3, "b"), f.item(4, ""), f.item(5, ""))
	f.nextIs(s, "item-1", 1)
	f.resolve(s, f.nextIs(s, "item-3", 1), queue.RetryAfter(time.Hour, ""))
	f.resolve(s, f.nextIs(s, "item-4", 1), queue.Finish("", nil))
	f.nextIs(s, "item-5", 1)
	f.offer(p, f.item(6, "c"), f.item(7, "c"))
	f.nextIs(s, "item-6", 1)
	f.offer(p, f.item(8, ""))
	f.statsBecome(queue.Stats{Ready: 1, Blocked: 3, Leased: 3, Unsettled: 1, Subscribers: 1, Producers: 1})
	if got, err := f.queue.Stats(f.ctx); err != nil || got.OldestAge <= 0 {
		f.Errorf("oldest age = %s (%v), want more than nothing", got.OldestAge, err)
	}
}

// crowd has subscribers that retry, hang up and finish at will, and checks what
// came of every item.
func (f *fixture[T]) crowd() {
	const producers, items, keys, subscribers = 3, 120, 7, 4
	ctx, stop := context.WithCancel(f.ctx)
	defer stop()
	var mu sync.Mutex
	held := map[string]string{}  // key → the item that holds it
	order := map[string][]int{}  // key → the items in the order in which they ended
	verdicts := map[string]int{} // item → how many ends were accepted
	var crowd sync.WaitGroup
	defer crowd.Wait()
	defer stop()

	handle := func(s queue.Subscription[T], d queue.Delivery[T], n int) {
		mu.Lock()
		if other, ok := held[d.Key]; ok {
			f.Errorf("%s was leased while %s held key %s", d.ID, other, d.Key)
		}
		held[d.Key] = d.ID
		mu.Unlock()
		pause(time.Duration(n%3) * 100 * time.Microsecond)
		v := queue.Finish("", nil)
		if n%5 == 0 && d.Attempt == 1 {
			v = queue.RetryAfter(time.Duration(n%4)*time.Millisecond, "")
		}
		mu.Lock()
		defer mu.Unlock()
		delete(held, d.Key)
		if v.Status == queue.Done {
			var number int
			if _, err := fmt.Sscanf(d.ID, "item-%d", &number); err != nil {
				f.Errorf("reading ID %s: %v", d.ID, err)
			}
			order[d.Key] = append(order[d.Key], number)
			verdicts[d.ID]++
		}
		// The key is ours until the verdict is in: nobody else can be in here.
		if err := s.Resolve(ctx, d, v); err != nil && ctx.Err() == nil {
			f.Errorf("resolving %s: %v", d.ID, err)
		}
	}
	for range subscribers {
		s := f.subscribe(5)
		crowd.Go(func() {
			for n := 0; ; n++ {
				d, err := s.Next(ctx)
				if err != nil {
					return
				}
				handle(s, d, n)
			}
		})
	}
	for n := range producers {
		p := f.produce()
		crowd.Go(func() {
			for i := range items {
				number := i*producers + n
				f.check(p.Offer(ctx, f.item(number, fmt.Sprintf("%d-%d", n, number%keys))), "offering")
			}
			for range items {
				o, err := p.Outcome(ctx)
				if err != nil {
					f.Errorf("waiting for an outcome: %v", err)
					return
				}
				f.check(p.Settle(ctx, o.ItemID), "settling")
			}
			f.check(p.Close(), "closing")
		})
	}
	f.statsBecome(queue.Stats{Credits: subscribers * 5, Subscribers: subscribers})

	mu.Lock()
	defer mu.Unlock()
	if len(verdicts) != producers*items {
		f.Errorf("%d items ended, want %d", len(verdicts), producers*items)
	}
	for id, n := range verdicts {
		if n != 1 {
			f.Errorf("%s ended %d times", id, n)
		}
	}
	for key, numbers := range order {
		for i := 1; i < len(numbers); i++ {
			if numbers[i] < numbers[i-1] {
				f.Errorf("key %s: item %d ended after item %d", key, numbers[i-1], numbers[i])
			}
		}
	}
}

// pause lets others do what they would. It is no retry: only package backoff
// waits before one.
func pause(d time.Duration) { <-time.After(d) }

// check is must for goroutines of a test, which may not end it.
func (f *fixture[T]) check(err error, doing string) {
	f.Helper()
	if err != nil {
		f.Errorf("%s: %v", doing, err)
	}
}
