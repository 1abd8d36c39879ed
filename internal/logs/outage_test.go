package logs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
)

// When the API server dies, each log breaks by itself, with lines that were read before,
// and each is opened again and again, in vain, in its own words.
func TestOutageOfManyLogsIsSaidOnceAndSoIsItsEnd(t *testing.T) {
	r := newRelayRig(t)
	var told story
	r.log = slog.New(slog.NewTextHandler(&told, nil))
	p := workerPod()
	p.Spec.InitContainers, p.Status.InitContainerStatuses = nil, nil
	p.Spec.Containers, p.Status.ContainerStatuses = nil, nil
	names := make([]string, 20)
	for i := range names {
		names[i] = "agent-" + string(rune('a'+i))
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: names[i]})
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: names[i], State: running()})
	}
	p.Status.Phase = corev1.PodRunning
	r.cluster.Add(p)
	r.start()
	r.offer(p)
	said := func(text string) (n int) {
		for _, line := range told.lines() {
			if strings.Contains(line, text) && strings.Contains(line, `"container logs"`) {
				n++
			}
		}
		return n
	}
	eventually := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within %v: %s", patience, what)
			}
		}
	}
	for outage := range 3 {
		for _, name := range names {
			r.source(name).Print(at(float64(outage))[0], fmt.Sprintf("line %d of %s", outage, name))
			r.holds(logstest.Key{WorkerUID: "uid-1", Container: name}, outage+1)
		}
		var tried atomic.Int32
		r.mu.Lock()
		r.away = func(read Read) error {
			why := []error{syscall.ECONNREFUSED, syscall.ECONNRESET, io.EOF}[tried.Add(1)%3]
			return &url.Error{Op: "Get", URL: "https://api/" + read.Container, Err: why}
		}
		r.mu.Unlock()
		for _, name := range names {
			r.source(name).Cut(io.ErrUnexpectedEOF)
		}
		eventually("all try to open their logs", func() bool { return tried.Load() >= int32(3*len(names)) })
		if up, down := said("available again"), said("unavailable"); up != outage || down != outage+1 {
			t.Fatalf("in outage %d: it is said to be over %d times, to be there %d times:\n%s", outage+1, up, down, strings.Join(told.lines(), "\n"))
		}
		r.mu.Lock()
		r.away = nil
		r.mu.Unlock()
		eventually("the end of the outage is said, although no worker prints", func() bool { return said("available again") == outage+1 })
	}
	r.halt()
	if up, down := said("available again"), said("unavailable"); up != 3 || down != 3 {
		t.Errorf("three outages: said to be over %d times, to be there %d times:\n%s", up, down, strings.Join(told.lines(), "\n"))
	}
}

func TestOutageTakesNoNoticeOfWhatIsOldNews(t *testing.T) {
	var told story
	up := prometheus.NewGauge(prometheus.GaugeOpts{Name: "up"})
	o := &outage{name: "it", about: unreachable, log: slog.New(slog.NewTextHandler(&told, nil)), up: up}
	want := func(when string, lines int, isUp float64) {
		t.Helper()
		if n := strings.Count(strings.Join(told.lines(), "\n"), "level="); n != lines || count(up) != isUp {
			t.Errorf("%s: %d lines, up = %v, want %d and %v:\n%q", when, n, count(up), lines, isUp, told.lines())
		}
	}
	broken := errors.New("broken")
	first, second, slow := o.use(), o.use(), o.use()
	first.succeeds(t.Context())
	second.succeeds(t.Context())
	want("at first", 0, 1)
	first.explains(t.Context(), broken)
	second.succeeds(t.Context()) // what was on its way
	want("after an answer to what began before the outage", 1, 0)
	second.explains(t.Context(), broken)
	want("after the same again", 1, 0)
	third := o.use()
	third.succeeds(t.Context())
	want("after an answer to what began in the outage", 2, 1)
	slow.explains(t.Context(), broken)
	want("after an attempt that began before its end and failed", 2, 1)
	third.explains(t.Context(), broken)
	want("after a connection that broke", 3, 0)
}
