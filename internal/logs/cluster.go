package logs

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// A Cluster is the namespace that the workers of one installation live in.
//
// It speaks to the API server without client-go's typed clients: these link every kind
// that Kubernetes has, which is 10 MiB of this program's memory, and it reads two.
type Cluster struct {
	api        *rest.RESTClient
	parameters runtime.ParameterCodec
	namespace  string
	instance   string

	probe          sync.Mutex // guards the rest
	asked          time.Time
	probed, splits bool // see Splits
}

// streamBuffer is how much of a log the connection to the API server may hold
// when its reader does not take it. The default of 4 MiB, times thousands of
// logs, would be all the memory there is when the log server is slow.
const streamBuffer = 256 << 10

// NewCluster prepares the access to a cluster. It makes no call.
func NewCluster(config *rest.Config, namespace, instance string) (*Cluster, error) {
	api, kinds, err := newAPI(config)
	if err != nil {
		return nil, err
	}
	return &Cluster{api: api, parameters: runtime.NewParameterCodec(kinds), namespace: namespace, instance: instance}, nil
}

// newAPI prepares the access to the API server, for the kinds that the relay has to do with.
func newAPI(config *rest.Config) (*rest.RESTClient, *runtime.Scheme, error) {
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
	kinds := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(kinds), authenticationv1.AddToScheme(kinds)); err != nil {
		return nil, nil, err
	}
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(kinds).WithoutConversion()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.UserAgent = rest.DefaultKubernetesUserAgent()
	api, err := rest.RESTClientFor(config)
	return api, kinds, err
}

// pod begins a request about a pod.
func (c *Cluster) pod(name string) *rest.Request {
	return c.api.Get().Namespace(c.namespace).Resource("pods").Name(name)
}

// log begins a request for a pod's log.
func (c *Cluster) log(name string, options *corev1.PodLogOptions) *rest.Request {
	return c.pod(name).SubResource("log").VersionedParams(options, c.parameters)
}

// listWatch lists and watches a resource, as narrow narrows it. It calls report with
// the result of every call.
func (c *Cluster) listWatch(resource string, newList func() runtime.Object, narrow func(*metav1.ListOptions), report func(error)) cache.ListerWatcher {
	ask := func(options metav1.ListOptions) *rest.Request {
		narrow(&options)
		request := c.api.Get().Namespace(c.namespace).Resource(resource).VersionedParams(&options, c.parameters)
		if options.TimeoutSeconds != nil {
			request.Timeout(time.Duration(*options.TimeoutSeconds) * time.Second)
		}
		return request
	}
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list := newList()
			err := ask(options).Do(ctx).Into(list)
			report(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			events, err := ask(options).Watch(ctx)
			report(err)
			return events, err
		},
	}, c.api)
}

// Workers lists and watches the installation's worker pods. It calls report with
// the result of every call.
func (c *Cluster) Workers(report func(error)) cache.ListerWatcher {
	return c.listWatch("pods", func() runtime.Object { return &corev1.PodList{} }, func(options *metav1.ListOptions) {
		options.LabelSelector = pod.Selector(c.instance)
	}, report)
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
	var (
		body io.ReadCloser
		err  error
	)
	aside(func() { body, err = c.log(read.Pod, options).Stream(ctx) })
	return body, err
}

// Exists reports whether a pod exists. Only a worker that is not in the view
// makes it necessary to ask: it may be gone, or newer than the view.
func (c *Cluster) Exists(ctx context.Context, name string, uid string) (bool, error) {
	var found corev1.Pod
	if err := c.pod(name).Do(ctx).Into(&found); err != nil {
		return false, err
	}
	return string(found.UID) == uid, nil
}
