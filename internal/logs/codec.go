package logs

import (
	"fmt"

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

// A codec encodes messages as gRPC's own does, but for the text of a batch: that goes to
// the connection from where it lies, and is not copied into a message before. In
// Protocol Buffers the fields of a message may come in any order, so it comes last.
//
// The text must not change any more once it was sent, for gRPC keeps it until it is
// written and a [batch] until it is acknowledged.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(message any) (mem.BufferSlice, error) {
	request, _ := message.(*logsv1.StreamLogsRequest)
	b := request.GetBatch()
	if len(b.GetData()) <= copiedText {
		return c.CodecV2.Marshal(message)
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
	return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(b.GetData())}, nil
}
