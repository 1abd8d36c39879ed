package queuerpc

import (
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// encodeEvent lays out an event field by field: a map of them, which is what the
// stream entry has, takes protobuf several times as long, and the reader would have
// to check each again.
func encodeEvent(e *scaleevent.Event) *queuev1.ScaleEvent {
	m := &queuev1.ScaleEvent{
		Fields: e.Metadata, Env: e.Env,
		Type: string(e.Type), TaskId: e.TaskID, Pool: e.Pool, PodCount: optional(e.PodCount), TargetReplicas: optional(e.TargetReplicas),
		Priority: count(e.Priority), IdempotencyKey: e.IdempotencyKey,
		Repository: e.Repository, CommitSha: e.CommitSHA, TriggeredBy: e.TriggeredBy, Reason: e.Reason, Timestamp: e.Timestamp,
		Image: e.Image, Command: e.Command, Cpu: e.CPU, Memory: e.Memory, Traceparent: e.Traceparent,
	}
	if !e.ExpiresAt.IsZero() {
		m.ExpireTime = timestamppb.New(e.ExpiresAt)
	}
	return m
}

// encodeBrief lays out what an event does to the number of workers, and when not.
func encodeBrief(e *scaleevent.Event) *queuev1.ScaleEvent {
	return encodeEvent(&scaleevent.Event{
		Type: e.Type, PodCount: e.PodCount, TargetReplicas: e.TargetReplicas, ExpiresAt: e.ExpiresAt, IdempotencyKey: e.IdempotencyKey,
	})
}

// decodeEvent reads what encodeEvent wrote. The consumer has checked the event; what
// is looked at here is whether this process knows such events at all.
func decodeEvent(id string, m *queuev1.ScaleEvent) (*scaleevent.Event, error) {
	e := &scaleevent.Event{
		ID: id, Metadata: m.GetFields(), Env: m.GetEnv(),
		Type: scaleevent.Type(m.GetType()), TaskID: m.GetTaskId(), Pool: m.GetPool(), PodCount: number(m.PodCount), TargetReplicas: number(m.TargetReplicas),
		Priority: int(m.GetPriority()), IdempotencyKey: m.GetIdempotencyKey(),
		Repository: m.GetRepository(), CommitSHA: m.GetCommitSha(), TriggeredBy: m.GetTriggeredBy(), Reason: m.GetReason(), Timestamp: m.GetTimestamp(),
		Image: m.GetImage(), Command: m.GetCommand(), CPU: m.GetCpu(), Memory: m.GetMemory(), Traceparent: m.GetTraceparent(),
	}
	if m.ExpireTime != nil {
		e.ExpiresAt = m.ExpireTime.AsTime()
	}
	switch e.Type {
	case scaleevent.ScaleUp, scaleevent.ScaleDown:
		return e, nil
	default:
		return nil, fmt.Errorf("this scaler knows no events of type %q", m.GetType())
	}
}

// sizeOfEvent is about how many bytes the event is on its way.
func sizeOfEvent(e *scaleevent.Event) int {
	n := len(e.TaskID) + len(e.IdempotencyKey) + len(e.Repository) + len(e.CommitSHA) + len(e.TriggeredBy) + len(e.Reason) + len(e.Timestamp) + len(e.Image)
	for _, word := range e.Command {
		n += len(word)
	}
	return n + sizeOfTexts(e.Env) + sizeOfTexts(e.Metadata)
}

func sizeOfTexts(m map[string]string) int {
	n := 0
	for name, value := range m {
		n += len(name) + len(value)
	}
	return n
}

// counts and numbers are count and number for what items give each other.
func counts(given map[string]int) map[string]uint32 {
	if len(given) == 0 {
		return nil
	}
	counts := make(map[string]uint32, len(given))
	for id, n := range given {
		counts[id] = count(n)
	}
	return counts
}

func numbers(given map[string]uint32) map[string]int {
	if len(given) == 0 {
		return nil
	}
	numbers := make(map[string]int, len(given))
	for id, n := range given {
		numbers[id] = int(n)
	}
	return numbers
}

func optional(n *int) *uint32 {
	if n == nil {
		return nil
	}
	m := count(*n)
	return &m
}

func number(n *uint32) *int {
	if n == nil {
		return nil
	}
	m := int(*n)
	return &m
}
