package logview

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// A printer writes whole lines, one at a time, whoever prints.
type printer struct {
	raw, color bool

	mu      sync.Mutex
	out     io.Writer
	colors  map[string]string // of the containers, as they turn up
	current string            // the state that was last announced
	err     error             // of the first write that went wrong
}

func newPrinter(opts Options) *printer {
	return &printer{raw: opts.Raw, color: opts.Color, out: opts.Out, colors: map[string]string{}}
}

// Control sequences of ECMA-48 for terminals ("select graphic rendition").
const (
	reset  = "\x1b[0m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
)

var containerColors = []string{"\x1b[36m", "\x1b[35m", "\x1b[32m", "\x1b[34m"}

// prefixWidth is that of the longest name of our containers.
const prefixWidth = len("log-relay")

func (p *printer) paint(color, text string) string {
	if !p.color || text == "" {
		return text
	}
	return color + text + reset
}

func (p *printer) print(l line) {
	text := l.text
	if !p.raw {
		text = p.readable(text)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	color, ok := p.colors[l.container]
	if !ok {
		color = containerColors[len(p.colors)%len(containerColors)]
		p.colors[l.container] = color
	}
	p.write(p.paint(color, fmt.Sprintf("%-*s │", prefixWidth, l.container)) + " " + text)
}

// note tells something that no container said.
func (p *printer) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write(p.paint(dim, "── "+text))
}

// state tells what the view waits for, once.
func (p *printer) state(text string) {
	p.mu.Lock()
	changed := p.current != text
	p.current = text
	p.mu.Unlock()
	if changed && text != "" {
		p.note(text)
	}
}

// write needs the lock.
func (p *printer) write(text string) {
	if _, err := io.WriteString(p.out, text+"\n"); err != nil && p.err == nil {
		p.err = fmt.Errorf("printing logs: %w", err)
	}
}

// readable turns a line of our programs, a JSON object of log/slog, into text:
// time, level, message and attributes in their order. Another line stays as it is.
func (p *printer) readable(text string) string {
	if !strings.HasPrefix(text, "{") {
		return text
	}
	var (
		decoder         = json.NewDecoder(strings.NewReader(text))
		stamp, msg      string
		level           = "?"
		attributes      strings.Builder
		attribute, have = "", 0
	)
	if _, err := decoder.Token(); err != nil { // the brace
		return text
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return text
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return text
		}
		if value[0] != '"' || json.Unmarshal(value, &attribute) != nil { // not a string
			attribute = string(bytes.TrimSpace(value))
		} else if name != "msg" && strings.ContainsAny(attribute, " \t\n\"=") {
			attribute = string(value)
		}
		switch name {
		case "time":
			at, err := time.Parse(time.RFC3339Nano, attribute)
			if err != nil {
				return text
			}
			stamp = at.Local().Format("15:04:05.000")
			have++
		case "level":
			level = attribute
			have++
		case "msg":
			msg = attribute
			have++
		default:
			fmt.Fprintf(&attributes, " %s%s", p.paint(dim, fmt.Sprint(name)+"="), attribute)
		}
	}
	if have != 3 {
		return text
	}
	shade := ""
	switch level {
	case "WARN":
		shade = yellow
	case "ERROR":
		shade = red
	case "DEBUG":
		shade = dim
	}
	if shade != "" {
		level = p.paint(shade, fmt.Sprintf("%-5s", level))
	}
	return fmt.Sprintf("%s %-5s %s%s", p.paint(dim, stamp), level, msg, attributes.String())
}
