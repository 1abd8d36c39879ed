package logs

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// gateRig is a gate before a pipe, with a node that has some rotated files.
type gateRig struct {
	*gate
	in    *io.PipeWriter
	files []string
	fails error
	asked int
}

func newGateRig() *gateRig {
	r := &gateRig{}
	body, in := io.Pipe()
	r.in = in
	r.gate = newGate(body, nil, func() ([]string, error) {
		r.asked++
		return r.files, r.fails
	})
	return r
}

// fast is more than a log may bring without being held back.
var fast = strings.Repeat("x", gateSpan*gateRate)

// print writes, and returns what the gate lets pass until the log is silent.
func (r *gateRig) print(text string) (passed string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.WriteString(r.in, text) //nolint:errcheck // what arrives is compared
	}()
	buffer := make([]byte, 8<<10)
	for len(passed) < len(text) && err == nil {
		var n int
		n, err = r.Read(buffer)
		passed += string(buffer[:n])
	}
	if err != nil {
		r.Close() //nolint:errcheck // it is only read
	}
	<-done
	return passed, err
}

func TestLogThatBringsLittleIsNotHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGateRig()
		defer r.Close() //nolint:errcheck // it is only read
		for range 100 {
			begin := time.Now()
			if passed, err := r.print("a line\n"); err != nil || passed != "a line\n" || time.Since(begin) != 0 {
				t.Fatalf("got %q, %v after %v", passed, err, time.Since(begin))
			}
			<-time.After(time.Second)
		}
		if r.asked != 0 {
			t.Errorf("the node was asked %d times", r.asked)
		}
	})
}

func TestFastLogWaitsUntilTheNodeWasAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGateRig()
		defer r.Close() //nolint:errcheck // it is only read
		for range 100 {
			if passed, err := r.print(fast); err != nil || passed != fast {
				t.Fatalf("got %d bytes, %v", len(passed), err)
			}
		}
		if most := 2 + len(fast)*100/gateBytes*2 + int(100*time.Second/gateEvery); r.asked == 0 || r.asked > most {
			t.Errorf("the node was asked %d times, want at most %d", r.asked, most)
		}
		r.files = []string{"0.log.20261125-120000"}
		if passed, err := r.print(fast); !errors.Is(err, errJumped) || passed != "" {
			t.Errorf("behind a rotation: got %d bytes, %v, want none and %v", len(passed), err, errJumped)
		}
	})
}

func TestGateThatCannotAskLetsNothingPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGateRig()
		r.fails = errBroken
		if passed, err := r.print(fast); !errors.Is(err, errJumped) || !errors.Is(err, errBroken) || strings.Contains(passed, fast) {
			t.Errorf("got %d bytes, %v, want %v", len(passed), err, errBroken)
		}
	})
}

func TestEndOfALogPassesTheGate(t *testing.T) {
	for _, text := range []string{"", "a line\n", fast + fast} {
		r := newGateRig()
		go func() {
			io.WriteString(r.in, text) //nolint:errcheck // what arrives is compared
			r.in.Close()               //nolint:errcheck // a pipe
		}()
		got, err := io.ReadAll(r)
		if err != nil || string(got) != text {
			t.Errorf("got %d bytes, %v, want %d", len(got), err, len(text))
		}
	}
}
