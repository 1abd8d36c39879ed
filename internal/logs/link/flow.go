package link

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// HTTP/2 (RFC 9113): a frame has a header of nine bytes. A client begins with a
// preface, and every connection with a window of 65,535 bytes, which a server
// that wants more has to widen. grpc-js never does
// (https://github.com/grpc/grpc-node/issues/3058), so a Node server takes at most
// 64 KiB per round trip, however fast it is.
const (
	frameHeader       = 9
	prefaceLength     = 24
	frameData         = 0x0
	framePing         = 0x6
	frameWindowUpdate = 0x8
	flagAck           = 0x1
	initialWindow     = 65535
	// mostPayload is how much of a frame's payload is of interest: that of a ping.
	mostPayload = 8
)

// A scanner finds the frames in one direction of a connection, in pieces of any size.
type scanner struct {
	head [frameHeader + mostPayload]byte
	have int // bytes in head
	want int // bytes of head that this frame needs
	skip int // bytes that are of no interest
}

// scan calls found for each frame, with the beginning of its payload for pings
// and window updates.
func (s *scanner) scan(b []byte, found func(kind, flags byte, stream uint32, length int, payload []byte)) {
	for len(b) > 0 {
		if s.skip > 0 {
			n := min(s.skip, len(b))
			s.skip, b = s.skip-n, b[n:]
			continue
		}
		if s.want == 0 {
			s.want = frameHeader
		}
		n := copy(s.head[s.have:s.want], b)
		s.have, b = s.have+n, b[n:]
		if s.have < s.want {
			return
		}
		length := int(s.head[0])<<16 | int(s.head[1])<<8 | int(s.head[2])
		kind := s.head[3]
		if s.want == frameHeader && (kind == framePing || kind == frameWindowUpdate) && length > 0 {
			s.want += min(length, mostPayload)
			continue
		}
		taken := s.want - frameHeader
		found(kind, s.head[4], binary.BigEndian.Uint32(s.head[5:])&(1<<31-1), length, s.head[frameHeader:s.want])
		s.have, s.want, s.skip = 0, 0, length-taken
	}
}

// A flow is how one connection's data flows: how much, how long the server's
// window was full, and how long a round trip takes.
type flow struct {
	watch *watch
	out   scanner // only the writer looks at it
	in    scanner // only the reader looks at it

	mu        sync.Mutex
	available int       // of the server's window, on the connection
	fullSince time.Time // when it was used up; zero while it is not
	ping      [mostPayload]byte
	pinged    time.Time // when ping was sent; zero when it was answered
	seen      sample
	since     time.Time
}

// A sample is what a flow was like for a while.
type sample struct {
	length    time.Duration
	bytes     int
	full      time.Duration // how long the window was used up
	window    int           // the most that was available
	roundTrip time.Duration // the shortest; 0 if there was none
}

// rate returns the bytes per second.
func (s sample) rate() float64 { return float64(s.bytes) / s.length.Seconds() }

// limited reports whether the size of the window was what limited the rate: it
// was used up most of the time, and each round trip brought about all of it. A
// server that is slow lets its window fill up too, but then a round trip
// brings less.
func (s sample) limited() bool {
	if s.length <= 0 || s.roundTrip <= 0 || s.full < s.length/2 {
		return false
	}
	return s.rate()*s.roundTrip.Seconds() >= float64(s.window)/2
}

// sent looks at what is about to be written.
func (f *flow) sent(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out.scan(b, func(kind, flags byte, _ uint32, length int, payload []byte) {
		switch {
		case kind == frameData:
			f.seen.bytes += length
			f.available -= length
			if f.available <= 0 && f.fullSince.IsZero() {
				f.fullSince = time.Now()
			}
		case kind == framePing && flags&flagAck == 0 && f.pinged.IsZero():
			copy(f.ping[:], payload)
			f.pinged = time.Now()
		}
	})
}

// received looks at what was read.
func (f *flow) received(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.in.scan(b, func(kind, flags byte, stream uint32, _ int, payload []byte) {
		switch {
		case kind == frameWindowUpdate && stream == 0 && len(payload) == 4:
			f.available += int(binary.BigEndian.Uint32(payload) & (1<<31 - 1))
			f.seen.window = max(f.seen.window, f.available)
			if f.available > 0 && !f.fullSince.IsZero() {
				f.seen.full += time.Since(f.fullSince)
				f.fullSince = time.Time{}
			}
		case kind == framePing && flags&flagAck != 0 && !f.pinged.IsZero() && string(payload) == string(f.ping[:]):
			if took := time.Since(f.pinged); f.seen.roundTrip == 0 || took < f.seen.roundTrip {
				f.seen.roundTrip = took
			}
			f.pinged = time.Time{}
		}
	})
}

// take returns what was seen since it was last asked.
func (f *flow) take(now time.Time) sample {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := f.seen
	seen.length = now.Sub(f.since)
	if !f.fullSince.IsZero() {
		seen.full += now.Sub(f.fullSince)
		f.fullSince = now
	}
	// The window's size does not shrink; what was available may, for a while.
	f.seen, f.since = sample{window: seen.window}, now
	return seen
}

// end forgets the flow.
func (f *flow) end() {
	f.watch.mu.Lock()
	defer f.watch.mu.Unlock()
	delete(f.watch.flows, f)
}

// watch is the flows of all connections there are.
type watch struct {
	interval  time.Duration
	full      prometheus.Counter
	roundTrip prometheus.Gauge

	mu    sync.Mutex
	flows map[*flow]struct{}
}

func newWatch(registry prometheus.Registerer) *watch {
	w := &watch{
		interval: 10 * time.Second,
		flows:    map[*flow]struct{}{},
		full: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "ottoscaler", Subsystem: "link", Name: "window_full_seconds_total",
			Help: "Time for which the log server's receive window was used up, all connections together.",
		}),
		roundTrip: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "ottoscaler", Subsystem: "link", Name: "round_trip_seconds",
			Help: "The shortest round trip to the log server that was lately seen.",
		}),
	}
	if registry != nil {
		registry.MustRegister(w.full, w.roundTrip)
	}
	return w
}

// begin watches another connection.
func (w *watch) begin() *flow {
	f := &flow{watch: w, available: initialWindow, seen: sample{window: initialWindow}, since: time.Now()}
	f.out.skip = prefaceLength
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flows[f] = struct{}{}
	return f
}

// collect takes a sample of each connection.
func (w *watch) collect(now time.Time) []sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	var samples []sample
	for f := range w.flows {
		seen := f.take(now)
		w.full.Add(seen.full.Seconds())
		if seen.roundTrip > 0 {
			w.roundTrip.Set(seen.roundTrip.Seconds())
		}
		samples = append(samples, seen)
	}
	return samples
}
