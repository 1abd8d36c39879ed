package scaleevent

import (
	"strconv"
)

// The fields of an entry on the results stream. All others are details.
const (
	ResultEventID  = "event_id"
	ResultStatus   = "status"
	ResultReason   = "reason"
	ResultMessage  = "message"
	ResultType     = "type"
	ResultTaskID   = "task_id"
	ResultPool     = "pool"
	ResultAttempts = "attempts"
	// ResultWorker, ResultExitCode and ResultAttempt are details of a worker's end.
	ResultWorker   = "worker"
	ResultExitCode = "exit_code"
	ResultAttempt  = "attempt"
)

// The values of [Result.Status].
const (
	// StatusAccepted says that the event was read and is in work.
	StatusAccepted = "accepted"
	// StatusSucceeded, StatusFailed and StatusRemoved say how a worker of the event
	// ended, after the event itself has.
	StatusSucceeded = "succeeded"
	StatusFailed    = "failed"
	StatusRemoved   = "removed"
	// StatusDone says that the event's effect is in the cluster.
	StatusDone = "done"
	// StatusRejected says that the event has no effect, now or later.
	StatusRejected = "rejected"
)

// A Result is what is known of an event: an entry of the results stream. Every event
// has a final one, sooner or later; after a crash it may be there twice, with one
// event ID.
type Result struct {
	// EventID is the ID of the event's entry.
	EventID string
	// Status is one of the constants above.
	Status string
	// Reason is a machine-readable word, empty when done.
	Reason string
	// Message is for humans.
	Message string
	// Type, TaskID and Pool are the event's, as far as they could be read.
	Type, TaskID, Pool string
	// Attempts is how often the scaler tried; 0 if the event never reached it.
	Attempts int
	// Details are facts, such as the names of the workers made.
	Details map[string]string
}

// Final reports whether the event has ended. Results that are not final tell how
// far it is.
func (r Result) Final() bool { return r.Status == StatusDone || r.Status == StatusRejected }

// Fields returns the result as the fields of a stream entry. A detail cannot take
// the place of a field of the result.
func (r Result) Fields() map[string]string {
	fields := make(map[string]string, 8+len(r.Details))
	for name, value := range r.Details {
		fields[name] = value
	}
	fields[ResultEventID] = r.EventID
	fields[ResultStatus] = r.Status
	fields[ResultReason] = r.Reason
	fields[ResultMessage] = r.Message
	fields[ResultType] = r.Type
	fields[ResultTaskID] = r.TaskID
	fields[ResultPool] = r.Pool
	fields[ResultAttempts] = strconv.Itoa(r.Attempts)
	return fields
}

// ParseResult reads the fields of an entry of the results stream. It takes what is
// there: an older reader must cope with a newer writer.
func ParseResult(fields map[string]string) Result {
	var r Result
	for name, value := range fields {
		switch name {
		case ResultEventID:
			r.EventID = value
		case ResultStatus:
			r.Status = value
		case ResultReason:
			r.Reason = value
		case ResultMessage:
			r.Message = value
		case ResultType:
			r.Type = value
		case ResultTaskID:
			r.TaskID = value
		case ResultPool:
			r.Pool = value
		case ResultAttempts:
			r.Attempts, _ = strconv.Atoi(value) // not a number: 0, unknown
		default:
			r.Details = put(r.Details, name, value)
		}
	}
	return r
}
