// Package mask hides secrets in lines: it replaces them by three stars.
//
// It promises that no value it was given is left in a line, in any of the forms
// below, also where values overlap or touch, and where a line comes in parts. It
// neither adds nor removes lines, never makes one longer, and does the same to
// the same line each time. It does not find a secret that a program
// encodes in another way, or prints over several lines in pieces of its own.
//
// The forms of a value are the value itself, line by line if it has several; its
// base64, standard and for URLs, alone or within a longer text, on one line or
// broken after 64 or 76 characters; and as escaped for a URL and for JSON.
package mask

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const (
	// MinLength is the length of the shortest value, or line of a value, that is
	// hidden: whoever hid "on" or "7" would hide every other word.
	MinLength = 4
	// maxForm is where a longer form is cut into pieces, each hidden by itself, so
	// that a line that comes in parts need not be kept for long.
	maxForm = 8 << 10
	// patternReach is how long a text may be that a pattern finds across the parts of a line.
	patternReach = 4 << 10
	stars        = "***"
)

// A Secret is a value to hide.
type Secret struct {
	// Name tells people which one it is.
	Name string
	// Value is what must not be seen.
	Value []byte
}

// A Masker hides the secrets and what matches the patterns that it was made with.
// It may be used concurrently. Nil hides nothing.
type Masker struct {
	patterns []*regexp.Regexp
	// byStart has the forms by their first four bytes, the longest first. A
	// search for all of them costs a look into filter per byte of a line, and
	// memory in proportion to the forms; an Aho-Corasick automaton with a dense
	// table takes half a KiB for each of their bytes, and a certificate with its
	// key has twenty thousand.
	byStart map[uint32][]string
	filter  [1 << 10]uint64 // of the hashes of the keys of byStart
	reach   int             // how many bytes of a line may belong to what follows them
}

// New makes a masker. It returns the names of the secrets that it does not hide
// because they, or lines of them, are too short.
func New(secrets []Secret, patterns []*regexp.Regexp) (m *Masker, short []string) {
	m = &Masker{patterns: patterns, byStart: map[uint32][]string{}}
	all := map[string]struct{}{}
	for _, s := range secrets {
		if !addForms(all, string(s.Value)) {
			short = append(short, s.Name)
		}
	}
	for form := range all {
		key := binary.LittleEndian.Uint32([]byte(form[:MinLength]))
		m.byStart[key] = append(m.byStart[key], form)
		h := hash(key)
		m.filter[h>>6] |= 1 << (h & 63)
		m.reach = max(m.reach, len(form)-1)
	}
	for _, forms := range m.byStart {
		slices.SortFunc(forms, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	}
	if len(patterns) > 0 {
		m.reach = max(m.reach, patternReach)
	}
	return m, short
}

// ParsePatterns reads regular expressions, one a line. If one has groups, the
// groups are what is hidden, else all that matches. The error joins every problem.
func ParsePatterns(text string) ([]*regexp.Regexp, error) {
	var all []*regexp.Regexp
	var problems []string
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		pattern, err := regexp.Compile(line)
		switch {
		case err != nil:
			problems = append(problems, fmt.Sprintf("line %d: %v", i+1, err))
		case pattern.MatchString(""):
			problems = append(problems, fmt.Sprintf("line %d: %s matches everywhere", i+1, line))
		default:
			all = append(all, pattern)
		}
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("%s", strings.Join(problems, "; "))
	}
	return all, nil
}

// hash spreads four bytes over the bits of a filter.
func hash(key uint32) uint32 { return key * 0x9E3779B1 >> 16 }

// A span is a part of a line.
type span struct{ start, end int }

// find appends to spans what is to be hidden in a line, in order, overlaps and
// neighbours joined.
func (m *Masker) find(spans []span, line []byte) []span {
	if len(m.byStart) > 0 {
		for i := 0; i+MinLength <= len(line); i++ {
			key := binary.LittleEndian.Uint32(line[i:])
			if h := hash(key); m.filter[h>>6]&(1<<(h&63)) == 0 {
				continue
			}
			for _, form := range m.byStart[key] {
				if len(form) <= len(line)-i && string(line[i:i+len(form)]) == form {
					spans = append(spans, span{i, i + len(form)})
					break // the longest; the others lie within it
				}
			}
		}
	}
	for _, pattern := range m.patterns {
		for _, at := range pattern.FindAllSubmatchIndex(line, -1) {
			if len(at) == 2 {
				spans = append(spans, span{at[0], at[1]})
			}
			for g := 2; g < len(at); g += 2 {
				spans = append(spans, span{at[g], at[g+1]})
			}
		}
	}
	if len(spans) < 2 {
		return nonEmpty(spans)
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	joined := spans[:0]
	for _, s := range nonEmpty(spans) {
		if last := len(joined) - 1; last >= 0 && s.start <= joined[last].end {
			joined[last].end = max(joined[last].end, s.end)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// nonEmpty leaves out spans of nothing, such as a group that took no part in a match.
func nonEmpty(spans []span) []span {
	return slices.DeleteFunc(spans, func(s span) bool { return s.start >= s.end })
}

// Lines hides secrets in the lines of one log, one after the other. The zero
// value is ready; it is not for concurrent use.
type Lines struct {
	spans []span
	out   []byte
	// A line that comes in parts: the end of the part before, of which the first
	// done bytes are given out already. They are kept because what begins in them
	// may go on.
	rest []byte
	done int
}

// Next returns a line, which ends with a line feed, without its secrets. It may
// return the line itself; else, the result is valid until the next call. If more
// is true, the line goes on with the next call: the end of this part may then
// be given out with the next one, so that no secret hides in the cut.
func (l *Lines) Next(m *Masker, line []byte, more bool) []byte {
	if m == nil && len(l.rest) == 0 {
		return line
	}
	if m == nil {
		m = &Masker{}
	}
	text := line[:len(line)-1]
	if len(l.rest) > 0 {
		l.rest = append(l.rest, text...)
		text = l.rest
	}
	l.spans = m.find(l.spans[:0], text)
	end, keep := len(text), 0
	if more {
		keep = min(m.reach, len(text))
		end = max(l.done, len(text)-keep)
	}
	if len(l.spans) == 0 && l.done == 0 && end == len(text) {
		if len(l.rest) == 0 {
			return line
		}
		l.rest = l.rest[:0]
		l.out = append(append(l.out[:0], text...), '\n')
		return l.out
	}
	l.out = l.out[:0]
	at := l.done
	for _, s := range l.spans {
		if s.end <= at {
			continue
		}
		if s.start >= end {
			break
		}
		if s.start > at {
			l.out = append(l.out, text[at:s.start]...)
		}
		l.out = append(l.out, stars[:min(len(stars), s.end-max(s.start, at))]...)
		at = s.end
	}
	end = max(end, at) // what is hidden is hidden whole
	l.out = append(append(l.out, text[at:end]...), '\n')
	if !more {
		l.rest, l.done = l.rest[:0], 0
		if cap(l.rest) > 1<<20 {
			l.rest = nil // that was one very long line
		}
		return l.out
	}
	from := min(len(text)-keep, end)
	l.done = end - from
	l.rest = append(l.rest[:0], text[from:]...)
	return l.out
}

// Text hides secrets in a text of several lines.
func (m *Masker) Text(text string) string {
	if m == nil {
		return text
	}
	var lines Lines
	parts := strings.Split(text, "\n")
	for i, part := range parts {
		hidden := lines.Next(m, []byte(part+"\n"), false)
		parts[i] = string(hidden[:len(hidden)-1])
	}
	return strings.Join(parts, "\n")
}
