package worker

import "fmt"

// The reasons for which the scaler rejects an event, beside those of package
// scaleevent. They are the field reason of the event's result.
const (
	// ReasonUnknownPool says that the pool file has no such pool.
	ReasonUnknownPool = "unknown_pool"
	// ReasonOverrideNotAllowed says that the pool's policy forbids an override.
	ReasonOverrideNotAllowed = "override_not_allowed"
	// ReasonInvalidPod says that the API server finds the pod invalid.
	ReasonInvalidPod = "invalid_pod"
	// ReasonPolicyViolation says that the namespace's Pod Security Standard forbids the pod.
	ReasonPolicyViolation = "policy_violation"
	// ReasonNameConflict says that a pod that is not ours has a worker's name.
	ReasonNameConflict = "name_conflict"
)

// A rejection is an error that no retry will cure.
type rejection struct {
	reason  string
	message string
}

func (r *rejection) Error() string { return r.message }

func reject(reason, format string, args ...any) *rejection {
	return &rejection{reason: reason, message: fmt.Sprintf(format, args...)}
}
