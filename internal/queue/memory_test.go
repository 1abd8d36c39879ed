package queue_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryObeysTheContract(t *testing.T) {
	queuetest.Run(t,
		func(*testing.T) queue.Queue[string] { return queue.NewMemory[string]() },
		func(id string) string { return "value of " + id })
}

// The same, through a queue that could break but does not.
func TestFaultyQueueObeysTheContractUntilItBreaks(t *testing.T) {
	queuetest.Run(t,
		func(*testing.T) queue.Queue[string] { return queuetest.NewFaulty(queue.NewMemory[string]()) },
		func(id string) string { return "value of " + id })
}

func offer(t *testing.T, p queue.Producer[string], id, key string) {
	t.Helper()
	if err := p.Offer(t.Context(), queue.Item[string]{ID: id, Key: key}); err != nil {
		t.Fatalf("offering %s: %v", id, err)
	}
}

func produce(t *testing.T, q queue.Queue[string]) queue.Producer[string] {
	t.Helper()
	p, err := q.Produce(t.Context(), "test")
	if err != nil {
		t.Fatalf("producing: %v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func next(t *testing.T, s queue.Subscription[string]) queue.Delivery[string] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	d, err := s.Next(ctx)
	if err != nil {
		t.Fatalf("waiting for an item: %v", err)
	}
	return d
}

func watch(t *testing.T, q queue.Queue[string], credits int, lease time.Duration) queue.WatchedSubscription[string] {
	t.Helper()
	s, err := q.Subscribe(t.Context(), queue.SubscribeOptions{Name: "test", Credits: credits, LeaseDuration: lease, Watched: true})
	if err != nil {
		t.Fatalf("subscribing: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.(queue.WatchedSubscription[string])
}

func isLost(d queue.Delivery[string]) bool {
	select {
	case <-d.Lost:
		return true
	default:
		return false
	}
}

func TestLeaseOfASilentSubscriberIsGivenToAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p, silent := produce(t, q), watch(t, q, 2, time.Minute)
		offer(t, p, "a", "k")
		offer(t, p, "b", "k")
		first := next(t, silent)
		other := watch(t, q, 2, time.Hour)

		time.Sleep(time.Minute - time.Millisecond)
		synctest.Wait()
		if isLost(first) {
			t.Error("the lease was lost before its time")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !isLost(first) {
			t.Error("the lease outlived its time")
		}
		losses, err := silent.Losses(t.Context())
		if err != nil || !slices.Equal(losses, []uint64{first.Lease}) {
			t.Errorf("losses = %v (%v), want %d", losses, err, first.Lease)
		}
		if err := silent.Resolve(t.Context(), first, queue.Finish("", nil)); !errors.Is(err, queue.ErrLeaseLost) {
			t.Errorf("verdict on the lost lease: got %v, want ErrLeaseLost", err)
		}
		if d := next(t, other); d.ID != "a" || d.Attempt != 2 {
			t.Errorf("next is %s, attempt %d; want a, attempt 2", d.ID, d.Attempt)
		}
	})
}

func TestHeartbeatKeepsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p, s := produce(t, q), watch(t, q, 2, time.Minute)
		offer(t, p, "a", "")
		d := next(t, s)
		for range 100 {
			time.Sleep(59 * time.Second)
			s.Heartbeat()
		}
		if isLost(d) {
			t.Error("the lease was lost in spite of heartbeats")
		}
	})
}

func TestLeaseLastsItsTimeAlsoWhenTheLastHeartbeatWasLongAgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p, s := produce(t, q), watch(t, q, 2, time.Minute)
		time.Sleep(40 * time.Second)
		offer(t, p, "a", "")
		d := next(t, s)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if isLost(d) {
			t.Error("the lease was lost before its time")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !isLost(d) {
			t.Error("the lease outlived its time")
		}
	})
}

func TestSilentSubscriberGetsNothingUntilItSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p, s := produce(t, q), watch(t, q, 2, time.Minute)
		time.Sleep(2 * time.Minute)
		offer(t, p, "a", "")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if d, err := s.Next(ctx); err == nil {
			t.Fatalf("%s was leased to a subscriber that is silent", d.ID)
		}
		s.Heartbeat()
		d := next(t, s)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if isLost(d) {
			t.Error("the lease was lost before its time")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !isLost(d) {
			t.Error("the second silence cost no lease")
		}
	})
}

func TestOldestAgeCountsFromTheFirstOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		offer(t, p, "a", "")
		time.Sleep(time.Minute)
		offer(t, p, "b", "")
		offer(t, p, "a", "")
		time.Sleep(time.Minute)
		stats, err := q.Stats(t.Context())
		if err != nil || stats.OldestAge != 2*time.Minute {
			t.Errorf("oldest age = %s (%v), want 2m", stats.OldestAge, err)
		}
	})
}

func TestAwaitSettledAsksTheLedgerAboutItemsOfAnEarlierProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled sync.Map
		settled.Store("earlier", true)
		q := queue.NewMemory[string](queue.WithLedger(func(_ context.Context, id string) (bool, error) {
			_, ok := settled.Load(id)
			return ok, nil
		}))
		if err := q.AwaitSettled(t.Context(), "earlier"); err != nil {
			t.Errorf("awaiting what the ledger calls settled: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := q.AwaitSettled(ctx, "open"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("awaiting what the ledger calls open: got %v, want to wait", err)
		}
		// The ledger is asked again, because the item might be settled elsewhere.
		done := make(chan error, 1)
		go func() { done <- q.AwaitSettled(t.Context(), "open") }()
		time.Sleep(time.Minute)
		synctest.Wait()
		settled.Store("open", true)
		if err := <-done; err != nil {
			t.Errorf("awaiting what was settled meanwhile: %v", err)
		}
	})
}

func TestAwaitSettledReturnsWithTheSettleOfAnItemThatCameLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string](queue.WithLedger(func(context.Context, string) (bool, error) { return false, nil }))
		p, s := produce(t, q), watch(t, q, 1, 24*time.Hour)
		done := make(chan error, 1)
		go func() { done <- q.AwaitSettled(t.Context(), "a") }()
		time.Sleep(time.Hour)
		offer(t, p, "a", "")
		if err := s.Resolve(t.Context(), next(t, s), queue.Finish("", nil)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := p.Settle(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("awaiting: %v", err)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("AwaitSettled returned %s after the Settle, want at once", waited)
		}
	})
}

// Whoever has the item next needs the traces that are kept until its settlement.
func TestAnItemThatIsLeftToSomebodyElseIsNotSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled atomic.Bool
		q := queue.NewMemory[string](queue.WithLedger(func(context.Context, string) (bool, error) { return settled.Load(), nil }))
		offer(t, produce(t, q), "a", "")
		told := make(chan error, 1)
		go func() { told <- q.AwaitSettled(t.Context(), "a") }()
		synctest.Wait()
		q.Forget("a")
		time.Sleep(time.Minute)
		select {
		case err := <-told:
			t.Fatalf("AwaitSettled() = %v before somebody else has settled the item", err)
		default:
		}
		settled.Store(true)
		if err := <-told; err != nil {
			t.Errorf("AwaitSettled() = %v", err)
		}
	})
}

func TestAwaitSettledSaysThatTheLedgerCannotBeRead(t *testing.T) {
	broken := errors.New("no route to Redis")
	q := queue.NewMemory[string](queue.WithLedger(func(context.Context, string) (bool, error) { return false, broken }))
	if err := q.AwaitSettled(t.Context(), "a"); !errors.Is(err, broken) {
		t.Errorf("got %v, want the ledger's error", err)
	}
}

// A producer stores the outcome, then dies before it says so. Nobody will offer
// the item again, so only the ledger knows.
func TestItemWhoseProducerDiedBeforeTheSettleIsForgottenWhenTheLedgerSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := false
		q := queue.NewMemory[string](queue.WithLedger(func(context.Context, string) (bool, error) { return stored, nil }))
		p, s := produce(t, q), watch(t, q, 1, 24*time.Hour)
		offer(t, p, "a", "")
		if err := s.Resolve(t.Context(), next(t, s), queue.Finish("", nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Outcome(t.Context()); err != nil {
			t.Fatal(err)
		}
		stored = true
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if err := q.AwaitSettled(t.Context(), "a"); err != nil {
			t.Errorf("awaiting: %v", err)
		}
		if stats, err := q.Stats(t.Context()); err != nil || stats.Unsettled != 0 {
			t.Errorf("unsettled = %d (%v), want 0", stats.Unsettled, err)
		}
	})
}

func TestAwaitCreditTellsWhenCreditShrinks(t *testing.T) {
	q := queue.NewMemory[string]()
	p, s := produce(t, q), watch(t, q, 2, time.Minute)
	watcher := p.(queue.CreditWatcher)
	step := func(other, want int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if got, err := watcher.AwaitCredit(ctx, other); err != nil || got != want {
			t.Fatalf("credit = %d (%v), want %d", got, err, want)
		}
	}
	step(-1, 2)
	offer(t, p, "a", "")
	step(2, 1)
	offer(t, p, "b", "")
	offer(t, p, "c", "")
	step(1, 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	step(-1, 0)
}

func TestAStuckKeyKeepsNobodyElseOutAndHasABound(t *testing.T) {
	q := queue.NewMemory[string]()
	p, s := produce(t, q), watch(t, q, 2, time.Hour)
	stuck := 0
	offerStuck := func() { stuck++; offer(t, p, fmt.Sprint("stuck-", stuck), "key") }
	offerStuck()
	if d := next(t, s); d.ID != "stuck-1" {
		t.Fatalf("first lease: %s, want stuck-1", d.ID)
	}
	for stuck < 31 { // 16 times the two credits, less one
		offerStuck()
	}
	if n, err := p.Credit(t.Context()); err != nil || n != 1 {
		t.Errorf("credit beside 30 blocked items = %d (%v), want 1", n, err)
	}
	offerStuck()
	if stats, err := q.Stats(t.Context()); err != nil || stats.Credits != 0 {
		t.Errorf("credit beside 31 blocked items = %d (%v), want 0", stats.Credits, err)
	}
	offer(t, p, "other", "")
	if d := next(t, s); d.ID != "other" {
		t.Errorf("second lease: %s, want other", d.ID)
	}
}

func TestMetricsTellTheQueuesState(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	q := queue.NewMemory[string](queue.WithMetrics(reg, "events"))
	queue.NewMemory[string](queue.WithMetrics(reg, "workers")) // beside it, in the same registry
	p, s := produce(t, q), watch(t, q, 3, time.Hour)
	for _, id := range []string{"a", "b", "c", "d"} {
		offer(t, p, id, "")
	}
	for _, v := range []queue.Verdict{queue.Finish("", nil), queue.Reject("bad", "", nil), queue.RetryAfter(time.Hour, "")} {
		if err := s.Resolve(t.Context(), next(t, s), v); err != nil {
			t.Fatal(err)
		}
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name, topic := family.GetName(), ""
			for _, label := range m.GetLabel() {
				if label.GetName() == "topic" {
					topic = label.GetValue()
				} else {
					name += "/" + label.GetValue()
				}
			}
			if topic == "events" && m.GetHistogram() == nil {
				got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	delete(got, "ottoscaler_queue_oldest_item_age_seconds")
	if len(problems) == 0 && got["ottoscaler_queue_oldest_lease_age_seconds"] != 0 {
		t.Error("it has the age of a lease that has ended")
	}
	delete(got, "ottoscaler_queue_oldest_lease_age_seconds")
	want := map[string]float64{
		"ottoscaler_queue_connections/producer":    1,
		"ottoscaler_queue_connections/subscriber":  1,
		"ottoscaler_queue_credit_items":            2,
		"ottoscaler_queue_items/blocked":           1,
		"ottoscaler_queue_items/leased":            0,
		"ottoscaler_queue_items/ready":             1,
		"ottoscaler_queue_items/unsettled":         2,
		"ottoscaler_queue_leases_lost_total":       0,
		"ottoscaler_queue_leases_total":            3,
		"ottoscaler_queue_redeliveries_total":      0,
		"ottoscaler_queue_offers_total":            4,
		"ottoscaler_queue_settled_total":           0,
		"ottoscaler_queue_verdicts_total/done":     1,
		"ottoscaler_queue_verdicts_total/rejected": 1,
		"ottoscaler_queue_verdicts_total/retry":    1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// Whatever producers and subscribers do: items of one key are leased one at a
// time and end in the order of their offers, attempts grow by one, credit is what the
// state says, and every item that was offered ends once, or once more after a restart
// that came before it was settled. What an item gives is settled before the next of
// its key is leased, and is not lost by a restart.
func TestNoSequenceOfCallsBreaksOrderOrLosesAnItem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{q: queue.NewMemory[string](), ended: map[string]bool{}, settled: map[string]bool{}, attempts: map[string]int{}, order: map[string][]string{}, gives: map[string]map[string]int{}, given: map[string]map[string]int{}, resting: map[string]bool{}}
		m.reopen(t)
		m.resubscribe(t)
		defer func() { _ = m.producer.Close(); _ = m.sub.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"offer":        m.offer,
			"offer again":  m.offerAgain,
			"lease":        m.lease,
			"resolve":      m.resolve,
			"hear":         m.hear,
			"new producer": m.reopen,
			"subscription": m.resubscribe,
			"restart":      m.restart,
			"":             m.check,
		})
		m.drain(t)
	})
}

type model struct {
	q        *queue.Memory[string]
	producer queue.Producer[string]
	sub      queue.Subscription[string]
	offered  []queue.Item[string]
	leases   []queue.Delivery[string]
	attempts map[string]int
	order    map[string][]string // key → items without end, in the order of their offers
	ended    map[string]bool
	settled  map[string]bool
	gives    map[string]map[string]int // by items that have ended and are not settled
	given    map[string]map[string]int // the producer's record: to items, by those that are settled
	resting  map[string]bool           // keys whose first item rests
}

func (m *model) offer(t *rapid.T) {
	key := rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "key")
	m.add(t, key, rapid.Bool().Draw(t, "takes"))
}

func (m *model) add(t *rapid.T, key string, takes bool) {
	item := queue.Item[string]{ID: fmt.Sprintf("%s%d", key, len(m.offered)), Key: key, Takes: takes}
	if err := m.producer.Offer(context.Background(), item); err != nil {
		t.Fatalf("offering: %v", err)
	}
	m.offered = append(m.offered, item)
	m.order[key] = append(m.order[key], item.ID)
	if takes {
		delete(m.resting, key)
	}
}

func (m *model) offerAgain(t *rapid.T) {
	if len(m.offered) == 0 {
		t.Skip("nothing was offered")
	}
	item := rapid.SampledFrom(m.offered).Draw(t, "item")
	if stats, _ := m.q.Stats(context.Background()); m.ended[item.ID] && stats.Unsettled == 0 {
		t.Skip("it would be a new item")
	}
	if m.ended[item.ID] {
		t.Skip("it may be settled")
	}
	if err := m.producer.Offer(context.Background(), item); err != nil {
		t.Fatalf("offering again: %v", err)
	}
}

const modelCredits = 4

func (m *model) lease(t *rapid.T) {
	stats, _ := m.q.Stats(context.Background())
	if stats.Ready == 0 || len(m.leases) == modelCredits {
		t.Skip("nothing to lease, or no credit")
	}
	m.take(t)
}

func (m *model) take(t *rapid.T) {
	d, err := m.sub.Next(context.Background())
	if err != nil {
		t.Fatalf("leasing: %v", err)
	}
	m.attempts[d.ID]++
	if d.Attempt != m.attempts[d.ID] {
		t.Fatalf("%s: attempt = %d, want %d", d.ID, d.Attempt, m.attempts[d.ID])
	}
	if d.Key != "" && m.order[d.Key][0] != d.ID {
		t.Fatalf("%s was leased before %s", d.ID, m.order[d.Key][0])
	}
	for id := range m.gives {
		if d.Key != "" && m.find(id).Key == d.Key {
			t.Fatalf("%s was leased before it was settled what %s gives", d.ID, id)
		}
	}
	if !maps.Equal(d.Given, m.given[d.ID]) {
		t.Fatalf("%s was given %v, want %v", d.ID, d.Given, m.given[d.ID])
	}
	m.checkBehind(t, d)
	for _, other := range m.leases {
		if d.ID == other.ID || d.Key != "" && d.Key == other.Key {
			t.Fatalf("%s was leased beside %s", d.ID, other.ID)
		}
	}
	m.leases = append(m.leases, d)
}

func (m *model) find(id string) queue.Item[string] {
	return m.offered[slices.IndexFunc(m.offered, func(item queue.Item[string]) bool { return item.ID == id })]
}

// checkBehind checks what a delivery tells of those behind it.
func (m *model) checkBehind(t *rapid.T, d queue.Delivery[string]) {
	var want []string
	n := 0
	if d.Key != "" && d.Attempt > 1 {
		for _, id := range m.order[d.Key][1:] {
			want = append(want, id)
			if m.find(id).Takes {
				n = len(want)
			}
		}
	}
	if !slices.Equal(idsOf(d.Behind), want[:n]) {
		t.Fatalf("behind %s are %v, want %v", d.ID, idsOf(d.Behind), want[:n])
	}
	for _, item := range d.Behind {
		if !maps.Equal(item.Given, m.given[item.ID]) {
			t.Fatalf("%s behind %s was given %v, want %v", item.ID, d.ID, item.Given, m.given[item.ID])
		}
	}
}

func (m *model) resolve(t *rapid.T) {
	if len(m.leases) == 0 {
		t.Skip("nothing is leased")
	}
	i := rapid.IntRange(0, len(m.leases)-1).Draw(t, "lease")
	v := rapid.SampledFrom([]queue.Verdict{queue.Finish("", nil), queue.Reject("bad", "", nil), queue.RetryAfter(0, "")}).Draw(t, "verdict")
	if v.Status == 0 && m.leases[i].Key != "" && rapid.Bool().Draw(t, "rests") {
		v.After = time.Hour
	}
	if v.Status == queue.Done && m.leases[i].Key != "" && rapid.Bool().Draw(t, "gives") {
		if behind := m.order[m.leases[i].Key][1:]; len(behind) > 0 {
			v.Gives = map[string]int{rapid.SampledFrom(behind).Draw(t, "to"): rapid.IntRange(1, 3).Draw(t, "how much")}
		}
	}
	m.decide(t, i, v)
}

func (m *model) decide(t *rapid.T, i int, v queue.Verdict) {
	d := m.leases[i]
	if err := m.sub.Resolve(context.Background(), d, v); err != nil {
		t.Fatalf("resolving %s: %v", d.ID, err)
	}
	m.leases = slices.Delete(m.leases, i, i+1)
	if v.Status != 0 {
		m.ended[d.ID] = true
		m.order[d.Key] = slices.DeleteFunc(m.order[d.Key], func(id string) bool { return id == d.ID })
		if len(v.Gives) > 0 {
			m.gives[d.ID] = v.Gives
		}
	}
	if v.After > 0 { // and it has been told of all that take
		told := idsOf(d.Behind)
		m.resting[d.Key] = !slices.ContainsFunc(m.order[d.Key][1:], func(id string) bool { return m.find(id).Takes && !slices.Contains(told, id) })
	}
}

// hear settles one outcome, if the producer has one.
func (m *model) hear(t *rapid.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Microsecond)
	defer cancel()
	o, err := m.producer.Outcome(ctx)
	if err != nil {
		return
	}
	if !m.ended[o.ItemID] || o.Attempts != m.attempts[o.ItemID] {
		t.Fatalf("outcome %+v of an item with %d attempts that ended: %t", o, m.attempts[o.ItemID], m.ended[o.ItemID])
	}
	if !maps.Equal(o.Gives, m.gives[o.ItemID]) {
		t.Fatalf("outcome %+v, which should give %v", o, m.gives[o.ItemID])
	}
	for to, n := range o.Gives {
		if m.given[to] == nil {
			m.given[to] = map[string]int{}
		}
		m.given[to][o.ItemID] = n
	}
	delete(m.gives, o.ItemID)
	if err := m.producer.Settle(context.Background(), o.ItemID); err != nil {
		t.Fatalf("settling: %v", err)
	}
	m.settled[o.ItemID] = true
}

// reopen replaces the producer by one that offers again all that is open.
func (m *model) reopen(t *rapid.T) {
	if m.producer != nil {
		if err := m.producer.Close(); err != nil {
			t.Fatalf("closing: %v", err)
		}
	}
	var err error
	if m.producer, err = m.q.Produce(context.Background(), "model"); err != nil {
		t.Fatalf("producing: %v", err)
	}
	for _, item := range m.offered {
		if m.ended[item.ID] {
			continue // its outcome waits: drain offers it again
		}
		item.Given = maps.Clone(m.given[item.ID])
		if err := m.producer.Offer(context.Background(), item); err != nil {
			t.Fatalf("offering again: %v", err)
		}
	}
}

// restart is the end of the queue's process. The producer's record has all that was
// not settled, in the order of its offers.
func (m *model) restart(t *rapid.T) {
	m.q, m.producer, m.sub, m.leases = queue.NewMemory[string](), nil, nil, nil
	m.attempts, m.order, m.ended = map[string]int{}, map[string][]string{}, map[string]bool{}
	m.gives, m.resting = map[string]map[string]int{}, map[string]bool{}
	for id := range m.settled {
		m.ended[id] = true
	}
	for _, item := range m.offered {
		if !m.settled[item.ID] {
			m.order[item.Key] = append(m.order[item.Key], item.ID)
		}
	}
	m.reopen(t)
	m.resubscribe(t)
}

func (m *model) resubscribe(t *rapid.T) {
	if m.sub != nil {
		if err := m.sub.Close(); err != nil {
			t.Fatalf("closing: %v", err)
		}
		m.leases = nil
	}
	var err error
	if m.sub, err = m.q.Subscribe(context.Background(), queue.SubscribeOptions{Name: "model", Credits: modelCredits}); err != nil {
		t.Fatalf("subscribing: %v", err)
	}
}

func (m *model) check(t *rapid.T) {
	got, err := m.q.Stats(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	open := len(m.offered) - len(m.ended)
	if got.Leased != len(m.leases) || got.Ready+got.Blocked+got.Leased != open || got.Unsettled != len(m.ended)-len(m.settled) ||
		got.Credits != max(0, min(modelCredits-got.Ready-got.Leased, 16*modelCredits-open)) {
		t.Fatalf("statistics are %+v with %d open, %d leased, %d unsettled", got, open, len(m.leases), len(m.ended)-len(m.settled))
	}
	if want := m.ready(); got.Ready != want {
		t.Fatalf("%d are ready, want %d", got.Ready, want)
	}
}

// ready returns how many items could be leased.
func (m *model) ready() int {
	n := len(m.order[""]) // those without a key
	held := map[string]bool{}
	for id := range m.gives {
		held[m.find(id).Key] = true
	}
	for key, ids := range m.order {
		if key != "" && len(ids) > 0 && !held[key] && !m.resting[key] {
			n++
		}
	}
	return n - len(m.leases)
}

// drain brings everything to its end.
func (m *model) drain(t *rapid.T) {
	for len(m.ended) < len(m.offered) {
		if stats, _ := m.q.Stats(context.Background()); stats.Ready > 0 && len(m.leases) < modelCredits {
			m.take(t)
		} else if len(m.leases) > 0 {
			m.decide(t, 0, queue.Finish("", nil))
		} else if len(m.gives) > 0 {
			for id := range m.gives {
				if err := m.producer.Offer(context.Background(), m.find(id)); err != nil {
					t.Fatalf("offering again: %v", err)
				}
			}
			m.hear(t)
		} else if key := m.rests(); key != "" {
			m.add(t, key, true)
		} else {
			t.Fatalf("%d items of %d ended, and nothing can be leased: %+v", len(m.ended), len(m.offered), stats)
		}
		m.check(t)
	}
}

// rests returns a key whose first item rests, or "".
func (m *model) rests() string {
	for key, rests := range m.resting {
		if rests {
			return key
		}
	}
	return ""
}
