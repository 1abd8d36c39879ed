package redis_test

import (
	"context"
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := replica.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
}
