package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/ottoscaler/ottoscaler/internal/logs/nodelog"
)

// A Kept is what a node has of a log, in the form of [OpenFunc].
type Kept interface {
	io.ReadCloser
	// Whole reports whether its first line is the first that was printed.
	Whole() bool
}

// A Keeper has what nodes have kept of logs. It is safe for concurrent use. Once it has
// said that a node does not let us read, it says so again for a while without asking.
type Keeper interface {
	// Open opens all that the node has of a log, the files included that it has rotated
	// away. It does not follow.
	Open(ctx context.Context, read Read) (Kept, error)
	// Rotated names the rotated files that the node has of a log. A new one means that the
	// log was rotated.
	Rotated(ctx context.Context, read Read) ([]string, error)
}

// NodeOptions say how the nodes are asked for rotated logs.
type NodeOptions struct {
	// Account is the service account, in the workers' namespace, whose token is shown to
	// the nodes. Whoever runs a node can use it: it should be allowed to do nothing else.
	Account string
	// Port is the kubelets'.
	Port int
	// CAFile has who signs the kubelets' certificates; empty for the cluster's own authority.
	CAFile string
	// Insecure takes any certificate: who is between here and a node can read the token
	// and invent lines.
	Insecure bool
	// Log says when a node refuses, and when it does not any more.
	Log *slog.Logger
}

// Nodes are the nodes of a cluster, as far as they keep logs. It is a [Keeper].
type Nodes struct {
	client    nodelog.Client
	api       *rest.RESTClient
	namespace string
	account   string
	log       *slog.Logger
	places    chan struct{} // one for each log that is being read

	asking singleflight.Group // of a token

	mu      sync.Mutex // guards the rest
	token   string
	made    time.Time
	expires time.Time
	refused map[string]refusal // by the node's address
}

// A refusal is why a node was last of no use.
type refusal struct {
	err    error
	until  time.Time // before which it is not asked again, if it has refused
	wanted time.Time // when a log on it was last asked for
}

const (
	// mostKept is how many logs are read at nodes at once. Each takes some 100 KiB for
	// every file.
	mostKept = 32
	// keptBuffer is how much of a file the connection to a node may hold.
	keptBuffer = 64 << 10
	// rotatedTimeout bounds a look at the names of files: lines wait for it.
	rotatedTimeout = 3 * time.Second
	// refusedFor is how long a node that refuses is left alone.
	refusedFor = 5 * time.Minute
	// refusalLife is for how long after a log on it was last asked for a refusal is known:
	// then the node is gone, or has no worker any more.
	refusalLife = time.Hour
	// tokenLife is how long a token for the nodes is asked for, and tokenRest how much of
	// that must be left to use it.
	tokenLife, tokenRest = time.Hour, 10 * time.Minute
	// tokenTrust is how long a new token is taken for good, whatever a node says of it.
	tokenTrust = time.Minute
	// tokenTimeout bounds the asking for one.
	tokenTimeout = 30 * time.Second
)

// NewNodes prepares the access to the nodes of a cluster. It makes no call.
func NewNodes(config *rest.Config, namespace string, options NodeOptions) (*Nodes, error) {
	trust := rest.TLSClientConfig{CAFile: config.CAFile, CAData: config.CAData}
	if options.CAFile != "" {
		trust = rest.TLSClientConfig{CAFile: options.CAFile}
	}
	if options.Insecure {
		trust = rest.TLSClientConfig{Insecure: true}
	}
	settings, err := rest.TLSConfigFor(&rest.Config{TLSClientConfig: trust})
	if err != nil {
		return nil, fmt.Errorf("reading who signs the kubelets' certificates: %w", err)
	}
	api, _, err := newAPI(config)
	if err != nil {
		return nil, err
	}
	n := &Nodes{
		api: api, namespace: namespace, account: options.Account, log: options.Log,
		places: make(chan struct{}, mostKept), refused: map[string]refusal{},
	}
	// No proxy: a node's address has a meaning only within the cluster's network.
	transport := &http.Transport{
		TLSClientConfig:       settings,
		ForceAttemptHTTP2:     true,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       time.Minute,
		HTTP2:                 &http.HTTP2Config{MaxReceiveBufferPerStream: keptBuffer, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
	n.client = nodelog.Client{Port: options.Port, HTTP: &http.Client{
		Transport: bearer{n, transport},
		// A kubelet that sends us elsewhere would get the token there.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	return n, nil
}

// Rotated implements [Keeper].
func (n *Nodes) Rotated(ctx context.Context, read Read) ([]string, error) {
	if err := n.refusal(read.Node); err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, rotatedTimeout)
	defer cancel()
	rotated, err := n.client.Rotated(asking, logOf(read))
	if ctx.Err() == nil {
		n.report(ctx, read.Node, err)
	}
	return rotated, err
}

// logOf translates what is to be read.
func logOf(read Read) nodelog.Log {
	return nodelog.Log{
		Host: read.Node, Namespace: read.Namespace, Pod: read.Pod, UID: string(read.PodUID),
		Container: read.Container, RestartCount: read.RestartCount, Ended: !read.Follow, Since: read.Since,
	}
}

// Open implements [Keeper].
func (n *Nodes) Open(ctx context.Context, read Read) (Kept, error) {
	if err := n.refusal(read.Node); err != nil {
		return nil, err
	}
	select {
	case n.places <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := n.client.Open(ctx, logOf(read))
	if ctx.Err() == nil {
		n.report(ctx, read.Node, err)
	}
	if err != nil {
		<-n.places
		return nil, err
	}
	return &keptReader{Reader: r, leave: sync.OnceFunc(func() { <-n.places })}, nil
}

// A keptReader has a place until it is closed.
type keptReader struct {
	*nodelog.Reader
	leave func()
}

func (r *keptReader) Close() error {
	defer r.leave()
	return r.Reader.Close()
}

// refusal returns what a node has said not long ago, or nil.
func (n *Nodes) refusal(node string) error {
	if node == "" {
		return nodelog.ErrNone // the cluster does not say where it is
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r, known := n.refused[node]
	if !known {
		return nil
	}
	now := time.Now()
	r.wanted = now
	n.refused[node] = r
	if now.Before(r.until) {
		return r.err
	}
	return nil
}

// report takes note of what a node has answered, and logs what is new about it.
func (n *Nodes) report(ctx context.Context, node string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was, known := n.refused[node]
	now := time.Now()
	switch {
	case errors.Is(err, nodelog.ErrRefused):
		n.refuse(node, refusal{err: err, until: now.Add(refusedFor), wanted: now})
		if !known || reasonOf(was.err) != reasonOf(err) {
			n.log.WarnContext(ctx, "a node does not show its rotated logs: what it rotates away before it is read becomes a gap", "node", node, "err", err)
		}
	case err != nil && !errors.Is(err, nodelog.ErrNone) && !known:
		n.refuse(node, refusal{err: err, wanted: now})
		n.log.WarnContext(ctx, "a node cannot be asked for its rotated logs, trying again", "node", node, "err", err)
	case (err == nil || errors.Is(err, nodelog.ErrNone)) && known:
		delete(n.refused, node)
		n.log.InfoContext(ctx, "a node shows its rotated logs now", "node", node)
	}
}

// refuse takes note of a refusal, and forgets those of nodes that nobody wants anything of
// any more: a cluster that grows and shrinks has another address for every node it makes.
// The lock is held.
func (n *Nodes) refuse(node string, r refusal) {
	maps.DeleteFunc(n.refused, func(_ string, old refusal) bool { return r.wanted.Sub(old.wanted) > refusalLife })
	n.refused[node] = r
}

// A bearer shows the token of the account.
type bearer struct {
	nodes *Nodes
	inner http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (b bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	token, err := b.nodes.credential(request.Context())
	if err != nil {
		return nil, err
	}
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := b.inner.RoundTrip(request)
	if err == nil && response.StatusCode == http.StatusUnauthorized {
		b.nodes.forget(token)
	}
	return response, err
}

// forget drops a token that a node does not know: the account may have been made anew. One
// that has just been made is kept, because then it is the node that is wrong.
func (n *Nodes) forget(token string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.token == token && time.Since(n.made) > tokenTrust {
		n.token = ""
	}
}

// credential returns a token of the account. However many want one, one is asked for.
func (n *Nodes) credential(ctx context.Context) (string, error) {
	if token := n.held(); token != "" {
		return token, nil
	}
	answer := n.asking.DoChan(n.account, func() (any, error) {
		if token := n.held(); token != "" {
			return token, nil // it came a moment ago
		}
		// Who asked first may have no more use for it, and others wait.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tokenTimeout)
		defer cancel()
		return n.ask(ctx)
	})
	select {
	case a := <-answer:
		token, _ := a.Val.(string) // "" with an error
		return token, a.Err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// held returns the token that there is, or "".
func (n *Nodes) held() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Until(n.expires) <= tokenRest {
		return ""
	}
	return n.token
}

// ask has the API server make a token.
func (n *Nodes) ask(ctx context.Context) (string, error) {
	seconds := int64(tokenLife.Seconds())
	answer := &authenticationv1.TokenRequest{}
	err := n.api.Post().Namespace(n.namespace).Resource("serviceaccounts").Name(n.account).SubResource("token").
		Body(&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}).
		Do(ctx).Into(answer)
	switch {
	case apierrors.IsForbidden(err) || apierrors.IsNotFound(err):
		return "", fmt.Errorf("%w: there is no token of service account %s: %w", nodelog.ErrRefused, n.account, err)
	case err != nil:
		return "", fmt.Errorf("asking for a token of service account %s: %w", n.account, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.token, n.made, n.expires = answer.Status.Token, time.Now(), answer.Status.ExpirationTimestamp.Time
	return n.token, nil
}
