package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// A life is what this process knows of one worker beside its pod. Nothing in it
// is needed after a restart.
type life struct {
	name, event, task string

	// All below is guarded by Manager.mu.
	offeredIn  int       // the session of the queue in which it was offered
	logsDone   bool      // nothing more will be read of its logs
	lost       *loss     // what of them the log server will never have, until it is told
	settledFor string    // the events that are known to be settled
	awaiting   string    // the events whose settlement is awaited
	stopWait   func()    // ends that wait
	letGo      bool      // the queue has been told to forget it
	endSeen    time.Time // when its end was first seen here
	endTold    bool      // its end is stored for the producer of its event
	sawPending bool
	sawRunning bool
}

// step takes the next worker a step further. It returns false once there will be
// no more.
func (m *Manager) step(ctx context.Context) bool {
	r, shutdown := m.work.Get()
	if shutdown {
		return false
	}
	defer m.work.Done(r)
	err := m.reconcile(ctx, r)
	switch {
	case err == nil:
		m.work.Forget(r)
	case ctx.Err() != nil: // told to stop
	default:
		if !errors.Is(err, errChanged) { // the cache will catch up
			m.log.WarnContext(ctx, "worker is stuck, trying again", "pod", r.name, "attempt", m.work.NumRequeues(r)+1, "err", err)
		}
		m.work.AddRateLimited(r)
	}
	return true
}

// reconcile moves one worker a step towards its end, from what the cache shows
// now: it is followed, then released, then collected. It doesn't know what woke
// it, and running it twice is free.
func (m *Manager) reconcile(ctx context.Context, r ref) error {
	p := m.cluster.get(r.name)
	if p == nil || p.UID != r.uid {
		m.forget(ctx, r)
		return nil
	}
	l := m.lifeOf(p)
	m.witness(ctx, p, l)
	if !held(p) {
		// Released, by us or by force. The outcome has done its work.
		m.letGo(ctx, p.UID, l)
		if finished(p) && p.DeletionTimestamp == nil {
			return m.collect(ctx, p)
		}
		return nil
	}
	if err := m.offer(ctx, p, l); err != nil {
		return err
	}
	if err := m.tellEnd(ctx, p, l); err != nil {
		return err
	}
	// A victim whose event ended between the mark and the deletion, as an expired
	// one may, is to go all the same.
	overlooked := p.DeletionTimestamp == nil && p.Annotations[pod.AnnotationScaledDownBy] != ""
	if !overlooked && !m.logsComplete(ctx, p, l) {
		return nil // the outcome, the end of the pod or the deadline brings us back
	}
	if !m.settled(ctx, p, l) {
		return nil // the end of the wait brings us back
	}
	if overlooked {
		return m.collect(ctx, p)
	}
	m.tellLoss(ctx, p, l)
	if err := m.cluster.release(ctx, p); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "worker released", "pod", p.Name, "event", l.event, "task", l.task, "pool", p.Labels[pod.LabelPool])
	return nil // the pod's change brings us back
}

// lifeOf returns what we know of a worker.
func (m *Manager) lifeOf(p *corev1.Pod) *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lives[p.UID]
	if l == nil {
		l = &life{name: p.Name, event: p.Annotations[pod.AnnotationEventID], task: p.Annotations[pod.AnnotationTaskID]}
		m.lives[p.UID] = l
	}
	return l
}

// forget ends what we know of a worker that is gone.
func (m *Manager) forget(ctx context.Context, r ref) {
	m.mu.Lock()
	l := m.lives[r.uid]
	delete(m.lives, r.uid)
	if l != nil && l.stopWait != nil {
		l.stopWait()
	}
	m.mu.Unlock()
	if l != nil {
		m.letGo(ctx, r.uid, l)
	}
}

// letGo has the queue forget a worker, once: a worker that is no longer held may
// change many times before it is gone.
func (m *Manager) letGo(ctx context.Context, uid types.UID, l *life) {
	m.mu.Lock()
	again := l.letGo
	l.letGo = true
	m.mu.Unlock()
	if !again {
		m.settle(ctx, uid)
	}
}

// witness logs and counts what happens to a worker, each once.
func (m *Manager) witness(ctx context.Context, p *corev1.Pod, l *life) {
	m.mu.Lock()
	running := p.Status.Phase == corev1.PodRunning && l.sawPending && !l.sawRunning
	l.sawPending = l.sawPending || p.Status.Phase == corev1.PodPending
	l.sawRunning = l.sawRunning || p.Status.Phase == corev1.PodRunning
	end := ended(p) && l.endSeen.IsZero()
	if end {
		l.endSeen = time.Now()
	}
	m.mu.Unlock()

	if d, known := sinceEvent(l.event, time.Now()); running && known {
		m.metrics.eventToRun.Observe(d.Seconds())
	}
	if !end || !held(p) {
		return
	}
	attrs := []any{"pod", p.Name, "event", l.event, "task", l.task, "pool", p.Labels[pod.LabelPool], "end", endOf(p)}
	if reason := reasonOf(p); reason != "" {
		attrs = append(attrs, "reason", reason)
	}
	if t := agentEnd(p); t != nil {
		attrs = append(attrs, "exit_code", t.ExitCode)
	}
	m.metrics.finished.WithLabelValues(endOf(p)).Inc()
	m.log.InfoContext(ctx, "worker finished", attrs...)
}

// tellEnd has the end of a worker be stored where its event's producer finds it.
func (m *Manager) tellEnd(ctx context.Context, p *corev1.Pod, l *life) error {
	m.mu.Lock()
	told := l.endTold || l.endSeen.IsZero()
	m.mu.Unlock()
	if told {
		return nil
	}
	end := queue.WorkerEnd{
		Worker: queue.Worker{Namespace: p.Namespace, Name: p.Name, TaskID: l.task, Pool: p.Labels[pod.LabelPool], EventID: l.event},
		Status: endOf(p), Reason: reasonOf(p),
	}
	if end.Status == "deleted" {
		end.Status = scaleevent.StatusRemoved
	}
	if t := agentEnd(p); t != nil {
		code := int(t.ExitCode)
		end.ExitCode = &code
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := m.ends.ReportWorkerEnd(ctx, end); err != nil {
		return fmt.Errorf("telling the end of worker %s: %w", p.Name, err)
	}
	m.mu.Lock()
	l.endTold = true
	m.mu.Unlock()
	return nil
}

// endOf says how a worker ended. One that was deleted or evicted before its end
// did not succeed, whatever its exit code.
func endOf(p *corev1.Pod) string {
	switch {
	case p.Status.Phase == corev1.PodFailed:
		return "failed"
	case p.DeletionTimestamp != nil:
		return "deleted"
	default:
		return "succeeded"
	}
}

func reasonOf(p *corev1.Pod) string {
	if p.Status.Reason != "" { // Evicted, DeadlineExceeded …
		return p.Status.Reason
	}
	if t := agentEnd(p); t != nil {
		return t.Reason
	}
	return ""
}

// agentEnd returns how the container ended that does the work, or nil.
func agentEnd(p *corev1.Pod) *corev1.ContainerStateTerminated {
	name := agentContainer
	if chosen := p.Annotations[defaultContainerAnnotation]; chosen != "" {
		name = chosen
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == name || len(p.Spec.Containers) == 1 {
			return c.State.Terminated
		}
	}
	return nil
}

// logsComplete reports whether a worker need not be held for its logs: all of
// them are acknowledged, or the deadline after its end has passed.
//
// The deadline counts from when this process saw the end. It is there for a log
// server that does not come back, not for a main pod that was away: that one is
// to have its full time.
func (m *Manager) logsComplete(ctx context.Context, p *corev1.Pod, l *life) bool {
	m.mu.Lock()
	done, endSeen := l.logsDone, l.endSeen
	m.mu.Unlock()
	if done || endSeen.IsZero() {
		return done
	}
	if rest := m.logDrainTimeout - time.Since(endSeen); rest > 0 {
		m.work.AddAfter(refOf(p), rest)
		return false
	}
	m.mu.Lock()
	l.logsDone = true
	l.lost = &loss{lines: "an unknown number of", abandoned: true}
	m.mu.Unlock()
	m.log.WarnContext(ctx, "releasing a worker before the log server has acknowledged its last line",
		"pod", p.Name, "event", l.event, "task", l.task, "waited", time.Since(endSeen).Round(time.Millisecond))
	return true
}

// settled reports whether the events that touched a worker are settled: as long as
// one of them can be delivered again, it has to find the worker. If that is not
// known yet, a wait for it begins.
func (m *Manager) settled(ctx context.Context, p *corev1.Pod, l *life) bool {
	ids := slices.DeleteFunc([]string{
		p.Annotations[pod.AnnotationEventID],
		p.Annotations[pod.AnnotationScaledDownBy],
	}, func(id string) bool { return id == "" })
	events := strings.Join(ids, " ")

	m.mu.Lock()
	defer m.mu.Unlock()
	if events == "" || l.settledFor == events {
		return true
	}
	if l.awaiting == events {
		return false
	}
	if l.stopWait != nil {
		l.stopWait()
	}
	ctx, cancel := context.WithCancel(ctx)
	l.awaiting, l.stopWait = events, cancel
	r := refOf(p)
	m.waits.Go(func() {
		defer cancel()
		for range backoff.Default.Attempts(ctx) {
			if err := m.events.AwaitSettled(ctx, ids...); err != nil {
				m.log.DebugContext(ctx, "cannot learn whether events are settled", "pod", r.name, "event", events, "err", err)
				continue
			}
			m.mu.Lock()
			if l.awaiting == events {
				l.settledFor, l.awaiting = events, ""
			}
			m.mu.Unlock()
			m.work.Add(r)
			return
		}
	})
	return false
}

// collect deletes a worker that has no reason to stay.
func (m *Manager) collect(ctx context.Context, p *corev1.Pod) error {
	if err := m.cluster.remove(ctx, refOf(p)); err != nil {
		m.metrics.deletes.WithLabelValues("failed").Inc()
		return err
	}
	m.metrics.deletes.WithLabelValues("deleted").Inc()
	return nil
}
