package queuerpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// toStatus makes the status that ends a call on the server.
func toStatus(err error) error {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// invalid is the status of a request that no retry can repair.
func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// fromUnary reads the error of a call without streams. The end of the caller's
// own context is told as such.
func fromUnary(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := ctx.Deadline(); ok && status.Code(err) == codes.DeadlineExceeded {
		return context.DeadlineExceeded // the server's clock was a little ahead
	}
	return fmt.Errorf("%s: %w", doing, reason(err))
}

// closed says why a stream ended, and is a [queue.ErrClosed] whatever the
// reason: the caller opens a new one.
func closed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, queue.ErrClosed) {
		return queue.ErrClosed
	}
	return fmt.Errorf("%w: %w", queue.ErrClosed, reason(err))
}

// reason leaves out gRPC's preamble of a status, and keeps its code for those
// who want to know.
func reason(err error) error {
	if s, ok := status.FromError(err); ok {
		return statusReason{s}
	}
	return err
}

type statusReason struct{ *status.Status }

func (r statusReason) Error() string {
	return fmt.Sprintf("%s (%s)", r.Message(), r.Code())
}

// GRPCStatus lets [status.Code] see through the error.
func (r statusReason) GRPCStatus() *status.Status { return r.Status }
