// Package e2e tells the whole story on a real kubelet with real containers: the
// chart is installed, an event enters Redis, workers run, their lines reach a log
// server, the workers go away, and nothing is left behind.
package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"github.com/ottoscaler/ottoscaler/test/logserver"
)

// site is the installation that the tests of this package share.
var site struct {
	*lab.Lab
	namespace string
	logs      *logserver.Server
	stopLogs  func() error
	events    *lab.Events
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run sets up once for all tests, because a cluster takes its time.
func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	err := setUp(ctx)
	if err == nil {
		code = m.Run()
	}
	if derr := tearDown(code != 0 || err != nil); derr != nil {
		err = errors.Join(err, fmt.Errorf("tearing down: %w", derr))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return code
}

func setUp(ctx context.Context) error {
	kind, err := cluster.KindFromEnv()
	if err != nil {
		return err
	}
	if site.Lab, err = lab.Up(ctx, lab.Options{Name: cmp.Or(os.Getenv("CLUSTER_NAME"), "e2e"), Kind: kind, Nodes: 1, Output: os.Stderr}); err != nil {
		return err
	}
	if err := site.LoadImages(ctx); err != nil {
		return err
	}
	if site.namespace, err = site.Namespace(ctx, "e2e"); err != nil {
		return err
	}
	listener, err := site.Listen(ctx)
	if err != nil {
		return err
	}
	if site.logs, site.stopLogs, err = logserver.Start(listener, logserver.Options{}); err != nil {
		return err
	}
	site.events = site.Events(site.namespace)
	return site.Install(ctx, site.namespace, listener.Addr().String())
}

// tearDown removes the cluster, unless KEEP is set; after a failure it prints
// first what the main pod said.
func tearDown(failed bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if site.Lab == nil {
		return nil
	}
	if failed && site.namespace != "" {
		for _, args := range [][]string{{"get", "pods", "-o", "wide"}, {"get", "events"}, {"logs", "deploy/ottoscaler", "--all-containers", "--prefix", "--tail=80"}} {
			out, err := kubectl(ctx, args...)
			fmt.Fprintf(os.Stderr, "kubectl %s (%v):\n%s\n", strings.Join(args, " "), err, out)
		}
	}
	var err error
	if site.stopLogs != nil {
		err = site.stopLogs()
	}
	if site.Cluster.Kind == cluster.Current && site.namespace != "" { // the cluster stays; nothing of ours does
		err = errors.Join(site.Uninstall(site.namespace), site.RemoveNamespace(ctx, site.namespace))
	}
	return errors.Join(err, site.Close())
}

// The runtime of each program heeds the memory limit of its container.
func TestProgramsKnowTheirMemoryLimit(t *testing.T) {
	list, err := site.Core.Pods(site.namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=main"})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d main pods, %v; want one", len(list.Items), err)
	}
	main := &list.Items[0]
	for _, c := range main.Spec.Containers {
		metrics, err := site.Core.Pods(site.namespace).ProxyGet("http", main.Name, strconv.Itoa(int(c.Ports[0].ContainerPort)), "metrics", nil).DoRaw(t.Context())
		if err != nil {
			t.Fatalf("the metrics of %s: %v", c.Name, err)
		}
		_, limit, _ := strings.Cut(string(metrics), "\ngo_gc_gomemlimit_bytes ")
		limit, _, _ = strings.Cut(limit, "\n")
		got, err := strconv.ParseFloat(limit, 64)
		if want := float64(c.Resources.Limits.Memory().Value()); err != nil || got >= want || got < want/2 {
			t.Errorf("%s heeds a limit of %q bytes (%v), want most of the %.0f that it has", c.Name, limit, err, want)
		}
	}
}

// The story of one task, told in order; each part builds on the one before it.
func TestATaskFromItsEventToItsLastLine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const task = "build-42"

	// Three workers; the last of them is left alone and ends by itself.
	result := sendTestEvent(t, "--type=scale_up", "--count=3", "--task="+task, "--field=env.AGENT_LINES=300", "--field=env.AGENT_RATE=20")
	if !strings.Contains(result, "done") {
		t.Fatalf("the result of the scale-up: got %q, want it to be done", result)
	}
	workers := listWorkers(ctx, t, task)
	if len(workers) != 3 {
		t.Fatalf("workers after the scale-up: got %d, want 3", len(workers))
	}
	awaitWorkers(ctx, t, task, "all three run", func(pods map[string]*corev1.Pod) bool {
		return len(pods) == 3 && all(pods, func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	})
	for _, worker := range workers {
		awaitLine(ctx, t, worker.Name, worker.Name+" line 20")
	}

	for container, story := range map[string]string{
		lab.Consumer: "event settled", lab.Scaler: "workers created", lab.LogRelay: "following worker",
	} {
		out, err := kubectl(ctx, "logs", "deploy/ottoscaler", "-c", container)
		if err != nil {
			t.Fatalf("reading the log of %s: %v", container, err)
		}
		event := workers[0].Annotations[pod.AnnotationEventID]
		if !slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
			return strings.Contains(line, story) && strings.Contains(line, event) && strings.Contains(line, task)
		}) {
			t.Errorf("log of %s: got no line %q with event %s and task %s, in:\n%s", container, story, event, task, out)
		}
		// The chart's rights and the way from a pod to its node, where rotated logs are on: each new log is asked about.
		if strings.Contains(out, "its rotated logs") {
			t.Errorf("log of %s: the node does not show its rotated logs:\n%s", container, out)
		}
	}

	// Two of them are told to stop. They say their last words, which arrive.
	result = sendTestEvent(t, "--type=scale_down", "--count=2", "--task="+task)
	if !strings.Contains(result, "done") {
		t.Fatalf("the result of the scale-down: got %q, want it to be done", result)
	}
	victims := 0
	for _, worker := range workers {
		if strings.Contains(result, worker.Name) {
			victims++
			checkLog(ctx, t, worker.Name, 0)
			continue
		}
		// The third prints its three hundred lines and completes.
		checkLog(ctx, t, worker.Name, 300)
	}
	if victims != 2 {
		t.Errorf("workers that the scale-down of 2 chose: got %d, want 2", victims)
	}
	awaitWorkers(ctx, t, task, "all are removed", func(pods map[string]*corev1.Pod) bool { return len(pods) == 0 })
}

// A bad event lands in the dead-letter stream with a reason, and stops nothing.
func TestABadEventStopsNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, bad := range []struct {
		name   string
		fields map[string]string
		reason string
	}{
		{"no type", map[string]string{"task_id": "bad"}, scaleevent.ReasonMissingField},
		{"unknown type", map[string]string{"type": "scale_sideways"}, scaleevent.ReasonUnknownType},
		{"negative count", map[string]string{"type": "scale_up", "pod_count": "-1"}, scaleevent.ReasonInvalidField},
		{"count not a number", map[string]string{"type": "scale_up", "count": "many"}, scaleevent.ReasonInvalidField},
		{"1 MiB field", map[string]string{"type": "scale_up", "repository": strings.Repeat("x", 1<<20)}, scaleevent.ReasonFieldTooLarge},
	} {
		t.Run(bad.name, func(t *testing.T) {
			id, err := site.events.Send(ctx, bad.fields)
			if err != nil {
				t.Fatal(err)
			}
			letter, err := site.events.AwaitDead(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			if got := letter["dead_reason"]; got != bad.reason {
				t.Errorf("reason of the dead letter: got %q, want %q", got, bad.reason)
			}
			if letter["dead_message"] == "" {
				t.Error("the dead letter has no message that says what is wrong")
			}
			for name, value := range bad.fields {
				if letter[name] != value {
					t.Errorf("field %s of the dead letter: got %d bytes, want the event's own %d bytes", name, len(letter[name]), len(value))
				}
			}
		})
	}
	one := 1
	id, err := site.events.Publish(ctx, scaleevent.Event{
		Type: scaleevent.ScaleUp, TaskID: "after-the-bad", PodCount: &one, Env: map[string]string{"AGENT_LINES": "3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if result, err := site.events.Await(ctx, id); err != nil || result.Status != scaleevent.StatusDone {
		t.Fatalf("the event behind the bad ones: got %+v, %v, want it done", result, err)
	}
	awaitWorkers(ctx, t, "after-the-bad", "it has come and gone", func(pods map[string]*corev1.Pod) bool { return len(pods) == 0 })
}

// Uninstalling leaves nothing behind, not even a worker that still runs.
func TestUninstallLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	one := 1
	id, err := site.events.Publish(ctx, scaleevent.Event{
		Type: scaleevent.ScaleUp, TaskID: "unfinished", PodCount: &one, Env: map[string]string{"AGENT_LINES": "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := site.events.Await(ctx, id); err != nil {
		t.Fatal(err)
	}
	awaitWorkers(ctx, t, "unfinished", "it runs", func(pods map[string]*corev1.Pod) bool {
		return len(pods) == 1 && all(pods, func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	})
	name := listWorkers(ctx, t, "unfinished")[0].Name
	awaitLine(ctx, t, name, name+" line 1")

	if err := site.Uninstall(site.namespace); err != nil {
		t.Fatal(err)
	}
	checkLog(ctx, t, name, 0) // its last words too

	// What the namespace had before the chart, and Redis' password, which is the user's.
	out, err := kubectl(ctx, "get", "all,configmaps,secrets,serviceaccounts,roles,rolebindings", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	for object := range strings.Lines(out) {
		switch strings.TrimSpace(object) {
		case "configmap/kube-root-ca.crt", "serviceaccount/default", "secret/ottoscaler-redis", "":
		default:
			t.Errorf("left behind: %s", strings.TrimSpace(object))
		}
	}
}

// sendTestEvent runs `make test-event` as a developer would, and returns what it printed.
func sendTestEvent(t *testing.T, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), ".env.jinwoo.local")
	if err := site.WriteEnvFile(file, site.namespace); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "make", "--no-print-directory", "test-event", "ARGS="+strings.Join(append(args, "--wait"), " "))
	cmd.Dir = site.Root
	cmd.Env = append(os.Environ(), "ENV_FILE="+file)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make test-event %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func kubectl(ctx context.Context, args ...string) (string, error) {
	program, err := site.Cluster.Kubectl()
	if err != nil {
		return "", err
	}
	args = append([]string{"--kubeconfig", site.Cluster.Kubeconfig, "-n", site.namespace}, args...)
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(out), err
}

func listWorkers(ctx context.Context, t *testing.T, task string) []corev1.Pod {
	t.Helper()
	list, err := site.Core.Pods(site.namespace).List(ctx, metav1.ListOptions{LabelSelector: pod.LabelTask + "=" + task})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// awaitWorkers watches a task's pods until they are as wanted.
func awaitWorkers(ctx context.Context, t *testing.T, task, want string, ok func(map[string]*corev1.Pod) bool) {
	t.Helper()
	api := site.Core.Pods(site.namespace)
	selector := metav1.ListOptions{LabelSelector: pod.LabelTask + "=" + task}
	for {
		pods := map[string]*corev1.Pod{}
		list, err := api.List(ctx, selector)
		if err != nil {
			t.Fatalf("waiting until %s: %v", want, err)
		}
		for i := range list.Items {
			pods[list.Items[i].Name] = &list.Items[i]
		}
		if ok(pods) {
			return
		}
		selector.ResourceVersion = list.ResourceVersion
		w, err := api.Watch(ctx, selector)
		if err != nil {
			t.Fatalf("waiting until %s: %v", want, err)
		}
		for e := range w.ResultChan() {
			p, isPod := e.Object.(*corev1.Pod)
			switch {
			case !isPod:
			case e.Type == watch.Deleted:
				delete(pods, p.Name)
			default:
				pods[p.Name] = p
			}
			if ok(pods) {
				w.Stop()
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("waiting until %s: %v; there are:\n%s", want, ctx.Err(), describe(pods))
		}
		selector.ResourceVersion = "" // the watch timed out: list again
	}
}

func describe(pods map[string]*corev1.Pod) string {
	var b strings.Builder
	for name, p := range pods {
		fmt.Fprintf(&b, "%s: %s, deleted %v, finalizers %v\n", name, p.Status.Phase, p.DeletionTimestamp, p.Finalizers)
	}
	return b.String()
}

func all(pods map[string]*corev1.Pod, ok func(*corev1.Pod) bool) bool {
	for _, p := range pods {
		if !ok(p) {
			return false
		}
	}
	return true
}

// awaitLine waits until a line of a worker is at the log server.
func awaitLine(ctx context.Context, t *testing.T, worker, line string) {
	t.Helper()
	if err := site.logs.Wait(ctx, func() bool { return slices.Contains(logOf(worker).Lines, line) }); err != nil {
		t.Fatalf("waiting for line %q of %s: %v; there are %d lines", line, worker, err, len(logOf(worker).Lines))
	}
}

// logOf returns what the log server holds of a worker's only container.
func logOf(worker string) logserver.Log {
	w, _ := site.logs.Worker(worker)
	if len(w.Logs) == 0 {
		return logserver.Log{}
	}
	return w.Logs[0]
}

// checkLog compares what a worker printed with what the log server has: every
// line once, and in order. total is how many lines it was to print, or 0 when it
// was told to stop: then its last words say how many it printed.
func checkLog(ctx context.Context, t *testing.T, worker string, total int) {
	t.Helper()
	if err := site.logs.Wait(ctx, func() bool { w, _ := site.logs.Worker(worker); return w.End != nil }); err != nil {
		t.Fatalf("waiting for the end of %s: %v", worker, err)
	}
	for _, gap := range logOf(worker).Gaps {
		t.Errorf("log of %s: a gap at line %d, %s: %s", worker, gap.Sequence, gap.GetReason(), gap.GetMessage())
	}
	lines := logOf(worker).Lines
	if total == 0 {
		var name string
		found := slices.ContainsFunc(lines, func(line string) bool {
			n, err := fmt.Sscanf(line, "last words of %s after %d lines", &name, &total)
			return err == nil && n == 2
		})
		if !found {
			t.Fatalf("log of %s: got no last words in %d lines", worker, len(lines))
		}
		if name != worker {
			t.Errorf("last words: got those of %q, want those of %q", name, worker)
		}
	}
	// Standard output and standard error are two pipes: the runtime keeps the order
	// of each, and none between them. The agent sends every fifth line to the latter.
	var stdout, stderr []int
	for _, line := range lines {
		number, ok := strings.CutPrefix(line, worker+" line ")
		n, err := strconv.Atoi(number)
		switch {
		case !ok && strings.HasPrefix(line, "last words of "):
		case !ok || err != nil:
			t.Errorf("log of %s: got the line %q, which it did not print", worker, line)
		case n%5 == 0:
			stderr = append(stderr, n)
		default:
			stdout = append(stdout, n)
		}
	}
	for stream, got := range map[string][]int{"standard output": stdout, "standard error": stderr} {
		if !slices.IsSorted(got) {
			t.Errorf("log of %s: the lines of %s are out of order: %v", worker, stream, got)
		}
	}
	got := slices.Concat(stdout, stderr)
	slices.Sort(got)
	want := make([]int, total)
	for i := range want {
		want[i] = i + 1
	}
	if !slices.Equal(got, want) {
		t.Errorf("log of %s: got lines %v, want 1 to %d, each once", worker, got, total)
	}
	if l := logOf(worker); !l.Complete || !l.Matches {
		t.Errorf("log of %s: complete %v, and its line count, byte count and checksum match %v; want both", worker, l.Complete, l.Matches)
	}
}
