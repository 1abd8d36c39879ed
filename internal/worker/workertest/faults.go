package workertest

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// ErrBroken is what a broken call fails with.
var ErrBroken = errors.New("the connection broke")

// Fault is what happens to a call.
type Fault int

const (
	// NotDone fails a call before it is sent.
	NotDone Fault = iota + 1
	// ReplyLost sends a call and fails when the answer comes.
	ReplyLost
	// Throttled answers 429 and asks for seven seconds of patience.
	Throttled
	// Unavailable answers 503.
	Unavailable
)

// Faults breaks calls to the API server. The zero value breaks none.
type Faults struct {
	mu      sync.Mutex
	rules   []*rule
	hung    map[string]chan struct{} // by method; closed when it may go on
	hanging int                      // calls that hang
	calls   int                      // that began, watches not counted
	at      int                      // the call to break, by that count; 0 for none
	fault   Fault                    // what breaks it
	kills   bool                     // whether all after it fail too
	killed  bool
	frozen  chan struct{} // what watchers are told; closed when it may go on
}

type rule struct {
	verb  string
	fault Fault
	skip  int
	times int
}

// Break breaks calls with an HTTP method: it lets some pass, and then breaks a
// number of them, or all if times is negative. Rules apply in their order.
func (f *Faults) Break(method string, fault Fault, skip, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &rule{verb: method, fault: fault, skip: skip, times: times})
}

// At breaks the n-th call from now on, watches not counted. If it kills, no call
// after it is sent: that is what the API server sees of a client that crashed.
func (f *Faults) At(n int, fault Fault, kills bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.fault, f.kills = f.calls+n, fault, kills
}

// Calls returns how many calls have begun, watches not counted.
func (f *Faults) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Killed reports whether the call of [Faults.At] has come, and has killed.
func (f *Faults) Killed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.killed
}

// Repair ends all faults.
func (f *Faults) Repair() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules, f.at, f.killed = nil, 0, false
}

// Hang has calls with an HTTP method hang, until they are cancelled or resume is
// called.
func (f *Faults) Hang(method string) (resume func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hung == nil {
		f.hung = make(map[string]chan struct{})
	}
	until := make(chan struct{})
	f.hung[method] = until
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.hung, method)
		close(until)
	})
}

// Hanging returns how many calls hang.
func (f *Faults) Hanging() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hanging
}

// hang blocks for as long as the call is to hang.
func (f *Faults) hang(r *http.Request) {
	f.mu.Lock()
	until := f.hung[r.Method]
	if until == nil {
		f.mu.Unlock()
		return
	}
	f.hanging++
	f.mu.Unlock()
	select {
	case <-until:
	case <-r.Context().Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hanging--
}

// Freeze keeps back what watchers are told, until thaw is called.
func (f *Faults) Freeze() (thaw func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	until := make(chan struct{})
	f.frozen = until
	return sync.OnceFunc(func() { close(until) })
}

// freezing is what a watcher reads.
type freezing struct {
	io.ReadCloser
	faults *Faults
}

// Read implements io.Reader.
func (f freezing) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	f.faults.mu.Lock()
	until := f.faults.frozen
	f.faults.mu.Unlock()
	if until != nil {
		<-until
	}
	return n, err
}

func (f *Faults) next(r *http.Request) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !r.URL.Query().Has("watch") {
		if f.killed {
			return NotDone
		}
		f.calls++
		if f.calls == f.at {
			f.killed = f.kills
			return f.fault
		}
	}
	for _, rule := range f.rules {
		if rule.verb != r.Method || rule.times == 0 {
			continue
		}
		if rule.skip > 0 {
			rule.skip--
			return 0
		}
		rule.times--
		return rule.fault
	}
	return 0
}

func (f *Faults) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		f.hang(r)
		switch f.next(r) {
		case NotDone:
			return nil, ErrBroken
		case ReplyLost:
			response, err := next.RoundTrip(r)
			if err != nil {
				return nil, err
			}
			_, err = io.Copy(io.Discard, response.Body)
			return nil, errors.Join(ErrBroken, err, response.Body.Close())
		case Throttled:
			return answer(r, http.StatusTooManyRequests, "TooManyRequests"), nil
		case Unavailable:
			return answer(r, http.StatusServiceUnavailable, "ServiceUnavailable"), nil
		}
		response, err := next.RoundTrip(r)
		if err == nil && r.URL.Query().Has("watch") {
			response.Body = freezing{response.Body, f}
		}
		return response, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answer has the delay in the body alone: client-go rests by itself for a header.
func answer(r *http.Request, code int, reason string) *http.Response {
	body := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"` + reason +
		`","code":` + strconv.Itoa(code) + `,"details":{"retryAfterSeconds":7}}`
	return &http.Response{
		Status: strconv.Itoa(code), StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)), Request: r,
	}
}
