package logs

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// The fields' numbers in logs.proto.
const (
	fieldBatch = 2 // of StreamLogsRequest
	fieldData  = 3 // of Batch
)

// copiedText is how much text is rather copied than sent as a buffer of its own.
const copiedText = 1 << 10

// A message is a batch on its way to the server, with the memory that its text lies in.
type message struct {
	*logsv1.StreamLogsRequest
	text mem.Buffer
}

// A codec encodes messages as gRPC's own does, but for the text of a batch: that goes to
// the connection from where it lies, and is not copied into a message before. In
// Protocol Buffers the fields of a message may come in any order, so it comes last.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(m any) (mem.BufferSlice, error) {
	sent, ok := m.(message)
	if !ok {
		return c.CodecV2.Marshal(m)
	}
	b := sent.GetBatch()
	if sent.text.Len() <= copiedText {
		return c.CodecV2.Marshal(sent.StreamLogsRequest)
	}
	rest := &logsv1.Batch{
		FirstSequence: b.GetFirstSequence(), BaseTime: b.GetBaseTime(), Lengths: b.GetLengths(), TimeDeltas: b.GetTimeDeltas(),
		Streams: b.GetStreams(), End: b.GetEnd(), Gap: b.GetGap(),
	}
	size := proto.Size(rest)
	head := make([]byte, 0, size+4*protowire.SizeBytes(0)+2*protowire.SizeVarint(uint64(len(b.GetData()))))
	head = protowire.AppendTag(head, fieldBatch, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(size+protowire.SizeTag(fieldData)+protowire.SizeBytes(len(b.GetData())))) //nolint:gosec // positive
	head, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(head, rest)
	if err != nil {
		return nil, fmt.Errorf("encoding a batch: %w", err)
	}
	head = protowire.AppendTag(head, fieldData, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(b.GetData())))
	sent.text.Ref() // gRPC frees what it has written
	return mem.BufferSlice{mem.SliceBuffer(head), sent.text}, nil
}

// texts keeps memory for the text of batches. Large pieces, for a log in haste, are worth
// to be used again: each would have to be cleared, and collected.
var texts textPool

type textPool struct{ pieces sync.Pool }

// smallestPiece is what texts keeps at least.
const smallestPiece = 16 << 10

// text returns memory for about so many bytes.
func (p *textPool) text(size int) []byte {
	if size >= smallestPiece {
		if piece, ok := p.pieces.Get().(*[]byte); ok && cap(*piece) >= size && cap(*piece) <= 4*size {
			return (*piece)[:0]
		}
	}
	return make([]byte, 0, size)
}

// Get implements [mem.BufferPool]. Nobody calls it: gRPC only gives back.
func (p *textPool) Get(length int) *[]byte {
	piece := p.text(length)[:length]
	return &piece
}

// Put implements [mem.BufferPool].
func (p *textPool) Put(piece *[]byte) {
	if cap(*piece) >= smallestPiece {
		p.pieces.Put(piece)
	}
}
