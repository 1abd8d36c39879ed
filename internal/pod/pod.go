// Package pod names what Ottoscaler writes on worker pods. Kubernetes is its only
// ledger: everything it knows about a worker is in these labels, annotations and
// the finalizer, so that any container may die and read it all again.
package pod

// Labels of a worker pod. A value that is no valid label value is replaced by a
// hash of it; the annotation of the same fact has it in full.
const (
	// LabelManagedBy is always [ManagedBy].
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// LabelComponent is always [ComponentWorker].
	LabelComponent = "app.kubernetes.io/component"
	// LabelInstance is the ID of the installation that owns the worker.
	LabelInstance = "app.kubernetes.io/instance"
	// LabelPool is the worker template that the worker was made from.
	LabelPool = "ottoscaler.dev/pool"
	// LabelTask is the task that the worker belongs to.
	LabelTask = "ottoscaler.dev/task"
	// LabelUser, on the main pod, is the developer whose installation it is.
	LabelUser = "ottoscaler.dev/user"

	// ManagedBy is the value of [LabelManagedBy].
	ManagedBy = "ottoscaler"
	// ComponentWorker is the value of [LabelComponent].
	ComponentWorker = "worker"
)

// Annotations of a worker pod.
const (
	// AnnotationTaskID is the task that the worker belongs to.
	AnnotationTaskID = "ottoscaler.dev/task-id"
	// AnnotationEventID is the ID of the scale event that created the worker.
	AnnotationEventID = "ottoscaler.dev/event-id"
	// AnnotationEventIndex is the worker's number within its event, from 0.
	AnnotationEventIndex = "ottoscaler.dev/event-index"
	// AnnotationIdempotencyKey is the event's idempotency key, if it had one.
	AnnotationIdempotencyKey = "ottoscaler.dev/idempotency-key"
	// AnnotationScaledDownBy is the ID of the scale-down that chose the worker as
	// a victim. It is written before the pod is deleted.
	AnnotationScaledDownBy = "ottoscaler.dev/scaled-down-by"
	// AnnotationScaledDownKey is the idempotency key of that scale-down, if it had one.
	AnnotationScaledDownKey = "ottoscaler.dev/scaled-down-key"
	// AnnotationWaiting says, on a worker that has [GateCapacity], which limit it
	// waits for, as it was when the worker was created.
	AnnotationWaiting = "ottoscaler.dev/waiting"
	// AnnotationAdmitted is when the worker got its place, if it had to wait for one.
	AnnotationAdmitted = "ottoscaler.dev/admitted"
	// AnnotationAttempt is which attempt at its work the pod is; absent on the first.
	AnnotationAttempt = "ottoscaler.dev/attempt"
	// AnnotationTarget is the target_replicas that the worker was made for, or towards
	// which it counted. Such a worker is replaced when it fails.
	AnnotationTarget = "ottoscaler.dev/target"
	// AnnotationNode is the node that the worker's template asked for by name.
	AnnotationNode = "ottoscaler.dev/node"
	// AnnotationEnd is the class of the worker's end, such as oom_killed, and
	// AnnotationEndReason what a person should know about it.
	AnnotationEnd = "ottoscaler.dev/end"
	// AnnotationEndReason is for people.
	AnnotationEndReason = "ottoscaler.dev/end-reason"
	// AnnotationRetryAt is when the worker is to be tried again, and
	// AnnotationRetriedBy the pod that does.
	AnnotationRetryAt = "ottoscaler.dev/retry-at"
	// AnnotationRetriedBy is the name of the next attempt.
	AnnotationRetriedBy = "ottoscaler.dev/retried-by"
	// AnnotationTraceparent is the W3C trace context of the scale event.
	AnnotationTraceparent = "ottoscaler.dev/traceparent"
	// AnnotationMaskSecrets lists the Secrets whose values are to be hidden in the
	// worker's logs, as [FormatSecrets] writes them; absent if there are none.
	AnnotationMaskSecrets = "ottoscaler.dev/mask-secrets"
	// AnnotationFieldPrefix, followed by a field's name, is what the event said of
	// its origin and rank (repository, commit_sha, triggered_by, reason, timestamp, priority).
	AnnotationFieldPrefix = "ottoscaler.dev/"
	// AnnotationMetaPrefix, followed by a field's name, is an unknown field of the event.
	AnnotationMetaPrefix = "meta.ottoscaler.dev/"
)

// AnnotationInstance is the ID of an installation, on the Lease by which it claimed
// its developer's namespace.
const AnnotationInstance = "ottoscaler.dev/instance"

// FinalizerWorker holds a worker pod until the log server has acknowledged its last
// line and the events that touched it are settled, or the drain deadline passes.
const FinalizerWorker = "ottoscaler.dev/worker"

// GateCapacity is the scheduling gate of a worker for which there is no place yet.
// No node is looked for as long as a pod has a gate.
const GateCapacity = "ottoscaler.dev/capacity"

// Selector returns the label selector of all workers of one installation.
func Selector(instance string) string {
	return LabelManagedBy + "=" + ManagedBy + "," + LabelComponent + "=" + ComponentWorker + "," + LabelInstance + "=" + instance
}
