package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// again runs the calling test in a process of its own.
func again(t *testing.T, env ...string) (string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	command.Env = append(os.Environ(), env...)
	out, err := command.CombinedOutput()
	return string(out), err
}

func TestFramesAreFoundInPiecesOfAnySize(t *testing.T) {
	type frame struct {
		Kind, Flags byte
		Stream      uint32
		Length      int
		Payload     []byte
	}
	rapid.Check(t, func(t *rapid.T) {
		var wire []byte
		var want []frame
		for range rapid.IntRange(0, 10).Draw(t, "frames") {
			f := frame{
				Kind: rapid.Byte().Draw(t, "kind") % 10, Flags: rapid.Byte().Draw(t, "flags"),
				Stream: rapid.Uint32Range(0, 1<<31-1).Draw(t, "stream"), Length: rapid.IntRange(0, 300).Draw(t, "length"),
			}
			payload := make([]byte, f.Length)
			for i := range payload {
				payload[i] = byte(i)
			}
			f.Payload = []byte{}
			if f.Kind == framePing || f.Kind == frameWindowUpdate {
				f.Payload = payload[:min(len(payload), mostPayload)]
			}
			wire = append(wire, byte(f.Length>>16), byte(f.Length>>8), byte(f.Length), f.Kind, f.Flags)
			wire = binary.BigEndian.AppendUint32(wire, f.Stream)
			wire = append(wire, payload...)
			want = append(want, f)
		}
		var s scanner
		var got []frame
		for len(wire) > 0 {
			n := rapid.IntRange(1, len(wire)).Draw(t, "piece")
			s.scan(wire[:n], func(kind, flags byte, stream uint32, length int, payload []byte) {
				got = append(got, frame{kind, flags, stream, length, append([]byte{}, payload...)})
			})
			wire = wire[n:]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("frames (-want +got):\n%s", diff)
		}
	})
}

func TestWindowIsBlamedOnlyWhenItIsTheLimit(t *testing.T) {
	const window = 65535
	for _, row := range []struct {
		name string
		seen sample
		want bool
	}{
		{"64 KiB per round trip", sample{time.Second, window * 30, 900 * time.Millisecond, window, 33 * time.Millisecond}, true},
		{"a slow server", sample{time.Second, window * 30, 900 * time.Millisecond, window, time.Millisecond}, false},
		{"room most of the time", sample{time.Second, window * 30, 100 * time.Millisecond, window, 33 * time.Millisecond}, false},
		{"a wide window", sample{time.Second, window * 30, 900 * time.Millisecond, 8 << 20, 33 * time.Millisecond}, false},
		{"no round trip seen", sample{time.Second, window * 30, 900 * time.Millisecond, window, 0}, false},
		{"nothing at all", sample{}, false},
	} {
		if got := row.seen.limited(); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

// A Go server widens its window by itself unless it is told a size; this one is
// as a Node server is, behind a network that takes its time.
func TestNarrowWindowOverALongWayIsReported(t *testing.T) {
	s := serve(t, nil, grpc.InitialWindowSize(initialWindow), grpc.InitialConnWindowSize(initialWindow))
	s.backend.SetFaults(logstest.Faults{Batch: func(_ logstest.Key, b *logsv1.Batch) logstest.Action {
		return logstest.Action{Refuse: true, Answer: &logsv1.StreamLogsResponse_Ack{Sequence: b.GetEnd().GetSequence()}}
	}})
	var told story
	l := dial(t, Options{Addr: delayed(t, s.addr, 20*time.Millisecond), Log: told.log()})
	l.watch.interval = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go l.Run(ctx) //nolint:errcheck // returns nil
	if err := register(t, l); err != nil {
		t.Fatal(err)
	}
	stream, err := logsv1.NewLogServiceClient(l).StreamLogs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go pour(stream)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	}()
	for !told.has("LOG_SERVER_COMPRESSION=gzip (now none); or raise LOG_SERVER_CONNECTIONS (now 1)") {
		select {
		case <-ctx.Done():
			t.Fatalf("no warning; it logs %q; the server has %+v", told.lines(), s.backend.Workers())
		case <-time.After(20 * time.Millisecond):
		}
	}
	if n := len(told.lines()); n != 1 {
		t.Errorf("it warns %d times", n)
	}
}

// pour sends lines as fast as they are taken.
func pour(stream logsv1.LogService_StreamLogsClient) {
	open := &logsv1.StreamLogsRequest_Open{WorkerUid: "uid-1", Container: "agent"}
	if stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Open_{Open: open}}) != nil {
		return
	}
	data := bytes.Repeat([]byte("x"), 16<<10)
	for i := uint64(1); ; i++ {
		batch := &logsv1.Batch{FirstSequence: i, Data: data, End: &logsv1.Position{Sequence: i}}
		if stream.Send(&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: batch}}) != nil {
			return
		}
	}
}

// delayed returns an address from which everything arrives at addr, and back, that much later.
func delayed(t *testing.T, addr string, by time.Duration) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() }) //nolint:errcheck // the test is over
	go func() {
		for {
			here, err := listener.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", addr)
			if err != nil {
				here.Close() //nolint:errcheck // there is nothing on it
				continue
			}
			go late(here, there, by)
			go late(there, here, by)
		}
	}()
	return listener.Addr().String()
}

// late copies what it reads, each piece that much later.
func late(from, to net.Conn, by time.Duration) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1<<16)
	go func() {
		defer to.Close() //nolint:errcheck // the other side is gone
		for p := range pieces {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				break
			}
		}
		for range pieces { // so that the reader ends
		}
	}()
	defer close(pieces)
	for {
		buffer := make([]byte, 32<<10)
		n, err := from.Read(buffer)
		if n > 0 {
			pieces <- piece{time.Now().Add(by), buffer[:n]}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				from.Close() //nolint:errcheck // it is broken
			}
			return
		}
	}
}
