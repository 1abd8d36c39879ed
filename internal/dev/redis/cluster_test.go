package redis_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
)

func TestAReplicaOfAClusterTakesOverAsSoonAsItIsThere(t *testing.T) {
	cluster, err := redis.StartCluster(t.Context(), 3, redis.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	master, replica, err := cluster.Replicate(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if err := master.Kill(); err != nil {
		t.Fatal(err)
	}
	client := replica.Client()
	defer client.Close() //nolint:errcheck // it only asked
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		info, err := client.Info(t.Context(), "replication").Result()
		if err == nil && strings.Contains(info, "role:master") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it has not taken over: %v\n%s", err, info)
		}
	}
}
