package logs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/rest"
	"pgregory.net/rapid"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

const (
	onStdout = logsv1.Stream_STREAM_STDOUT
	onStderr = logsv1.Stream_STREAM_STDERR
	unknown  = logsv1.Stream_STREAM_UNSPECIFIED
)

// A split is a log and its streams, as text.
type split struct{ all, stdout, stderr string }

func (s split) open(_ context.Context, read Read) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(map[string]string{"": s.all, corev1.LogStreamStdout: s.stdout, corev1.LogStreamStderr: s.stderr}[read.Stream])), nil
}

// labelsOf reads a log to its end.
func labelsOf(t fatalist, s split) (labels []logsv1.Stream) {
	t.Helper()
	lines := newLineReader(strings.NewReader(s.all), func() {})
	lines.labels = newLabels(context.Background(), s.open, Read{})
	defer lines.labels.close()
	for {
		_, _, err := lines.next()
		if errors.Is(err, io.EOF) {
			return labels
		}
		if err != nil {
			t.Fatalf("reading: %v", err)
		}
		labels = append(labels, lines.stream)
	}
}

func TestLinesAreLabelledInTheOrderOfTheLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s split
		var want []logsv1.Stream
		stamp := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
		same := map[string]logsv1.Stream{}
		for range rapid.IntRange(0, 60).Draw(t, "lines") {
			// Stamps are equal, step back a little, or leap.
			stamp = stamp.Add(time.Duration(rapid.SampledFrom([]int{0, 0, 1, -1, 1000, -1000, 3e9}).Draw(t, "step")))
			line := fmt.Sprintf("%s text %d\n", stamp.Format("2006-01-02T15:04:05.000000000Z"), rapid.IntRange(0, 2).Draw(t, "text"))
			label := rapid.SampledFrom([]logsv1.Stream{onStdout, onStderr}).Draw(t, "stream")
			if other, ok := same[line]; ok {
				label = other // the same text at the same nanosecond on both streams could be either
			}
			same[line] = label
			s.all += line
			if label == onStdout {
				s.stdout += line
			} else {
				s.stderr += line
			}
			want = append(want, label)
		}
		if diff := cmp.Diff(want, labelsOf(t, s)); diff != "" {
			t.Errorf("labels (-want +got):\n%s\nof\n%s", diff, s.all)
		}
	})
}

const t1, t2, t3, t4 = "2026-11-22T12:00:00.000000001Z ", "2026-11-22T12:00:00.000000002Z ", "2026-11-22T12:00:00.000000003Z ", "2026-11-22T12:00:00.000000004Z "

func TestLabelsThatCannotBeKnownAreLeftOut(t *testing.T) {
	for _, row := range []struct {
		name string
		split
		want []logsv1.Stream
	}{
		// What a kubelet makes of a long line on stdout, in two parts, with one on stderr between.
		{"a long line that was torn", split{
			t1 + "long" + "err\n" + t3 + "er\n" + t4 + "next\n",
			t1 + "long" + t3 + "er\n" + t4 + "next\n",
			"err\n",
		}, []logsv1.Stream{unknown, unknown, onStdout}},
		{"a stream that is not there", split{t1 + "a\n" + t2 + "b\n" + t3 + "c\n", t1 + "a\n" + t3 + "c\n", ""}, []logsv1.Stream{onStdout, unknown, onStdout}},
		{"no stream at all", split{t1 + "a\n" + t2 + "b\n", "", ""}, []logsv1.Stream{unknown, unknown}},
	} {
		if diff := cmp.Diff(row.want, labelsOf(t, row.split)); diff != "" {
			t.Errorf("%s: labels (-want +got):\n%s", row.name, diff)
		}
	}
}

func TestStreamThatHangsHoldsUpNothing(t *testing.T) {
	var text strings.Builder
	for i := range 3 * mostAhead {
		fmt.Fprintf(&text, "2026-11-22T12:%02d:%02d.%09dZ line %d\n", i/1000/60, i/1000%60, i%1000, i)
	}
	s := split{all: text.String(), stdout: text.String()}
	lines := newLineReader(strings.NewReader(s.all), func() {})
	lines.labels = newLabels(t.Context(), func(ctx context.Context, read Read) (io.ReadCloser, error) {
		if read.Stream == corev1.LogStreamStderr {
			r, w := io.Pipe()
			context.AfterFunc(ctx, func() { w.Close() }) //nolint:errcheck // never fails
			return r, nil
		}
		return s.open(ctx, read)
	}, Read{})
	defer lines.labels.close()
	for i := range 3 * mostAhead {
		_, _, err := lines.next()
		if err != nil {
			t.Fatal(err)
		}
		if lines.stream != onStdout {
			t.Fatalf("line %d: %v", i, lines.stream)
		}
	}
}

// split makes the rig's source one of two streams, and prints to them.
func (r *rig) split() (print func(label logsv1.Stream, at time.Time, text string), labels func() []logsv1.Stream) {
	streams := map[string]*logstest.Source{"": r.source, corev1.LogStreamStdout: logstest.NewSource(), corev1.LogStreamStderr: logstest.NewSource()}
	var mu sync.Mutex
	byLine := map[uint64]logsv1.Stream{}
	r.server.backend.SetFaults(logstest.Faults{Batch: func(_ logstest.Key, b *logsv1.Batch) logstest.Action {
		mu.Lock()
		defer mu.Unlock()
		for i := range b.GetLengths() {
			label := unknown
			if len(b.GetStreams()) > 0 {
				label = b.GetStreams()[i]
			}
			byLine[b.GetFirstSequence()+uint64(i)] = label
		}
		return logstest.Action{}
	}})
	r.follow.splits = func(context.Context) bool { return true }
	r.follow.open = func(ctx context.Context, read Read) (io.ReadCloser, error) {
		return streams[read.Stream].Open(ctx, read.Since, read.Follow), nil
	}
	print = func(label logsv1.Stream, at time.Time, text string) {
		name := corev1.LogStreamStdout
		if label == onStderr {
			name = corev1.LogStreamStderr
		}
		streams[name].Print(at, text)
		r.source.Print(at, text)
	}
	labels = func() (all []logsv1.Stream) {
		mu.Lock()
		defer mu.Unlock()
		for i := range uint64(len(byLine)) {
			all = append(all, byLine[i+1])
		}
		return all
	}
	return print, labels
}

func TestServerIsToldWhereLinesWereWrittenTo(t *testing.T) {
	r := newTestRig(t)
	print, labels := r.split()
	var want []logsv1.Stream
	var texts []string
	for i := range 12 { // more than two batches, in one second
		label := []logsv1.Stream{onStdout, onStdout, onStderr}[i%3]
		texts = append(texts, fmt.Sprintf("line %d", i))
		want = append(want, label)
		print(label, at(float64(i) * 0.01)[0], texts[i])
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.start(ctx)
	r.await(12)
	cancel()
	<-r.done //nolint:errcheck // it was told to stop
	open, splits := r.follow.open, r.follow.splits
	r.renew()
	r.follow.open, r.follow.splits = open, splits
	for i := 12; i < 20; i++ { // in the same second: the next relay skips what is stored
		label := []logsv1.Stream{onStderr, onStdout}[i%2]
		texts = append(texts, fmt.Sprintf("line %d", i))
		want = append(want, label)
		print(label, at(float64(i) * 0.01)[0], texts[i])
	}
	r.end()
	r.run(texts)
	if diff := cmp.Diff(want, labels()); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

func TestLabelsSurviveTheSpoolAndASplit(t *testing.T) {
	b := &batch{base: 1, latest: 1}
	var at Cursor
	want := []logsv1.Stream{unknown, onStdout, onStderr, onStdout, unknown}
	for i, label := range want {
		text := []byte(strings.Repeat("x", 1000) + "\n")
		at.advance(1, uint32(i+1))
		b.add(1, text, label, at)
	}
	b.seal()
	record, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := decode(record)
	if err != nil {
		t.Fatal(err)
	}
	var got []logsv1.Stream
	parts := decoded.split(windowLimits{lines: 500, batchBytes: 2500})
	for _, part := range parts {
		labels := slices.Clone(part.proto().GetStreams())
		for len(labels) < len(part.lengths) {
			labels = append(labels, unknown)
		}
		got = append(got, labels...)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(parts) < 2 {
		t.Errorf("%d parts; labels (-want +got):\n%s", len(parts), diff)
	}
}

func TestClusterIsAskedOnceWhetherItSplits(t *testing.T) {
	invalid := apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, probePod, field.ErrorList{field.Forbidden(field.NewPath("stream"), "")})
	missing := apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, probePod)
	away := apierrors.NewServiceUnavailable("not now")
	for _, row := range []struct {
		name            string
		nonsense, sense *apierrors.StatusError
		want            bool
		asks            int
	}{
		{"allowed", invalid, missing, true, 2},
		{"forbidden", invalid, invalid, false, 2},
		{"not known", missing, missing, false, 2},
		{"not answered", away, away, false, 4},
	} {
		asks := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asks++
			answer := row.sense
			if r.URL.Query().Get("stream") == "Nonsense" {
				answer = row.nonsense
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(int(answer.ErrStatus.Code))
			status := answer.ErrStatus
			status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
			json.NewEncoder(w).Encode(status) //nolint:errcheck // the client would tell
		}))
		c, err := NewCluster(&rest.Config{Host: server.URL}, "otto", "ottoscaler")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for range 2 { // the second time at once
				if got := c.Splits(t.Context()); got != row.want {
					t.Errorf("%s: %v", row.name, got)
				}
			}
			c.asked = c.asked.Add(-2 * probeAgain)
		}
		if asks != row.asks {
			t.Errorf("%s: asked %d times, want %d", row.name, asks, row.asks)
		}
		server.Close()
	}
}
