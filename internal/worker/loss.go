package worker

import (
	"context"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// A loss is what the log server will never have of a worker's logs.
type loss struct {
	lines     string // how many
	count     uint64 // the same, where it is known
	unread    bool   // and nobody knows how many more
	abandoned bool   // because the drain deadline has passed
	told      bool   // guarded by Manager.mu
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

// tellLoss counts what was lost of a worker's logs and says so, once: in an Event, and
// to the producer, in a second telling of the worker's end. The worker is not held for
// it. It returns the end with the loss in its reason.
func (m *Manager) tellLoss(ctx context.Context, p *corev1.Pod, l *life, end End) End {
	if end.Class == "" {
		return end // the cache is behind the relay, which has seen the end: the pod's change brings us back
	}
	m.mu.Lock()
	lost := l.lost
	told := lost == nil || lost.told
	if lost != nil {
		lost.told = true
	}
	m.mu.Unlock()
	if lost == nil {
		return end
	}
	if end.Reason != "" {
		end.Reason += "; "
	}
	end.Reason += lost.String()
	if told {
		return end
	}
	if lost.abandoned {
		m.metrics.logsAbandoned.Inc()
	}
	m.metrics.lostLines.Add(float64(lost.count))
	m.log.WarnContext(ctx, "log lines of a worker are lost", "pod", p.Name, "event", l.event, "task", l.task,
		"lines", lost.lines, "unread", lost.unread, "abandoned", lost.abandoned)
	m.recorder.Eventf(p, corev1.EventTypeWarning, "LogsLost", "%s", lost)
	end.LogsLost = true
	if err := m.ended(ctx, end); err != nil {
		m.log.WarnContext(ctx, "cannot tell the producer that log lines are lost", "pod", p.Name, "err", err)
	}
	return end
}
