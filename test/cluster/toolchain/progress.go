package toolchain

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Pauses between two reports.
const (
	onTerminal = time.Second
	inLog      = 15 * time.Second
)

// progress reports a build that takes longer than two seconds: on a terminal in
// one line that it writes again and again, else in a line now and then. It is
// the writer for what the go command says, one package or download a line.
type progress struct {
	out   io.Writer
	name  string
	tty   bool
	start time.Time
	done  chan struct{}
	ended sync.WaitGroup

	mu         sync.Mutex
	what       string
	downloaded int // modules
	total      int // packages; 0 while downloading
	compiled   int
	last       string
	shown      bool
}

func newProgress(out *os.File, name string) *progress {
	p := &progress{out: out, name: name, tty: term.IsTerminal(int(out.Fd())), start: time.Now(), done: make(chan struct{})}
	p.ended.Go(p.run)
	return p
}

func (p *progress) phase(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
}

func (p *progress) compiling(total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what, p.total = "compiling", total
}

// Write counts lines of `go list` or `go build -v`.
func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for line := range bytes.Lines(b) {
		switch {
		case bytes.HasPrefix(line, []byte("go: downloading ")):
			p.downloaded++
		case bytes.HasPrefix(line, []byte("#")), bytes.HasPrefix(line, []byte("\t")):
		default:
			p.compiled++
			p.last = string(bytes.TrimSpace(line))
		}
	}
	return len(b), nil
}

func (p *progress) run() {
	pause := inLog
	if p.tty {
		pause = onTerminal
	}
	first := time.After(2 * time.Second)
	ticks := time.NewTicker(pause)
	defer ticks.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-first:
		case <-ticks.C:
		}
		p.report()
	}
}

func (p *progress) report() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown = true
	line := p.line(time.Since(p.start))
	if p.tty {
		// Return to the start of the line, and clear what is left of the last one.
		_, _ = fmt.Fprintf(p.out, "\r%.110s\x1b[K", line) // a report that cannot be shown harms nothing
		return
	}
	_, _ = fmt.Fprintln(p.out, line) // as above
}

// line says how far the build is.
func (p *progress) line(elapsed time.Duration) string {
	elapsed = elapsed.Round(time.Second)
	if p.total == 0 {
		return fmt.Sprintf("building %s: %v, %s (%d so far)", p.name, elapsed, p.what, p.downloaded)
	}
	// Packages that Go's build cache has are not compiled again, and not
	// counted: hence "at most".
	now := "reading Go's build cache"
	if p.compiled > 0 {
		now = "now " + p.last
	}
	return fmt.Sprintf("building %s: %v, %d packages compiled of at most %d, %s", p.name, elapsed, p.compiled, p.total, now)
}

func (p *progress) stop() {
	close(p.done)
	p.ended.Wait()
	if !p.shown {
		return
	}
	end := ""
	if p.tty {
		end = "\r\x1b[K"
	}
	_, _ = fmt.Fprintf(p.out, "%sbuilding %s: ended after %v\n", end, p.name, time.Since(p.start).Round(time.Second)) // as above
}
