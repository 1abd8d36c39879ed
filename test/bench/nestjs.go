package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ottoscaler/ottoscaler/internal/dev/nestjs"
	"github.com/ottoscaler/ottoscaler/internal/logs"
	"github.com/ottoscaler/ottoscaler/internal/logs/link"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// nestjsThroughput measures how many lines a second the relay takes to the NestJS log
// server, which stores them, beside a bare client that sends it the same batches. Each
// is over when its last line is acknowledged, which is when it is on the disk. They take
// turns, as in logThroughput.
func nestjsThroughput(ctx context.Context, quick bool) (rows []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	n, rounds := 500_000, 6
	if quick {
		n, rounds = 100_000, 1
	}
	if err := nestjs.Build(ctx, ".", os.Stderr); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ottoscaler-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := nestjs.New(ctx, ".", dir)
	if err != nil {
		return nil, err
	}
	if err := server.Start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	ours, err := link.Dial(link.Options{Addr: server.Addr})
	if err != nil {
		return nil, err
	}
	defer ours.Close() //nolint:errcheck // everything is said
	bare, err := grpc.NewClient(server.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dialing the NestJS log server: %w", err)
	}
	defer bare.Close() //nolint:errcheck // everything is said

	run := func(uid string) (perSecond float64, err error) {
		open := func(ctx context.Context, _ logs.Read) (io.ReadCloser, error) {
			return &longLog{part: part(), left: len(part()) / partLines * n, ctx: ctx}, nil
		}
		watched := &finishLine{ClientConnInterface: ours, last: uint64(n), reached: make(chan struct{})} //nolint:gosec // a count
		err = relay(ctx, watched, []string{uid}, open, func(ctx context.Context) error {
			select {
			case <-watched.reached:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		return float64(n) / watched.took.Seconds(), err
	}

	batches := bareBatches(n)
	if _, err := run("warm-up"); err != nil {
		return nil, err
	}
	var relayed, raw []float64
	for i := range rounds {
		figure, err := run(fmt.Sprintf("relay-%d", i))
		if err != nil {
			return nil, err
		}
		relayed = append(relayed, figure)
		if figure, err = sendBare(ctx, bare, fmt.Sprintf("bare-%d", i), n, batches); err != nil {
			return nil, err
		}
		raw = append(raw, figure)
	}
	return []Row{{Value: slices.Max(relayed), Raw: slices.Max(raw), Unit: "lines/s"}}, nil
}

// A finishLine is a connection to a log server that takes the time from the first batch
// to the acknowledgement of the last line.
type finishLine struct {
	grpc.ClientConnInterface
	last    uint64
	reached chan struct{} // closed when it is
	took    time.Duration // then
}

// NewStream implements [grpc.ClientConnInterface].
func (f *finishLine) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := f.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &finishLineStream{ClientStream: stream, line: f}, nil
}

type finishLineStream struct {
	grpc.ClientStream
	line *finishLine

	mu    sync.Mutex
	began time.Time
}

// SendMsg implements [grpc.ClientStream].
func (s *finishLineStream) SendMsg(message any) error {
	if request, ok := message.(interface{ GetBatch() *logsv1.Batch }); ok && request.GetBatch() != nil {
		s.mu.Lock()
		if s.began.IsZero() {
			s.began = time.Now()
		}
		s.mu.Unlock()
	}
	return s.ClientStream.SendMsg(message)
}

// RecvMsg implements [grpc.ClientStream].
func (s *finishLineStream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if answer, ok := message.(*logsv1.StreamLogsResponse); ok && err == nil && answer.GetAck().GetSequence() == s.line.last {
		s.mu.Lock()
		s.line.took = time.Since(s.began)
		s.mu.Unlock()
		close(s.line.reached)
	}
	return err
}
