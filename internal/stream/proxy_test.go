package stream_test

import (
	"io"
	"net"
	"sync"
	"testing"
)

// A proxy stands between a consumer and Redis, and can have what goes through it
// vanish: connections stay open, and nothing arrives any more, as when a host on
// the way has died.
type proxy struct {
	net.Listener
	target string

	mu    sync.Mutex
	links []*link // guarded by mu
}

type link struct {
	near, far net.Conn
	mu        sync.Mutex
	cut       bool // guarded by mu
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, target: target}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				_ = near.Close() // the consumer tries again
				continue
			}
			link := &link{near: near, far: far}
			p.mu.Lock()
			p.links = append(p.links, link)
			p.mu.Unlock()
			running.Go(func() { link.carry(near, far) })
			running.Go(func() { link.carry(far, near) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // nothing was written
		p.mu.Lock()
		for _, link := range p.links {
			_, _ = link.near.Close(), link.far.Close() // as above
		}
		p.mu.Unlock()
		running.Wait()
	})
	return p
}

func (l *link) carry(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		l.mu.Lock()
		cut := l.cut
		l.mu.Unlock()
		if cut {
			_, _ = io.Copy(io.Discard, from) // until the end
			return
		}
		if err == nil {
			_, err = to.Write(buf[:n])
		}
		if err != nil {
			_, _ = from.Close(), to.Close() // one of them has ended, so the other has to
			return
		}
	}
}

// cut has everything vanish that goes through the connections that there are now.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		l.mu.Lock()
		l.cut = true
		l.mu.Unlock()
	}
}
