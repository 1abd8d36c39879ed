package stream_test

import (
	"context"
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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
	const password = "sesame"
	auth := []string{"masterauth " + password, "requirepass " + password}
	first := redistest.ForTest(t, redis.Options{AppendOnly: true})
	second := redistest.ForTest(t, redis.Options{AppendOnly: true})
	for _, s := range []*redis.Server{first, second} {
		c := s.Client()
		for _, line := range auth {
			name, value, _ := strings.Cut(line, " ")
			if err := c.ConfigSet(t.Context(), name, value).Err(); err != nil {
				t.Fatal(err)
			}
		}
		s.Password = password
		_ = c.Close() // every write was answered
	}
	replica := second.Client()
	defer replica.Close() //nolint:errcheck // as above
	if err := replica.ReplicaOf(t.Context(), first.Host, strconv.Itoa(first.Port)).Err(); err != nil {
		t.Fatal(err)
	}
	sentinel := startSentinel(t, first, password)
	w := at(t, first, stream.Server{Addrs: []string{sentinel}, SentinelMaster: "otto", Password: password})
	m := w.join("a").run()
	h := m.subscribe(8)
	inWork := w.up("t")
	h.await(1)
	eventually(t, "the replica to have the event", func() bool {
		n, err := replica.XPending(t.Context(), events, group).Result()
		return err == nil && n.Count == 1
	})
	if err := first.Kill(); err != nil {
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

// startSentinel starts a sentinel that watches one master, and returns its address.
func startSentinel(t *testing.T, master *redis.Server, password string) string {
	t.Helper()
	port := freePort(t)
	file := filepath.Join(t.TempDir(), "sentinel.conf")
	config := fmt.Sprintf(`bind 127.0.0.1
port %d
sentinel monitor otto %s %d 1
sentinel auth-pass otto %s
sentinel down-after-milliseconds otto 500
sentinel failover-timeout otto 3000
`, port, master.Host, master.Port, password)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("redis-server", file, "--sentinel")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it holds nothing that anybody needs
		_ = cmd.Wait()
	})
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	client := goredis.NewSentinelClient(&goredis.Options{Addr: addr})
	defer client.Close() //nolint:errcheck // every write was answered
	eventually(t, "the sentinel to know the replica", func() bool {
		replicas, err := client.Replicas(context.Background(), "otto").Result()
		return err == nil && len(replicas) == 1
	})
	return addr
}

func TestAClusterIsReadAlsoWhileItsSlotsMove(t *testing.T) {
	t.Parallel()
	const password = "sesame"
	var nodes []*redis.Server
	for range 3 {
		n := redistest.ForTest(t, redis.Options{Config: []string{
			"cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000", "cluster-port " + strconv.Itoa(freePort(t)),
		}})
		nodes = append(nodes, n)
	}
	var clients []*goredis.Client
	var names []string
	for i, n := range nodes {
		c := n.Client()
		t.Cleanup(func() { _ = c.Close() }) // the server ends anyway
		if err := c.ConfigSet(t.Context(), "requirepass", password).Err(); err != nil {
			t.Fatal(err)
		}
		c = goredis.NewClient(&goredis.Options{Addr: n.Addr, Password: password})
		t.Cleanup(func() { _ = c.Close() }) // as above
		n.Password = password
		clients = append(clients, c)
		from, to := i*16384/3, (i+1)*16384/3-1
		if err := c.ClusterAddSlotsRange(t.Context(), from, to).Err(); err != nil {
			t.Fatal(err)
		}
		name, err := c.ClusterMyID(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
		bus, err := c.ConfigGet(t.Context(), "cluster-port").Result()
		if err != nil {
			t.Fatal(err)
		}
		if err := clients[0].Do(t.Context(), "CLUSTER", "MEET", n.Host, n.Port, bus["cluster-port"]).Err(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the cluster to be whole", func() bool {
		for _, c := range clients {
			info, err := c.ClusterInfo(t.Context()).Result()
			if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:3") {
				return false
			}
		}
		return true
	})
	w := at(t, nodes[0], stream.Server{Addrs: []string{nodes[0].Addr, nodes[1].Addr}, Cluster: true, Password: password})
	w.events, w.results, w.dead = "{otto}:events", "{otto}:results", "{otto}:dead"
	m := w.join("a").run()
	seen := m.finishAll(8)
	good, bad := w.up("t"), w.send("type", "explode")
	eventually(t, "both results", func() bool { return w.settled() == 2 })
	if got := len(w.read(w.dead)); got != 1 {
		t.Errorf("dead letters = %d", got)
	}

	// Its slot goes to another node, with all keys of it.
	slot, err := clients[0].ClusterKeySlot(t.Context(), w.events).Result()
	if err != nil {
		t.Fatal(err)
	}
	from := int(slot) * 3 / 16384
	if int(slot) < from*16384/3 {
		from--
	}
	to := (from + 1) % 3
	do := func(c *goredis.Client, args ...any) {
		t.Helper()
		if err := c.Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	do(clients[to], "CLUSTER", "SETSLOT", slot, "IMPORTING", names[from])
	do(clients[from], "CLUSTER", "SETSLOT", slot, "MIGRATING", names[to])
	keys, err := clients[from].ClusterGetKeysInSlot(t.Context(), int(slot), 100).Result()
	if err != nil || len(keys) < 3 {
		t.Fatalf("keys in the slot: %v, %v", keys, err)
	}
	migrate := []any{"MIGRATE", nodes[to].Host, nodes[to].Port, "", 0, 5000, "AUTH", password, "KEYS"}
	for _, key := range keys {
		migrate = append(migrate, key)
	}
	do(clients[from], migrate...)
	for _, c := range []*goredis.Client{clients[to], clients[from], clients[3-from-to]} {
		do(c, "CLUSTER", "SETSLOT", slot, "NODE", names[to])
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
	w.where = &stream.Server{Addrs: []string{nodes[from].Addr}, Password: password}
	w.join("b").run().faultSays("MOVED", "REDIS_CLUSTER")
}
