package stream

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// Replication says how many of Redis' replicas must have an outcome before it counts as
// stored. A failover to one of them then finds the event acknowledged, and does not
// deliver it again when its traces in the cluster are gone.
type Replication struct {
	// Replicas is how many; 0 trusts the master alone.
	Replicas int
	// Timeout is how long to wait for one that is connected and does not answer, as when the
	// master is cut off. It should be longer than a failover takes: until then, that one may
	// become the master. What is not connected is waited for 5 seconds, if that is less.
	Timeout time.Duration
}

const (
	// replicasAsked is how long one WAIT blocks. It bounds how late we notice that we are
	// told to stop.
	replicasAsked = 100 * time.Millisecond
	// replicasGlanced is how long it blocks while replicas are known to be missing. To
	// Redis, 0 means without end.
	replicasGlanced = time.Millisecond
	// replicasLeft is how long to wait for replicas that are not connected. One that was
	// made the master has left before we are told, which takes sentinels and clusters a
	// second or two; any other comes back, or does not.
	replicasLeft = 5 * time.Second
)

// replicasPolicy is how often we look again where Redis does not wait.
var replicasPolicy = backoff.Policy{Initial: 5 * time.Millisecond, Max: 50 * time.Millisecond}

// mostReplicated bounds the connections that wait for replicas at once: the others of
// their pool are for who reads and looks.
const mostReplicated = settlers + 2

// replicated calls do with a way to Redis, and returns only when replicas have what the
// master had when do returned, which says whether it has written. It has to be one
// connection: one to a new master would be told that all is replicated of what that master
// knows.
func (c *Consumer) replicated(ctx context.Context, do func(rdb redis.Cmdable) (wrote bool, err error)) error {
	if c.cfg.Replication.Replicas == 0 {
		_, err := do(c.rdb)
		return err
	}
	select {
	case c.replicating <- struct{}{}:
		defer func() { <-c.replicating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	conn, err := c.connection(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it goes back to its pool
	wrote, err := do(conn)
	if err == nil {
		err = c.awaitReplicas(ctx, conn, wrote)
	}
	if cluster, ok := c.rdb.(*redis.ClusterClient); ok && err != nil {
		cluster.ReloadState(ctx) // it does not see the reply, which may be MOVED
	}
	return err
}

// connection returns a connection to the master that has our keys.
func (c *Consumer) connection(ctx context.Context) (*redis.Conn, error) {
	switch rdb := c.rdb.(type) {
	case *redis.Client:
		return rdb.Conn(), nil
	case *redis.ClusterClient:
		node, err := rdb.MasterForKey(ctx, c.cfg.Stream)
		if err != nil {
			return nil, fmt.Errorf("looking for the master of %s: %w", c.cfg.Stream, err)
		}
		return node.Conn(), nil
	default:
		return nil, fmt.Errorf("a %T has no single connection", rdb)
	}
}

// awaitReplicas waits until replicas have what the connection's master has. It goes on
// without them where there never were any, and when it has waited long enough. One that
// is back gets all that it has missed before it can take over, and is waited for from
// then on.
//
// WAIT is about what the connection has written. From Redis 7.2 on it does not wait after
// a read: then those replicas count that have acknowledged where the master was after
// the read, which they do once a second.
func (c *Consumer) awaitReplicas(ctx context.Context, conn *redis.Conn, wrote bool) error {
	want := c.cfg.Replication
	var read int64 // where the master was
	if !wrote {
		m, err := askMaster(ctx, conn)
		if err != nil {
			return err
		}
		read = m.offset
	}
	asked := replicasAsked
	if c.following.behind() {
		asked = replicasGlanced
	}
	begun := time.Now()
	for range replicasPolicy.Attempts(ctx) {
		have, m, err := waitForReplicas(ctx, conn, want.Replicas, asked)
		if err != nil {
			return err
		}
		asked = replicasAsked
		if !wrote {
			have = m.acknowledged(read)
		}
		ever := c.following.see(m)
		if have >= want.Replicas {
			if c.following.keepUp() {
				c.log.InfoContext(ctx, "Redis' replicas keep up again", "replicas", have)
			}
			return nil
		}
		s, patience := shortfall{master: m.id, connected: m.replicas}, want.Timeout
		if m.replicas < want.Replicas {
			patience = min(patience, replicasLeft)
		}
		waited := time.Since(begun)
		if ever && waited < patience && !c.following.knows(s) {
			continue
		}
		if c.following.goOn(s) {
			c.log.WarnContext(ctx, "Redis' replicas do not keep up: outcomes are stored without them, and after a failover events may act again",
				"replicas", have, "connected", m.replicas, "want", want.Replicas, "waited", waited.Round(time.Millisecond))
		}
		c.metrics.unreplicated.Inc()
		return nil
	}
	return ctx.Err()
}

// A following is what we know of how replicas follow their master.
type following struct {
	mu sync.Mutex
	// had says whether any master had a replica. One that has just been started does not
	// know that it had; guarded by mu.
	had bool
	// without is the shortfall that we go on with; guarded by mu.
	without shortfall
}

// A shortfall is that of a master, by its replication ID, of whose connected replicas not
// enough keep up. The zero value is none.
type shortfall struct {
	master    string
	connected int
}

// see notes what a master says, and reports whether it, or one before it, had a replica.
func (f *following) see(m master) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.had = f.had || m.hadReplicas
	return f.had
}

// behind reports whether the last answer was one that not enough replicas had.
func (f *following) behind() bool { return !f.knows(shortfall{}) }

// knows reports whether we go on with a shortfall, because it was waited for its end.
func (f *following) knows(s shortfall) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.without == s
}

// keepUp notes that enough replicas keep up. It reports whether that is news.
func (f *following) keepUp() (again bool) { return f.change(shortfall{}) != shortfall{} }

// goOn notes that we go on with a shortfall. It reports whether that is news.
func (f *following) goOn(s shortfall) (news bool) { return f.change(s) == shortfall{} }

func (f *following) change(to shortfall) (from shortfall) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, f.without = f.without, to
	return from
}

// A master is what one says of its replication.
type master struct {
	// id is its replication ID, which a server gets when it starts and when it takes over.
	id string
	// replicas is how many are connected, also those that get their first copy: they may
	// have it all before the master knows, and take over.
	replicas int
	// hadReplicas says whether it had one within the last hour (repl-backlog-ttl), or was one.
	hadReplicas bool
	// offset is where it is, and acks where each of its replicas was when it last told.
	offset int64
	acks   []int64
}

// acknowledged returns how many replicas have told that they were there.
func (m master) acknowledged(offset int64) (n int) {
	for _, ack := range m.acks {
		if ack >= offset {
			n++
		}
	}
	return n
}

// askMaster asks a master for its replication.
func askMaster(ctx context.Context, rdb redis.Cmdable) (master, error) {
	info := rdb.InfoMap(ctx, "replication")
	if err := info.Err(); err != nil {
		return master{}, fmt.Errorf("asking Redis for its replicas: %w", err)
	}
	return masterIn(info)
}

// waitForReplicas is askMaster, after a wait until so many replicas have what the
// connection has written, or until the time is over. It returns how many have it.
func waitForReplicas(ctx context.Context, conn *redis.Conn, want int, wait time.Duration) (have int, m master, err error) {
	pipe := conn.Pipeline()
	replicas, info := pipe.Do(ctx, "wait", want, wait.Milliseconds()), pipe.InfoMap(ctx, "replication")
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, m, fmt.Errorf("waiting for %d replicas: %w", want, err)
	}
	if have, err = replicas.Int(); err != nil {
		return 0, m, fmt.Errorf("waiting for %d replicas: %w", want, err)
	}
	m, err = masterIn(info)
	return have, m, err
}

func masterIn(info *redis.InfoCmd) (m master, err error) {
	says := info.Val()["Replication"]
	m = master{id: says["master_replid"], hadReplicas: says["repl_backlog_active"] == "1"}
	if m.replicas, err = strconv.Atoi(says["connected_slaves"]); err != nil {
		return m, fmt.Errorf("asking Redis for its replicas: %w", err)
	}
	if m.offset, err = strconv.ParseInt(says["master_repl_offset"], 10, 64); err != nil {
		return m, fmt.Errorf("asking Redis for its replicas: %w", err)
	}
	for i := range m.replicas {
		_, ack, _ := strings.Cut(says["slave"+strconv.Itoa(i)], ",offset=")
		ack, _, _ = strings.Cut(ack, ",")
		if n, err := strconv.ParseInt(ack, 10, 64); err == nil { // else it has told nothing yet
			m.acks = append(m.acks, n)
		}
	}
	return m, nil
}

// leader tells masters apart between which there may be a failover.
func (c *Consumer) leader(ctx context.Context, rdb redis.Cmdable) (id string, err error) {
	if c.cfg.Replication.Replicas == 0 {
		return "", nil
	}
	m, err := askMaster(ctx, rdb)
	return m.id, err
}

// checkReplication finds out whether we may ask for replicas, before an event depends
// on it.
func (c *Consumer) checkReplication(ctx context.Context) error {
	if c.cfg.Replication.Replicas == 0 {
		return nil
	}
	conn, err := c.connection(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it goes back to its pool
	_, m, err := waitForReplicas(ctx, conn, 0, replicasGlanced)
	if err == nil {
		c.following.see(m)
	}
	return err
}
