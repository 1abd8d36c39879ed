package worker

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// A loss is what the log server will never have of a worker's logs.
type loss struct {
	lines     string // how many
	count     uint64 // the same, where it is known
	unread    bool   // and nobody knows how many more
	abandoned bool   // because the drain deadline has passed
}

// lossOf returns what the log-relay says was lost of a worker's logs, or nil.
func lossOf(o queue.Outcome) *loss {
	lines, lost := o.Details[queue.DetailLostLines]
	if !lost {
		return nil
	}
	l := &loss{lines: lines, unread: o.Details[queue.DetailUnread] == "true", abandoned: o.Details[queue.DetailAbandoned] == "true"}
	l.count, _ = strconv.ParseUint(lines, 10, 64) // 0 if it isn't known
	return l
}

func (l *loss) String() string {
	text := l.lines + " log lines will never be at the log server"
	if l.unread {
		text += ", and what had not been read yet"
	}
	if l.abandoned {
		return text + ": the drain deadline has passed"
	}
	return text + ": they were dropped because it had not taken them in time"
}

// tellLoss counts what was lost of a worker's logs and says so in an Event, once.
// The worker is not held for it.
func (m *Manager) tellLoss(ctx context.Context, p *corev1.Pod, l *life) {
	m.mu.Lock()
	lost := l.lost
	l.lost = nil
	m.mu.Unlock()
	if lost == nil {
		return
	}
	if lost.abandoned {
		m.metrics.logsAbandoned.Inc()
	}
	m.metrics.lostLines.Add(float64(lost.count))
	m.log.WarnContext(ctx, "log lines of a worker are lost", "pod", p.Name, "event", l.event, "task", l.task,
		"lines", lost.lines, "unread", lost.unread, "abandoned", lost.abandoned)
	if m.kubeEvents == nil {
		return
	}
	now := metav1.NewTime(time.Now())
	_, err := m.kubeEvents.Events(p.Namespace).Create(ctx, &corev1.Event{
		// The name is the worker's own, so that a repetition is no second event.
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: fmt.Sprintf("%s.%.8s.logs-lost", p.Name, p.UID)},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
		},
		Type: corev1.EventTypeWarning, Reason: "LogsLost", Message: lost.String(), Count: 1,
		FirstTimestamp: now, LastTimestamp: now,
		Source:              corev1.EventSource{Component: "ottoscaler"},
		ReportingController: "ottoscaler.dev/scaler",
		ReportingInstance:   m.cluster.instance,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		m.log.WarnContext(ctx, "cannot say in an Event that log lines are lost", "pod", p.Name, "err", err)
	}
}
