package logs

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// unavailable reports whether an error is about the server as a whole.
func unavailable(err error) bool {
	if errors.Is(err, errSilent) || errors.Is(err, errEnded) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Unauthenticated:
		return true
	default:
		return false
	}
}

// An outage is a time without a service. All followers see it at once, and each
// reason for it is logged once: behind the refused connection of a server that
// starts may come the certificate that nobody trusts.
type outage struct {
	name  string
	about func(error) bool // whether an error is about the service as a whole
	log   *slog.Logger
	up    prometheus.Gauge

	mu    sync.Mutex
	since time.Time // zero while there is none
	said  []string  // the reasons that were logged
}

// mostReasons bounds what one outage logs.
const mostReasons = 8

// explains reports whether an error is part of an outage.
func (o *outage) explains(ctx context.Context, err error) bool {
	if !o.about(err) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = time.Now()
		o.said = nil
		o.up.Set(0)
	}
	if reason := reasonOf(err); len(o.said) < mostReasons && !slices.Contains(o.said, reason) {
		o.said = append(o.said, reason)
		o.log.WarnContext(ctx, "unavailable, trying again", "service", o.name, "err", err)
	}
	return true
}

// reasonOf returns what an error says, without what differs each time, such as
// our port. It decides about nothing but whether to log.
func reasonOf(err error) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
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
