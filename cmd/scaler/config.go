package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
)

// Config is read from the environment.
type Config struct {
	daemon.Settings

	// Namespace of the worker pods.
	Namespace string `split_words:"true" required:"true" desc:"the namespace of the worker pods"`
	// InstanceID tells this installation's workers from those of another in the
	// same namespace. Workers of a former ID are not touched any more.
	InstanceID string `split_words:"true" default:"ottoscaler" desc:"whose workers are whose, if installations share a namespace"`
	// InstanceUser claims the namespace for a developer; see worker.ClaimNamespace.
	InstanceUser string `split_words:"true" desc:"developer whose installation this is, if it is one's own; the namespace is then theirs alone"`
	// QueueAddr is where the consumer serves the queue.
	QueueAddr string `split_words:"true" default:"127.0.0.1:7070" desc:"address of the queue, which the consumer serves"`
	// PoolsFile has the worker templates. It is read again when it changes.
	PoolsFile string `split_words:"true" default:"/etc/ottoscaler/pools.yaml" desc:"file with the worker pools; read again when it changes"`
	// OttoAgentImage is the image of a pool's worker container that names none.
	OttoAgentImage string `split_words:"true" desc:"image of a pool's worker container that names none"`
	// EventConcurrency is how many events are carried out at once.
	EventConcurrency int `split_words:"true" default:"64" desc:"how many events are carried out at once"`
	// LogDrainTimeout is how long a worker that has ended is kept for its logs.
	// What the log server has not stored by then is lost, and counted.
	LogDrainTimeout time.Duration `split_words:"true" default:"10m" desc:"how long a worker that has ended is kept until the log server has its last line"`
	// Kubeconfig is for running outside of a cluster.
	Kubeconfig string `split_words:"true" desc:"kubeconfig file; without it, the pod's service account"`
	// HealthAddr serves health and metrics.
	HealthAddr string `split_words:"true" default:":8082" desc:"address of /healthz, /readyz, /metrics and grpc.health.v1"`
	// DrainTimeout is how long events that are being carried out may take once
	// the process is told to stop. It must be shorter than the pod's grace.
	DrainTimeout time.Duration `split_words:"true" default:"20s" desc:"how long events may still take once told to stop"`
	// ReleaseAfter makes release-workers wait until no pod that it selects runs:
	// what the main pod's last events made is to be released as well.
	ReleaseAfter string `split_words:"true" desc:"label selector of the pods that 'scaler release-workers' waits for to be gone; the post-delete hook sets it"`
	// ReleaseTimeout bounds release-workers.
	ReleaseTimeout time.Duration `split_words:"true" default:"60s" desc:"how long 'scaler release-workers' may take; three quarters of it are for the workers' last lines"`
}

// Validate implements [daemon.Config].
func (c Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if c.Namespace == "" {
		add("NAMESPACE is required: the namespace of the worker pods")
	} else if bad := validation.IsDNS1123Label(c.Namespace); len(bad) > 0 {
		add("NAMESPACE: %q is no name of a namespace: %s", c.Namespace, bad[0])
	}
	if bad := validation.IsValidLabelValue(c.InstanceID); c.InstanceID == "" || len(bad) > 0 {
		add("INSTANCE_ID: %q is no value for a label: use letters, digits and dashes", c.InstanceID)
	}
	if bad := validation.IsValidLabelValue(c.InstanceUser); len(bad) > 0 {
		add("INSTANCE_USER: %q is no value for a label: use letters, digits and dashes", c.InstanceUser)
	}
	if _, _, err := net.SplitHostPort(c.QueueAddr); err != nil {
		add("QUEUE_ADDR: %q is not host:port", c.QueueAddr)
	}
	if _, _, err := net.SplitHostPort(c.HealthAddr); err != nil {
		add("HEALTH_ADDR: %q is not host:port", c.HealthAddr)
	}
	if c.PoolsFile == "" {
		add("POOLS_FILE is required: the file with the worker pools")
	}
	if c.EventConcurrency < 1 {
		add("EVENT_CONCURRENCY: %d is less than 1", c.EventConcurrency)
	}
	for name, d := range map[string]time.Duration{"LOG_DRAIN_TIMEOUT": c.LogDrainTimeout, "DRAIN_TIMEOUT": c.DrainTimeout} {
		if d < 0 {
			add("%s: %s is negative", name, d)
		}
	}
	if _, err := labels.Parse(c.ReleaseAfter); err != nil {
		add("RELEASE_AFTER: %q is no label selector: %s", c.ReleaseAfter, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	if c.ReleaseTimeout <= 0 {
		add("RELEASE_TIMEOUT: %s is not more than zero", c.ReleaseTimeout)
	}
	return errors.Join(problems...)
}
