package logs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	"github.com/ottoscaler/ottoscaler/internal/mask"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// A vault is the Secrets of a scripted cluster.
type vault struct {
	*Secrets
	told story

	mu      sync.Mutex
	sources map[string]*cachetesting.FakeControllerSource
	closed  error // what whoever asks is told
}

func newVault(t *testing.T, patterns string) *vault {
	t.Helper()
	parsed, err := mask.ParsePatterns(patterns)
	if err != nil {
		t.Fatal(err)
	}
	v := &vault{sources: map[string]*cachetesting.FakeControllerSource{}}
	v.Secrets = newSecrets(parsed, slog.New(slog.NewTextHandler(&v.told, nil)), prometheus.NewGauge(prometheus.GaugeOpts{Name: "up"}))
	v.lister = func(name string) cache.ListerWatcher {
		source := v.source(name)
		return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
				v.mu.Lock()
				defer v.mu.Unlock()
				if v.closed != nil {
					use := v.outage.use()
					use.explains(t.Context(), v.closed)
					return nil, v.closed
				}
				return source.List(options)
			},
			WatchFuncWithContext: func(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
				return source.Watch(options)
			},
		}, source)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.Run(ctx) //nolint:errcheck // returns nil
	}()
	t.Cleanup(func() { cancel(); <-done })
	return v
}

func (v *vault) source(name string) *cachetesting.FakeControllerSource {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sources[name] == nil {
		v.sources[name] = cachetesting.NewFakeControllerSource()
	}
	return v.sources[name]
}

func secret(name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}, Data: map[string][]byte{}}
	for key, value := range data {
		s.Data[key] = []byte(value)
	}
	return s
}

// asking is a worker that asks for its secrets to be hidden.
func asking(refs string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{pod.AnnotationMaskSecrets: refs}}}
}

func (v *vault) masker(t *testing.T, refs string) func() *mask.Masker {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := v.Masker(ctx, asking(refs))
	if err != nil {
		t.Fatalf("asking for %q: %v", refs, err)
	}
	return m
}

// awaitRefusal waits until a Secret that is forbidden was asked for.
func (v *vault) awaitRefusal(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(strings.Join(v.told.lines(), ""), "forbidden"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody asks for the Secret")
		}
	}
}

func wantText(t *testing.T, m func() *mask.Masker, text, want string) {
	t.Helper()
	if got := m().Text(text); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWorkersHideWhatTheyName(t *testing.T) {
	v := newVault(t, `ghp_\w+`)
	v.source("a").Add(secret("a", map[string]string{"user": "somebody", "password": "hunter2", "pin": "123"}))
	v.source("b").Add(secret("b", map[string]string{"token": "swordfish"}))
	const text = "somebody hunter2 123 swordfish ghp_1"
	wantText(t, v.masker(t, "a/password,b"), text, "somebody *** 123 *** ***")
	wantText(t, v.masker(t, "a"), text, "*** *** 123 swordfish ***")
	wantText(t, v.masker(t, "gone"), text, "somebody hunter2 123 swordfish ***")
	wantText(t, v.masker(t, ""), text, "somebody hunter2 123 swordfish ***")
	if lines := v.told.lines(); len(lines) != 1 || !strings.Contains(lines[0], "secret=a/pin") || strings.Contains(lines[0], "123") {
		t.Errorf("it logs %q", lines)
	}
	if m := newVault(t, "").masker(t, ""); m() != nil {
		t.Error("there is a masker that has nothing to hide")
	}
}

func TestSecretThatChangesIsHiddenAsItIsAndAsItWas(t *testing.T) {
	v := newVault(t, "")
	v.source("a").Add(secret("a", map[string]string{"token": "first-value"}))
	m := v.masker(t, "a")
	v.source("a").Modify(secret("a", map[string]string{"token": "second-value", "new": "another-one"}))
	for deadline := time.Now().Add(patience); m().Text("second-value") != "***"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new value is not hidden")
		}
	}
	v.source("a").Delete(secret("a", nil))
	wantText(t, m, "first-value second-value another-one", "*** *** ***")
	wantText(t, v.masker(t, "a/token"), "first-value second-value another-one", "*** *** another-one")
}

func TestNoLineIsReadBeforeTheSecretsAre(t *testing.T) {
	v := newVault(t, "")
	v.closed = errors.New("secrets is forbidden")
	v.source("a").Add(secret("a", map[string]string{"token": "swordfish"}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := v.Masker(ctx, asking("a"))
		answer <- err
	}()
	v.awaitRefusal(t)
	cancel()
	if err := <-answer; err == nil {
		t.Fatal("there is a masker")
	}
	v.mu.Lock()
	v.closed = nil
	v.mu.Unlock()
	wantText(t, v.masker(t, "a"), "swordfish", "***")
	if lines := v.told.lines(); len(lines) != 1 || !strings.Contains(lines[0], "forbidden") {
		t.Errorf("it logs %q", lines)
	}
}

// masked makes the rig's relay hide a value.
func (r *rig) masked(value string) {
	m, _ := mask.New([]mask.Secret{{Name: "s/k", Value: []byte(value)}}, nil)
	r.follow.mask = func() *mask.Masker { return m }
}

func TestSecretsDoNotLeaveThePod(t *testing.T) {
	r := newTestRig(t)
	r.masked("hunter2")
	r.source.Print(at(0)[0], "it is hunter2")
	r.source.Print(at(1)[0], "hunter2hunter2")
	r.end()
	got := r.run([]string{"it is ***", "***"})
	if got.ByteCount != uint64(len("it is ***")+len("***")) {
		t.Errorf("%d bytes", got.ByteCount)
	}
}

// A position counts lines, and bytes as they were stored; so another value may be
// hidden when a log is read again, and nothing is lost, repeated or found to differ.
func TestSecretThatChangesBetweenTwoRelaysLosesNothing(t *testing.T) {
	r := newTestRig(t)
	r.masked("hunter2")
	for i := range 7 { // in one second, and more than a batch
		r.source.Print(at(0.1 * float64(i))[0], "hunter2 swordfish")
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.start(ctx)
	r.await(7)
	cancel()
	<-r.done //nolint:errcheck // it was told to stop

	r.renew()
	r.masked("swordfish")
	r.source.Print(at(0.9)[0], "hunter2 swordfish")
	r.source.Print(at(2)[0], "hunter2 swordfish")
	r.end()
	want := make([]string, 0, 9)
	for range 7 {
		want = append(want, "*** swordfish")
	}
	r.run(append(want, "hunter2 ***", "hunter2 ***"))
}

func TestSecretInTheCutOfALongLineIsHidden(t *testing.T) {
	const value = "a-secret-of-some-length"
	m, _ := mask.New([]mask.Secret{{Name: "s/k", Value: []byte(value)}}, nil)
	for shift := range len(value) + 1 {
		line := strings.Repeat("x", maxLine-shift) + value + strings.Repeat("y", readBuffer*2)
		log := "2026-11-22T12:00:00.000000001Z " + line + "\n2026-11-22T12:00:01.000000001Z next\n"
		cuts := 0
		r := newLineReader(strings.NewReader(log), func() { cuts++ })
		r.mask = func() *mask.Masker { return m }
		var got []string
		for {
			_, text, err := r.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(text) > maxLine+readBuffer+64 {
				t.Errorf("shift %d: a part of %d bytes", shift, len(text))
			}
			got = append(got, strings.TrimSuffix(string(text), "\n"))
		}
		if len(got) != 3 || cuts != 1 || got[2] != "next" {
			t.Fatalf("shift %d: %d lines, %d cuts", shift, len(got), cuts)
		}
		whole := got[0] + got[1]
		if strings.Contains(whole, value[:4]) || strings.Contains(whole, value[len(value)-4:]) {
			t.Errorf("shift %d: something is left: …%q", shift, got[0][max(0, len(got[0])-40):])
		}
		if n := strings.Count(whole, "x") + strings.Count(whole, "y"); n != len(line)-len(value) {
			t.Errorf("shift %d: %d bytes that are no secret, want %d", shift, n, len(line)-len(value))
		}
	}
}

func TestSecretsAreHiddenInWhatIsSaidAboutTheEnd(t *testing.T) {
	m, _ := mask.New([]mask.Secret{{Name: "s/k", Value: []byte("hunter2")}}, nil)
	request := &logsv1.FinishWorkerRequest{
		Message: "hunter2", Containers: []*logsv1.ContainerEnd{{Container: "agent", Message: "last line\nhunter2 is wrong\n"}},
	}
	hideEnds(m, request)
	if request.Message != "***" || request.Containers[0].Message != "last line\n*** is wrong\n" {
		t.Errorf("got %v", request)
	}
}

func TestRelayHidesTheSecretsOfTheWorkersThatAsk(t *testing.T) {
	v := newVault(t, "")
	v.source("a").Add(secret("a", map[string]string{"token": "swordfish"}))
	r := newRelayRig(t)
	r.mask = v.Masker
	r.start()
	w := workerPod()
	w.Annotations[pod.AnnotationMaskSecrets] = "a/token"
	w.Status.InitContainerStatuses[0].State = terminated(0, "id-1")
	w.Status.ContainerStatuses[0].State = running()
	r.cluster.Add(w)
	r.offer(w)
	r.source("clone").End()
	r.source("agent").Print(at(0)[0], "my swordfish")
	r.holds(logstest.Key{WorkerUID: "uid-1", Container: "agent"}, 1)
	l, _ := r.server.backend.Log(logstest.Key{WorkerUID: "uid-1", Container: "agent"})
	if l.Lines[0] != "my ***" {
		t.Errorf("the server has %q", l.Lines)
	}
	r.halt()
}

func TestWorkerThatGoesBeforeItsSecretsAreKnownShowsNothing(t *testing.T) {
	v := newVault(t, "")
	v.closed = errors.New("secrets is forbidden")
	r := newRelayRig(t)
	r.mask = v.Masker
	r.start()
	w := workerPod()
	w.Annotations[pod.AnnotationMaskSecrets] = "a/token"
	w.Status.ContainerStatuses[0].State = running()
	w.Status.Message = "swordfish"
	r.cluster.Add(w)
	r.source("agent").Print(at(0)[0], "my swordfish")
	r.offer(w)
	v.awaitRefusal(t)
	r.cluster.Delete(w)
	r.outcome()
	end := r.worker()
	if len(end.Logs) != 0 || end.End.GetReason() != "Gone" || strings.Contains(end.End.String(), "swordfish") {
		t.Errorf("the server has %+v", end)
	}
	r.halt()
}
