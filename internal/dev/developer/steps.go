package developer

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// steps tells a person what is done, what came of it, and how long it took.
type steps struct {
	begin time.Time

	mu  sync.Mutex
	out io.Writer
}

func newSteps(out io.Writer) *steps { return &steps{begin: time.Now(), out: out} }

// noticeAfter is when a step that is still under way is named, so that nobody
// takes it for hung.
const noticeAfter = time.Second

// do runs a step. The function returns what came of it, in a word or two.
func (s *steps) do(what string, step func() (outcome string, err error)) error {
	start := time.Now()
	notice := time.AfterFunc(noticeAfter, func() { s.say("          %s …", what) })
	outcome, err := step()
	notice.Stop()
	took := time.Since(start).Seconds()
	if err != nil {
		return err // main says it
	}
	s.say("[%5.1f s] %s: %s", took, what, outcome)
	return nil
}

func (s *steps) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// Write takes what other programs print, and indents it.
func (s *steps) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		if text := strings.TrimSpace(string(line)); text != "" {
			s.say("            %s", text)
		}
	}
	return len(p), nil
}
