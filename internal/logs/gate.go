package logs

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// A gate stands between a log that is followed and whoever takes its lines, and lets
// nothing pass that came behind a rotation.
//
// A kubelet that follows a log goes on to the new file as soon as that appears. A runtime
// that is busy writes to the old one for some more milliseconds, and these lines are never
// given. Nothing in the stream tells of it. So what has come waits until the node was asked
// once more whether there is another rotated file. If there is, the read ends here, before
// anything behind the place was taken, and the node's files are read instead.
//
// A log that brings little is not held back: the chance that one of its lines falls
// into these milliseconds is small, and it is rotated seldom.
type gate struct {
	body  io.ReadCloser
	files func() ([]string, error) // the rotated ones, as they are now
	known []string                 // when the log was opened

	ready []byte // may pass

	asked time.Time
	came  chan struct{} // wakes whoever waits for bytes
	room  chan struct{} // wakes the pump

	mu     sync.Mutex // guards the rest
	held   []byte
	err    error         // of the body
	recent [gateSpan]int // bytes that came, by second
	second int64         // of the newest of them
}

const (
	// gateEvery is how often the node is asked at most while lines wait.
	gateEvery = 300 * time.Millisecond
	// gateBytes is how much may wait.
	gateBytes = 512 << 10
	// gateSpan is over how many seconds the rate of a log is taken, and gateRate from
	// how many bytes in each, on average, it is held back.
	gateSpan = 8
	gateRate = 4 << 10
)

// newGate puts a gate before a log that is followed, and was opened when the node had the
// given files.
func newGate(body io.ReadCloser, known []string, files func() ([]string, error)) *gate {
	g := &gate{body: body, known: known, files: files, came: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	go g.pump()
	return g
}

// pump takes what comes.
func (g *gate) pump() {
	chunk := make([]byte, 2<<10)
	for {
		n, err := g.body.Read(chunk)
		g.mu.Lock()
		g.held = append(g.held, chunk[:n]...)
		g.err = err
		g.count(n)
		full := len(g.held) >= gateBytes
		g.mu.Unlock()
		wake(g.came)
		if err != nil {
			return
		}
		if n == len(chunk) && n < 32<<10 {
			chunk = make([]byte, 32<<10)
		}
		if full {
			<-g.room
		}
	}
}

// count adds bytes to those of the last seconds. The lock is held.
func (g *gate) count(n int) {
	now := time.Now().Unix()
	if now-g.second >= gateSpan {
		g.second = now - gateSpan
	}
	for g.second < now {
		g.second++
		g.recent[g.second%gateSpan] = 0
	}
	g.recent[now%gateSpan] += n
}

// fast reports whether the log is held back. The lock is held.
func (g *gate) fast() bool {
	g.count(0)
	sum := 0
	for _, n := range g.recent {
		sum += n
	}
	return sum >= gateSpan*gateRate
}

// Read implements [io.Reader].
func (g *gate) Read(p []byte) (int, error) {
	for len(g.ready) == 0 {
		if err := g.fetch(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.ready)
	g.ready = g.ready[n:]
	return n, nil
}

// fetch waits for bytes that may pass, and makes them ready.
func (g *gate) fetch() error {
	for {
		g.mu.Lock()
		n, err, fast := len(g.held), g.err, g.fast()
		g.mu.Unlock()
		switch wait := gateEvery - time.Since(g.asked); {
		case n == 0 && err != nil:
			return err
		case n == 0:
			<-g.came
			continue
		case fast && err == nil && n < gateBytes && wait > 0:
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-g.came:
			}
			timer.Stop()
			continue
		}
		if fast {
			if err := g.ask(); err != nil {
				return err
			}
		}
		g.mu.Lock()
		g.ready = g.held[:n:n]
		g.held = append([]byte(nil), g.held[n:]...)
		g.mu.Unlock()
		wake(g.room)
		return nil
	}
}

// ask asks the node whether it has rotated the log.
func (g *gate) ask() error {
	now, err := g.files()
	g.asked = time.Now()
	if err != nil {
		return fmt.Errorf("%w: %w", errJumped, err)
	}
	for _, name := range now {
		if !slices.Contains(g.known, name) {
			return errJumped
		}
	}
	return nil
}

// Close implements [io.Closer].
func (g *gate) Close() error {
	err := g.body.Close()
	wake(g.room)
	return err
}
