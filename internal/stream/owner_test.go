package stream_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

func owner(o stream.Owner) config { return func(c *stream.Config) { c.Owner = o } }

var (
	jinwoo = stream.Owner{User: "jinwoo", Instance: "ottoscaler", Namespace: "ottoscaler-jinwoo"}
	minji  = stream.Owner{User: "minji", Instance: "ottoscaler", Namespace: "ottoscaler-minji"}
)

// own has an installation make the group its own, and stops it.
func (w *world) own(o stream.Owner) {
	w.t.Helper()
	m := w.join("first", owner(o)).run()
	eventually(w.t, "it has the group", func() bool { return m.healthErr() == nil })
	m.stop()
}

// refusal runs a member that must not run, and returns what it says.
func refusal(t *testing.T, m *member) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := m.Run(ctx)
	var foreign *stream.ForeignGroupError
	if !errors.As(err, &foreign) {
		t.Fatalf("running on a group of somebody else: got %v, want a ForeignGroupError", err)
	}
	return err.Error()
}

func TestAGroupOfSomebodyElseIsRefusedBeforeAnythingIsRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	w.own(jinwoo)
	id := w.up("t")
	for name, other := range map[string]stream.Owner{
		"another user":      minji,
		"nobody's own":      {Instance: "ottoscaler", Namespace: "ottoscaler-jinwoo"},
		"another instance":  {User: "jinwoo", Instance: "second", Namespace: "ottoscaler-jinwoo"},
		"another namespace": {User: "jinwoo", Instance: "ottoscaler", Namespace: "elsewhere"},
	} {
		said := refusal(t, w.join("second", owner(other)))
		for _, want := range []string{"jinwoo", "ottoscaler-jinwoo", "REDIS_CONSUMER_GROUP", "DEL " + stream.OwnerKey(events, group)} {
			if !strings.Contains(said, want) {
				t.Errorf("%s: it says %q, want %q in it", name, said, want)
			}
		}
	}
	if names := w.consumers(); len(names) > 1 || w.pendingCount() > 0 {
		t.Errorf("consumers %v, %d entries pending: the refused one has touched the group", names, w.pendingCount())
	}
	m := w.join("first", owner(jinwoo)).run()
	m.finishAll(1)
	eventually(t, "its owner carries out the event", func() bool { return len(w.resultsOf(id)) == 1 })
}

func TestMainPodsOfOneInstallationShareTheirGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	w.join("a", owner(jinwoo)).run()
	m := w.join("b", owner(jinwoo)).run()
	m.finishAll(4)
	id := w.up("t")
	eventually(t, "the event is carried out", func() bool { return len(w.resultsOf(id)) == 1 })
}

func TestAGroupWhoseClaimIsDeletedGoesToWhoComesNext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	w.own(jinwoo)
	if err := w.rdb.Del(t.Context(), stream.OwnerKey(events, group)).Err(); err != nil {
		t.Fatal(err)
	}
	m := w.join("second", owner(minji)).run()
	m.finishAll(1)
	id := w.up("t")
	eventually(t, "the event is carried out", func() bool { return len(w.resultsOf(id)) == 1 })
	if said := refusal(t, w.join("first", owner(jinwoo))); !strings.Contains(said, "minji") {
		t.Errorf("it says %q, want the new owner", said)
	}
}

func TestAGroupThatSomebodyElseMadeAfterAFlushIsLeftToThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("first", owner(jinwoo))
	ended := make(chan error, 1)
	go func() { ended <- m.Run(t.Context()) }()
	m.subscribe(1)
	eventually(t, "it reads", func() bool { return m.healthErr() == nil })
	// What FLUSHALL and a quicker installation leave behind.
	pipe := w.rdb.TxPipeline()
	pipe.FlushAll(t.Context())
	pipe.Set(t.Context(), stream.OwnerKey(events, group), `{"user":"minji","instance":"ottoscaler","since":"2026-01-01T00:00:00Z"}`, 0)
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "minji") {
			t.Errorf("it ended with %v, want whose the group is", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it goes on")
	}
}

func TestAClaimThatNobodyUnderstandsIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	if err := w.rdb.Set(t.Context(), stream.OwnerKey(events, group), "who?", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if said := refusal(t, w.join("first", owner(jinwoo))); !strings.Contains(said, "who?") {
		t.Errorf("it says %q, want what the key holds", said)
	}
}

func TestTheClaimWaitsForARedisThatIsAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{AppendOnly: true, Dir: t.TempDir()})
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	m := w.join("first", owner(jinwoo)).run()
	eventually(t, "the outage is reported", func() bool { return m.healthErr() != nil && !errors.Is(m.healthErr(), errStarting) })
	if err := w.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is ready", func() bool { return m.healthErr() == nil })
}

func TestAGroupTakenOverWhileNobodyCouldActIsNotReadAnyMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("first", owner(jinwoo), reclaimAfter(2*time.Second))
	ended := make(chan error, 1)
	go func() { ended <- m.Run(t.Context()) }()
	eventually(t, "it has the group", func() bool { return m.healthErr() == nil })
	time.Sleep(time.Second) // it waits for credit, longer than a beat
	pipe := w.rdb.TxPipeline()
	pipe.FlushAll(t.Context())
	pipe.Set(t.Context(), stream.OwnerKey(events, group), `{"user":"minji","instance":"ottoscaler","since":"2026-01-01T00:00:00Z"}`, 0)
	pipe.XGroupCreateMkStream(t.Context(), events, group, "0")
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.up("theirs")
	m.subscribe(1)
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "minji") {
			t.Errorf("it ended with %v, want whose the group is", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it goes on")
	}
	if n := w.pendingCount(); n != 0 {
		t.Errorf("%d of their entries are pending with us", n)
	}
}
