package logs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/mask"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

const (
	// readBuffer is small because thousands of followers may have one each. The API
	// server sends bigger pieces, which wait in the connection.
	readBuffer = 16 << 10
	// idleBuffer is what a follower has that waits for its worker to print something.
	idleBuffer = 512
	// maxLine is where a longer line is cut, so that it fits in a message of the
	// 4 MiB that gRPC servers accept by default. Only a line that ends within the
	// same readBuffer stays whole. Reading again cuts at the same places.
	maxLine = 3 << 20
)

// errTorn says that a log ended within a line. The line is given as far as it goes.
var errTorn = errors.New("the log ends within a line")

// A noticeError is text in a log that no worker wrote: it has no time stamp. The
// kubelet reports trouble that way, with status 200.
type noticeError struct{ text string }

func (e *noticeError) Error() string { return fmt.Sprintf("the kubelet says: %s", e.text) }

// A lineReader cuts a log into lines, each with its stamp.
type lineReader struct {
	in *idleReader
	// long gathers a line that does not fit in the buffer of in.
	long []byte
	// rest is what was left of a line that was cut; valid while cut is true.
	rest  []byte
	cut   bool
	stamp int64
	// latest is the stamp that was read last.
	latest int64
	// peeked is how long the line is that peek has returned, with its stamp.
	peeked int
	// onCut is called for each cut.
	onCut func()
	// mask says what is to be hidden in lines, if it is not nil, and hidden does so.
	mask   func() *mask.Masker
	hidden mask.Lines
	// labels tells where lines were written to, if it is not nil, and stream is what it
	// says of the last one.
	labels *labels
	stream logsv1.Stream

	// The last stamp's text, but for its fraction, and the second that it means:
	// almost every line has the same one as the line before it.
	date, zone [20]byte
	zoneLength int
	second     int64
}

func newLineReader(in io.Reader, onCut func()) *lineReader {
	return &lineReader{in: &idleReader{in: in}, onCut: onCut}
}

// An idleReader is a [bufio.Reader] that has only a small buffer while it waits.
type idleReader struct {
	in io.Reader
	// buffered reads what was read into small, or, while that is nil, into a large buffer.
	buffered *bufio.Reader
	small    [idleBuffer]byte
	rest     []byte // of small
	err      error  // that came with it
}

var readBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}

// ReadSlice is that of [bufio.Reader]. What it returned last is void from the call on.
func (r *idleReader) ReadSlice(delim byte) ([]byte, error) {
	if r.buffered != nil && r.buffered.Buffered() == 0 {
		r.buffered.Reset(nil)
		readBuffers.Put(r.buffered)
		r.buffered = nil
	}
	if r.buffered == nil {
		n, err := r.in.Read(r.small[:])
		for n == 0 && err == nil {
			n, err = r.in.Read(r.small[:])
		}
		r.rest, r.err = r.small[:n], err
		r.buffered, _ = readBuffers.Get().(*bufio.Reader)
		r.buffered.Reset(readerFunc(r.readOn))
	}
	return r.buffered.ReadSlice(delim)
}

// readOn reads first what ended the wait.
func (r *idleReader) readOn(p []byte) (int, error) {
	switch {
	case len(r.rest) > 0:
		n := copy(p, r.rest)
		if r.rest = r.rest[n:]; len(r.rest) > 0 || r.err == nil {
			return n, nil
		}
		return n, r.err
	case r.err != nil:
		return 0, r.err
	}
	return r.in.Read(p)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// next returns the next line as [lineReader.raw] does, with its secrets hidden. That
// also goes for lines that the caller is only to skip: of a line that was cut, the
// part that is wanted may begin with the end of one that is not.
func (r *lineReader) next() (stamp int64, text []byte, err error) {
	stamp, text, err = r.raw()
	if r.labels != nil && (err == nil || errors.Is(err, errTorn)) {
		r.stream = r.labels.of(stamp, text)
	}
	if r.mask != nil && (err == nil || errors.Is(err, errTorn)) {
		text = r.hidden.Next(r.mask(), text, r.cut)
	}
	return stamp, text, err
}

// raw returns the next line, ended by a line feed. It is valid until the next
// call. At the end of the log the error is io.EOF, or errTorn together with
// the line so far (to which a line feed is added). A *noticeError can be followed by lines.
func (r *lineReader) raw() (stamp int64, text []byte, err error) {
	piece, err := r.in.ReadSlice('\n')
	if err == nil && !r.cut {
		return r.split(piece)
	}
	if cap(r.long) > 4*readBuffer && len(r.long) <= readBuffer {
		r.long = nil // that was one very long line; do not keep its memory
	}
	r.long = r.long[:0]
	if r.cut {
		r.long = append(r.long, r.rest...)
	}
	for {
		r.long = append(r.long, piece...)
		switch {
		case err == nil:
			if r.cut {
				r.cut = false
				return r.stamp, r.long, nil
			}
			return r.split(r.long)
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && (len(r.long) > 0 || r.cut):
			return r.torn()
		default:
			return 0, nil, err
		}
		if len(r.long) >= maxLine+64 { // 64: longer than any stamp
			return r.cutLong()
		}
		piece, err = r.in.ReadSlice('\n')
	}
}

// peek returns the next line if it is whole and in memory already. It is valid until the
// next call of anything, and taken with take. Whatever is not simple is left to next.
func (r *lineReader) peek() (stamp int64, text []byte, ok bool) {
	if r.cut || r.in.buffered == nil {
		return 0, nil, false
	}
	waiting, _ := r.in.buffered.Peek(r.in.buffered.Buffered()) // no more than there is, so no error
	end := bytes.IndexByte(waiting, '\n')
	if end < 0 {
		return 0, nil, false
	}
	before := r.latest
	stamp, text, err := r.split(waiting[:end+1])
	r.peeked = end + 1
	return stamp, text, err == nil && stamp-before < int64(rotationEvery) // else see continuity
}

// take takes the line that peek has returned.
func (r *lineReader) take() {
	r.in.buffered.Discard(r.peeked) //nolint:errcheck // it is there
}

// cutLong returns the first part of a line that is too long and keeps the rest.
func (r *lineReader) cutLong() (int64, []byte, error) {
	body := r.long
	if !r.cut {
		stamp, text, err := r.split(body)
		if err != nil {
			return 0, nil, err
		}
		r.stamp, body = stamp, text
	}
	r.rest = append(r.rest[:0], body[maxLine:]...)
	body[maxLine] = '\n'
	r.cut = true
	r.onCut()
	return r.stamp, body[:maxLine+1], nil
}

// torn returns the unfinished line at the end of a log.
func (r *lineReader) torn() (int64, []byte, error) {
	r.long = append(r.long, '\n')
	if r.cut {
		r.cut = false
		return r.stamp, r.long, errTorn
	}
	stamp, text, err := r.split(r.long)
	if err != nil {
		return 0, nil, err
	}
	return stamp, text, errTorn
}

// fractionEnd is where the fraction of a stamp such as
// 2006-01-02T15:04:05.000000000Z ends. The kubelet always writes nine digits.
const fractionEnd = len("2006-01-02T15:04:05.000000000")

// split takes the stamp off a line.
func (r *lineReader) split(line []byte) (int64, []byte, error) {
	space := bytes.IndexByte(line[:min(len(line), 40)], ' ')
	if space < 0 {
		return 0, nil, notice(line)
	}
	text := line[space+1:]
	if space > fractionEnd && line[19] == '.' && space-fractionEnd <= len(r.zone) &&
		string(line[:19]) == string(r.date[:19]) && string(line[fractionEnd:space]) == string(r.zone[:r.zoneLength]) {
		if fraction, ok := nineDigits(line[20:fractionEnd]); ok {
			r.latest = r.second*int64(time.Second) + fraction
			return r.latest, text, nil
		}
	}
	at, err := time.Parse(time.RFC3339Nano, string(line[:space]))
	if err != nil {
		return 0, nil, notice(line)
	}
	if space > fractionEnd && line[19] == '.' && space-fractionEnd <= len(r.zone) {
		copy(r.date[:], line[:19])
		r.zoneLength = copy(r.zone[:], line[fractionEnd:space])
		r.second = at.Unix()
	}
	r.latest = at.UnixNano()
	return r.latest, text, nil
}

func nineDigits(digits []byte) (n int64, ok bool) {
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int64(d-'0')
	}
	return n, true
}

func notice(line []byte) error {
	return &noticeError{text: string(bytes.TrimSpace(line[:min(len(line), 300)]))}
}
