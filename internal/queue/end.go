package queue

// A WorkerEnd tells how a worker ended, for the producer of the event that made it.
type WorkerEnd struct {
	Worker
	// ID is the same whenever the same is told again, which is then not stored a
	// second time. An end without one always is.
	ID string
	// Status is "succeeded", "failed", or "removed" for one that was deleted before
	// it had ended by itself.
	Status string
	// Reason is a word for it, such as exit_code, oom_killed or evicted; empty for a
	// worker that has succeeded.
	Reason string
	// Message says it for people.
	Message string
	// Attempt is which attempt at its work the worker was, from 1.
	Attempt int
	// ExitCode of the agent's container, if it ran.
	ExitCode *int
}
