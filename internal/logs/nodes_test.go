package logs

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/ottoscaler/ottoscaler/internal/logs/nodelog"
)

// nodesRig is an API server that gives tokens, and a kubelet that wants one.
type nodesRig struct {
	t       *testing.T
	kubelet *httptest.Server
	tokens  int
	status  int // of the kubelet's answers to whoever has the token
	story   strings.Builder
	nodes   *Nodes
	read    Read
}

func newNodesRig(t *testing.T, insecure, trusted bool) *nodesRig {
	t.Helper()
	r := &nodesRig{t: t, status: http.StatusOK}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if want := "/api/v1/namespaces/otto/serviceaccounts/node-logs/token"; request.Method != http.MethodPost || request.URL.Path != want {
			t.Errorf("the API server is asked to %s %s", request.Method, request.URL)
		}
		r.tokens++
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(&authenticationv1.TokenRequest{ //nolint:errcheck // the client would say so
			TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
			Status:   authenticationv1.TokenRequestStatus{Token: fmt.Sprintf("token-%d", r.tokens), ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour))},
		})
	}))
	t.Cleanup(api.Close)
	r.kubelet = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if got, want := request.Header.Get("Authorization"), fmt.Sprintf("Bearer token-%d", r.tokens); got != want {
			t.Errorf("the kubelet is shown %q, want %q", got, want)
		}
		if r.status == http.StatusFound {
			w.Header().Set("Location", api.URL)
		}
		w.WriteHeader(r.status)
		fmt.Fprint(w, `<pre><a href="0.log">0.log</a><a href="0.log.20261125-120000">0.log.20261125-120000</a></pre>`)
	}))
	t.Cleanup(r.kubelet.Close)
	host, portText, err := net.SplitHostPort(r.kubelet.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		t.Fatal(err)
	}
	options := NodeOptions{Account: "node-logs", Port: port, Insecure: insecure, Log: slog.New(slog.NewTextHandler(&r.story, nil))}
	if trusted {
		options.CAFile = filepath.Join(t.TempDir(), "ca.crt")
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.kubelet.Certificate().Raw})
		if err := os.WriteFile(options.CAFile, block, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What the cluster's own client shows and trusts must not reach the kubelet.
	if r.nodes, err = NewNodes(&rest.Config{Host: api.URL, BearerToken: "main-pod"}, "otto", options); err != nil {
		t.Fatal(err)
	}
	r.read = Read{Instance: Instance{Namespace: "otto", Pod: "w-1", PodUID: "uid-1", Container: "agent"}, Node: host}
	return r
}

func (r *nodesRig) rotated() error {
	_, err := r.nodes.Rotated(r.t.Context(), r.read)
	return err
}

func TestNodesAreShownTheTokenOfTheAccountOnly(t *testing.T) {
	r := newNodesRig(t, false, true)
	for range 3 {
		if names, err := r.nodes.Rotated(t.Context(), r.read); err != nil || len(names) != 1 {
			t.Fatalf("got %v, %v, want one file", names, err)
		}
	}
	if r.tokens != 1 {
		t.Errorf("%d tokens were asked for, want 1", r.tokens)
	}
	unknown := func() {
		r.status = http.StatusUnauthorized
		if err := r.rotated(); err == nil || errors.Is(err, nodelog.ErrRefused) {
			t.Errorf("a token that is not known: got %v, want an error that may pass", err)
		}
		r.status = http.StatusOK
	}
	unknown() // the node cannot ask the API server
	if err := r.rotated(); err != nil || r.tokens != 1 {
		t.Errorf("got %v with %d tokens, want the new token to be kept", err, r.tokens)
	}
	r.nodes.made = r.nodes.made.Add(-2 * tokenTrust)
	unknown() // the account was made anew
	// The rig counts a token as soon as it is given.
	if err := r.rotated(); err != nil || r.tokens != 2 {
		t.Errorf("got %v with %d tokens, want another token", err, r.tokens)
	}
}

func TestHoweverManyWantATokenOneIsAskedFor(t *testing.T) {
	r := newNodesRig(t, false, true)
	var group errgroup.Group
	for range 20 {
		group.Go(func() error {
			_, err := r.nodes.credential(t.Context())
			return err
		})
	}
	if err := group.Wait(); err != nil || r.tokens != 1 {
		t.Errorf("got %v with %d tokens, want one token", err, r.tokens)
	}
}

func TestNodeThatSendsElsewhereIsNotFollowed(t *testing.T) {
	r := newNodesRig(t, false, true)
	r.status = http.StatusFound
	if err := r.rotated(); err == nil {
		t.Error("want an error")
	}
}

func TestRefusalOfANodeIsSaidOnce(t *testing.T) {
	r := newNodesRig(t, false, true)
	r.status = http.StatusForbidden
	for range 3 {
		if err := r.rotated(); !errors.Is(err, nodelog.ErrRefused) {
			t.Errorf("got %v, want a refusal", err)
		}
	}
	if n := strings.Count(r.story.String(), "does not show its rotated logs"); n != 1 {
		t.Errorf("it is said %d times, want once:\n%s", n, &r.story)
	}
	// Later it is asked again.
	r.nodes.refused[r.read.Node] = refusal{err: r.nodes.refused[r.read.Node].err}
	r.status = http.StatusOK
	if err := r.rotated(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(r.story.String(), "shows its rotated logs now") {
		t.Errorf("that it is over is not said:\n%s", &r.story)
	}
}

func TestRefusalOfANodeThatNobodyAsksForIsForgotten(t *testing.T) {
	nodes := newNodesRig(t, false, true).nodes
	for _, node := range []string{"gone", "here"} {
		nodes.report(t.Context(), node, nodelog.ErrRefused)
		old := nodes.refused[node]
		old.wanted = old.wanted.Add(-2 * refusalLife)
		nodes.refused[node] = old
	}
	if err := nodes.refusal("here"); !errors.Is(err, nodelog.ErrRefused) { // so it is wanted
		t.Errorf("got %v, want the refusal", err)
	}
	nodes.report(t.Context(), "new", nodelog.ErrRefused)
	if got, want := slices.Sorted(maps.Keys(nodes.refused)), []string{"here", "new"}; !slices.Equal(got, want) {
		t.Errorf("known are %q, want %q", got, want)
	}
}

func TestNodeThatCannotBeReachedIsSaidOnceAndAskedAgain(t *testing.T) {
	r := newNodesRig(t, false, true)
	r.status = http.StatusInternalServerError
	for range 3 {
		if err := r.rotated(); err == nil || errors.Is(err, nodelog.ErrRefused) {
			t.Errorf("got %v, want an error that may pass", err)
		}
	}
	if n := strings.Count(r.story.String(), "cannot be asked"); n != 1 {
		t.Errorf("it is said %d times, want once:\n%s", n, &r.story)
	}
	r.status = http.StatusOK
	if err := r.rotated(); err != nil || !strings.Contains(r.story.String(), "shows its rotated logs now") {
		t.Errorf("got %v, and it is said:\n%s", err, &r.story)
	}
}

func TestCertificateOfAKubeletIsCheckedUnlessToldOtherwise(t *testing.T) {
	if err := newNodesRig(t, false, false).rotated(); !errors.Is(err, nodelog.ErrRefused) {
		t.Errorf("a certificate that nobody knows: got %v, want a refusal", err)
	}
	if err := newNodesRig(t, true, false).rotated(); err != nil {
		t.Errorf("any certificate: got %v", err)
	}
}
