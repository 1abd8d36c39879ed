package stream_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	return l.Addr().(*net.TCPAddr).Port
}

// at is a world whose members and producers connect in this way.
func at(t *testing.T, server *redis.Server, where stream.Server) *world {
	t.Helper()
	rdb := stream.NewClient(where, "producer")
	t.Cleanup(func() { _ = rdb.Close() }) // the servers end anyway
	return &world{t: t, server: server, where: &where, rdb: rdb}
}

func TestEncryptedConnectionsAreChecked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pool, certificate := authority(t, dir)
	port := freePort(t)
	server := redistest.ForTest(t, redis.Options{Config: []string{
		"tls-port " + strconv.Itoa(port), "tls-ca-cert-file " + filepath.Join(dir, "ca.pem"),
		"tls-cert-file " + filepath.Join(dir, "cert.pem"), "tls-key-file " + filepath.Join(dir, "key.pem"),
	}})
	where := stream.Server{
		Addrs: []string{fmt.Sprintf("127.0.0.1:%d", port)}, Password: server.Password,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{certificate}},
	}
	w := at(t, server, where)
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

// authority makes the files of a certificate authority and of one certificate of
// it, which serves both ends.
func authority(t *testing.T, dir string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, kind string, der []byte) []byte {
		t.Helper()
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		must(os.WriteFile(filepath.Join(dir, name), text, 0o600))
		return text
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	must(err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(write("ca.pem", "CERTIFICATE", caDER))
	certificate, err := tls.X509KeyPair(write("cert.pem", "CERTIFICATE", der), write("key.pem", "EC PRIVATE KEY", keyDER))
	must(err)
	return pool, certificate
}

func TestAFailoverOfSentinelsLosesNothingThatTheReplicaHad(t *testing.T) {
	t.Parallel()
	watched, err := redis.StartWatched(t.Context(), redis.Options{AppendOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := watched.Stop(); err != nil {
			t.Error(err)
		}
	})
	replica := watched.Replica.Client()
	defer replica.Close() //nolint:errcheck // it only asks
	w := at(t, watched.Master, stream.Server{Addrs: []string{watched.Addr}, SentinelMaster: redis.MasterName, Password: watched.Master.Password})
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
	m := w.join("a").run()
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
