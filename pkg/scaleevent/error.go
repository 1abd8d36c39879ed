package scaleevent

import "strconv"

// The reasons for which an event is rejected: the field reason of its result, and
// dead_reason of its dead letter. The scaler has reasons of its own beside these.
const (
	// ReasonMissingField says that a required field is absent or empty.
	ReasonMissingField = "missing_field"
	// ReasonUnknownType says that type is neither scale_up nor scale_down.
	ReasonUnknownType = "unknown_type"
	// ReasonInvalidField says that a value or a field's name breaks its rule.
	ReasonInvalidField = "invalid_field"
	// ReasonFieldTooLarge says that a value is longer than its field may be.
	ReasonFieldTooLarge = "field_too_large"
	// ReasonEventTooLarge says that the whole entry is too large, or has too many fields.
	ReasonEventTooLarge = "event_too_large"
	// ReasonConflictingFields says that two fields contradict or exclude each other.
	ReasonConflictingFields = "conflicting_fields"
	// ReasonExpired says that the event was read after its expires_at.
	ReasonExpired = "expired"
)

// An Error says why an event is rejected. It is final: the same fields fail again.
type Error struct {
	// Reason is one of the Reason constants.
	Reason string
	// Field is the field at fault, or empty when it is the event as a whole.
	Field string
	// Message says what is wrong and what to do about it.
	Message string
}

// Error implements the error interface.
func (e *Error) Error() string { return e.Message }

// quote quotes s, of which it keeps no more than fits a line.
func quote(s string) string {
	const keep = 64
	if len(s) > keep {
		return strconv.Quote(s[:keep]) + "…"
	}
	return strconv.Quote(s)
}
