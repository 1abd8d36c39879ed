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
	// lines aside. The lines that wait for the log server take up to 64 MiB of memory for
	// all workers together, and past that two batches of 4 KiB, or longer lines, for each.
	MaxWorkers int `split_words:"true" default:"5000" desc:"workers that are followed at once, some 75 KiB of memory each"`
	// BatchLines, BatchBytes and BatchLinger bound a batch: it is sent when it
	// has so many lines or bytes, or is so old.
	BatchLines  int           `split_words:"true" default:"500" desc:"most lines of a batch"`
	BatchBytes  int           `split_words:"true" default:"262144" desc:"most bytes of a batch, at most 262144"`
	BatchLinger time.Duration `split_words:"true" default:"20ms" desc:"how long a batch waits for more lines"`
	// SpoolDir is where lines are kept that the log server does not take at once: a
	// folder that nobody else uses, and that outlives the process. Without one, they stay
	// at the nodes, which remove them when they rotate a log.
	SpoolDir string `split_words:"true" desc:"folder for lines that wait for the log server; empty: they wait at the nodes, until these rotate the logs"`
	// SpoolWorkerBytes and SpoolBytes bound what waits there of one worker and of
	// all. At seven eighths the reading pauses; at the bound the oldest lines go.
	SpoolWorkerBytes int64 `split_words:"true" default:"67108864" desc:"most bytes of one worker in the spool; past it, the oldest lines are dropped and counted"`
	SpoolBytes       int64 `split_words:"true" default:"1073741824" desc:"most bytes in the spool"`
	// LogDrainTimeout is how long a worker that has ended waits for its last
	// acknowledgement. It must be shorter than that of the scaler, which then lets go of
	// the worker whether we are done or not, and does not know what was lost.
	LogDrainTimeout time.Duration `split_words:"true" default:"9m30s" desc:"how long lines of a worker that has ended wait for the log server; a little shorter than the scaler's"`
	// StreamAge is about how old a stream becomes. Load balancers and proxies drop old
	// ones anyway, and not always with a word.
	StreamAge time.Duration `split_words:"true" default:"30m" desc:"how old a stream to the log server becomes before another one takes its place"`
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
	if c.SpoolWorkerBytes < 1<<20 {
		problem("SPOOL_WORKER_BYTES is %d: want 1048576 (1 MiB) or more", c.SpoolWorkerBytes)
	}
	if c.SpoolBytes < c.SpoolWorkerBytes {
		problem("SPOOL_BYTES is %d: want SPOOL_WORKER_BYTES (%d) or more", c.SpoolBytes, c.SpoolWorkerBytes)
	}
	if c.LogDrainTimeout <= 0 {
		problem("LOG_DRAIN_TIMEOUT is %v: want more than 0", c.LogDrainTimeout)
	}
	if c.StreamAge < time.Second {
		problem("STREAM_AGE is %v: want 1s or more", c.StreamAge)
	}
	if c.DrainTimeout <= 0 {
		problem("DRAIN_TIMEOUT is %v: want more than 0", c.DrainTimeout)
	}
	return errors.Join(problems...)
}
