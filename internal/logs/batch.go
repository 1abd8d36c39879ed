package logs

import (
	"math"
	"time"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

const (
	// batchOverhead is the most that a batch takes besides its lines, encoded.
	batchOverhead = 160
	// lineOverhead is the most that a line takes besides its text: its length and
	// its time delta as varints.
	lineOverhead = 9
)

// A batch is consecutive lines that are sent in one message. Once sealed it
// never changes, so it may be sent again, and read without a lock.
type batch struct {
	first  uint64
	end    Cursor
	base   int64 // stamp of the first line
	latest int64 // stamp of the last line
	born   time.Time
	sealed bool
	// charged is what the budget was charged for the batch.
	charged int

	data    []byte
	lengths []uint32
	deltas  []uint32
}

// size is an upper bound of the encoded size.
func (b *batch) size() int { return batchOverhead + len(b.data) + lineOverhead*len(b.lengths) }

// memory is what the batch takes in memory, with the room that it has for more lines.
func (b *batch) memory() int { return batchOverhead + cap(b.data) + 4*cap(b.lengths) + 4*cap(b.deltas) }

// fits reports whether a line may be added: it must not make the batch too
// large, and its stamp must be expressible as a delta.
func (b *batch) fits(stamp int64, text []byte, limits windowLimits) bool {
	delta := stamp - b.latest
	return len(b.lengths) < limits.lines &&
		b.size()+lineOverhead+len(text) <= limits.batchBytes &&
		delta >= 0 && delta <= math.MaxUint32
}

// add appends a line, which ends with a line feed.
func (b *batch) add(stamp int64, text []byte, end Cursor) {
	b.data = append(b.data, text[:len(text)-1]...)
	b.lengths = append(b.lengths, uint32(len(text)-1))  //nolint:gosec // bounded by maxLine
	b.deltas = append(b.deltas, uint32(stamp-b.latest)) //nolint:gosec // bounded by fits
	b.latest = stamp
	b.end = end
}

// message returns the batch as it is sent.
func (b *batch) message() *logsv1.StreamLogsRequest {
	return &logsv1.StreamLogsRequest{Message: &logsv1.StreamLogsRequest_Batch{Batch: &logsv1.Batch{
		FirstSequence: b.first,
		BaseTime:      timestamp(b.base),
		Data:          b.data,
		Lengths:       b.lengths,
		TimeDeltas:    b.deltas,
		End:           b.end.position(),
	}}}
}
