package queue

import "time"

// Status is how an item ended.
type Status int

const (
	// Done means that the item's effect is in the world.
	Done Status = iota + 1
	// Rejected means that the item can never succeed.
	Rejected
)

// String returns "done" or "rejected".
func (s Status) String() string {
	switch s {
	case Done:
		return "done"
	case Rejected:
		return "rejected"
	default:
		return "unknown"
	}
}

// Outcome is the end of an item's way through the queue. An item whose
// subscriber asks for a retry stays in the queue, because later items of its
// ordering key must not overtake it, and has no outcome yet.
type Outcome struct {
	// ItemID is the item's ID.
	ItemID string
	// Status is how it ended.
	Status Status
	// Reason is a machine-readable word, such as "expired"; empty when done.
	Reason string
	// Message is for humans.
	Message string
	// Attempts is how often the item was leased.
	Attempts int
	// Details are facts for the record, such as the names of the workers made.
	Details map[string]string
	// Gives is as in [Verdict]. The producer stores it with the outcome, or a crash would
	// have those that were given something carry out the whole.
	Gives map[string]int
}

// A Verdict is a subscriber's decision on a leased item. Make one with
// [Finish], [RetryAfter] or [Reject].
type Verdict struct {
	// Status is the item's end, or zero when it is to be leased again.
	Status Status
	// After is how long an item rests before it is leased again.
	After time.Duration
	// Reason, Message and Details are as in [Outcome].
	Reason, Message string
	Details         map[string]string
	// Gives is how much of what the item has not done it leaves to later ones of its
	// key, by their IDs: see [Item.Given]. Unlike after any other verdict, none of
	// them is leased before this one is settled. Redelivered, the item would do what it
	// has given away, so they must not have acted by then.
	Gives map[string]int
}

// The details of a followed worker's outcome that tell of its loss. They are absent
// when every line that was read is at the log server.
const (
	// DetailLostLines and DetailLostBytes are how many lines were read and never
	// acknowledged, and how long they are.
	DetailLostLines = "lost_lines"
	DetailLostBytes = "lost_bytes"
	// DetailUnread is "true" when a log was not read to its end either, so that nobody
	// knows how much more is lost.
	DetailUnread = "unread"
	// DetailAbandoned is "true" when the drain deadline passed before the log server
	// had everything.
	DetailAbandoned = "abandoned"
)

// Valid reports whether v is a verdict at all.
func (v Verdict) Valid() bool { return v.Status == 0 || v.Status == Done || v.Status == Rejected }

// Finish says that the item's effect is in the world.
func Finish(message string, details map[string]string) Verdict {
	return Verdict{Status: Done, Message: message, Details: details}
}

// RetryAfter keeps the item, and with it its ordering key, in the queue and has
// it leased again once d has passed.
func RetryAfter(d time.Duration, message string) Verdict {
	return Verdict{After: d, Message: message}
}

// Reject says that the item can never succeed, for a machine-readable reason and
// a message that says what is wrong and what to do.
func Reject(reason, message string, details map[string]string) Verdict {
	return Verdict{Status: Rejected, Reason: reason, Message: message, Details: details}
}
