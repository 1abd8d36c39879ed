// Package rotation proves on a real kubelet what becomes of lines that it rotates away
// while nobody reads them.
package rotation

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/test/logserver"
)

// site is an installation as programs on this machine, and a node that rotates a log every
// three seconds, if it has grown by 64 KiB. It keeps four files besides the current one.
var site struct {
	*lab.Lab
	*lab.Processes
	namespace string
	logs      *logserver.Server
	stopLogs  func() error
	events    *lab.Events
}

// The service accounts that nodes are shown a token of.
const (
	allowed   = "node-logs"
	forbidden = "nothing"
)

// rate is how many lines a worker prints each second: some 40 KiB in the node's file.
const rate = 600

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run sets up once for all tests, because a cluster takes its time.
func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Minute)
	defer cancel()
	err := setUp(ctx)
	if err == nil {
		code = m.Run()
	}
	if err = errors.Join(err, tearDown(code != 0 || err != nil)); err != nil {
		fmt.Fprintln(os.Stderr, "rotation:", err)
		return 1
	}
	return code
}

func setUp(ctx context.Context) (err error) {
	name := cmp.Or(os.Getenv("CLUSTER_NAME"), "rotation-test")
	if site.Lab, err = lab.Up(ctx, lab.Options{Name: name, Kind: cluster.Source, Nodes: 1, LogMaxSize: "64Ki", Output: os.Stderr}); err != nil {
		return err
	}
	if err := site.LoadImages(ctx); err != nil {
		return err
	}
	if site.namespace, err = site.Namespace(ctx, "rotation"); err != nil {
		return err
	}
	err = errors.Join(site.NodeLogsAccount(ctx, site.namespace, allowed, true), site.NodeLogsAccount(ctx, site.namespace, forbidden, false))
	if err != nil {
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
	if site.Processes, err = site.Lab.Processes(ctx, site.namespace, listener.Addr().String()); err != nil {
		return err
	}
	if err := site.Start(lab.Consumer, lab.Scaler); err != nil {
		return err
	}
	return site.AwaitReady(ctx, lab.Consumer)
}

func tearDown(failed bool) error {
	var errs []error
	if site.Processes != nil {
		if failed {
			fmt.Fprintln(os.Stderr, "the log of the relay is", site.LogFile(lab.LogRelay))
			errs = append(errs, site.Kill(lab.LogRelay, lab.Scaler, lab.Consumer))
		} else {
			errs = append(errs, site.Processes.Close())
		}
	}
	if site.stopLogs != nil {
		errs = append(errs, site.stopLogs())
	}
	if site.Lab != nil {
		errs = append(errs, site.Lab.Close())
	}
	return errors.Join(errs...)
}

func TestNodeThatRefusesLeavesAGapAndOneWarning(t *testing.T) {
	ctx := within(t, 90*time.Second)
	startRelay(ctx, t, forbidden)
	worker := launch(ctx, t, "refused", 20*rate)
	awaitLines(ctx, t, worker, rate)
	stopRelay(t)
	awaitRotations(ctx, t, worker, 2)
	startRelay(ctx, t, forbidden)
	log := finished(ctx, t, worker)
	stopRelay(t)

	// There may be one more at the end, if a rotation came within its last second.
	if len(log.Gaps) == 0 || log.Gaps[0].GetReason() != "rotated" {
		t.Errorf("gaps: got %v, want one where the relay was away", log.Gaps)
	}
	if gone := missing(t, worker, log, 20*rate); len(gone) == 0 || gone[len(gone)-1]-gone[0]+1 != len(gone) {
		t.Errorf("%d lines are missing, want some, next to each other", len(gone))
	}
	if said := linesOf(t, "does not show its rotated logs"); len(said) != 2 || !strings.Contains(said[0], "nodes/log") {
		t.Errorf("two relays say %q, want one line about nodes/log each", said)
	}
}

func TestLinesThatWereRotatedAwayWhileNobodyReadArriveOnceAndInOrder(t *testing.T) {
	ctx := within(t, 90*time.Second)
	startRelay(ctx, t, allowed)
	seen := launch(ctx, t, "seen", 25*rate)
	awaitLines(ctx, t, seen, rate)
	stopRelay(t)
	unseen := launch(ctx, t, "unseen", 15*rate) // which nobody reads for a while
	awaitRotations(ctx, t, unseen, 2)
	startRelay(ctx, t, allowed)
	for worker, lines := range map[string]int{seen: 25 * rate, unseen: 15 * rate} {
		log := finished(ctx, t, worker)
		if gone := missing(t, worker, log, lines); len(gone) > 0 || len(log.Gaps) > 0 {
			t.Errorf("%s: %d lines are missing, gaps are %v", worker, len(gone), log.Gaps)
		}
	}
	stopRelay(t)
}

func TestGapStandsForExactlyWhatTheNodeHasRemoved(t *testing.T) {
	ctx := within(t, 90*time.Second)
	const lines = 35 * rate
	startRelay(ctx, t, allowed)
	worker := launch(ctx, t, "removed", lines)
	awaitLines(ctx, t, worker, rate)
	stopRelay(t)
	awaitEnd(ctx, t, worker)
	oldest := oldestLine(ctx, t, worker) // the node's files are as they will be
	startRelay(ctx, t, allowed)
	log := finished(ctx, t, worker)
	stopRelay(t)

	if len(log.Gaps) != 1 || log.Gaps[0].GetReason() != "rotated" {
		t.Errorf("gaps: got %v, want one", log.Gaps)
	}
	gone := missing(t, worker, log, lines)
	if len(gone) == 0 {
		t.Fatal("nothing was removed: the test proves nothing")
	}
	if first, last := gone[0], gone[len(gone)-1]; last-first+1 != len(gone) || first <= rate || last != oldest-1 {
		t.Errorf("%d lines are missing, from %d to %d; the oldest that the node has is %d", len(gone), first, last, oldest)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func startRelay(ctx context.Context, t *testing.T, account string) {
	t.Helper()
	site.Set(lab.LogRelay, "ROTATED_LOGS_ACCOUNT="+account)
	if err := site.Start(lab.LogRelay); err != nil {
		t.Fatal(err)
	}
	if err := site.AwaitReady(ctx, lab.LogRelay); err != nil {
		t.Fatal(err)
	}
}

// stopRelay kills the relay, which is the ruder way.
func stopRelay(t *testing.T) {
	t.Helper()
	if err := site.Kill(lab.LogRelay); err != nil {
		t.Fatal(err)
	}
}

// launch starts a worker that prints so many lines, and returns its name.
func launch(ctx context.Context, t *testing.T, task string, lines int) string {
	t.Helper()
	id, err := site.events.Send(ctx, map[string]string{
		"type": "scale_up", "task_id": task,
		"env.AGENT_LINES": strconv.Itoa(lines), "env.AGENT_RATE": strconv.Itoa(rate), "env.AGENT_STDERR_EVERY": "0",
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := site.events.Await(ctx, id); err != nil {
		t.Fatal(err)
	}
	list, err := site.Core.Pods(site.namespace).List(ctx, metav1.ListOptions{LabelSelector: pod.LabelTask + "=" + task})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("workers of task %s: got %d, %v, want one", task, len(list.Items), err)
	}
	return list.Items[0].Name
}

func logOf(worker string) logserver.Log {
	w, _ := site.logs.Worker(worker)
	if len(w.Logs) == 0 {
		return logserver.Log{}
	}
	return w.Logs[0]
}

func awaitLines(ctx context.Context, t *testing.T, worker string, lines int) {
	t.Helper()
	if err := site.logs.Wait(ctx, func() bool { return len(logOf(worker).Lines) >= lines }); err != nil {
		t.Fatalf("waiting for %d lines of %s: %v; there are %d", lines, worker, err, len(logOf(worker).Lines))
	}
}

// finished waits until the log server knows a worker's end, and returns its log.
func finished(ctx context.Context, t *testing.T, worker string) logserver.Log {
	t.Helper()
	if err := site.logs.Wait(ctx, func() bool { w, _ := site.logs.Worker(worker); return w.End != nil }); err != nil {
		t.Fatalf("waiting for the end of %s: %v; there are %d lines", worker, err, len(logOf(worker).Lines))
	}
	log := logOf(worker)
	if !log.Complete || !log.Matches {
		t.Errorf("the log of %s: complete %t, matches %t, want both", worker, log.Complete, log.Matches)
	}
	return log
}

// missing returns the numbers of the lines that are not in a log, which must have all
// others once and in order, and nothing else but gaps and, behind one, the rest of a line.
func missing(t *testing.T, worker string, log logserver.Log, lines int) (gone []int) {
	t.Helper()
	next, gap := 1, false
	for _, text := range log.Lines {
		if text == "" {
			gap = true
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(text, worker+" line "))
		if err != nil && gap {
			gap = false
			continue
		}
		if err != nil || n < next {
			t.Fatalf("%s has line %q where number %d should be", worker, text, next)
		}
		for ; next < n; next++ {
			gone = append(gone, next)
		}
		next, gap = n+1, false
	}
	for ; next <= lines; next++ {
		gone = append(gone, next)
	}
	return gone
}

// awaitEnd waits until a worker's pod has ended.
func awaitEnd(ctx context.Context, t *testing.T, worker string) {
	t.Helper()
	eventually(ctx, t, worker+" has ended", func() bool {
		p, err := site.Core.Pods(site.namespace).Get(ctx, worker, metav1.GetOptions{})
		return err == nil && p.Status.Phase == corev1.PodSucceeded
	})
}

// awaitRotations waits until the node has rotated a worker's log so often.
func awaitRotations(ctx context.Context, t *testing.T, worker string, rotations int) {
	t.Helper()
	files := rotated(ctx, t, worker)
	before := len(files)
	eventually(ctx, t, fmt.Sprintf("%s was rotated %d times", worker, rotations), func() bool {
		for _, name := range rotated(ctx, t, worker) {
			if !slices.Contains(files, name) {
				files = append(files, name)
			}
		}
		return len(files)-before >= rotations
	})
}

func eventually(ctx context.Context, t *testing.T, what string, is func() bool) {
	t.Helper()
	for range (backoff.Policy{Initial: 100 * time.Millisecond, Max: 500 * time.Millisecond}).Attempts(ctx) {
		if is() {
			return
		}
	}
	t.Fatalf("waiting until %s: %v", what, ctx.Err())
}

var rotatedFile = regexp.MustCompile(`>(0\.log\.[0-9]+-[0-9]+)(\.gz)?<`)

// rotated lists the files that the node has put away, without the .gz, from the oldest.
// The API server shows what the kubelet says, to an administrator.
func rotated(ctx context.Context, t *testing.T, worker string) (names []string) {
	t.Helper()
	page, err := file(ctx, worker, "")
	if apierrors.IsNotFound(err) {
		return nil // the container is not there yet
	}
	if err != nil {
		t.Fatalf("listing the log files of %s: %v", worker, err)
	}
	for _, found := range rotatedFile.FindAllSubmatch(page, -1) {
		if name := string(found[1]); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func file(ctx context.Context, worker, name string) ([]byte, error) {
	p, err := site.Core.Pods(site.namespace).Get(ctx, worker, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/api/v1/nodes/%s/proxy/logs/pods/%s_%s_%s/agent/%s", p.Spec.NodeName, p.Namespace, p.Name, p.UID, name)
	return site.Core.RESTClient().Get().RequestURI(path).SetHeader("Accept", "*/*").DoRaw(ctx)
}

// oldestLine returns the number of the first whole line that the node has of a worker.
func oldestLine(ctx context.Context, t *testing.T, worker string) int {
	t.Helper()
	names := rotated(ctx, t, worker)
	if len(names) == 0 {
		t.Fatalf("the log of %s was never rotated", worker)
	}
	packed, err := file(ctx, worker, names[0]+".gz")
	if err != nil {
		t.Fatal(err)
	}
	text, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(text); lines.Scan(); {
		if _, number, ok := strings.Cut(lines.Text(), " F "+worker+" line "); ok {
			n, err := strconv.Atoi(number)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("file %s of %s has no line", names[0], worker)
	return 0
}

// linesOf returns what the relay has logged that has a text in it.
func linesOf(t *testing.T, text string) (lines []string) {
	t.Helper()
	f, err := os.Open(site.LogFile(lab.LogRelay))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it is only read
	all, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}
