package stream

import (
	"context"
	"net"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server says where Redis is.
type Server struct {
	Host               string
	Port               int
	Username, Password string
	DB                 int
}

// NewClient returns a client for a [Consumer]. It does not try again by itself,
// because the consumer's loops do, and it heeds deadlines also while it reads.
func NewClient(s Server, name string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr:                  net.JoinHostPort(s.Host, strconv.Itoa(s.Port)),
		Username:              s.Username,
		Password:              s.Password,
		DB:                    s.DB,
		ClientName:            name,
		MaxRetries:            -1,
		DialerRetries:         1,
		DialTimeout:           3 * time.Second,
		ReadTimeout:           3 * time.Second,
		WriteTimeout:          3 * time.Second,
		ContextTimeoutEnabled: true,
	})
}

// Quiet silences the client library, which writes its own lines to stderr about
// faults that it also returns. It is for main, as the setting is global.
func Quiet() { redis.SetLogger(discard{}) }

type discard struct{}

func (discard) Printf(context.Context, string, ...any) {}
