package queuerpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// closeTimeout is how long Close waits for what was sent to arrive.
const closeTimeout = 2 * time.Second

// conn is the client's end of a stream: one goroutine that sends, because a gRPC
// stream takes one at a time, and one that receives.
type conn[Req, Resp any] struct {
	stream  grpc.BidiStreamingClient[Req, Resp]
	cancel  context.CancelFunc
	sending chan *Req
	// gathered returns a message of what has been gathered for the server, or nil if
	// that is nothing; gathering holds one token while it may be something.
	gathered  func() *Req
	gathering chan struct{}
	closing   chan struct{} // closed by Close: send what is there, then say goodbye
	done      chan struct{} // closed when nothing is received any more
	err       error         // why; may be read once done is closed

	closeOnce sync.Once
	running   sync.WaitGroup
}

// connect opens a stream, sends open, and waits for the answer. The stream
// outlives ctx.
func connect[Req, Resp any](ctx context.Context, start func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Req, Resp], error), open *Req) (*conn[Req, Resp], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	giveUp := context.AfterFunc(ctx, cancel)
	stream, err := start(streamCtx)
	if err == nil {
		if err = stream.Send(open); err == nil || errors.Is(err, io.EOF) {
			_, err = stream.Recv() // Opened, or the true cause of the EOF
		}
	}
	if !giveUp() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, reason(err)
	}
	return &conn[Req, Resp]{
		stream:    stream,
		cancel:    cancel,
		sending:   make(chan *Req, 64),
		gathered:  func() *Req { return nil },
		gathering: make(chan struct{}, 1),
		closing:   make(chan struct{}),
		done:      make(chan struct{}),
	}, nil
}

// run starts both goroutines. Each message goes through receive; ended is called
// when there are no more, just before done is closed.
func (c *conn[Req, Resp]) run(heartbeat *Req, every time.Duration, receive func(*Resp) error, ended func()) {
	c.running.Go(func() { c.sendAll(heartbeat, every) })
	c.running.Go(func() {
		defer c.cancel()
		for {
			response, err := c.stream.Recv()
			if err == nil {
				err = receive(response)
			}
			if err != nil {
				c.err = closed(err)
				ended()
				close(c.done)
				return
			}
		}
	})
}

// sendAll sends until the stream ends or Close is called. A Send that fails
// needs no attention: Recv tells the cause.
func (c *conn[Req, Resp]) sendAll(heartbeat *Req, every time.Duration) {
	var beats <-chan time.Time
	if heartbeat != nil {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		beats = ticker.C
	}
	for {
		select {
		case message := <-c.sending:
			if c.stream.Send(message) != nil {
				return
			}
		case <-c.gathering:
			if c.sendGathered() != nil {
				return
			}
		case <-beats:
			if c.stream.Send(heartbeat) != nil {
				return
			}
		case <-c.done:
			return
		case <-c.closing:
			c.flush()
			return
		}
	}
}

func (c *conn[Req, Resp]) sendGathered() error {
	for message := c.gathered(); message != nil; message = c.gathered() {
		if err := c.stream.Send(message); err != nil {
			return err
		}
	}
	return nil
}

// flush sends what was handed over before Close.
func (c *conn[Req, Resp]) flush() {
	for {
		select {
		case message := <-c.sending:
			if c.stream.Send(message) != nil {
				return
			}
		default:
			if c.sendGathered() != nil {
				return
			}
			// The server answers by ending the stream, which Close waits for. That
			// this fails means that the stream has ended already.
			_ = c.stream.CloseSend()
			return
		}
	}
}

// ended returns an error once the stream has ended or Close was called.
func (c *conn[Req, Resp]) ended() error {
	select {
	case <-c.closing:
		return queue.ErrClosed
	default:
	}
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// send hands a message to the sending goroutine.
func (c *conn[Req, Resp]) send(ctx context.Context, message *Req) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.ended(); err != nil {
		return err
	}
	select {
	case c.sending <- message:
		return nil
	case <-c.closing:
		return queue.ErrClosed
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait blocks until there is a token in more, and returns an error once the
// stream has ended.
func (c *conn[Req, Resp]) wait(ctx context.Context, more <-chan struct{}) error {
	if err := c.ended(); err != nil {
		return err
	}
	select {
	case <-more:
		return nil
	case <-c.closing:
		return queue.ErrClosed
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close lets what was sent arrive, ends the stream and waits for both goroutines.
func (c *conn[Req, Resp]) Close() error {
	c.closeOnce.Do(func() {
		close(c.closing)
		giveUp := time.AfterFunc(closeTimeout, c.cancel)
		defer giveUp.Stop()
		c.running.Wait()
	})
	return nil
}

// signal puts a token into a channel that holds one.
func signal(more chan<- struct{}) {
	select {
	case more <- struct{}{}:
	default: // there is one already
	}
}

// at says which queue an error is about.
func at(doing, addr string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%s the queue at %s: %w", doing, addr, err)
}
