package stream_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// withSentinel is a world on a master that a sentinel watches, and its replica. The
// world notes the events that were told to be settled.
func withSentinel(t *testing.T) (w *world, watched *redis.Watched, told func(id string) bool) {
	t.Helper()
	watched, err := redis.StartWatched(t.Context(), redis.Options{AppendOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := watched.Stop(); err != nil {
			t.Error(err)
		}
	})
	w = at(t, watched.Master, stream.Server{Addrs: []string{watched.Addr}, SentinelMaster: redis.MasterName, Password: watched.Master.Password})
	return w, watched, w.noteTold()
}

// noteTold has the world note the events that are told to be settled from now on.
func (w *world) noteTold() (told func(id string) bool) {
	var mu sync.Mutex
	var ids []string
	w.beforeSettle = func(id string) {
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, id)
	}
	return func(id string) bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(ids, id)
	}
}

func acknowledged(t *testing.T, rdb *goredis.Client, id string) bool {
	t.Helper()
	pending, err := rdb.XPendingExt(t.Context(), &goredis.XPendingExtArgs{Stream: events, Group: group, Start: id, End: id, Count: 1}).Result()
	if err != nil {
		t.Fatal(err)
	}
	return len(pending) == 0
}

func TestAnOutcomeIsToldOnceAReplicaHasIt(t *testing.T) {
	t.Parallel()
	w, watched, told := withSentinel(t)
	master := watched.Master.Client()
	defer master.Close() //nolint:errcheck // it only asks
	m := w.join("a", replication(1, time.Hour)).run()
	h := m.subscribe(8)
	id := w.up("t")
	d := h.await(1)[0]
	bad := w.send("type", "explode") // nothing depends on its outcome
	if err := watched.Replica.Freeze(); err != nil {
		t.Fatal(err)
	}
	h.resolve(d, queueFinish)
	eventually(t, "the master to know", func() bool { return acknowledged(t, master, id) && acknowledged(t, master, bad) })
	time.Sleep(300 * time.Millisecond) // it is in vain in the program as it is
	if told(id) {
		t.Error("the event was told to be settled, and only the master knew")
	}
	if err := watched.Replica.Thaw(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event to be told to be settled", func() bool { return told(id) })
	replica := watched.Replica.Client()
	defer replica.Close() //nolint:errcheck // it only asks
	if !acknowledged(t, replica, id) {
		t.Error("the replica does not know")
	}
	if n := m.metric("unreplicated_total"); n != 0 {
		t.Errorf("unreplicated_total = %v", n)
	}
}

func TestAnEventCountsAsSettledOnceAReplicaKnows(t *testing.T) {
	t.Parallel()
	w, watched, _ := withSentinel(t)
	master := watched.Master.Client()
	defer master.Close() //nolint:errcheck // it only asks
	m := w.join("a", replication(1, time.Hour)).run()
	h := m.subscribe(8)
	id := w.up("t")
	h.await(1)
	if err := watched.Replica.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := master.XAck(t.Context(), events, group, id).Err(); err != nil {
		t.Fatal(err)
	}
	another := w.join("b", replication(1, time.Hour))
	const calls = 50 // more than there are connections
	answers := make(chan error, calls)
	for range calls {
		go func() {
			settled, err := another.Settled(t.Context(), id)
			if err == nil && !settled {
				err = errors.New("it counts as open")
			}
			answers <- err
		}()
	}
	select {
	case err := <-answers:
		t.Errorf("only the master knew, and there was an answer: %v", err)
	case <-time.After(300 * time.Millisecond): // it is in vain in the program as it is
	}
	if err := watched.Replica.Thaw(); err != nil {
		t.Fatal(err)
	}
	for range calls {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}

func TestWhatOnlyADeadMasterKnewToBeDoneIsStoredAtTheNewOne(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"its reply arrived": false, "its reply was lost, and the outcome found": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkFailover(t, again)
		})
	}
}

// checkFailover has an outcome reach a master that dies before its replica hears of it;
// or rather, the outcome is found there again first. With it goes what the event gives.
func checkFailover(t *testing.T, again bool) {
	t.Helper()
	w, watched, told := withSentinel(t)
	master, replica := watched.Master.Client(), watched.Replica.Client()
	defer master.Close()  //nolint:errcheck // it only asks
	defer replica.Close() //nolint:errcheck // as above
	m := w.join("a", replication(1, time.Hour)).run()
	h := m.subscribe(8)
	id, later := w.up("t"), w.down("t")
	d := h.await(1)[0]
	eventually(t, "the replica to have the events", func() bool {
		n, err := replica.XPending(t.Context(), events, group).Result()
		return err == nil && n.Count == 2
	})
	if err := watched.Replica.Freeze(); err != nil {
		t.Fatal(err)
	}
	// More than the kernel holds for a replica that does not read, so that what comes
	// after it is with the master alone.
	filler := strings.Repeat("x", 1<<20)
	for range 32 {
		if err := master.Set(t.Context(), "filler", filler, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	h.resolve(d, giving(2, later))
	eventually(t, "the master to know", func() bool { return acknowledged(t, master, id) })
	if again {
		if err := errors.Join(master.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err(), master.ConfigResetStat(t.Context()).Err()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the consumer to find it done, and to wait again", func() bool {
			var calls int
			_, wait, _ := strings.Cut(master.Info(t.Context(), "commandstats").Val(), "cmdstat_wait:")
			_, err := fmt.Sscanf(wait, "calls=%d", &calls)
			return err == nil && calls >= 4 // the reader's is one
		})
	}
	if err := errors.Join(watched.Master.Kill(), watched.Replica.Thaw()); err != nil {
		t.Fatal(err)
	}
	if acknowledged(t, replica, id) {
		t.Fatal("the replica knows: this tests nothing")
	}
	if told(id) {
		t.Error("the event was told to be settled, and only the dead master knew")
	}
	eventually(t, "the event to be told to be settled", func() bool { return told(id) })
	if !acknowledged(t, replica, id) {
		t.Error("the new master does not know")
	}
	h.nextOf(1, later, map[string]int{id: 2})
	if got := replica.HGet(t.Context(), stream.GivenKey(events, group), later).Val(); got != " "+id+"=2" {
		t.Errorf("the new master knows of %q that were given", got)
	}
	if n := len(w.resultsOf(id)); n != 1 {
		t.Errorf("%d results, want one", n)
	}
}

func TestReplicasThatAreGoneHoldNothingUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{}) // it never had any
	m := w.join("a", replication(1, time.Hour)).run()
	seen := m.finishAll(8)
	ids := []string{w.up("t"), w.up("u")}
	eventually(t, "both results", func() bool { return w.settled() == 2 })
	w.onceEach(seen(), ids...)
	eventually(t, "a count of them", func() bool { return m.metric("unreplicated_total") > 0 })
	m.stop()
	if n := len(m.log.with("WARN", "replicas do not keep up", "connected=0", "want=1")); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
}

func TestAMasterThatItsReplicaHasLeftIsNotTrustedAlone(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"it runs on": false, "it was started again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkSplit(t, restart)
		})
	}
}

// checkSplit has a replica become a master, of which the one before, which may be started
// again, has not heard.
func checkSplit(t *testing.T, restart bool) {
	t.Helper()
	w := newWorld(t, redis.Options{AppendOnly: true})
	told := w.noteTold()
	replica := redistest.ForTest(t, redis.Options{Config: []string{"masterauth " + w.server.Password}})
	master, other := w.server.Client(), replica.Client()
	defer master.Close() //nolint:errcheck // it only asks
	defer other.Close()  //nolint:errcheck // it is done with
	follow := func(host, port string) {
		t.Helper()
		if err := other.ReplicaOf(t.Context(), host, port).Err(); err != nil {
			t.Fatal(err)
		}
	}
	follow(w.server.Host, strconv.Itoa(w.server.Port))
	eventually(t, "the replica", func() bool { return master.Wait(t.Context(), 1, time.Second).Val() == 1 })
	m := w.join("a", replication(1, time.Hour)).run()
	h := m.subscribe(8)
	first, second := w.up("t"), w.up("u")
	held := h.await(2)
	h.resolve(held[0], queueFinish)
	eventually(t, "the first outcome", func() bool { return told(first) })
	follow("NO", "ONE")
	if restart {
		if err := errors.Join(w.server.Kill(), w.server.Restart(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	h.resolve(held[1], queueFinish)
	eventually(t, "the master to know", func() bool { return acknowledged(t, master, second) })
	time.Sleep(300 * time.Millisecond) // it is in vain in the program as it is
	if told(second) {
		t.Error("the event was told to be settled, and only a master knew that may not be the one any more")
	}
	follow(w.server.Host, strconv.Itoa(w.server.Port))
	eventually(t, "the event to be told to be settled", func() bool { return told(second) })
	if n := m.metric("unreplicated_total"); n != 0 {
		t.Errorf("unreplicated_total = %v", n)
	}
}

func TestAReplicaThatHangsHoldsOutcomesUpForALimitedTime(t *testing.T) {
	t.Parallel()
	w, watched, told := withSentinel(t)
	m := w.join("a", replication(1, 300*time.Millisecond)).run()
	m.finishAll(8)
	if err := watched.Replica.Freeze(); err != nil {
		t.Fatal(err)
	}
	first, second := w.up("t"), w.up("u")
	eventually(t, "both to be told to be settled", func() bool { return told(first) && told(second) })
	if n := len(m.log.with("WARN", "replicas do not keep up", "connected=1")); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
	if err := watched.Replica.Thaw(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replica to be back", func() bool {
		w.up("v")
		return len(m.log.with("INFO", "replicas keep up again")) == 1
	})
}

func TestAClusterGoesOnAtAReplica(t *testing.T) {
	t.Parallel()
	cluster, err := redis.StartCluster(t.Context(), 3, redis.Options{AppendOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	w := at(t, cluster.Nodes[0], stream.Server{Addrs: cluster.Addrs(), Cluster: true, Password: cluster.Nodes[0].Password})
	w.events, w.results, w.dead = "{otto}:events", "{otto}:results", "{otto}:dead"
	master, replica, err := cluster.Replicate(t.Context(), w.events)
	if err != nil {
		t.Fatal(err)
	}
	m := w.join("a", replication(1, time.Hour)).run()
	seen := m.finishAll(8)
	before, bad := w.up("t"), w.send("type", "explode")
	eventually(t, "both results", func() bool { return w.settled() == 2 })
	if n := m.metric("unreplicated_total"); n != 0 {
		t.Errorf("unreplicated_total = %v", n)
	}
	client := replica.Client()
	defer client.Close() //nolint:errcheck // it only asks
	eventually(t, "the replica to have all", func() bool {
		return client.ReadOnly(t.Context()).Err() == nil && client.XLen(t.Context(), w.results).Val() >= 3
	})
	if err := master.Kill(); err != nil {
		t.Fatal(err)
	}
	var after string
	eventually(t, "the replica to take an event", func() bool {
		id, err := w.rdb.XAdd(t.Context(), &goredis.XAddArgs{Stream: w.events, Values: []string{"type", "scale_up", "task_id", "u"}}).Result()
		after = id
		return err == nil
	})
	eventually(t, "the event after the failover", func() bool { return len(w.resultsOf(after)) == 1 })
	eventually(t, "health", func() bool { return m.healthErr() == nil })
	w.onceEach(seen(), before, after)
	if got := len(w.resultsOf(bad)); got != 1 {
		t.Errorf("the bad event has %d results", got)
	}
}

func TestAnEventThatANewMasterHasNotGivenOutYetIsDoneThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redis.Options{})
	m := w.join("a").run()
	h := m.subscribe(8)
	first, second := w.up("t"), w.up("u")
	held := h.await(2)
	// As a replica knows it that has heard of the events, and of no read.
	_, err := w.rdb.TxPipelined(t.Context(), func(tx goredis.Pipeliner) error {
		tx.XAck(t.Context(), events, group, first, second)
		tx.XGroupSetID(t.Context(), events, group, "0")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range held {
		if d.ID == second {
			h.resolve(d, queueFinish)
		}
	}
	eventually(t, "its result", func() bool { return len(w.resultsOf(second)) == 1 })
	after := w.up("v")
	for _, d := range h.await(3) {
		if d.ID != second {
			h.resolve(d, queueFinish)
		}
	}
	eventually(t, "all to be acknowledged", func() bool { return w.settled() == 3 && w.pendingCount() == 0 })
	w.onceEach(h.got(), first, second, after)
}
