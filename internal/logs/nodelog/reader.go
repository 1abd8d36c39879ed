package nodelog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// fileBuffer is how much of each file is in memory. An entry of containerd is 16 KiB and a
// little; a longer one is passed on in pieces.
const fileBuffer = 32 << 10

// A file is one that is being read.
type file struct {
	name  string
	body  io.Closer
	in    *bufio.Reader
	first time.Time     // stamp of its first entry; zero if it has none
	age   time.Duration // since it was changed last
}

// openFile opens a file and looks at its first entry.
func (c *Client) openFile(ctx context.Context, log Log, name string, packed bool) (*file, error) {
	path := name
	if packed {
		path += ".gz"
	}
	response, err := c.get(ctx, log, path) //nolint:bodyclose // it is closed with the file
	if err != nil {
		return nil, err
	}
	f := &file{name: name, body: response.Body, age: ageOf(response.Header, packed)}
	var in io.Reader = response.Body
	if packed {
		unpacked, err := gzip.NewReader(response.Body)
		if err != nil {
			f.body.Close() //nolint:errcheck // it was only read
			return nil, fmt.Errorf("unpacking log file %s: %w", path, err)
		}
		in = unpacked
	}
	f.in = bufio.NewReaderSize(in, fileBuffer)
	head, err := f.in.Peek(longestStamp)
	if err != nil && !errors.Is(err, io.EOF) {
		f.body.Close() //nolint:errcheck // as above
		return nil, fmt.Errorf("reading log file %s: %w", path, err)
	}
	if len(head) > 0 {
		stamp, _, _ := bytes.Cut(head, []byte{' '})
		if f.first, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil && (len(head) == longestStamp || bytes.IndexByte(head, '\n') >= 0) {
			f.body.Close() //nolint:errcheck // as above
			return nil, fmt.Errorf("log file %s is not in the format of the container runtime interface", path)
		}
	}
	return f, nil
}

// ageOf returns for how long a file has been left alone, give or take a second, by the node's own clock.
func ageOf(header http.Header, packed bool) time.Duration {
	if packed {
		return time.Hour // it was whole before it was compressed
	}
	now, nowErr := http.ParseTime(header.Get("Date"))
	changed, changedErr := http.ParseTime(header.Get("Last-Modified"))
	if errors.Join(nowErr, changedErr) != nil {
		return time.Hour // no clock to tell by
	}
	return now.Sub(changed)
}

// A Reader gives a log as the pod log API does with timestamps: for each line its stamp, a
// space, and the text. The parts into which the runtime has cut a long line are joined, as
// is a line that a rotation has torn.
type Reader struct {
	files []*file // from the oldest
	ended bool
	whole bool

	pending []byte // to be given next
	line    []byte // what pending lies in
	newLine bool   // the next entry begins a line
	within  bool   // a piece of an entry was read, and more of it follows
	partial bool   // the entry is but a part of a line
	skip    bool   // the entry is not understood
	open    bool   // the entry's text so far does not end with a line end
}

// Whole reports whether the node had not rotated the log when it was opened: then the
// first line here is the first that was printed.
func (r *Reader) Whole() bool { return r.whole }

// Close ends the reading.
func (r *Reader) Close() error {
	for _, f := range r.files {
		f.body.Close() //nolint:errcheck // it was only read
	}
	r.files = nil
	return nil
}

// begin leaves out the files with nothing but older lines.
func (r *Reader) begin(since time.Time) {
	first := 0
	for i, f := range r.files {
		if !f.first.IsZero() && f.first.Before(since) {
			first = i
		}
	}
	for _, f := range r.files[:first] {
		f.body.Close() //nolint:errcheck // it was only read
	}
	r.files = r.files[first:]
}

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	for len(r.pending) == 0 {
		if len(r.files) == 0 {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.pending)
	r.pending = r.pending[n:]
	return n, nil
}

// next makes pending of the next entry, or of the next piece of one.
func (r *Reader) next() error {
	f := r.files[0]
	piece, err := f.in.ReadSlice('\n')
	atEnd := errors.Is(err, io.EOF)
	switch {
	case err == nil || errors.Is(err, bufio.ErrBufferFull):
	case !atEnd:
		return fmt.Errorf("reading log file %s: %w", f.name, err)
	case len(piece) == 0 || len(r.files) > 1 || !r.ended:
		// An entry without an end is yet to be written, or will never be.
		r.close(f)
		return nil
	}
	r.line = r.line[:0]
	if !r.within {
		piece = r.entry(piece)
	}
	r.within = err != nil && !atEnd
	text := piece
	if r.partial && err == nil {
		text = bytes.TrimSuffix(text, []byte{'\n'})
	}
	if !r.skip {
		r.line = append(r.line, text...)
		if n := len(text); n > 0 {
			r.open = text[n-1] != '\n'
		}
		if !r.within {
			r.newLine = !r.open
		}
	}
	r.pending = r.line
	if atEnd {
		r.close(f)
	}
	return nil
}

// close ends the first file.
func (r *Reader) close(f *file) {
	f.body.Close() //nolint:errcheck // it was only read
	r.files = r.files[1:]
	r.within = false
}

const (
	// longestStamp is more than any stamp takes.
	longestStamp = 64
	// stampLayout is how the kubelet writes a stamp.
	stampLayout = "2006-01-02T15:04:05.000000000Z07:00"
)

// entry begins an entry: it puts the stamp into line if that begins a line, and returns
// the rest of the piece. An entry looks like
//
//	2026-11-25T12:00:00.123456789Z stdout F the text
//
// where the tag, of which there may be more after colons, is P for a part of a line.
func (r *Reader) entry(piece []byte) []byte {
	r.partial, r.skip, r.open = false, true, false
	stamp, rest, _ := bytes.Cut(piece, []byte{' '})
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return nil
	}
	stream, rest, _ := bytes.Cut(rest, []byte{' '})
	if s := string(stream); s != "stdout" && s != "stderr" {
		return nil
	}
	tags, text, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return nil
	}
	tag, _, _ := strings.Cut(string(tags), ":")
	r.partial, r.skip = tag == "P", false
	if r.newLine {
		r.line = at.AppendFormat(r.line, stampLayout)
		r.line = append(r.line, ' ')
	}
	return text
}
