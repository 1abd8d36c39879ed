// Package redistest gives tests a redis-server of their own.
package redistest

import (
	"testing"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
)

// ForTest starts a server that ends with the test. A machine without redis-server
// fails the test: what runs against a real Redis must not pass without one.
func ForTest(t testing.TB, opts redis.Options) *redis.Server {
	t.Helper()
	s, err := redis.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}
