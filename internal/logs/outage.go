package logs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// An outage is a time without a service. All followers see it at once, and each
// reason for it is logged once: behind the refused connection of a server that
// starts may come the certificate that nobody trusts.
type outage struct {
	name  string
	about func(error) bool // whether an error is about the service as a whole
	log   *slog.Logger
	up    prometheus.Gauge

	mu    sync.Mutex
	since time.Time // zero while there is none
	ended time.Time // when the last one was over
	said  []string  // the reasons that were logged
}

// mostReasons bounds what one outage logs.
const mostReasons = 8

// A use is one use of a service: a call, or a connection for as long as it lasts. When it
// began matters, because a thousand connections do not break at the same moment, nor do
// a thousand attempts fail or succeed at the same one.
type use struct {
	of       *outage
	begun    time.Time
	answered bool
}

// use begins to use the service.
func (o *outage) use() use { return use{of: o, begun: time.Now()} }

// explains reports whether an error of the use is part of an outage. If the use had been
// answered, the outage may be new; else it may be one that somebody else knows to be over.
func (u *use) explains(ctx context.Context, err error) bool {
	o := u.of
	if !o.about(err) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !u.answered && u.begun.Before(o.ended) {
		return true
	}
	if o.since.IsZero() {
		o.since = time.Now()
		o.said = nil
		o.up.Set(0)
	}
	if reason := reasonOf(err); len(o.said) < mostReasons && !slices.Contains(o.said, reason) {
		o.said = append(o.said, reason)
		o.log.WarnContext(ctx, "unavailable, trying again", "service", o.name, "err", err)
	}
	return true
}

// succeeds says that the service has answered. That is the end of an outage which began
// before the use did.
func (u *use) succeeds(ctx context.Context) {
	u.answered = true
	o := u.of
	o.mu.Lock()
	defer o.mu.Unlock()
	if u.begun.Before(o.since) {
		return
	}
	o.up.Set(1)
	if !o.since.IsZero() {
		o.ended = time.Now()
		o.log.InfoContext(ctx, "available again", "service", o.name, "after", o.ended.Sub(o.since).Round(time.Millisecond).String())
		o.since = time.Time{}
	}
}

// lost are the ways in which connections break when whoever is at their other end goes
// away: one breaks this way and one that way, and neither says more than the other.
var lost = []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE}

// reasonOf returns what an error says, without what differs each time, such as
// our port, or the pod in the address of what was asked for. It decides about nothing
// but whether to log.
func reasonOf(err error) string {
	if slices.ContainsFunc(lost, func(how error) bool { return errors.Is(err, how) }) {
		return "connection lost"
	}
	var call *url.Error
	if errors.As(err, &call) {
		err = call.Err
	}
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
}
