package stream_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// at is a world whose members and producers connect in this way.
func at(t *testing.T, server *redis.Server, where stream.Server) *world {
	t.Helper()
	rdb := stream.NewClient(where, "producer")
	t.Cleanup(func() { _ = rdb.Close() }) // the servers end anyway
	return &world{t: t, server: server, where: &where, rdb: rdb}
}

func TestEncryptedConnectionsAreChecked(t *testing.T) {
	t.Parallel()
	server, err := redis.StartEncrypted(t.Context(), redis.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	authority, err := os.ReadFile(server.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	certificate, err := tls.LoadX509KeyPair(server.CertFile, server.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	where := stream.Server{
		Addrs: []string{fmt.Sprintf("127.0.0.1:%d", server.TLSPort)}, Password: server.Password,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{certificate}},
	}
	w := at(t, server.Server, where)
	m := w.join("a").run()
	seen := m.finishAll(4)
	ids := []string{w.up("t"), w.up("u")}
	eventually(t, "both results", func() bool { return w.settled() == 2 })
	w.onceEach(seen(), ids...)
	m.stop()

	stranger := where
	stranger.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{certificate}}
	w.where = &stranger
	w.join("b").run().faultSays("certificate")
	unknown := where
	unknown.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool} // the server asks for one
	w.where = &unknown
	w.join("c").run().faultSays("certificate")
}

func TestAFailoverOfSentinelsLosesNothingThatTheReplicaHad(t *testing.T) {
	t.Parallel()
	w, watched, _ := withSentinel(t)
	replica := watched.Replica.Client()
	defer replica.Close() //nolint:errcheck // it only asks
	m := w.join("a").run()
	h := m.subscribe(8)
	inWork := w.up("t")
	h.await(1)
	eventually(t, "the replica to have the event", func() bool {
		n, err := replica.XPending(t.Context(), events, group).Result()
		return err == nil && n.Count == 1
	})
	if err := watched.Master.Kill(); err != nil {
		t.Fatal(err)
	}
	var after string
	eventually(t, "the new master to take an event", func() bool {
		id, err := w.rdb.XAdd(t.Context(), &goredis.XAddArgs{Stream: events, Values: []string{"type", "scale_up", "task_id", "u"}}).Result()
		after = id
		return err == nil
	})
	for _, d := range h.await(2) {
		h.resolve(d, queueFinish)
	}
	eventually(t, "both results", func() bool { return w.settled() == 2 })
	eventually(t, "health", func() bool { return m.healthErr() == nil })
	w.onceEach(h.got(), inWork, after)
}

func TestAClusterIsReadAlsoWhileItsSlotsMove(t *testing.T) {
	t.Parallel()
	cluster, err := redis.StartCluster(t.Context(), 3, redis.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	password := cluster.Nodes[0].Password
	w := at(t, cluster.Nodes[0], stream.Server{Addrs: cluster.Addrs()[:2], Cluster: true, Password: password})
	w.events, w.results, w.dead = "{otto}:events", "{otto}:results", "{otto}:dead"
	m := w.join("a", replication(1, time.Minute)).run()
	seen := m.finishAll(8)
	good, bad := w.up("t"), w.send("type", "explode")
	eventually(t, "both results", func() bool { return w.settled() == 2 })
	if got := len(w.read(w.dead)); got != 1 {
		t.Errorf("dead letters = %d", got)
	}

	// Its slot goes to another node, with all keys of it.
	from, err := cluster.Move(t.Context(), w.events)
	if err != nil {
		t.Fatal(err)
	}
	after := w.up("u")
	eventually(t, "the event after the move", func() bool { return len(w.resultsOf(after)) == 1 })
	eventually(t, "health", func() bool { return m.healthErr() == nil })
	w.onceEach(seen(), good, after)
	if got := len(w.resultsOf(bad)); got != 1 {
		t.Errorf("the bad event has %d results", got)
	}
	m.stop()

	// Somebody takes a node of it for a single server.
	w.where = &stream.Server{Addrs: []string{from.Addr}, Password: password}
	w.join("b").run().faultSays("MOVED", "REDIS_CLUSTER")
}
