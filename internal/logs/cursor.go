package logs

import (
	"encoding/binary"
	"time"

	"github.com/minio/crc64nvme"
	"google.golang.org/protobuf/types/known/timestamppb"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// A Cursor is a place in the log of one container instance, just behind a line.
// The zero Cursor is its beginning.
//
// Kubernetes resumes a log at a whole second, so a time alone would repeat or
// lose the rest of that second: LinesInSecond says how many of its lines lie
// before the cursor.
type Cursor struct {
	// Sequence is the number of the last line, counted from 1.
	Sequence uint64
	// Time is when the last line was written, in nanoseconds since 1970, as the
	// container runtime stamped it.
	Time int64
	// LinesInSecond is how many lines up to here were stamped within the second of Time.
	// It is 0 behind a gap; then Time is that of the next line, if that was known.
	LinesInSecond uint32
	// Bytes is the total length of the lines, line ends not counted.
	Bytes uint64
	// Checksum is the CRC-64 of the lines, each followed by one line feed.
	Checksum uint64
	// Gaps is how many of the lines are gaps.
	Gaps uint64
}

// Second returns the whole second that the last line was stamped in.
func (c Cursor) Second() int64 { return floorSecond(c.Time) }

// behindGap reports whether there is no line just before the cursor.
func (c Cursor) behindGap() bool { return c.Sequence > 0 && c.LinesInSecond == 0 }

// Since returns where to begin a read that finds the cursor's line again: one
// second early, because stamps of stdout and stderr may be out of order by a
// little, and the kubelet leaves out every line that is older than it was asked for.
func (c Cursor) Since() time.Time {
	if c.Sequence == 0 {
		return time.Time{}
	}
	return time.Unix(c.Second()-1, 0).UTC()
}

// advance moves the cursor behind a line. Bytes and Checksum are left to sum: a
// checksum is far cheaper over many lines at once.
func (c *Cursor) advance(stamp int64, inSecond uint32) {
	c.Sequence++
	c.Time = stamp
	c.LinesInSecond = inSecond
}

// sum counts the text of lines that the cursor was moved behind. Each ends with a line feed.
func (c *Cursor) sum(text []byte, lines int) {
	c.Bytes += uint64(len(text) - lines) //nolint:gosec // each line has a byte at least
	c.Checksum = crc64nvme.Update(c.Checksum, text)
}

// place is where in the log of the kubelet a cursor lies, whatever its line is numbered.
type place struct {
	time          int64
	linesInSecond uint32
}

func (c Cursor) place() place { return place{c.Time, c.LinesInSecond} }

// sameLines reports whether two cursors count the same lines.
func (c Cursor) sameLines(other Cursor) bool {
	return c.Sequence == other.Sequence && c.Checksum == other.Checksum && c.Bytes == other.Bytes && c.Gaps == other.Gaps
}

// skip moves the cursor over a gap, which counts as a line without text.
func (c *Cursor) skip() {
	c.Sequence++
	c.Gaps++
	c.sum(lineFeed, 1)
}

// lineFeed is never written to.
var lineFeed = []byte{'\n'}

// position translates the cursor for the server.
func (c Cursor) position() *logsv1.Position {
	return &logsv1.Position{
		Sequence:      c.Sequence,
		Time:          timestamp(c.Time),
		LinesInSecond: c.LinesInSecond,
		Bytes:         c.Bytes,
		Checksum:      checksumBytes(c.Checksum),
		GapCount:      c.Gaps,
	}
}

// checksumBytes returns a checksum as the protocol has it.
func checksumBytes(sum uint64) []byte { return binary.BigEndian.AppendUint64(nil, sum) }

// cursorOf translates a position that the server gave back. Nil is the beginning.
func cursorOf(p *logsv1.Position) Cursor {
	if p.GetSequence() == 0 {
		return Cursor{}
	}
	var checksum uint64 // stays 0 if a server has lost it: the end will not match, which is then true
	if b := p.GetChecksum(); len(b) == 8 {
		checksum = binary.BigEndian.Uint64(b)
	}
	return Cursor{
		Sequence:      p.GetSequence(),
		Time:          nanos(p.GetTime()),
		LinesInSecond: p.GetLinesInSecond(),
		Bytes:         p.GetBytes(),
		Checksum:      checksum,
		Gaps:          p.GetGapCount(),
	}
}

func timestamp(nanos int64) *timestamppb.Timestamp {
	second := floorSecond(nanos)
	return &timestamppb.Timestamp{Seconds: second, Nanos: int32(nanos - second*int64(time.Second))} //nolint:gosec // below one second
}

// nanos translates a time that timestamp has made.
func nanos(t *timestamppb.Timestamp) int64 {
	return t.GetSeconds()*int64(time.Second) + int64(t.GetNanos())
}

func floorSecond(nanos int64) int64 {
	second := nanos / int64(time.Second)
	if nanos%int64(time.Second) < 0 {
		second--
	}
	return second
}

// seconds counts lines by the second they were stamped in. It remembers some
// seconds besides the current one, because stamps may step back.
type seconds struct {
	second int64
	lines  uint32
	past   []secondCount
}

type secondCount struct {
	second int64
	lines  uint32
}

// rememberedSeconds is how many seconds with lines are remembered besides the current one.
const rememberedSeconds = 32

// count adds a line and returns how many lines the second of its stamp has now.
func (s *seconds) count(stamp int64) uint32 {
	if in := stamp - s.second*int64(time.Second); in < 0 || in >= int64(time.Second) {
		s.turn(floorSecond(stamp))
	}
	s.lines++
	return s.lines
}

// turn makes another second the current one.
func (s *seconds) turn(second int64) {
	old := secondCount{s.second, s.lines}
	s.second, s.lines = second, 0
	for i, p := range s.past {
		if p.second == second {
			s.lines = p.lines
			s.past = append(s.past[:i], s.past[i+1:]...)
			break
		}
	}
	if old.lines == 0 {
		return
	}
	if len(s.past) == rememberedSeconds {
		copy(s.past, s.past[1:])
		s.past = s.past[:len(s.past)-1]
	}
	s.past = append(s.past, old)
}
