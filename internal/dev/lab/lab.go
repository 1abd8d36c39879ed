// Package lab sets up what an installation stands on, for tests, benchmarks and
// the demo: a real Redis, a real Kubernetes cluster and the images in it.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
)

// Options say what is needed.
type Options struct {
	// Name tells labs on one machine apart. A cluster of that name that is already
	// up is used.
	Name string
	// Kind says where the cluster comes from; see [cluster.KindFromEnv].
	Kind cluster.Kind
	// Nodes and FakeNodes are as in [cluster.Options].
	Nodes, FakeNodes int
	// LogMaxSize is as in [cluster.Options].
	LogMaxSize string
	// Dir, if set, is where Redis keeps its state, to outlive this process.
	Dir string
	// Output receives the progress of whatever takes long.
	Output io.Writer
}

// Lab is a Redis and a cluster.
type Lab struct {
	// Root is the top of the source tree.
	Root string
	// Cluster is where workers run.
	Cluster *cluster.Cluster
	// Redis is where events come from. It listens on loopback and, where the
	// cluster has nodes, at the address at which their pods reach this machine.
	Redis *redis.Server
	// Core is a client for the cluster's core API, without a rate limit.
	Core *corev1client.CoreV1Client

	opts        Options
	imageDigest string // of the product's image, once it is loaded
}

// Up sets up what is not there yet.
func Up(ctx context.Context, opts Options) (*Lab, error) {
	root, err := source.Root(ctx)
	if err != nil {
		return nil, err
	}
	l := &Lab{Root: root, opts: opts}
	if err := l.clusterUp(ctx); err != nil {
		return nil, err
	}
	if l.Redis, err = redis.Start(ctx, redis.Options{Dir: opts.Dir, Detach: opts.Dir != "", Bind: l.bind(), Output: opts.Output}); err != nil {
		err = fmt.Errorf("bringing up Redis: %w", err)
		if opts.Dir == "" { // else what is up stays up, for the next try
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	return l, nil
}

// Close removes what is there: Redis and the cluster. KEEP=1 in the environment
// leaves the cluster up, for a quick next run.
func (l *Lab) Close() error {
	var err error
	if l.Redis != nil {
		err = l.Redis.Stop()
	}
	if os.Getenv("KEEP") != "" {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return errors.Join(err, l.Cluster.Down(ctx))
}

// Listen opens a port that pods of the cluster reach, and no one beyond this machine.
func (l *Lab) Listen(ctx context.Context) (net.Listener, error) {
	host := "127.0.0.1"
	if l.Cluster.HostAddr != "" {
		host = l.Cluster.HostAddr
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("listening for pods of the cluster: %w", err)
	}
	return listener, nil
}

func (l *Lab) bind() []string {
	hosts := []string{"127.0.0.1"}
	if l.Cluster.HostAddr != "" && l.Cluster.HostAddr != "127.0.0.1" {
		hosts = append(hosts, l.Cluster.HostAddr)
	}
	return hosts
}

func (l *Lab) clusterUp(ctx context.Context) (err error) {
	l.Cluster, err = cluster.Up(ctx, cluster.Options{
		Kind: l.opts.Kind, Name: l.opts.Name, Nodes: l.opts.Nodes, FakeNodes: l.opts.FakeNodes,
		LogMaxSize: l.opts.LogMaxSize, Root: l.Root, Output: l.opts.Output,
	})
	if err != nil {
		return fmt.Errorf("bringing up a cluster: %w", err)
	}
	l.Core, err = client(l.Cluster.Kubeconfig)
	return err
}

// Namespace makes a namespace whose name begins with prefix, and enforces the
// restricted Pod Security Standard in it.
func (l *Lab) Namespace(ctx context.Context, prefix string) (string, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: prefix + "-",
		Labels:       map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}
	ns, err := l.Core.Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("making a namespace: %w", err)
	}
	return ns.Name, nil
}

// Build compiles the product's binaries and returns the folder that they are in.
func (l *Lab) Build(ctx context.Context) (string, error) {
	bin := filepath.Join(l.Root, "bin")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+"/", "./cmd/consumer", "./cmd/scaler", "./cmd/log-relay")
	cmd.Dir = l.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the binaries: %w\n%s", err, out)
	}
	return bin, nil
}

func client(kubeconfig string) (*corev1client.CoreV1Client, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", kubeconfig, err)
	}
	cfg.QPS = -1                                  // the API server's own fairness limits us, as it does the scaler
	cfg.ContentType = runtime.ContentTypeProtobuf // as the scaler speaks
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c, err := corev1client.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to the cluster: %w", err)
	}
	return c, nil
}

// RemoveNamespace deletes a namespace and waits until it is gone.
func (l *Lab) RemoveNamespace(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	// The watch begins before the delete, so that it cannot miss its end.
	w, err := l.Core.Namespaces().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return fmt.Errorf("watching namespace %s: %w", name, err)
	}
	defer w.Stop()
	if err := l.Core.Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("deleting namespace %s: %w", name, err)
	}
	for e := range w.ResultChan() {
		if e.Type == "DELETED" {
			return nil
		}
	}
	return fmt.Errorf("namespace %s is still there: %w", name, ctx.Err())
}
