package stream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// block is how long a read waits for new entries. A read is interrupted when there
// is a reason, so this only bounds how long a connection that is dead without a
// word goes unnoticed, and how often an idle consumer asks.
const block = 12 * time.Second

// errInterrupted says that a read was ended by us. What Redis had answered by then
// is in our pending entries.
var errInterrupted = errors.New("the read was interrupted")

// blockingReads has a client of its own, for reads that block: they hold up nothing
// else, and the client can be closed to end them, because go-redis does not heed a
// context that is cancelled meanwhile (github.com/redis/go-redis/issues/2276).
type blockingReads struct {
	dial func() redis.UniversalClient

	mu      sync.Mutex
	client  redis.UniversalClient // nil until it is needed; guarded by mu
	blocked bool                  // a read is under way; guarded by mu
	ended   int                   // counts the reads that were interrupted; guarded by mu
}

// read is XREADGROUP. It does not begin unless wanted says so, which is asked with
// the lock held: whoever changes its answer calls interrupt afterwards.
func (r *blockingReads) read(ctx context.Context, args *redis.XReadGroupArgs, wanted func() bool) ([]redis.XStream, error) {
	client := r.begin(wanted)
	if client == nil {
		return nil, errInterrupted
	}
	// It is not ctx that ends the read, but interrupt or a connection that hangs.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), args.Block+3*time.Second)
	defer cancel()
	streams, err := client.XReadGroup(ctx, args).Result()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked = false
	if err != nil && r.client != client {
		return nil, errInterrupted
	}
	return streams, err //nolint:wrapcheck // the caller says what was read
}

func (r *blockingReads) begin(wanted func() bool) redis.UniversalClient {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !wanted() {
		return nil
	}
	if r.client == nil {
		r.client = r.dial()
	}
	r.blocked = true
	return r.client
}

// interrupt ends the read that is under way, if one is.
func (r *blockingReads) interrupt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.blocked {
		r.ended++
		r.close()
	}
}

// interrupted counts reads that were ended. Redis may give an entry to one of them a
// moment later, before it notices.
func (r *blockingReads) interrupted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// Close ends the client. A later read makes a new one.
func (r *blockingReads) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.close()
}

func (r *blockingReads) close() {
	if r.client != nil {
		_ = r.client.Close() // nothing that was written is unanswered but the read
		r.client = nil
	}
}
