package stream_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/stream"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func (w *world) down(task string, fields ...string) string {
	w.t.Helper()
	return w.send(append([]string{"type", "scale_down", "task_id", task, "pod_count", "9"}, fields...)...)
}

// given returns what Redis has of what events were given.
func (w *world) given() map[string]string {
	w.t.Helper()
	given, err := w.rdb.HGetAll(w.t.Context(), stream.GivenKey(key(w.events, events), group)).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return given
}

func giving(n int, to ...string) queue.Verdict {
	v := queue.Finish("finished", nil)
	v.Gives = map[string]int{}
	for _, id := range to {
		v.Gives[id] = n
	}
	return v
}

// nextOf waits for the next delivery of an event after n others.
func (h *hands) nextOf(n int, id string, given map[string]int) queue.Delivery[*scaleevent.Event] {
	h.t.Helper()
	d := h.await(n + 1)[n]
	if d.ID != id || !maps.Equal(d.Given, given) {
		h.t.Fatalf("delivery %d is of event %s, given %v; want %s, given %v", n, d.ID, d.Given, id, given)
	}
	return d
}

// stuck has calls of recordScript by which an event gives something hang, before or
// after they are carried out, until their caller ends: as a process that dies there.
type stuck struct {
	before  bool
	reached atomic.Bool
	call    []any // the first one
}

func (f *stuck) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (f *stuck) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if !gives(cmd) {
			return next(ctx, cmd)
		}
		if !f.before {
			if err := next(ctx, cmd); err != nil {
				return err
			}
		}
		if f.call == nil {
			f.call = cmd.Args()
		}
		f.reached.Store(true)
		<-ctx.Done()
		cmd.SetErr(ctx.Err())
		return ctx.Err()
	}
}

func (f *stuck) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return next
}

// gives reports whether a command is a call of recordScript that acknowledges nothing but
// events that give something.
func gives(cmd goredis.Cmder) bool {
	args := cmd.Args()
	const results, acks = 10, 11 // eval, script, 4, four keys, group, length, letters
	return cmd.Name() == "eval" && len(args) > acks && args[2] == 4 && args[results] == 1 && args[acks] == 0
}

func TestWhatAnEventGivesIsStoredWithItsAcknowledgementAndFoundAfterACrash(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		heir  string
		hook  *stuck
		given bool
	}{
		"before it is stored":                 {"a", &stuck{before: true}, false},
		"before it is stored, by another one": {"b", &stuck{before: true}, false},
		"once it is stored":                   {"a", &stuck{}, true},
		"once it is stored, by another one":   {"b", &stuck{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{AppendOnly: true})
			m := w.join("a", drainTimeout(0))
			m.rdb.AddHook(row.hook)
			h := m.run().subscribe(8)
			up, another, down := w.up("t"), w.up("t"), w.down("t")
			h.resolve(h.nextOf(0, up, nil), giving(2, down))
			eventually(t, "the outcome to be on its way", row.hook.reached.Load)
			time.Sleep(100 * time.Millisecond)
			if got := h.got(); len(got) != 1 {
				t.Errorf("%v were delivered before it was settled what the first one gives", got)
			}
			m.stop()
			if err := w.server.Kill(); err != nil { // Redis as well
				t.Fatal(err)
			}
			if err := w.server.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}

			n := 0
			h = w.join(row.heir).run().subscribe(8)
			var given map[string]int
			if row.given {
				given = map[string]int{up: 2}
				if diff := cmp.Diff(map[string]string{down: " " + up + "=2"}, w.given()); diff != "" {
					t.Errorf("in Redis (-want +got):\n%s", diff)
				}
			} else { // all is begun anew, and this time it can be carried out
				h.resolve(h.nextOf(n, up, nil), queueFinish)
				n++
			}
			h.resolve(h.nextOf(n, another, nil), queueFinish)
			h.resolve(h.nextOf(n+1, down, given), queueFinish)
			eventually(t, "all to be acknowledged", func() bool { return w.pendingCount() == 0 })
			if got := w.given(); len(got) != 0 {
				t.Errorf("left in Redis: %v", got)
			}
			for _, id := range []string{up, another, down} {
				if n := len(w.resultsOf(id)); n != 1 {
					t.Errorf("event %s has %d results", id, n)
				}
			}
		})
	}
}

// What two events give to a third is added up, and each counts once, however often it is stored.
func TestWhatSeveralEventsGiveIsAddedUpWhateverHappensToTheirTransactions(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ before, after int32 }{
		"fail and do nothing": {before: 2},
		"fail but are done":   {after: 2},
		"fail in neither way": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, redis.Options{})
			m := w.join("a", drainTimeout(0))
			f := &faulty{}
			f.before.Store(row.before)
			m.rdb.AddHook(f)
			h := m.run().subscribe(8)
			first, second, down, last := w.up("t"), w.up("t"), w.down("t"), w.down("t")
			f.after.Store(row.after)
			h.resolve(h.nextOf(0, first, nil), giving(2, down))
			h.resolve(h.nextOf(1, second, nil), giving(1, down, last))
			h.nextOf(2, down, map[string]int{first: 2, second: 1})
			m.stop()
			h = w.join("a").run().subscribe(8)
			h.resolve(h.nextOf(0, down, map[string]int{first: 2, second: 1}), queue.Reject("poison", "for one reason or another", nil))
			h.nextOf(1, last, map[string]int{second: 1}) // which does not wait for the settlement
			eventually(t, "all but the last to be acknowledged", func() bool { return w.pendingCount() == 1 })
			if diff := cmp.Diff(map[string]string{last: " " + second + "=1"}, w.given()); diff != "" {
				t.Errorf("in Redis, when the other is a dead letter (-want +got):\n%s", diff)
			}
		})
	}
}

// Who has been taken over from may still be storing what an event gives, which the new
// one carries out in full.
func TestAnEventThatSomebodyElseHasGivesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("before", drainTimeout(0))
	hook := &stuck{before: true}
	m.rdb.AddHook(hook)
	old := m.run().subscribe(8)
	up, down := w.up("t"), w.down("t")
	old.resolve(old.nextOf(0, up, nil), giving(2, down))
	eventually(t, "the outcome to be on its way", hook.reached.Load)

	h := w.join("heir").run().subscribe(8)
	taken := h.nextOf(0, up, nil)
	if err := w.rdb.Do(t.Context(), hook.call...).Err(); err != nil { // it goes on at last
		t.Fatal(err)
	}
	if got := w.pending()["heir"]; !slices.Contains(got, up) || len(w.given()) != 0 {
		t.Errorf("pending %v, given %v: it was acknowledged or has given something", got, w.given())
	}
	h.resolve(taken, queueFinish)
	h.resolve(h.nextOf(1, down, nil), queueFinish)
	eventually(t, "all to be acknowledged", func() bool { return w.pendingCount() == 0 })
}

func TestAnEventThatANewMasterHasNotGivenOutYetGivesThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	h := w.join("a").run().subscribe(8)
	up, down := w.up("t"), w.down("t")
	d := h.nextOf(0, up, nil)
	eventually(t, "both to be read", func() bool { return w.pendingCount() == 2 })
	// As a replica knows it that has heard of the events, and of no read.
	_, err := w.rdb.TxPipelined(t.Context(), func(tx goredis.Pipeliner) error {
		tx.XAck(t.Context(), events, group, up, down)
		tx.XGroupSetID(t.Context(), events, group, "0")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.resolve(d, giving(2, down))
	d = h.nextOf(1, down, map[string]int{up: 2})
	if diff := cmp.Diff(map[string]string{down: " " + up + "=2"}, w.given()); diff != "" {
		t.Errorf("in Redis (-want +got):\n%s", diff)
	}
	h.resolve(d, queueFinish)
	eventually(t, "all to be acknowledged", func() bool { return w.settled() == 2 && w.pendingCount() == 0 })
	if got := w.given(); len(got) != 0 {
		t.Errorf("left in Redis: %v", got)
	}
	w.onceEach(h.got(), up, down)
}

func TestAnEventThatWasGivenSomethingIsCarriedOutThoughItHasExpired(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", drainTimeout(0)).run()
	h := m.subscribe(8)
	expires := time.Now().Add(2 * time.Second)
	up, down := w.up("t"), w.down("t", "expires_at", expires.Format(time.RFC3339Nano))
	also := w.down("t", "expires_at", expires.Format(time.RFC3339Nano))
	h.resolve(h.nextOf(0, up, nil), giving(2, down))
	h.nextOf(1, down, map[string]int{up: 2})
	m.stop()
	time.Sleep(time.Until(expires))
	h = w.join("a").run().subscribe(8)
	h.resolve(h.nextOf(0, down, map[string]int{up: 2}), queueFinish)
	eventually(t, "both to be acknowledged", func() bool { return w.pendingCount() == 0 })
	if got := w.resultsOf(also); len(got) != 1 || got[0].Reason != scaleevent.ReasonExpired {
		t.Errorf("the other one: %+v, want it to have expired", got)
	}
}

// An outcome that is let go of while it is on its way is not stored: its event is
// offered again, and gives nothing then, or something else.
func TestAnEventThatWasLetGoOfGivesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", drainTimeout(0))
	m.SetVanished(time.Second) // so that it lets go soon
	h := m.run().subscribe(8)
	up, down := w.up("t"), w.down("t")
	d := h.nextOf(0, up, nil)
	h.resolve(d, giving(2, down))
	h.nextOf(1, down, map[string]int{up: 2})
	h.leave()
	eventually(t, "it to let go", func() bool { return len(m.log.with("letting go of events")) > 0 })
	h = m.subscribe(8)
	h.resolve(h.nextOf(0, down, map[string]int{up: 2}), queueFinish)
	eventually(t, "all to be acknowledged", func() bool { return w.pendingCount() == 0 })
	if got := w.given(); len(got) != 0 {
		t.Errorf("left in Redis: %v", got)
	}
}

func TestATrimmedEventLeavesNothingOfWhatItWasGiven(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", drainTimeout(0)).run()
	h := m.subscribe(8)
	up, down := w.up("t"), w.down("t")
	h.resolve(h.nextOf(0, up, nil), giving(2, down))
	h.nextOf(1, down, map[string]int{up: 2})
	m.stop()
	if err := w.rdb.XDel(t.Context(), events, down).Err(); err != nil {
		t.Fatal(err)
	}
	w.join("a").run().subscribe(8)
	eventually(t, "an empty PEL", func() bool { return w.pendingCount() == 0 })
	if got := w.given(); len(got) != 0 {
		t.Errorf("left in Redis: %v", got)
	}
}

func TestAGroupThatBeginsAnewForgetsWhatEventsWereGiven(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a", drainTimeout(0)).run()
	h := m.subscribe(8)
	up, down := w.up("t"), w.down("t")
	h.resolve(h.nextOf(0, up, nil), giving(2, down))
	h.nextOf(1, down, map[string]int{up: 2})
	m.stop()
	if err := w.rdb.XGroupDestroy(t.Context(), events, group).Err(); err != nil {
		t.Fatal(err)
	}
	h = w.join("a").run().subscribe(8)
	h.nextOf(0, up, nil)
	if got := w.given(); len(got) != 0 {
		t.Errorf("left in Redis: %v", got)
	}
}

func TestAGivenKeyOfTheWrongTypeIsReportedUntilItIsRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	h := m.subscribe(8)
	up, down, other := w.up("t"), w.down("t"), w.up("other")
	h.await(2)
	key := stream.GivenKey(events, group)
	if err := w.rdb.Set(t.Context(), key, "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	h.resolve(h.nextOf(0, up, nil), giving(2, down))
	h.resolve(h.nextOf(1, other, nil), queueFinish)
	m.faultSays("WRONGTYPE")
	if err := w.rdb.Del(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	h.resolve(h.nextOf(2, down, map[string]int{up: 2}), queueFinish)
	eventually(t, "all to be acknowledged", func() bool { return w.pendingCount() == 0 })
	for _, id := range []string{up, down, other} {
		if n := len(w.resultsOf(id)); n != 1 {
			t.Errorf("event %s has %d results", id, n)
		}
	}
	if err := w.rdb.Set(t.Context(), key, "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	m.stop()
	m = w.join("a").run()
	eventually(t, "the fault to be known at the start", func() bool {
		err := m.healthErr()
		return err != nil && strings.Contains(err.Error(), "not a hash")
	})
}
