package queue

// A WorkerEnd tells how a worker ended, for the producer of the event that made it.
type WorkerEnd struct {
	Worker
	// Status is "succeeded", "failed", or "removed" for one that was deleted before
	// it had ended by itself.
	Status string
	// Reason is Kubernetes' word for it, such as Error, OOMKilled or Evicted; empty
	// if there is none.
	Reason string
	// ExitCode of the agent's container, if it ran.
	ExitCode *int
}
