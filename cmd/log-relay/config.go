package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/logs"
)

// Config is what the environment says.
type Config struct {
	daemon.Settings

	// Namespace is where the workers live.
	Namespace string `required:"true" desc:"namespace of the workers"`
	// InstanceID tells the workers of this installation from others in the namespace.
	InstanceID string `split_words:"true" default:"ottoscaler" desc:"installation that owns the workers"`
	// QueueAddr is where the consumer serves the queue.
	QueueAddr string `split_words:"true" default:"127.0.0.1:7070" desc:"address of the queue"`
	// LogServerAddr is the log server, in any form that gRPC dials.
	LogServerAddr string `split_words:"true" required:"true" desc:"address of the log server, such as logs.example:50051"`
	// MaxWorkers is how many workers are followed at once. Each takes some 75 KiB,
	// lines aside. The lines that wait for the log server take up to 64 MiB for all
	// workers together, and past that a batch of 4 KiB, or one longer line, for each.
	MaxWorkers int `split_words:"true" default:"5000" desc:"workers that are followed at once, some 75 KiB of memory each"`
	// BatchLines, BatchBytes and BatchLinger bound a batch: it is sent when it
	// has so many lines or bytes, or is so old.
	BatchLines  int           `split_words:"true" default:"500" desc:"most lines of a batch"`
	BatchBytes  int           `split_words:"true" default:"262144" desc:"most bytes of a batch, at most 262144"`
	BatchLinger time.Duration `split_words:"true" default:"20ms" desc:"how long a batch waits for more lines"`
	// Kubeconfig is for a relay outside of the cluster.
	Kubeconfig string `desc:"kubeconfig file; empty inside of a cluster"`
	// HealthAddr serves /healthz, /readyz, /metrics and grpc.health.v1.
	HealthAddr string `split_words:"true" default:":8083" desc:"address for health and metrics"`
	// DrainTimeout is how long a relay that is told to stop waits for
	// acknowledgements. It must be shorter than the pod's grace period.
	DrainTimeout time.Duration `split_words:"true" default:"20s" desc:"how long to wait for acknowledgements when stopping"`
}

// Validate returns every problem.
func (c Config) Validate() error {
	var problems []error
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.Namespace == "" {
		problem("NAMESPACE is empty: it names the namespace of the workers")
	}
	if c.InstanceID == "" {
		problem("INSTANCE_ID is empty")
	}
	if c.LogServerAddr == "" {
		problem("LOG_SERVER_ADDR is empty: it is the address of the log server, such as logs.example:50051")
	}
	if _, _, err := net.SplitHostPort(c.QueueAddr); err != nil {
		problem("QUEUE_ADDR is %q: want host:port", c.QueueAddr)
	}
	if _, _, err := net.SplitHostPort(c.HealthAddr); err != nil {
		problem("HEALTH_ADDR is %q: want host:port", c.HealthAddr)
	}
	if c.MaxWorkers < 1 {
		problem("MAX_WORKERS is %d: want 1 or more", c.MaxWorkers)
	}
	if c.BatchLines < 1 {
		problem("BATCH_LINES is %d: want 1 or more", c.BatchLines)
	}
	if c.BatchBytes < 1024 || c.BatchBytes > logs.MaxBatchBytes {
		problem("BATCH_BYTES is %d: want 1024 to %d", c.BatchBytes, logs.MaxBatchBytes)
	}
	if c.BatchLinger <= 0 {
		problem("BATCH_LINGER is %v: want more than 0", c.BatchLinger)
	}
	if c.DrainTimeout <= 0 {
		problem("DRAIN_TIMEOUT is %v: want more than 0", c.DrainTimeout)
	}
	return errors.Join(problems...)
}
