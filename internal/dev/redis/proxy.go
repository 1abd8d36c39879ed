package redis

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// A Proxy stands between a client and a server, and can have what goes through it
// vanish without a word, as when a host on the way has died. The server still has its
// end of the connection then.
type Proxy struct {
	// Addr of it.
	Addr string

	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu    sync.Mutex
	links []*link // guarded by mu
}

type link struct {
	near, far *net.TCPConn
	mu        sync.Mutex
	cut       bool // guarded by mu
}

// NewProxy returns a proxy before a server's address.
func NewProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting a proxy: %w", err)
	}
	p := &Proxy{Addr: l.Addr().String(), listener: l, target: target}
	p.running.Go(p.accept)
	return p, nil
}

func (p *Proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = near.Close() // the client tries again
			continue
		}
		l := &link{near: near.(*net.TCPConn), far: far.(*net.TCPConn)} // of a TCP listener
		p.mu.Lock()
		p.links = append(p.links, l)
		p.mu.Unlock()
		p.running.Go(func() { l.carry(l.near, l.far) })
		p.running.Go(func() { l.carry(l.far, l.near) })
	}
}

func (l *link) carry(from, to *net.TCPConn) {
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

// Cut has everything vanish that goes through the connections that there are now. They
// stay open: the kernel acknowledges what is sent.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		l.mu.Lock()
		l.cut = true
		l.mu.Unlock()
	}
}

// tcpRepair is TCP_REPAIR of linux/tcp.h: a socket that is closed in this mode says
// nothing to its peer.
const tcpRepair = 19

// Vanish is Cut, and ends the clients' connections as a host does that has lost its
// power: nobody acknowledges anything. It needs CAP_NET_ADMIN.
func (p *Proxy) Vanish() error {
	p.Cut()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, l := range p.links {
		raw, err := l.near.SyscallConn()
		if err == nil {
			var serr error
			err = raw.Control(func(fd uintptr) { serr = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpRepair, 1) })
			err = errors.Join(err, serr)
		}
		if err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("closing a connection without a word: %w", err))
			continue
		}
		_ = l.near.Close() // that it is closed already is as good
	}
	return errors.Join(errs...)
}

// Close ends the proxy and all that goes through it.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	for _, l := range p.links {
		_, _ = l.near.Close(), l.far.Close() // nothing that was written counts any more
	}
	p.mu.Unlock()
	p.running.Wait()
	return err
}
