package main

import (
	"errors"
	"fmt"
	"net"
	"os"
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
	// PodName tells this scaler from the installation's others: one of them leads.
	// Without it, a restarted scaler waits for its own Lease to run out.
	PodName string `split_words:"true" desc:"what tells this scaler from others of the installation; without it, its host and process"`
	// PodUID makes the Kubernetes Events about the pool file this pod's.
	PodUID string `split_words:"true" desc:"the UID of this pod; without it, there are no Kubernetes Events about the pool file"`
	// LeaseDuration is how long a leader that is gone keeps another from leading. A
	// leader that cannot reach the API server for two thirds of it stops.
	LeaseDuration time.Duration `split_words:"true" default:"15s" desc:"how long a leader that is gone keeps another from leading"`
	// QueueAddr is where the consumer serves the queue.
	QueueAddr string `split_words:"true" default:"127.0.0.1:7070" desc:"address of the queue, which the consumer serves"`
	// PoolsFile has the worker templates. It is read again when it changes.
	PoolsFile string `split_words:"true" default:"/etc/ottoscaler/pools.yaml" desc:"file with the worker pools; read again when it changes"`
	// OttoAgentImage is the image of a pool's worker container that names none.
	OttoAgentImage string `split_words:"true" desc:"image of a pool's worker container that names none"`
	// EventConcurrency is how many events are carried out at once. Each waits, after
	// its writes, until the watch shows them, so it is more than MaxWrites.
	EventConcurrency int `split_words:"true" default:"256" desc:"how many events are carried out at once"`
	// MaxWrites is how many calls that change something are under way at once. The
	// API server's priority and fairness gives one client some hundred places, and
	// answers 429 beyond them, which is heeded.
	MaxWrites int `split_words:"true" default:"128" desc:"how many writes to the API server may be under way at once"`
	// KubeQPS and KubeBurst limit the calls to the API server, beside what it limits
	// by itself. They are for one without API Priority and Fairness.
	KubeQPS float32 `split_words:"true" default:"0" desc:"how many calls a second the API server is asked at most; 0 leaves it to the API server"`
	// KubeBurst is how many calls may come at once; it only matters with KubeQPS.
	KubeBurst int `split_words:"true" default:"100" desc:"how many of them may come at once"`
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

// identity tells this scaler from others of the installation.
func (c Config) identity() string {
	if c.PodName != "" {
		return c.PodName
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
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
	if c.MaxWrites < 8 {
		add("MAX_WRITES: %d is less than 8", c.MaxWrites)
	}
	if c.KubeQPS < 0 {
		add("KUBE_QPS: %g is negative", c.KubeQPS)
	}
	if c.KubeQPS > 0 && c.KubeBurst < 1 {
		add("KUBE_BURST: %d is less than 1", c.KubeBurst)
	}
	for name, d := range map[string]time.Duration{"LOG_DRAIN_TIMEOUT": c.LogDrainTimeout, "DRAIN_TIMEOUT": c.DrainTimeout} {
		if d < 0 {
			add("%s: %s is negative", name, d)
		}
	}
	if c.LeaseDuration < time.Second {
		add("LEASE_DURATION: %s is less than a second", c.LeaseDuration)
	}
	if _, err := labels.Parse(c.ReleaseAfter); err != nil {
		add("RELEASE_AFTER: %q is no label selector: %s", c.ReleaseAfter, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	if c.ReleaseTimeout <= 0 {
		add("RELEASE_TIMEOUT: %s is not more than zero", c.ReleaseTimeout)
	}
	return errors.Join(problems...)
}
