package logs

import (
	"context"
	"io"
	"net/http"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// A Cluster is the namespace that the workers of one installation live in.
type Cluster struct {
	pods     typedcorev1.PodInterface
	secrets  typedcorev1.SecretInterface
	instance string

	probe          sync.Mutex // guards the rest
	probed, splits bool       // see Splits
}

// streamBuffer is how much of a log the connection to the API server may hold
// when its reader does not take it. The default of 4 MiB, times thousands of
// logs, would be all the memory there is when the log server is slow.
const streamBuffer = 256 << 10

// NewCluster prepares the access to a cluster. It makes no call.
func NewCluster(config *rest.Config, namespace, instance string) (*Cluster, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // each log is opened once; the API server's own fairness is the limit
	config.Wrap(func(transport http.RoundTripper) http.RoundTripper {
		for inner := transport; inner != nil; {
			if plain, ok := inner.(*http.Transport); ok && plain != http.DefaultTransport {
				plain.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: streamBuffer}
			}
			wrapper, ok := inner.(utilnet.RoundTripperWrapper)
			if !ok {
				break
			}
			inner = wrapper.WrappedRoundTripper()
		}
		return transport
	})
	client, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Cluster{pods: client.Pods(namespace), secrets: client.Secrets(namespace), instance: instance}, nil
}

// Workers lists and watches the installation's worker pods. It calls report with
// the result of every call.
func (c *Cluster) Workers(report func(error)) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector = pod.Selector(c.instance)
			list, err := c.pods.List(ctx, options)
			report(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = pod.Selector(c.instance)
			events, err := c.pods.Watch(ctx, options)
			report(err)
			return events, err
		},
	}, c.pods)
}

// Open opens a log; it is an [OpenFunc].
func (c *Cluster) Open(ctx context.Context, read Read) (io.ReadCloser, error) {
	options := &corev1.PodLogOptions{
		Container:  read.Container,
		Follow:     read.Follow,
		Previous:   read.Previous,
		Timestamps: true,
	}
	if read.Stream != "" {
		options.Stream = &read.Stream
	}
	if !read.Since.IsZero() {
		since := metav1.NewTime(read.Since)
		options.SinceTime = &since
	}
	return c.pods.GetLogs(read.Pod, options).Stream(ctx)
}

// Exists reports whether a pod exists. Only a worker that is not in the view
// makes it necessary to ask: it may be gone, or newer than the view.
func (c *Cluster) Exists(ctx context.Context, name string, uid string) (bool, error) {
	found, err := c.pods.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	return string(found.UID) == uid, nil
}
