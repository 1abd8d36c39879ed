package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// narrator tells a person what happens, with the seconds since the start. A step
// that takes long is mentioned again and again, so that nobody takes it for hung.
type narrator struct {
	start time.Time

	mu      sync.Mutex
	out     io.Writer
	step    string    // what is under way, or empty
	since   time.Time // when the step began
	lastOut time.Time // when something was last said
	silence time.Duration
	ended   chan struct{}
}

// A narrator says nothing for this long while a step is under way: first a little,
// then more, because what takes that long often tells its own story.
const (
	firstSilence = 2 * time.Second
	laterSilence = 10 * time.Second
)

func newNarrator(out io.Writer) *narrator {
	n := &narrator{start: time.Now(), out: out, ended: make(chan struct{})}
	go n.remind()
	return n
}

// do begins a step; the one before it is over.
func (n *narrator) do(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.step, n.since, n.silence = fmt.Sprintf(format, args...), time.Now(), firstSilence
	n.print(n.step)
}

// done tells what a step achieved.
func (n *narrator) done(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.print("  " + fmt.Sprintf(format, args...))
}

// say prints a line without the time.
func (n *narrator) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastOut = time.Now()
	fmt.Fprintf(n.out, format+"\n", args...)
}

// output returns a writer for what other programs print.
func (n *narrator) output() io.Writer { return quote{n} }

// stop ends the reminders.
func (n *narrator) stop() { close(n.ended) }

func (n *narrator) remind() {
	tick := time.NewTicker(firstSilence / 4)
	defer tick.Stop()
	for {
		select {
		case <-n.ended:
			return
		case <-tick.C:
			n.mu.Lock()
			if n.step != "" && time.Since(n.lastOut) >= n.silence {
				n.silence = laterSilence
				n.print(fmt.Sprintf("  still at it, for %d s", int(time.Since(n.since).Seconds())))
			}
			n.mu.Unlock()
		}
	}
}

// print needs the lock.
func (n *narrator) print(text string) {
	n.lastOut = time.Now()
	fmt.Fprintf(n.out, "[%6.1f s] %s\n", time.Since(n.start).Seconds(), text)
}

// quote indents the lines of another program.
type quote struct{ n *narrator }

func (q quote) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if line = strings.TrimSpace(line); line != "" {
			q.n.say("             %s", line)
		}
	}
	return len(p), nil
}
