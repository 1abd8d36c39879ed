package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// Dial prepares a connection to the log server. It connects when it is used, and
// again whenever it breaks, so a server that is not there is no error here.
func Dial(addr string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// Calls fail at once while there is no connection, and the loops of this
		// package decide when to call again. The connection must not be lazier than they are.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: grpcbackoff.Config{
				BaseDelay: backoff.Default.Initial, Multiplier: 2, Jitter: .2, MaxDelay: backoff.Default.Max / 2,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("dialing the log server at %s: %w", addr, err)
	}
	return conn, nil
}

// unavailable reports whether an error is about the server as a whole.
func unavailable(err error) bool {
	if errors.Is(err, errSilent) || errors.Is(err, errEnded) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	default:
		return false
	}
}

// An outage is a time without a service. All followers see it at once, and it is
// logged once.
type outage struct {
	name  string
	about func(error) bool // whether an error is about the service as a whole
	log   *slog.Logger
	up    prometheus.Gauge

	mu    sync.Mutex
	since time.Time // zero while there is none
}

// explains reports whether an error is part of an outage.
func (o *outage) explains(ctx context.Context, err error) bool {
	if !o.about(err) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = time.Now()
		o.up.Set(0)
		o.log.WarnContext(ctx, "unavailable, trying again", "service", o.name, "err", err)
	}
	return true
}

// over says that the service has answered.
func (o *outage) over(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.up.Set(1)
	if !o.since.IsZero() {
		o.log.InfoContext(ctx, "available again", "service", o.name, "after", time.Since(o.since).Round(time.Millisecond).String())
		o.since = time.Time{}
	}
}

// callTimeout bounds one call that announces a worker or its end.
const callTimeout = 10 * time.Second

// persist makes a call until it succeeds or ctx ends.
func persist[Answer any](ctx context.Context, policy backoff.Policy, out *outage, log *slog.Logger, name string, call func(context.Context) (Answer, error)) (Answer, error) {
	for attempt := range policy.Attempts(ctx) {
		answer, err := func() (Answer, error) {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			return call(ctx)
		}()
		switch {
		case err == nil:
			out.over(ctx)
			return answer, nil
		case ctx.Err() != nil:
		case !out.explains(ctx, err):
			log.WarnContext(ctx, "calling the log server again", "call", name, "attempt", attempt.Number, "err", err)
		}
	}
	var none Answer
	return none, ctx.Err()
}

// limitsFor joins what the server allows with what the relay wants.
func limitsFor(wanted windowLimits, allowed *logsv1.Limits) windowLimits {
	if n := int(allowed.GetMaxBatchBytes()); n > 0 {
		wanted.batchBytes = min(wanted.batchBytes, n)
	}
	if n := int(allowed.GetWindowBatches()); n > 0 {
		wanted.batches = n
	}
	return wanted
}
