package logs

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// errDoubt says that a read was held back while the node rotated its log, so that what
// it would give next need not be what follows.
var errDoubt = errors.New("the log was rotated while its reading paused")

// probeEvery is how often a pause looks whether the node has rotated the log. A kubelet
// looks at the sizes of its logs every ten seconds, and the file that a read has open
// survives one rotation: read on before the second, and nothing is lost.
const probeEvery = 5 * time.Second

// A pause is how a read that is held back sees to it that nothing is lost in silence.
//
// A reading that pauses leaves the lines where they are: in the log file of the node,
// which costs nobody anything until it is rotated. So the pause looks for that. Once it
// has happened, the reading hurries: it goes on, although the spool is pressed, until
// it has what was printed before. If even that isn't possible, there is doubt.
//
// It belongs to one read. A nil pause just waits.
type pause struct {
	// rotated looks whether the last line that was read is gone from the log.
	rotated func(ctx context.Context) bool
	every   time.Duration
	count   prometheus.Counter

	held   bool      // by begin, until look
	stuck  bool      // there is no room even for a hurry
	last   time.Time // when it was last held
	looked time.Time
	hurry  int64 // lines with stamps up to this one don't wait
	doubt  bool
}

// begin says that the reading waits for room, and returns for how long to wait before
// look. If it is stuck, a hurry would not help.
func (p *pause) begin(stuck bool) time.Duration {
	if p == nil {
		return time.Hour
	}
	now := time.Now()
	if now.Sub(p.last) > p.every {
		p.looked = now
		p.count.Inc()
	}
	p.held, p.stuck, p.last = true, stuck, now
	return max(min(p.looked.Add(p.every).Sub(now), time.Second), time.Millisecond)
}

// look does what is due after a wait.
func (p *pause) look(ctx context.Context) {
	if p == nil || !p.held {
		return
	}
	p.held = false
	if now := time.Now(); now.Sub(p.looked) >= p.every {
		if p.rotated(ctx) {
			p.hurry, p.doubt = now.UnixNano(), p.doubt || p.stuck
		}
		p.looked = time.Now()
	}
}

// hurries reports whether a line may not wait.
func (p *pause) hurries(stamp int64) bool { return p != nil && stamp <= p.hurry }

// doubtful reports whether the reading can't go on as if nothing had happened.
func (p *pause) doubtful() bool { return p != nil && p.doubt }
