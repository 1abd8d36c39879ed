package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/stream"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func TestAnEventIsAcknowledgedTogetherWithItsResult(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	h := m.subscribe(4)
	id := w.send("type", "scale_up", "job_id", "build-7", "count", "2", "branch", "main")

	d := h.await(1)[0]
	if d.ID != id || d.Key != "default/build-7" || *d.Value.PodCount != 2 || d.Value.Metadata["branch"] != "main" {
		t.Errorf("delivered %+v", d.Item)
	}
	if got := w.pendingCount(); got != 1 {
		t.Errorf("pending while in work = %d, want 1", got)
	}
	eventually(t, "word that it is in work", func() bool { return len(w.read(results)) == 1 && w.read(results)[0]["status"] == "accepted" })
	h.resolve(d, queue.Finish("made 2 workers", map[string]string{"workers": "w-1,w-2"}))
	eventually(t, "a result", func() bool { return len(w.resultsOf(id)) == 1 })
	want := scaleevent.Result{
		EventID: id, Status: "done", Message: "made 2 workers", Type: "scale_up", TaskID: "build-7", Pool: "default",
		Attempts: 1, Details: map[string]string{"workers": "w-1,w-2"},
	}
	if diff := cmp.Diff(want, w.resultsOf(id)[0]); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if got := w.pendingCount(); got != 0 {
		t.Errorf("pending after the result = %d, want 0", got)
	}
	for _, words := range [][]string{
		{"event accepted", "event=" + id, "task=build-7", "pool=default"},
		{"event settled", "event=" + id, "task=build-7", "pool=default", "status=done", "attempts=1", "duration="},
	} {
		if got := m.log.with(words...); len(got) != 1 {
			t.Errorf("log lines with %q: %d, want 1", words, len(got))
		}
	}
	if m.healthErr() != nil {
		t.Errorf("health = %v", m.healthErr())
	}
}

func TestThatAnEventIsInWorkIsToldOfEachAndBeforeItsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	const n = 200
	seen := m.serve(n, func(ctx context.Context) bool {
		pause := time.NewTimer(rand.N(120 * time.Millisecond)) // before it is told, and after
		defer pause.Stop()
		select {
		case <-pause.C:
			return true
		case <-ctx.Done():
			return false
		}
	})
	for i := range n {
		w.up(fmt.Sprint(i))
	}
	eventually(t, "all ends", func() bool { return len(seen()) == n && w.pendingCount() == 0 })
	told, ended := map[string]bool{}, map[string]bool{}
	for _, entry := range w.read(results) {
		id := entry["event_id"]
		if entry["status"] == scaleevent.StatusAccepted {
			if told[id] || ended[id] {
				t.Errorf("event %s is told to be in work a second time, or after its end", id)
			}
			told[id] = true
			continue
		}
		if ended[id] {
			t.Errorf("event %s has two ends", id)
		}
		ended[id] = true
	}
	if len(told) != n || len(ended) != n {
		t.Errorf("%d events were told to be in work and %d to have ended, want %d", len(told), len(ended), n)
	}
}

func TestARejectionOfTheScalerIsADeadLetterWithEveryField(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	h := m.subscribe(1)
	id := w.send("type", "scale_up", "job_id", "t", "pool", "nowhere", "branch", "main")
	h.resolve(h.await(1)[0], queue.Reject("unknown_pool", "there is no pool nowhere", nil))

	eventually(t, "a dead letter", func() bool { return len(w.read(dead)) == 1 })
	letter := w.read(dead)[0]
	if _, err := time.Parse(time.RFC3339Nano, letter["dead_time"]); err != nil {
		t.Errorf("dead_time: %v", err)
	}
	delete(letter, "dead_time")
	want := map[string]string{
		"type": "scale_up", "job_id": "t", "pool": "nowhere", "branch": "main",
		"dead_event_id": id, "dead_reason": "unknown_pool", "dead_message": "there is no pool nowhere", "dead_attempts": "1",
	}
	if diff := cmp.Diff(want, letter); diff != "" {
		t.Errorf("dead letter (-want +got):\n%s", diff)
	}
	if got := w.resultsOf(id); len(got) != 1 || got[0].Status != "rejected" || got[0].Reason != "unknown_pool" {
		t.Errorf("results = %+v", got)
	}
}

func TestPoisonEntriesBecomeDeadLettersAndStopNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	big := strings.Repeat("x", 1<<20)
	var many []string // within the limit of each field, beyond that of the entry
	for i := range 5 {
		many = append(many, fmt.Sprintf("m%d", i), strings.Repeat("y", 60<<10))
	}
	poison := []struct {
		fields []string
		reason string
	}{
		{[]string{"pod_count", "1"}, "missing_field"},
		{[]string{"type", "explode"}, "unknown_type"},
		{[]string{"type", "scale_up", "pod_count", "-1"}, "invalid_field"},
		{[]string{"type", "scale_up", "pod_count", "many"}, "invalid_field"},
		{[]string{"type", "scale_up", "payload", big}, "field_too_large"},
		{[]string{"type", "scale_up", "task_id", big}, "field_too_large"},
		{append([]string{"type", "scale_up"}, many...), "event_too_large"},
		{[]string{"type", "scale_up", "task_id", "\xff\xfe"}, "invalid_field"},
		{[]string{"type", "scale_up", "job_id", "a", "task_id", "b"}, "conflicting_fields"},
		{[]string{"type", "scale_up", "expires_at", "1700000000"}, "expired"},
		{[]string{"", ""}, "missing_field"},
	}
	m := w.join("a").run()
	seen := m.finishAll(2)
	var good []string
	ids := map[string]string{}
	for i, p := range poison {
		ids[w.send(p.fields...)] = p.reason
		good = append(good, w.up(fmt.Sprintf("good-%d", i)))
	}
	eventually(t, "every good event to be done", func() bool { return len(seen()) == len(good) })
	eventually(t, "every entry to be acknowledged", func() bool { return w.pendingCount() == 0 })
	letters := w.read(dead)
	if len(letters) != len(poison) {
		t.Fatalf("dead letters = %d, want %d", len(letters), len(poison))
	}
	for i, letter := range letters {
		if got, want := letter["dead_reason"], ids[letter["dead_event_id"]]; got != want {
			t.Errorf("letter %d: reason = %s, want %s", i, got, want)
		}
		if letter["dead_message"] == "" {
			t.Errorf("letter %d has no message", i)
		}
		fields := poison[i].fields
		for j := 0; j < len(fields); j += 2 {
			if letter[fields[j]] != fields[j+1] {
				t.Errorf("letter %d: field %q of %d bytes has %d", i, fields[j], len(fields[j+1]), len(letter[fields[j]]))
			}
		}
		if r := w.resultsOf(letter["dead_event_id"]); len(r) != 1 || r[0].Status != "rejected" || len(r[0].TaskID) > scaleevent.MaxNameBytes {
			t.Errorf("letter %d: %d results", i, len(r))
		}
	}
	if got := m.metric("events_rejected_total"); got != float64(len(poison)) {
		t.Errorf("rejections counted = %v, want %d", got, len(poison))
	}
}

func TestWithoutASubscriberNothingIsRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", reclaimAfter(time.Second)).run()
	eventually(t, "the group", func() bool { return m.healthErr() == nil })
	w.up("t")
	time.Sleep(2500 * time.Millisecond) // longer than a read blocks, and than it takes to stand by
	group, err := w.rdb.XInfoGroups(t.Context(), events).Result()
	if err != nil || group[0].Lag != 1 || group[0].Pending != 0 {
		t.Errorf("group = %+v, %v; want one unread entry", group, err)
	}
	seen := m.finishAll(1)
	eventually(t, "the event to be read once someone takes it", func() bool { return len(seen()) == 1 })
}

func TestNoMoreIsReadThanTheQueueHasCreditFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	for i := range 10 {
		w.up(fmt.Sprint("t", i))
	}
	m := w.join("a").run()
	h := m.subscribe(2)
	h.await(2)
	time.Sleep(1500 * time.Millisecond)
	if got := w.pendingCount(); got != 2 {
		t.Errorf("pending with a credit of 2 = %d", got)
	}
	h.resolve(h.await(2)[0], queue.Finish("", nil))
	h.await(3)
	time.Sleep(100 * time.Millisecond)
	if got := w.pendingCount(); got != 2 {
		t.Errorf("pending with a credit of 2, one later = %d", got)
	}
}

func TestARestartGoesOnWithItsOwnPendingEntriesFirstAndInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	const n = 250 // more than two pages
	m := w.join("a").run()
	m.subscribe(n)
	var want []string
	for i := range n {
		want = append(want, w.up(fmt.Sprint("t", i)))
	}
	eventually(t, "all to be pending", func() bool { return w.pendingCount() == n })
	m.stop()
	for i := range 3 {
		want = append(want, w.up(fmt.Sprint("new", i)))
	}
	again := w.join("a", reclaimAfter(time.Hour)).run()
	got := again.subscribe(2 * n).await(n + 3)
	var ids []string
	for _, d := range got {
		ids = append(ids, d.ID)
	}
	if diff := cmp.Diff(want, ids); diff != "" {
		t.Errorf("deliveries (-want +got):\n%s", diff)
	}
	if got := again.metric("entries_redelivered_total"); got != n {
		t.Errorf("redelivered = %v, want %d", got, n)
	}
}

func TestEntriesOfAVanishedConsumerComeBeforeNewOnes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	gone := w.join("gone", reclaimAfter(time.Second)).run()
	h := gone.subscribe(8)
	want := []string{w.send("type", "scale_up", "task_id", "t"), w.send("type", "scale_down", "task_id", "t")}
	h.await(1) // the second waits behind the first
	eventually(t, "both to be pending", func() bool { return w.pendingCount() == 2 })
	gone.stop()
	want = append(want, w.send("type", "scale_up", "task_id", "t"))

	heir := w.join("heir", reclaimAfter(time.Second)).run()
	seen := heir.finishAll(8)
	eventually(t, "all three", func() bool { return len(seen()) == 3 })
	if diff := cmp.Diff(want, seen()); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	eventually(t, "all to be acknowledged", func() bool { return w.pendingCount() == 0 })
	if got := heir.metric("entries_reclaimed_total"); got != 2 {
		t.Errorf("reclaimed = %v, want 2", got)
	}
}

func TestWhoGetsASubscriberHasEverythingAndTheOneBeforeWithdraws(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	before := w.join("before")
	before.SetVanished(2 * time.Second)
	held := before.run().subscribe(20)
	var ids []string
	for i := range 10 {
		ids = append(ids, w.up(fmt.Sprint("slow", i)))
	}
	deliveries := held.await(len(ids))
	heir := w.join("heir")
	seen := heir.run().finishAll(20)
	// It does not wait for the other to be silent.
	eventually(t, "the heir to have all of them", func() bool { return len(seen()) == len(ids) })
	got := seen()
	slices.Sort(got) // they are of different tasks, so their order is free
	slices.Sort(ids)
	if diff := cmp.Diff(ids, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	for _, d := range deliveries {
		select {
		case <-d.Lost:
		case <-time.After(20 * time.Second):
			t.Fatalf("the one before goes on with event %s", d.ID)
		}
	}
	said := func() int { return len(before.log.with("WARN", "another main pod has taken over")) }
	eventually(t, "the log to say so", func() bool { return said() > 0 }) // it comes behind what is withdrawn
	if got := said(); got != 1 {
		t.Errorf("%d lines of the log say so, want 1", got)
	}
	for _, id := range ids {
		if got := len(w.resultsOf(id)); got != 1 {
			t.Errorf("event %s has %d results", id, got)
		}
	}
}

func TestWhatAConsumerHoldsStaysItsOwnForAsLongAsItLives(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	first := w.join("first", reclaimAfter(2*time.Second))
	seen := first.run().finishAll(1)
	eventually(t, "the first to be ready", func() bool { return first.healthErr() == nil })
	// A misconfiguration: both have a subscriber.
	second := w.join("second", reclaimAfter(2*time.Second)).run()
	held := second.subscribe(1) // so it has no credit to read with, once it holds one
	second.awaitTakeOver()
	for len(held.got()) == 0 {
		w.up("t")
		time.Sleep(50 * time.Millisecond)
	}
	id := held.got()[0]
	time.Sleep(5 * time.Second)
	if slices.Contains(seen(), id) {
		t.Error("the other one took what a living consumer holds")
	}
	second.stop()
	eventually(t, "the other to take over", func() bool { return slices.Contains(seen(), id) })
}

func TestAConsumerWithoutSubscriberLetsGoAndDoesNotActLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	first := w.join("first", reclaimAfter(2*time.Second)).run()
	h := first.subscribe(4)
	id := w.up("t")
	h.await(1)
	h.leave() // its scaler is gone, but it lives

	second := w.join("second", reclaimAfter(2*time.Second)).run()
	seen := second.finishAll(4)
	eventually(t, "the other to act", func() bool { return slices.Contains(seen(), id) })
	eventually(t, "the result", func() bool { return len(w.resultsOf(id)) == 1 })

	late := first.finishAll(4) // and comes back
	first.awaitTakeOver()
	next := w.up("next")
	eventually(t, "the next event", func() bool { return len(w.resultsOf(next)) == 1 })
	time.Sleep(500 * time.Millisecond)
	if slices.Contains(late(), id) {
		t.Error("the first one acted on the event as well")
	}
	if got := len(w.resultsOf(id)); got != 1 {
		t.Errorf("the event has %d results", got)
	}
}

func TestASubscriberThatReturnsWhileEventsAreLetGoGetsAllInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.beforeSettle = func(string) {
		once.Do(func() {
			close(reached)
			<-goOn
		})
	}
	m := w.join("a")
	m.SetVanished(2 * time.Second)
	h := m.run().subscribe(4)
	want := []string{w.up("t"), w.send("type", "scale_down", "task_id", "t")}
	h.await(1) // the second waits behind the first
	eventually(t, "both to be pending", func() bool { return w.pendingCount() == 2 })
	h.leave()
	<-reached // it has begun to let go, newest first

	act := make(chan struct{})
	seen := m.serve(4, func(ctx context.Context) bool {
		select {
		case <-act:
		case <-ctx.Done():
		}
		return ctx.Err() == nil
	})
	want = append(want, w.up("t"))
	time.Sleep(500 * time.Millisecond) // the reader may read that now
	close(goOn)
	eventually(t, "all to be let go of", func() bool { return len(m.log.with("letting go")) == 1 })
	time.Sleep(100 * time.Millisecond) // the handler learns of it
	close(act)
	eventually(t, "all three", func() bool { return len(seen()) >= 3 })
	if diff := cmp.Diff(want, seen()); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestWhatWasOursBeforeIsOfferedOnlyAsFarAsWeMayHoldIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	const n = stream.MaxInFlight + 150 // more than a page beyond the bound
	if err := w.rdb.XGroupCreateMkStream(t.Context(), events, group, "0").Err(); err != nil {
		t.Fatal(err)
	}
	tx := w.rdb.Pipeline()
	var added *goredis.StringCmd
	for i := range n {
		added = tx.XAdd(t.Context(), &goredis.XAddArgs{Stream: events, Values: []string{"type", "scale_up", "task_id", fmt.Sprint(i)}})
	}
	tx.XReadGroup(t.Context(), &goredis.XReadGroupArgs{Group: group, Consumer: "a", Streams: []string{events, ">"}, Count: n, Block: -1})
	if _, err := tx.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.pendingCount(); got != n {
		t.Fatalf("pending = %d, want %d", got, n)
	}
	next := w.send("type", "scale_down", "task_id", fmt.Sprint(n-1))

	m := w.join("a").run()
	h := m.subscribe(1)
	held := func() int {
		stats, err := m.queue.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return stats.Ready + stats.Blocked + stats.Leased + stats.Unsettled
	}
	eventually(t, "as many as it may hold", func() bool { return held() >= stream.MaxInFlight })
	time.Sleep(500 * time.Millisecond)
	if got := held(); got != stream.MaxInFlight {
		t.Errorf("it holds %d events, want %d", got, stream.MaxInFlight)
	}
	h.leave()
	seen := m.finishAll(64)
	eventually(t, "all", func() bool { return len(seen()) == n+1 })
	if got := seen(); slices.Index(got, next) < slices.Index(got, added.Val()) {
		t.Error("a new event acted before one of its task that was ours already")
	}
}

func TestTheNameOfASilentConsumerIsRemovedUnlessItHasEntries(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	if err := w.rdb.XGroupCreateMkStream(t.Context(), events, group, "0").Err(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"silent", "back"} {
		if err := w.rdb.XGroupCreateConsumer(t.Context(), events, group, name).Err(); err != nil {
			t.Fatal(err)
		}
	}
	m := w.join("a")
	m.SetForget(500 * time.Millisecond)
	// Between the look at it and its removal, "back" reads an entry.
	id := make(chan string, 1)
	var once sync.Once
	m.rdb.AddHook(beforeCommand(func(cmd goredis.Cmder) {
		if (cmd.Name() != "eval" && cmd.Name() != "xgroup") || !slices.Contains(cmd.Args(), any("back")) {
			return
		}
		once.Do(func() {
			tx := w.rdb.TxPipeline()
			added := tx.XAdd(context.Background(), &goredis.XAddArgs{Stream: events, Values: []string{"type", "scale_up"}})
			tx.XReadGroup(context.Background(), &goredis.XReadGroupArgs{Group: group, Consumer: "back", Streams: []string{events, ">"}, Block: -1})
			if _, err := tx.Exec(context.Background()); err != nil {
				t.Error(err)
			}
			id <- added.Val()
		})
	}))
	m.run().finishAll(1)
	eventually(t, "the silent one to be removed", func() bool { return !slices.Contains(w.consumers(), "silent") })
	var want string
	eventually(t, "a try to remove the other", func() bool {
		select {
		case want = <-id:
			return true
		default:
			return false
		}
	})
	time.Sleep(500 * time.Millisecond)
	if diff := cmp.Diff(map[string][]string{"back": {want}}, w.pending()); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
}

// beforeCommand runs before every single command.
type beforeCommand func(goredis.Cmder)

func (f beforeCommand) DialHook(next goredis.DialHook) goredis.DialHook { return next }
func (f beforeCommand) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		f(cmd)
		return next(ctx, cmd)
	}
}

func (f beforeCommand) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return next
}

func TestAnAbandonedReadIsFoundByTheSweep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", reclaimAfter(time.Second)).run()
	seen := m.finishAll(1)
	before := w.up("before")
	eventually(t, "work", func() bool { return slices.Contains(seen(), before) })
	// A read under the consumer's name whose reply it never sees. The transaction is
	// quicker than the read that the consumer has open.
	tx := w.rdb.TxPipeline()
	added := tx.XAdd(t.Context(), &goredis.XAddArgs{Stream: events, Values: []string{"type", "scale_up"}})
	read := tx.XReadGroup(t.Context(), &goredis.XReadGroupArgs{Group: group, Consumer: "a", Streams: []string{events, ">"}, Block: -1})
	if _, err := tx.Exec(t.Context()); err != nil || len(read.Val()) != 1 {
		t.Fatalf("the abandoned read got %v, %v", read.Val(), err)
	}
	eventually(t, "the event", func() bool { return slices.Contains(seen(), added.Val()) })
	eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
}

func TestAPendingEntryThatWasTrimmedIsReportedAndStopsNothing(t *testing.T) {
	t.Parallel()
	for finder, row := range map[string]struct {
		name     string
		vanished time.Duration
	}{
		"itself":                            {"a", time.Minute},
		"an heir of all it had":             {"heir", time.Second},
		"a sweep, while it counts as alive": {"heir", time.Minute},
	} {
		t.Run("found by "+finder, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			reclaim := reclaimAfter(time.Minute)
			if row.name != "a" && row.vanished > time.Second {
				reclaim = reclaimAfter(2 * time.Second)
			}
			m := w.join("a", reclaim).run()
			h := m.subscribe(4)
			lost, kept := w.up("lost"), w.up("kept")
			h.await(2)
			m.stop()
			if err := w.rdb.XDel(t.Context(), events, lost).Err(); err != nil {
				t.Fatal(err)
			}
			next := w.join(row.name, reclaim)
			next.SetVanished(row.vanished)
			seen := next.run().finishAll(4)
			eventually(t, "the other entry", func() bool { return slices.Contains(seen(), kept) })
			eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
			got := w.resultsOf(lost)
			if len(got) != 1 || got[0].Status != "rejected" || got[0].Reason != stream.ReasonTrimmed {
				t.Errorf("results of the lost event = %+v, want one that says trimmed", got)
			}
			if letters := w.read(dead); len(letters) != 1 || letters[0]["dead_event_id"] != lost {
				t.Errorf("dead letters = %v", letters)
			}
		})
	}
}

func TestAGroupThatIsDestroyedIsMadeAgainWithoutRepeatingTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	h := m.subscribe(8)
	old := w.up("old")
	h.resolve(h.await(1)[0], queue.Finish("", nil))
	eventually(t, "the result", func() bool { return len(w.resultsOf(old)) == 1 })
	inWork := w.up("in work")
	h.await(2)

	if err := w.rdb.XGroupDestroy(t.Context(), events, group).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the group to be back with what is in work", func() bool {
		return cmp.Equal(w.pending(), map[string][]string{"a": {inWork}})
	})
	next := w.up("next")
	h.await(3)
	for _, d := range h.await(3)[1:] {
		h.resolve(d, queue.Finish("", nil))
	}
	eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
	if diff := cmp.Diff([]string{old, inWork, next}, h.got()); diff != "" {
		t.Errorf("deliveries (-want +got):\n%s", diff)
	}
	if m.healthErr() != nil {
		t.Errorf("health = %v", m.healthErr())
	}
	if got := m.log.with("WARN", "group is gone"); len(got) == 0 {
		t.Error("nothing in the log")
	}
}

func TestAFlushedRedisIsReadFromItsNewBeginning(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	seen := m.finishAll(4)
	before := w.up("before")
	eventually(t, "the first event", func() bool { return slices.Contains(seen(), before) })
	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	after := []string{w.up("after 1"), w.up("after 2")} // perhaps before the group is back
	eventually(t, "what came after", func() bool { return slices.Contains(seen(), after[0]) && slices.Contains(seen(), after[1]) })
	eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
}

func TestAKilledRedisLosesNothingAndIsReportedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{AppendOnly: true})
	m := w.join("a", drainTimeout(5*time.Second)).run()
	h := m.subscribe(64)
	var ids []string
	for i := range 50 {
		ids = append(ids, w.up(fmt.Sprint("t", i)))
	}
	h.await(50)
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, d := range h.await(50) { // outcomes while there is no Redis
		h.resolve(d, queue.Finish("", nil))
	}
	eventually(t, "the outage to be known", func() bool { return m.healthErr() != nil })
	time.Sleep(2 * time.Second)
	if err := w.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all to be acknowledged", func() bool { return w.pendingCount() == 0 })
	eventually(t, "health", func() bool { return m.healthErr() == nil })
	for _, id := range ids {
		if got := len(w.resultsOf(id)); got != 1 {
			t.Errorf("event %s has %d results", id, got)
		}
	}
	if got := len(h.got()); got != 50 {
		t.Errorf("50 events were delivered %d times", got)
	}
	if away, back := m.log.with("WARN"), m.log.with("Redis is back"); len(away) != 1 || len(back) != 1 {
		t.Errorf("one outage has %d warnings and %d all-clears:\n%s", len(away), len(back), strings.Join(append(away, back...), ""))
	}
	next := w.up("next")
	h.await(51)
	if !slices.Contains(h.got(), next) {
		t.Error("it does not read any more")
	}
}

func TestAResultIsNeverThereWithoutItsAcknowledgement(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	seen := m.finishAll(16)
	const n = 300
	go func() {
		for i := range n {
			w.rdb.XAdd(context.Background(), &goredis.XAddArgs{Stream: events, Values: []string{"type", "scale_up", "task_id", fmt.Sprint(i)}})
		}
	}()
	// Whatever moment a crash picks, it finds one of these states.
	states := 0
	for finals := 0; finals < n; {
		tx := w.rdb.TxPipeline()
		res := tx.XRange(t.Context(), results, "-", "+")
		pend := tx.XPendingExt(t.Context(), &goredis.XPendingExtArgs{Stream: events, Group: group, Start: "-", End: "+", Count: n})
		if _, err := tx.Exec(t.Context()); err != nil && !goredis.HasErrorPrefix(err, "NOGROUP") {
			t.Fatal(err)
		}
		states++
		open := map[string]bool{}
		for _, e := range pend.Val() {
			open[e.ID] = true
		}
		finals = 0
		for _, e := range res.Val() {
			if e.Values["status"] == scaleevent.StatusAccepted {
				continue
			}
			finals++
			if id := e.Values["event_id"].(string); open[id] {
				t.Fatalf("event %s has a result and is not acknowledged", id)
			}
		}
	}
	if got := len(seen()); got != n {
		t.Errorf("%d events were delivered %d times", n, got)
	}
	t.Logf("looked at %d states", states)
}

// faulty fails the next transactions, before or after they happen.
type faulty struct {
	before, after atomic.Int32
	seen          atomic.Int32
}

var errCut = errors.New("connection cut")

func (f *faulty) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (f *faulty) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if cmd.Name() != "eval" {
			return next(ctx, cmd)
		}
		err := f.strike(func() error { return next(ctx, cmd) })
		cmd.SetErr(err)
		return err
	}
}

func (f *faulty) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		if cmds[0].Name() != "multi" {
			return next(ctx, cmds)
		}
		return f.strike(func() error { return next(ctx, cmds) })
	}
}

func (f *faulty) strike(transact func() error) error {
	f.seen.Add(1)
	if f.before.Add(-1) >= 0 {
		return errCut
	}
	err := transact()
	if f.after.Add(-1) >= 0 {
		return errCut
	}
	return err
}

func TestAnOutcomeIsStoredOnceWhateverHappensToItsTransaction(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ before, after int32 }{
		"failed and did nothing":    {before: 1},
		"failed but was done":       {after: 1},
		"failed in one way, often":  {before: 3},
		"failed in both ways":       {before: 1, after: 1},
		"failed in neither":         {},
		"failed but was done twice": {after: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			m := w.join("a")
			f := &faulty{}
			f.before.Store(row.before)
			f.after.Store(row.after)
			m.rdb.AddHook(f)
			seen := m.run().finishAll(4)
			id := w.up("t")
			eventually(t, "an acknowledgement", func() bool { return len(seen()) == 1 && w.pendingCount() == 0 })
			eventually(t, "the event to be settled", func() bool { return len(m.log.with("event settled")) == 1 })
			if got := len(w.resultsOf(id)); got != 1 {
				t.Errorf("results = %d, want 1", got)
			}
			if got := len(seen()); got != 1 {
				t.Errorf("the event was delivered %d times", got)
			}
			if f.seen.Load() == 0 {
				t.Error("the outcome was stored without a transaction")
			}
		})
	}
}

func TestAWrongPasswordIsOneClearLineAndIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	right := w.server.Password
	w.server.Password = "wrong"
	m := w.join("a").run()
	w.server.Password = right
	eventually(t, "the fault to be known", func() bool {
		err := m.healthErr()
		return err != nil && strings.Contains(err.Error(), "WRONGPASS") && strings.Contains(err.Error(), "REDIS_PASSWORD")
	})
	time.Sleep(time.Second)
	if got := m.log.with("WARN"); len(got) != 1 {
		t.Errorf("%d warnings:\n%s", len(got), strings.Join(got, ""))
	}
	if err := w.rdb.ConfigSet(t.Context(), "requirepass", "wrong").Err(); err != nil { // now it is right
		t.Fatal(err)
	}
	eventually(t, "readiness", func() bool { return m.healthErr() == nil })
}

func TestAKeyOfTheWrongTypeIsReportedUntilItIsRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	if err := w.rdb.Set(t.Context(), dead, "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	m := w.join("a").run()
	seen := m.finishAll(1)
	id := w.up("t")
	eventually(t, "the fault to be known", func() bool {
		err := m.healthErr()
		return err != nil && strings.Contains(err.Error(), dead) && strings.Contains(err.Error(), "string")
	})
	if err := w.rdb.Del(t.Context(), dead).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event", func() bool { return slices.Contains(seen(), id) })
	eventually(t, "readiness", func() bool { return m.healthErr() == nil })
}

func TestADeadLetterIsWrittenOnceThoughItsResultIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", reclaimAfter(time.Second))
	var tries atomic.Int32 // without a letter: with one it is a transaction
	m.rdb.AddHook(beforeCommand(func(cmd goredis.Cmder) {
		if cmd.Name() == "eval" && slices.Contains(cmd.Args(), any(dead)) {
			tries.Add(1)
		}
	}))
	m.run().finishAll(1)
	before := w.up("t")
	eventually(t, "the group", func() bool { return len(w.resultsOf(before)) == 1 })
	_, err := w.rdb.TxPipelined(t.Context(), func(tx goredis.Pipeliner) error {
		tx.Del(t.Context(), results)
		tx.Set(t.Context(), results, "x", 0)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	bad := w.send("type", "nonsense")
	eventually(t, "the letter", func() bool { return len(w.read(dead)) > 0 })
	tries.Store(0)
	eventually(t, "two more tries", func() bool { return tries.Load() >= 2 })
	if err := w.rdb.Del(t.Context(), results).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the result", func() bool { return len(w.resultsOf(bad)) == 1 })
	eventually(t, "the acknowledgement", func() bool { return w.pendingCount() == 0 })
	if letters := w.read(dead); len(letters) != 1 {
		t.Errorf("there are %d letters, want one: %v", len(letters), letters)
	}
}

func TestARedisThatIsNotThereYetIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{AppendOnly: true})
	id := w.up("t")
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	m := w.join("a").run()
	seen := m.finishAll(1)
	eventually(t, "the fault to be known", func() bool { err := m.healthErr(); return err != nil && !errors.Is(err, errStarting) })
	if err := w.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event", func() bool { return slices.Contains(seen(), id) })
}

func TestStoppingWaitsForOutcomesAndLeavesTheRestPending(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", drainTimeout(3*time.Second)).run()
	h := m.subscribe(4)
	quick, slow := w.up("quick"), w.up("slow")
	deliveries := h.await(2)
	stopped := make(chan struct{})
	go func() {
		m.stop()
		close(stopped)
	}()
	time.Sleep(time.Second + 500*time.Millisecond) // it has stopped reading
	late := w.up("late")
	h.resolve(deliveries[0], queue.Finish("", nil))
	<-stopped
	if len(w.resultsOf(quick)) != 1 {
		t.Error("the outcome that came in time is not stored")
	}
	if diff := cmp.Diff(map[string][]string{"a": {slow}}, w.pending()); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
	if slices.Contains(h.got(), late) {
		t.Error("it read while it stopped")
	}
}

func TestStoppingDoesNotWaitForEventsThatNobodyWorksOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", drainTimeout(10*time.Minute)).run()
	h := m.subscribe(4)
	w.up("t")
	h.await(1)
	h.leave()
	start := time.Now()
	m.stop()
	if took := time.Since(start); took > time.Minute {
		t.Errorf("stopping took %s", took)
	}
	if got := w.pendingCount(); got != 1 {
		t.Errorf("pending = %d, want 1", got)
	}
}

func TestTheLedgerKnowsWhatCanBeDeliveredAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	h := m.subscribe(2)
	settled, pending := w.up("settled"), w.up("pending")
	d := h.await(2)
	h.resolve(d[0], queue.Finish("", nil))
	eventually(t, "the result", func() bool { return len(w.resultsOf(settled)) == 1 })
	m.stop()
	unread := w.up("unread")
	gone := w.up("gone")
	if err := w.rdb.XDel(t.Context(), events, gone).Err(); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		id   string
		want bool
	}{
		"settled":          {settled, true},
		"pending":          {pending, false},
		"unread":           {unread, false},
		"not there":        {"1-1", true},
		"removed":          {gone, true},
		"not an event":     {"no such thing", true},
		"of another world": {"99999999999999-0", true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := m.Settled(t.Context(), row.id)
			if err != nil || got != row.want {
				t.Errorf("Settled(%s) = %t, %v, want %t", row.id, got, err, row.want)
			}
		})
	}
	if err := w.rdb.XGroupDestroy(t.Context(), events, group).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Settled(t.Context(), settled); err != nil || got {
		t.Errorf("without a group, what is in the stream may be read again: %t, %v", got, err)
	}
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Settled(t.Context(), settled); err == nil {
		t.Error("without Redis it claims to know")
	}
}

func TestGaugesAreRightAlsoWhenRedisDoesNotKnowTheLag(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	for i := range 5 {
		w.up(fmt.Sprint(i))
	}
	m := w.join("a").run()
	h := m.subscribe(2)
	h.await(2)
	check := func(want float64) {
		t.Helper()
		if err := m.Sample(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := m.metric("backlog_entries"); got != want {
			t.Errorf("backlog = %v, want %v", got, want)
		}
		if got := m.metric("pending_entries"); got != 2 {
			t.Errorf("pending = %v, want 2", got)
		}
		if got := m.metric("oldest_unacknowledged_seconds"); got <= 0 || got > 60 {
			t.Errorf("age of the oldest = %v s", got)
		}
	}
	check(3)
	if problems, err := testutil.GatherAndLint(m.reg); err != nil || len(problems) > 0 {
		t.Errorf("lint of the metrics: %v, %v", problems, err)
	}
	unread, err := w.rdb.XRevRangeN(t.Context(), events, "+", "-", 2).Result()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.rdb.XDel(t.Context(), events, unread[1].ID).Err(); err != nil {
		t.Fatal(err)
	}
	info, err := w.rdb.XInfoGroups(t.Context(), events).Result()
	if err != nil || info[0].Lag != -1 {
		t.Fatalf("this Redis knows the lag after XDEL: %+v, %v", info, err)
	}
	check(2)
}

func TestResultsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", func(c *stream.Config) { c.ResultsMaxLen = 100 }).run()
	seen := m.finishAll(64)
	for i := range 1000 {
		w.up(fmt.Sprint(i))
	}
	eventually(t, "all events", func() bool { return len(seen()) == 1000 && w.pendingCount() == 0 })
	if got := len(w.read(results)); got < 100 || got > 300 {
		t.Errorf("results kept = %d, want about 100", got)
	}
}

func TestTheRightsInTheContractAreEnough(t *testing.T) {
	t.Parallel()
	for _, db := range []int{0, 1} {
		t.Run(fmt.Sprintf("in database %d", db), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			w.use(db)
			checkRights(t, w)
		})
	}
}

func checkRights(t *testing.T, w *world) {
	t.Helper()
	text, err := os.ReadFile("../../docs/event-contract.md")
	if err != nil {
		t.Fatal(err)
	}
	_, acl, found := strings.Cut(string(text), "ACL SETUSER ottoscaler ")
	acl, _, closed := strings.Cut(acl, "```")
	if !found || !closed {
		t.Fatal("docs/event-contract.md has no ACL SETUSER ottoscaler")
	}
	acl = strings.NewReplacer("\\\n", " ", ">PASSWORD", ">secret").Replace(acl)

	args := []any{"ACL", "SETUSER", "ottoscaler"}
	for _, word := range strings.Fields(acl) {
		args = append(args, word)
	}
	if err := w.rdb.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	gone := w.join("gone", reclaimAfter(time.Second)).run() // an heir needs more rights
	gone.subscribe(2)
	left := w.up("left")
	eventually(t, "an entry to be left", func() bool { return w.pendingCount() == 1 })
	gone.stop()

	w.user, w.server.Password = "ottoscaler", "secret"
	m := w.join("a", reclaimAfter(time.Second), owner(jinwoo), replication(1, time.Second))
	m.SetForget(time.Second)
	seen := m.run().finishAll(4)
	bad, good := w.send("type", "explode"), w.up("t")
	eventually(t, "all outcomes", func() bool {
		return len(w.resultsOf(bad)) == 1 && len(w.resultsOf(good)) == 1 && len(w.resultsOf(left)) == 1
	})
	eventually(t, "the name of the vanished to be removed", func() bool { return !slices.Contains(w.consumers(), "gone") })
	if err := w.rdb.XGroupDestroy(t.Context(), events, group).Err(); err != nil {
		t.Fatal(err)
	}
	next := w.up("next")
	eventually(t, "life after the group's end", func() bool { return slices.Contains(seen(), next) })
	if err := m.Sample(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := m.Settled(t.Context(), good); err != nil {
		t.Error(err)
	}
	if err := m.ReportWorkerEnd(t.Context(), queue.WorkerEnd{ID: "uid", Status: scaleevent.StatusSucceeded}); err != nil {
		t.Error(err)
	}
	time.Sleep(time.Second) // a sweep
	m.stop()
	h := w.join("a", reclaimAfter(time.Second), owner(jinwoo)).run().subscribe(4)
	gives, given := w.up("gives"), w.down("gives")
	h.resolve(h.nextOf(0, gives, nil), giving(1, given))
	h.resolve(h.nextOf(1, given, map[string]int{gives: 1}), queueFinish)
	eventually(t, "both outcomes", func() bool { return len(w.resultsOf(gives)) == 1 && len(w.resultsOf(given)) == 1 })
	if got := m.log.with("NOPERM"); len(got) != 0 || m.healthErr() != nil {
		t.Errorf("health = %v; refused:\n%s", m.healthErr(), strings.Join(got, ""))
	}
}
