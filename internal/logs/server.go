package logs

import (
	"context"
	"errors"
	"log/slog"
	"time"

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

// callTimeout bounds one call that announces a worker or its end.
const callTimeout = 10 * time.Second

// persist makes a call until it succeeds or ctx ends.
func persist[Answer any](ctx context.Context, policy backoff.Policy, out *outage, log *slog.Logger, name string, call func(context.Context) (Answer, error)) (Answer, error) {
	for attempt := range policy.Attempts(ctx) {
		use := out.use()
		answer, err := func() (Answer, error) {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			return call(ctx)
		}()
		switch {
		case err == nil:
			use.succeeds(ctx)
			return answer, nil
		case ctx.Err() != nil:
		case !use.explains(ctx, err):
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
