package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/minio/crc64nvme"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// A stopwatch is a connection to a log server that takes the time from each line's
// stamp to its acknowledgement.
type stopwatch struct {
	grpc.ClientConnInterface

	mu    sync.Mutex
	times []float64 // in milliseconds
}

// NewStream implements [grpc.ClientConnInterface].
func (w *stopwatch) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := w.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &stopwatchStream{ClientStream: stream, watch: func(ms float64) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.times = append(w.times, ms)
	}}, nil
}

// A stopwatchStream remembers when the lines that it sends were stamped.
type stopwatchStream struct {
	grpc.ClientStream
	watch func(ms float64)

	mu      sync.Mutex
	waiting []stampedLine // in the order of their numbers
}

type stampedLine struct {
	sequence uint64
	stamp    time.Time
}

// SendMsg implements [grpc.ClientStream].
func (s *stopwatchStream) SendMsg(message any) error {
	if request, ok := message.(interface{ GetBatch() *logsv1.Batch }); ok && request.GetBatch() != nil {
		b := request.GetBatch()
		stamp := b.GetBaseTime().AsTime()
		s.mu.Lock()
		for i, delta := range b.GetTimeDeltas() {
			stamp = stamp.Add(time.Duration(delta))
			s.waiting = append(s.waiting, stampedLine{b.GetFirstSequence() + uint64(i), stamp}) //nolint:gosec // an index
		}
		s.mu.Unlock()
	}
	return s.ClientStream.SendMsg(message)
}

// RecvMsg implements [grpc.ClientStream].
func (s *stopwatchStream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if answer, ok := message.(*logsv1.StreamLogsResponse); ok && err == nil && answer.GetAck() != nil {
		now := time.Now()
		s.mu.Lock()
		defer s.mu.Unlock()
		for len(s.waiting) > 0 && s.waiting[0].sequence <= answer.GetAck().GetSequence() {
			s.watch(now.Sub(s.waiting[0].stamp).Seconds() * 1000)
			s.waiting = s.waiting[1:]
		}
	}
	return err
}

// bareTalk sends a line at each tick, each in a batch of its own, and waits for its
// acknowledgement.
func bareTalk(ctx context.Context, stream *stopwatchStream, count int) error {
	ticker := time.NewTicker(talkEvery)
	defer ticker.Stop()
	text, sum := []byte(strings.Repeat("0123456789", 12)+"\n"), uint64(0)
	for i := range count {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		sum = crc64nvme.Update(sum, text)
		n, length := uint64(i+1), len(text)-1 //nolint:gosec // a count
		err := stream.SendMsg(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: &logsv1.Batch{
			FirstSequence: n, BaseTime: timestamppb.Now(), Data: text, Lengths: []uint32{uint32(length)}, TimeDeltas: []uint32{0}, //nolint:gosec // 120
			End: &logsv1.Position{Sequence: n, Bytes: n * uint64(length), Checksum: binary.BigEndian.AppendUint64(nil, sum)},
		}}})
		if err == nil {
			err = stream.RecvMsg(&logsv1.StreamLogsResponse{})
		}
		if err != nil {
			return fmt.Errorf("sending a line: %w", err)
		}
	}
	return nil
}
