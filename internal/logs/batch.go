package logs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

const (
	// batchOverhead is the most that a batch takes besides its lines and its gap, encoded.
	batchOverhead = 160
	// lineOverhead is the most that a line takes besides its text: its length and
	// its time delta as varints, and its stream.
	lineOverhead = 10
)

// A batch is consecutive lines that are sent in one message, or one gap. Once sealed
// it never changes but for its numbers, until it is sent.
type batch struct {
	start  Cursor // before the first line
	end    Cursor // behind the last line; what it sums up is that of start until the batch is sealed
	base   int64  // stamp of the first line
	latest int64  // stamp of the last line
	born   time.Time
	sealed bool
	// charged is what the budget was charged for the batch.
	charged int
	// kept says that it is in the spool, and record is the ID that is trimmed there once
	// it is acknowledged, or 0.
	kept   bool
	record uint64
	gap    *logsv1.Gap

	data    []byte     // the lines, each ended by a line feed
	text    mem.Buffer // data, once sealed; its memory is used again when nobody refers to it
	lengths []uint32   // without the line feeds
	deltas  []uint32
	streams []logsv1.Stream // empty while none is known
}

// first is the number of the first line.
func (b *batch) first() uint64 { return b.start.Sequence + 1 }

// newGap makes the batch that stands for missing lines, which are behind a cursor.
func newGap(from Cursor, gap *logsv1.Gap) *batch {
	b := &batch{start: from, end: from, born: time.Now(), sealed: true, gap: gap, data: lineFeed, text: mem.SliceBuffer(lineFeed), lengths: []uint32{0}, deltas: []uint32{0}}
	b.end.skip()
	if b.base = from.Time; from.Sequence == 0 && gap.GetToTime() != nil {
		b.base = nanos(gap.GetToTime())
	}
	b.latest = b.base
	return b
}

// renumber makes the batch follow a cursor: the lines before it may have become
// fewer. Its place in the kubelet's log stays what it is.
func (b *batch) renumber(from Cursor) {
	if b.start.sameLines(from) {
		return
	}
	b.start.Sequence, b.start.Bytes, b.start.Checksum, b.start.Gaps = from.Sequence, from.Bytes, from.Checksum, from.Gaps
	end := b.start
	if b.gap != nil {
		end.skip()
	} else {
		end.Sequence += uint64(len(b.lengths))
		end.sum(b.data, len(b.lengths))
	}
	end.Time, end.LinesInSecond = b.end.Time, b.end.LinesInSecond
	b.end = end
}

// split cuts a sealed batch into some that are no larger than the limits, if need be.
func (b *batch) split(limits windowLimits) []*batch {
	if b.size() <= limits.batchBytes || len(b.lengths) == 1 {
		return []*batch{b}
	}
	var (
		parts []*batch
		part  *batch
		at    = b.start
		stamp = b.base
		data  = b.data
		// Exact but for stamps that step back to before the batch.
		inSecond = seconds{second: b.start.Second(), lines: b.start.LinesInSecond}
	)
	for i, length := range b.lengths {
		stamp += int64(b.deltas[i])
		text := data[:length+1]
		data = data[length+1:]
		if part != nil && !part.fits(stamp, text, limits) {
			part.seal()
			at = part.end
			part = nil
		}
		if part == nil {
			part = &batch{start: at, base: stamp, latest: stamp, born: b.born, kept: b.kept}
			parts = append(parts, part)
		}
		at.advance(stamp, inSecond.count(stamp))
		var stream logsv1.Stream
		if len(b.streams) > 0 {
			stream = b.streams[i]
		}
		part.add(stamp, text, stream, at)
	}
	part.seal()
	part.record, part.end = b.record, b.end // the end knows more about the second
	return parts
}

// size is an upper bound of the encoded size.
func (b *batch) size() int {
	size := batchOverhead + len(b.data) + lineOverhead*len(b.lengths)
	if b.gap != nil {
		size += 8 + proto.Size(b.gap)
	}
	return size
}

// memory is what the batch takes in memory, with the room that it has for more lines.
func (b *batch) memory() int {
	return batchOverhead + cap(b.data) + 4*cap(b.lengths) + 4*cap(b.deltas) + 4*cap(b.streams)
}

// fits reports whether a line may be added: it must not make the batch too
// large, and its stamp must be expressible as a delta.
func (b *batch) fits(stamp int64, text []byte, limits windowLimits) bool {
	delta := stamp - b.latest
	return len(b.lengths) < limits.lines &&
		b.size()+lineOverhead+len(text) <= limits.batchBytes &&
		delta >= 0 && delta <= math.MaxUint32
}

// add appends a line, which ends with a line feed.
func (b *batch) add(stamp int64, text []byte, stream logsv1.Stream, end Cursor) {
	b.data = append(b.data, text...)
	b.lengths = append(b.lengths, uint32(len(text)-1))  //nolint:gosec // bounded by maxLine
	b.deltas = append(b.deltas, uint32(stamp-b.latest)) //nolint:gosec // bounded by fits
	if stream != logsv1.Stream_STREAM_UNSPECIFIED || len(b.streams) > 0 {
		for len(b.streams) < len(b.lengths)-1 {
			b.streams = append(b.streams, logsv1.Stream_STREAM_UNSPECIFIED)
		}
		b.streams = append(b.streams, stream)
	}
	b.latest = stamp
	b.end = end
}

// seal says that no line will be added.
func (b *batch) seal() {
	b.sealed = true
	b.end.sum(b.data, len(b.lengths))
	b.text = mem.NewBuffer(&b.data, &texts)
}

// textBytes is the length of the lines without the line feeds.
func (b *batch) textBytes() int { return len(b.data) - len(b.lengths) }

// message returns the batch as it is sent.
func (b *batch) message() message {
	return message{&logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: b.proto()}}, b.text}
}

func (b *batch) proto() *logsv1.Batch {
	return &logsv1.Batch{
		FirstSequence: b.first(),
		BaseTime:      timestamp(b.base),
		Data:          b.data,
		Lengths:       b.lengths,
		TimeDeltas:    b.deltas,
		Streams:       b.streams,
		End:           b.end.position(),
		Gap:           b.gap,
	}
}

// encode returns the batch as it lies in the spool: the position before it, behind
// its length, and then the message that is sent.
func (b *batch) encode() ([]byte, error) {
	start, err := proto.Marshal(b.start.position())
	if err != nil {
		return nil, fmt.Errorf("encoding a position: %w", err)
	}
	record := make([]byte, 0, len(start)+b.size()+16)
	record = binary.AppendUvarint(record, uint64(len(start)))
	record, err = proto.MarshalOptions{}.MarshalAppend(append(record, start...), b.proto())
	if err != nil {
		return nil, fmt.Errorf("encoding a batch: %w", err)
	}
	return record, nil
}

// decode returns the batch that encode has encoded.
func decode(record []byte) (*batch, error) {
	length, n := binary.Uvarint(record)
	if n <= 0 || length > uint64(len(record)-n) {
		return nil, errors.New("decoding a batch: it has no beginning")
	}
	var (
		start   logsv1.Position
		message logsv1.Batch
	)
	if err := proto.Unmarshal(record[n:n+int(length)], &start); err != nil { //nolint:gosec // below the record's length
		return nil, fmt.Errorf("decoding a position: %w", err)
	}
	if err := proto.Unmarshal(record[n+int(length):], &message); err != nil { //nolint:gosec // as above
		return nil, fmt.Errorf("decoding a batch: %w", err)
	}
	b := &batch{
		start: cursorOf(&start), end: cursorOf(message.GetEnd()), base: nanos(message.GetBaseTime()),
		sealed: true, gap: message.GetGap(),
		data: message.GetData(), lengths: message.GetLengths(), deltas: message.GetTimeDeltas(), streams: message.GetStreams(),
	}
	b.text = mem.SliceBuffer(b.data)
	b.latest = b.base
	for _, delta := range b.deltas {
		b.latest += int64(delta)
	}
	return b, nil
}
