// Package scaleevent is the event contract, version 1: how a scale event is laid
// out in an entry of the Redis stream, and how its outcome is reported back.
//
// It decodes, checks and encodes, and does nothing else: package publisher sends.
// The contract in words is docs/event-contract.md. The package imports nothing of
// ours, so a producer may use it without the rest.
package scaleevent

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Type says in which direction an event scales.
type Type string

const (
	// ScaleUp adds workers. It never removes any.
	ScaleUp Type = "scale_up"
	// ScaleDown removes workers. It never adds any.
	ScaleDown Type = "scale_down"
)

// DefaultPool is the pool of an event that names none.
const DefaultPool = "default"

// An Event is one request to change the number of workers.
//
// The value that [Parse] returns is valid. One made by hand is checked with
// [Event.Validate].
type Event struct {
	// ID is the ID of the stream entry. It is empty before the event is sent.
	ID string
	// Type is the direction. Required.
	Type Type
	// TaskID says whose workers. Parse fills in the event's ID on a scale-up that
	// adds workers and names no task. It stays empty for an event that is about
	// the whole pool: one with TargetReplicas, or a scale-down, and no task.
	TaskID string
	// Pool is the worker template.
	Pool string
	// PodCount is how many workers to add or to remove, 1 to [MaxPodCount]. Nil on
	// a scale-down without TargetReplicas means all workers of the task. Parse
	// fills in 1 on a scale-up that has neither.
	PodCount *int
	// TargetReplicas is how many workers there should be in the pool or, with a
	// TaskID, of the task; 0 to [MaxTargetReplicas]. It excludes PodCount.
	TargetReplicas *int
	// Priority is 0 to [MaxPriority]; workers of a higher one start first.
	Priority int
	// ExpiresAt is when the event stops being of use; zero means never. It is in
	// UTC when it comes from Parse.
	ExpiresAt time.Time
	// IdempotencyKey makes events with the same key count once.
	IdempotencyKey string

	// Repository, CommitSHA, TriggeredBy, Reason and Timestamp are the producer's
	// account of where the event comes from. They are carried to the worker.
	Repository, CommitSHA, TriggeredBy, Reason, Timestamp string

	// Image, Command, Env, CPU and Memory override the pool's template, each as
	// far as the pool's policy allows. CPU and Memory are Kubernetes quantities.
	Image       string
	Command     []string
	Env         map[string]string
	CPU, Memory string

	// Traceparent is the W3C trace context, or empty. Parse drops an invalid one,
	// as the W3C says.
	Traceparent string
	// Metadata holds every field that is not in the contract.
	Metadata map[string]string
}

// Validate returns nil or an [*Error], as Parse would for the event's fields.
func (e Event) Validate() error {
	for name := range e.Metadata {
		if isContractField(name) {
			return &Error{Reason: ReasonInvalidField, Field: name, Message: fmt.Sprintf(
				"metadata may not be called %s, which is a field of the event contract: choose another name", quote(name))}
		}
	}
	for name := range e.Env {
		if name == "" {
			return &Error{Reason: ReasonInvalidField, Field: envPrefix, Message: "an environment variable has no name: give it one, or leave it out"}
		}
	}
	if e.Command != nil && len(e.Command) == 0 {
		return &Error{Reason: ReasonInvalidField, Field: FieldCommand, Message: "the command has no words: give one, or leave it nil"}
	}
	_, err := Parse(e.ID, e.Fields())
	return err
}

// Fields returns the event as the fields of a stream entry, without aliases. For a
// valid event, Parse(e.ID, e.Fields()) is e again, once Parse has filled in what
// was left open.
func (e Event) Fields() map[string]string {
	fields := make(map[string]string, 8+len(e.Metadata)+len(e.Env))
	for name, value := range e.Metadata {
		fields[name] = value
	}
	for name, value := range e.Env {
		fields[envPrefix+name] = value
	}
	set := func(name, value string) {
		if value != "" {
			fields[name] = value
		}
	}
	set(FieldType, string(e.Type))
	set(FieldTaskID, e.TaskID)
	set(FieldPool, e.Pool)
	if e.PodCount != nil {
		set(FieldPodCount, strconv.Itoa(*e.PodCount))
	}
	if e.TargetReplicas != nil {
		set(FieldTargetReplicas, strconv.Itoa(*e.TargetReplicas))
	}
	if e.Priority != 0 {
		set(FieldPriority, strconv.Itoa(e.Priority))
	}
	if !e.ExpiresAt.IsZero() {
		set(FieldExpiresAt, e.ExpiresAt.UTC().Format(time.RFC3339Nano))
	}
	set(FieldIdempotencyKey, e.IdempotencyKey)
	set(FieldRepository, e.Repository)
	set(FieldCommitSHA, e.CommitSHA)
	set(FieldTriggeredBy, e.TriggeredBy)
	set(FieldReason, e.Reason)
	set(FieldTimestamp, e.Timestamp)
	set(FieldImage, e.Image)
	if len(e.Command) > 0 {
		set(FieldCommand, encodeCommand(e.Command))
	}
	set(FieldCPU, e.CPU)
	set(FieldMemory, e.Memory)
	set(FieldTraceparent, e.Traceparent)
	return fields
}

// encodeCommand writes words as the JSON array that the parser reads.
func encodeCommand(words []string) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // "&&" is common here and no page will show it
	if err := encoder.Encode(words); err != nil {
		panic("scaleevent: encoding strings as JSON: " + err.Error()) // strings always encode
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// OrderingKey returns what orders events: those with the same key act in the order
// in which they were sent. It is made of pool and task.
func (e Event) OrderingKey() string {
	return e.Pool + "/" + e.TaskID // unambiguous: a pool's name has no slash
}

// RemovesAll reports whether no worker of the event's task or pool is to be left, so
// that an earlier event of the same that still waits need not be carried out.
func (e Event) RemovesAll() bool {
	return e.Type == ScaleDown && e.PodCount == nil && (e.TargetReplicas == nil || *e.TargetReplicas == 0)
}

// Expired reports whether the event is of no use any more.
func (e Event) Expired(now time.Time) bool {
	return !e.ExpiresAt.IsZero() && !now.Before(e.ExpiresAt)
}

// LogValue implements [slog.LogValuer]: what identifies the event, without the
// values of its environment, which may be secret.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("event", e.ID),
		slog.String("type", string(e.Type)),
		slog.String("task", e.TaskID),
		slog.String("pool", e.Pool),
	}
	if e.PodCount != nil {
		attrs = append(attrs, slog.Int("pod_count", *e.PodCount))
	}
	if e.TargetReplicas != nil {
		attrs = append(attrs, slog.Int("target_replicas", *e.TargetReplicas))
	}
	return slog.GroupValue(attrs...)
}

// Size returns the size of an entry with these fields, as the limit
// [DefaultMaxEventBytes] counts it: the bytes of all names and values.
func Size[V string | any](fields map[string]V) int {
	size := 0
	for name, value := range fields {
		size += len(name) + len(textOf(value))
	}
	return size
}
