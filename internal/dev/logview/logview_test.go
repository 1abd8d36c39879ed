package logview

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// An api is an API server that knows one namespace's pods and what they print,
// and breaks on command. It honours sinceTime as kubelets do: by whole seconds.
type api struct {
	mu   sync.Mutex
	pods []corev1.Pod
	logs map[string][]string // by pod/container, or pod/container/previous
	cut  int                 // how many lines a followed log gives before it breaks; 0: all
	away bool
	done bool // the containers write no more, so that a followed log ends
	out  strings.Builder
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	away, pods, cut := a.away, append([]corev1.Pod(nil), a.pods...), a.cut
	a.mu.Unlock()
	if away {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/ns/pods")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case path == "":
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: pods}
		_ = json.NewEncoder(w).Encode(list) // the client would complain
	case strings.HasSuffix(path, "/log"):
		a.log(w, r, strings.Trim(strings.TrimSuffix(path, "/log"), "/"), cut)
	default:
		for _, p := range pods {
			if "/"+p.Name == path {
				p.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
				_ = json.NewEncoder(w).Encode(p) // as above
				return
			}
		}
		http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"pods not found","code":404}`, http.StatusNotFound)
	}
}

func (a *api) log(w http.ResponseWriter, r *http.Request, pod string, cut int) {
	key := pod + "/" + r.URL.Query().Get("container")
	if r.URL.Query().Get("previous") == "true" {
		key += "/previous"
	}
	since, _ := time.Parse(time.RFC3339, r.URL.Query().Get("sinceTime")) // none: the beginning
	sent := 0
	follow := r.URL.Query().Get("follow") == "true"
	for next := 0; ; {
		a.mu.Lock()
		lines, done := a.logs[key], a.done
		a.mu.Unlock()
		for ; next < len(lines); next++ {
			at, _ := time.Parse(time.RFC3339Nano, strings.Fields(lines[next])[0])
			if at.Before(since) {
				continue
			}
			fmt.Fprintln(w, lines[next])
			w.(http.Flusher).Flush()
			if sent++; follow && cut > 0 && sent == cut {
				panic(http.ErrAbortHandler) // the connection breaks
			}
		}
		if !follow || done {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (a *api) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// Write and String are the view's terminal.
func (a *api) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.Write(p)
}

func (a *api) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.String()
}

func newAPI(t *testing.T, pods ...corev1.Pod) (*api, Options) {
	t.Helper()
	a := &api{pods: pods, logs: map[string][]string{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.CloseClientConnections) // followed logs would keep it from closing
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return a, Options{Client: client, Namespace: "ns", Selector: "x=y", Tail: -1, Out: a}
}

var born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// mainPod is one whose containers run; restarts are the scaler's.
func mainPod(name string, age int, restarts int32) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: "ns", UID: types.UID(name), CreationTimestamp: metav1.NewTime(born.Add(time.Duration(age) * time.Second)),
	}}
	for _, container := range []string{"consumer", "scaler"} {
		status := corev1.ContainerStatus{Name: container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
		if container == "scaler" && restarts > 0 {
			status.RestartCount = restarts
			status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 2, Reason: "Error"}
		}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: container})
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, status)
	}
	return p
}

func stamp(ns int) string { return born.Add(time.Duration(ns)).Format(time.RFC3339Nano) }

// shows waits until the terminal shows exactly these lines.
func (a *api) shows(t *testing.T, want ...string) {
	t.Helper()
	text := strings.Join(want, "\n") + "\n"
	for deadline := time.Now().Add(10 * time.Second); a.String() != text; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the terminal shows:\n%s\nwant:\n%s", a.String(), text)
		}
	}
}

func follow(t *testing.T, opts Options) {
	t.Helper()
	opts.Follow = true
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Follow(ctx, opts) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Follow returns %v when it is told to stop", err)
		}
	})
}

func TestWithoutFollowingAllContainersAreShownInTheOrderOfTime(t *testing.T) {
	a, opts := newAPI(t, mainPod("old", 0, 0), mainPod("new", 5, 0))
	a.logs["new/consumer"] = []string{stamp(1) + " one", stamp(3) + ` {"time":"2026-01-01T00:00:00.5Z","level":"INFO","msg":"event settled","event":"1-0","note":"two words","n":3}`}
	a.logs["new/scaler"] = []string{stamp(2) + " two"}
	a.logs["old/scaler"] = []string{stamp(1) + " of yesterday"}
	if err := Follow(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	at := born.Add(500 * time.Millisecond).Local().Format("15:04:05.000")
	a.shows(t, "consumer  │ one", "scaler    │ two", "consumer  │ "+at+` INFO  event settled event=1-0 note="two words" n=3`)
}

func TestABrokenConnectionNeitherRepeatsNorLosesLines(t *testing.T) {
	a, opts := newAPI(t, mainPod("p", 0, 0))
	opts.Containers = []string{"scaler"}
	a.cut = 3
	var want []string
	for i := range 8 {
		// All within one second, some at the very same time.
		a.logs["p/scaler"] = append(a.logs["p/scaler"], fmt.Sprintf("%s line %d", stamp(i/3), i))
		want = append(want, fmt.Sprintf("scaler    │ line %d", i))
	}
	a.cut = 4
	follow(t, opts)
	// Each connection shows four lines, so from the second on nothing new, until more are let through.
	time.Sleep(time.Second)
	a.change(func() { a.cut = 0 })
	a.shows(t, want...)
}

func TestAPodThatReplacesAnotherIsFollowed(t *testing.T) {
	a, opts := newAPI(t, mainPod("first", 0, 0))
	opts.Containers = []string{"consumer"}
	a.logs["first/consumer"] = []string{stamp(1) + " a"}
	follow(t, opts)
	a.shows(t, "consumer  │ a")
	a.change(func() {
		a.pods = []corev1.Pod{mainPod("second", 9, 0)}
		a.logs["second/consumer"] = []string{stamp(2) + " b"}
	})
	a.shows(t, "consumer  │ a", "── pod second takes over", "consumer  │ b")
}

func TestACrashIsShownWithItsLastWords(t *testing.T) {
	a, opts := newAPI(t, mainPod("p", 0, 1))
	opts.Containers = []string{"scaler"}
	a.logs["p/scaler/previous"] = []string{stamp(1) + " NAMESPACE belongs to user minji"}
	a.logs["p/scaler"] = []string{stamp(2) + " again"}
	follow(t, opts)
	a.shows(t, "── scaler ended with exit code 2 (Error) and was started again; its last words:",
		"scaler    │ NAMESPACE belongs to user minji", "scaler    │ again")
}

func TestAnAbsentPodAndAnAbsentServerAreWaitedForAndSaidOnce(t *testing.T) {
	a, opts := newAPI(t)
	opts.Containers = []string{"scaler"}
	follow(t, opts)
	waiting := "── waiting for the main pod in namespace ns (make deploy starts it)"
	a.shows(t, waiting)
	time.Sleep(3 * lookEvery)
	a.shows(t, waiting)
	a.change(func() { a.away = true })
	eventually(t, func() bool { return strings.Count(a.String(), "does not answer") == 1 })
	a.change(func() {
		a.away = false
		a.pods = []corev1.Pod{mainPod("p", 0, 0)}
		a.logs["p/scaler"] = []string{stamp(1) + " here"}
	})
	eventually(t, func() bool { return strings.HasSuffix(a.String(), "scaler    │ here\n") })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

func TestAnUnknownContainerIsRefusedWithThoseThereAre(t *testing.T) {
	_, opts := newAPI(t, mainPod("p", 0, 0))
	opts.Containers = []string{"relay"}
	for _, opts.Follow = range []bool{true, false} {
		if err := Follow(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "relay; there are consumer, scaler") {
			t.Errorf("following %t: got %v, want the names of those there are", opts.Follow, err)
		}
	}
}

func TestWithoutAPodThereIsARemedy(t *testing.T) {
	_, opts := newAPI(t)
	if err := Follow(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "make deploy") {
		t.Errorf("got %v, want what to do", err)
	}
}

func TestOnlyOurOwnJSONIsMadeReadable(t *testing.T) {
	p := newPrinter(Options{Color: false})
	for _, text := range []string{"plain", "{not json", `{"a":1}`, `{"time":"yesterday","level":"INFO","msg":"x"}`, "{", ""} {
		if got := p.readable(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	p.color = true
	text := `{"time":"2026-01-01T00:00:00Z","level":"ERROR","msg":"boom"}`
	if got := p.readable(text); !strings.Contains(got, red+"ERROR"+reset) {
		t.Errorf("an error in colour: %q", got)
	}
}

func TestLinesOfAnyLengthAreShownWhole(t *testing.T) {
	a, opts := newAPI(t, mainPod("p", 0, 0))
	opts.Containers, opts.Raw = []string{"scaler"}, true
	long := strings.Repeat("x", 300_000)
	a.logs["p/scaler"] = []string{stamp(1) + " " + long}
	if err := Follow(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	a.shows(t, "scaler    │ "+long)
}

// waits returns a pod whose scaler waits; a kubelet gives such a container's last
// log both as its log and as its previous one.
func waits(reason string, restarts int32) corev1.Pod {
	p := mainPod("p", 0, restarts)
	p.Status.ContainerStatuses[1].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	return p
}

func TestAContainerThatBacksOffShowsItsLastWordsOnce(t *testing.T) {
	for name, row := range map[string]struct {
		follow bool
		note   string
	}{
		"following":     {true, "── scaler ended with exit code 2 (Error) and waits to be started again; its last words:"},
		"not following": {false, "── scaler ended with exit code 2 (Error) and waits to be started again: CrashLoopBackOff"},
	} {
		t.Run(name, func(t *testing.T) {
			a, opts := newAPI(t, waits("CrashLoopBackOff", 3))
			opts.Containers = []string{"scaler"}
			a.logs["p/scaler"] = []string{stamp(1) + " why"}
			a.logs["p/scaler/previous"] = a.logs["p/scaler"]
			a.done = true
			if row.follow {
				follow(t, opts)
			} else if err := Follow(t.Context(), opts); err != nil {
				t.Fatal(err)
			}
			a.shows(t, row.note, "scaler    │ why")
			time.Sleep(3 * lookEvery)
			a.shows(t, row.note, "scaler    │ why")
		})
	}
}

func TestAContainerThatCannotStartSaysWhyOnce(t *testing.T) {
	a, opts := newAPI(t, waits("ImagePullBackOff", 0))
	opts.Containers = []string{"scaler"}
	follow(t, opts)
	a.shows(t, "── waiting for scaler: ImagePullBackOff")
	time.Sleep(3 * lookEvery)
	a.shows(t, "── waiting for scaler: ImagePullBackOff")
}

func TestLastWordsSurviveABrokenConnection(t *testing.T) {
	whole := []string{stamp(1) + " a", stamp(2) + " b", stamp(3) + " panic", stamp(4) + " why"}
	ended := mainPod("p", 0, 0)
	ended.Status.ContainerStatuses[1].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2}}
	for name, row := range map[string]struct {
		pod         corev1.Pod
		log, before []string
		want        []string
	}{
		"and it stays ended":      {ended, whole, nil, []string{"a", "b", "panic", "why"}},
		"and it is started again": {mainPod("p", 0, 1), []string{stamp(9) + " next"}, whole, []string{"a", "b", "next", "panic", "why"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, opts := newAPI(t, mainPod("p", 0, 0))
			opts.Containers = []string{"scaler"}
			a.cut, a.logs["p/scaler"] = 2, whole
			follow(t, opts)
			eventually(t, func() bool { return strings.Contains(a.String(), "│ b\n") })
			a.change(func() {
				a.cut, a.pods = 0, []corev1.Pod{row.pod}
				a.logs["p/scaler"], a.logs["p/scaler/previous"] = row.log, row.before
			})
			for _, text := range row.want {
				eventually(t, func() bool { return strings.Contains(a.String(), "│ "+text+"\n") })
			}
			time.Sleep(3 * lookEvery)
			for _, text := range row.want {
				if n := strings.Count(a.String(), "│ "+text+"\n"); n != 1 {
					t.Errorf("%q is shown %d times:\n%s", text, n, a.String())
				}
			}
		})
	}
}

func TestALineWithAnEarlierTimeIsShownToo(t *testing.T) {
	a, opts := newAPI(t, mainPod("p", 0, 0))
	opts.Containers = []string{"scaler"}
	a.logs["p/scaler"] = []string{stamp(5) + " to stderr", stamp(4) + " to stdout"}
	follow(t, opts)
	a.shows(t, "scaler    │ to stderr", "scaler    │ to stdout")
}

func TestANullAttributeIsShownAsNull(t *testing.T) {
	got := newPrinter(Options{}).readable(`{"time":"2026-01-01T00:00:00Z","level":"INFO","msg":"hello","err":null}`)
	if !strings.HasSuffix(got, "hello err=null") {
		t.Errorf("got %q", got)
	}
}
