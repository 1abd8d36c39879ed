package scaleevent

import (
	"slices"
	"strings"
)

// The fields of an event's entry. See docs/event-contract.md.
const (
	FieldType           = "type"
	FieldTaskID         = "task_id"
	FieldPool           = "pool"
	FieldPodCount       = "pod_count"
	FieldTargetReplicas = "target_replicas"
	FieldPriority       = "priority"
	FieldExpiresAt      = "expires_at"
	FieldIdempotencyKey = "idempotency_key"
	FieldRepository     = "repository"
	FieldCommitSHA      = "commit_sha"
	FieldTriggeredBy    = "triggered_by"
	FieldReason         = "reason"
	FieldTimestamp      = "timestamp"
	FieldImage          = "image"
	FieldCommand        = "command"
	FieldCPU            = "cpu"
	FieldMemory         = "memory"
	FieldTraceparent    = "traceparent"

	// envPrefix, followed by a name, is a variable of the worker's environment.
	envPrefix = "env."
)

// Aliases of fields, which producers in the field already use.
const (
	AliasJobID            = "job_id"            // of task_id
	AliasTargetDeployment = "target_deployment" // of pool
	AliasCount            = "count"             // of pod_count
)

// The fields that a dead letter has beside those of the event. Parse drops them,
// so a dead letter may be sent again as it is.
const (
	FieldDeadEventID = "dead_event_id"
	FieldDeadReason  = "dead_reason"
	FieldDeadMessage = "dead_message"
	FieldDeadTime    = "dead_time"
	// FieldDeadAttempts is how often the event was tried.
	FieldDeadAttempts = "dead_attempts"
)

// Limits of the contract. An event beyond one of them is rejected.
const (
	// DefaultMaxEventBytes bounds the names and values of one entry together. It
	// is the consumer's default (MAX_EVENT_BYTES); Parse does not enforce it.
	DefaultMaxEventBytes = 256 << 10
	// MaxFieldBytes bounds the value of any field.
	MaxFieldBytes = 64 << 10
	// MaxNameBytes bounds task_id and idempotency_key.
	MaxNameBytes = 256
	// MaxOriginBytes bounds each of repository, commit_sha, triggered_by, reason
	// and timestamp, because they become annotations of the worker.
	MaxOriginBytes = 4 << 10
	// MaxImageBytes bounds image.
	MaxImageBytes = 512
	// MaxPodCount bounds pod_count.
	MaxPodCount = 1000
	// MaxTargetReplicas bounds target_replicas: what one installation can hold.
	MaxTargetReplicas = 5000
	// MaxPriority bounds priority.
	MaxPriority = 1000
	// MaxEnv bounds the number of env.NAME fields.
	MaxEnv = 256
	// MaxMetadata bounds the number of unknown fields.
	MaxMetadata = 256
	// MaxMetadataNameBytes bounds the name of an unknown field, because it becomes
	// the name of an annotation.
	MaxMetadataNameBytes = 63
	// MaxMetadataBytes bounds names and values of all unknown fields together,
	// because Kubernetes bounds the annotations of a pod.
	MaxMetadataBytes = 128 << 10
)

// aliasOf returns the alias of a field, or nothing.
func aliasOf(field string) string {
	switch field {
	case FieldTaskID:
		return AliasJobID
	case FieldPool:
		return AliasTargetDeployment
	case FieldPodCount:
		return AliasCount
	default:
		return ""
	}
}

// contractFields are the names that never are metadata, but for env.NAME.
var contractFields = [...]string{
	FieldType, FieldTaskID, FieldPool, FieldPodCount, FieldTargetReplicas,
	FieldPriority, FieldExpiresAt, FieldIdempotencyKey,
	FieldRepository, FieldCommitSHA, FieldTriggeredBy, FieldReason, FieldTimestamp,
	FieldImage, FieldCommand, FieldCPU, FieldMemory, FieldTraceparent,
	AliasJobID, AliasTargetDeployment, AliasCount,
	FieldDeadEventID, FieldDeadReason, FieldDeadMessage, FieldDeadTime, FieldDeadAttempts,
}

// reservedEnv are the variables that the scaler sets in every worker. With them go
// all that begin with OTTO_META_. Other names that begin with OTTO_ are free: they
// may be the agent's own.
var reservedEnv = map[string]bool{
	"OTTO_TASK_ID": true, "OTTO_POOL": true, "OTTO_EVENT_ID": true, "OTTO_WORKER_INDEX": true, "OTTO_WORKER_NAME": true,
	"OTTO_REPOSITORY": true, "OTTO_COMMIT_SHA": true, "OTTO_TRIGGERED_BY": true, "OTTO_REASON": true, "OTTO_TIMESTAMP": true,
	"OTTO_PRIORITY": true, "TRACEPARENT": true,
}

func inContract(name string) bool { return slices.Contains(contractFields[:], name) }

func isContractField(name string) bool {
	return inContract(name) || strings.HasPrefix(name, envPrefix)
}
