package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// A life is what this process knows of one worker beside its pod. Nothing in it
// is needed after a restart.
type life struct {
	name, event, task string

	// All below is guarded by Manager.mu.
	offeredIn  int         // the session of the queue in which it was offered
	logsDone   bool        // nothing more will be read of its logs
	lost       *loss       // what of them the log server will never have, until it is told
	settledFor string      // the events that are known to be settled
	awaiting   string      // the events whose settlement is awaited
	letGo      bool        // the queue has been told to forget it
	last       *corev1.Pod // as it was last seen
	endSeen    time.Time   // when its end was first seen here
	endLogged  bool
	endTold    bool
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
// now: it is followed, tried again if it failed, released, and collected. It
// doesn't know what woke it, and running it twice is free.
func (m *Manager) reconcile(ctx context.Context, r ref) error {
	p := m.cluster.get(r.name)
	if p == nil || p.UID != r.uid {
		return m.forget(ctx, r)
	}
	l := m.lifeOf(p)
	m.witness(p, l)
	if !held(p) {
		// Released, by us or by force. The outcome has done its work.
		m.letGo(ctx, p.UID, l)
		if finished(p) && p.DeletionTimestamp == nil && !m.kept(p, l) {
			return m.collect(ctx, p)
		}
		return nil
	}
	if err := m.offer(ctx, p, l); err != nil {
		return err
	}
	end, over := endOf(p)
	switch {
	case !over:
		if changed, err := m.giveUp(ctx, p); changed || err != nil {
			return err
		}
	case p.Annotations[pod.AnnotationEnd] == "" && end.Class.failure():
		return m.noteFailure(ctx, p, end) // the pod's change brings us back
	}
	// A victim whose event ended between the mark and the deletion, as an expired
	// one may, is to go all the same; and so is a worker that was given up.
	overlooked := p.DeletionTimestamp == nil && !finished(p) && (over || p.Annotations[pod.AnnotationScaledDownBy] != "")
	if overlooked && over {
		return m.collect(ctx, p)
	}
	if over {
		if done, err := m.account(ctx, p, l, end); !done || err != nil {
			return err
		}
	}
	if !overlooked && !m.logsComplete(ctx, p, l) {
		return nil // the outcome, the end of the pod or the deadline brings us back
	}
	if !m.settled(ctx, p, l) {
		return nil // the end of the wait brings us back
	}
	if overlooked {
		return m.collect(ctx, p)
	}
	end = m.tellLoss(ctx, p, l, end)
	if err := m.cluster.release(ctx, p, map[string]string{pod.AnnotationEnd: string(end.Class), pod.AnnotationEndReason: end.Reason}); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "worker released", "pod", p.Name, "event", l.event, "task", l.task, "pool", p.Labels[pod.LabelPool])
	return nil // the pod's change brings us back
}

// giveUp ends a worker that does not start. The reason is on it before it is
// deleted, so that a crash in between forgets neither.
func (m *Manager) giveUp(ctx context.Context, p *corev1.Pod) (changed bool, err error) {
	limit := DefaultPendingLimit
	if pool := m.pools.Current().Get(p.Labels[pod.LabelPool]); pool != nil && pool.PendingLimit != nil {
		limit = pool.PendingLimit.Duration
	}
	class, reason, after := stuck(p, limit, time.Now())
	if class == "" {
		if after > 0 {
			m.work.AddAfter(refOf(p), after)
		}
		return false, nil
	}
	return true, m.noteFailure(ctx, p, newEnd(p, class, reason))
}

// noteFailure writes on a worker how it ended, and when it is to be tried again.
func (m *Manager) noteFailure(ctx context.Context, p *corev1.Pod, end End) error {
	notes := map[string]string{pod.AnnotationEnd: string(end.Class), pod.AnnotationEndReason: end.Reason}
	pool := m.pools.Current().Get(p.Labels[pod.LabelPool])
	if at := nextAttempt(p, end.Class, pool, time.Now()); !at.IsZero() {
		notes[pod.AnnotationRetryAt] = at.UTC().Format(time.RFC3339Nano)
	}
	_, err := m.cluster.annotate(ctx, p, notes)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return fmt.Errorf("noting the end of pod %s: %w", p.Name, errChanged)
	}
	return err
}

// account does what the end of a worker asks for: it is told, and the next attempt
// is made. It reports whether nothing of that is left to do.
func (m *Manager) account(ctx context.Context, p *corev1.Pod, l *life, end End) (done bool, err error) {
	if err := m.tell(ctx, p, l, end); err != nil {
		return false, err
	}
	if retryDue(p) {
		if rest := time.Until(end.RetryAt); rest > 0 {
			m.work.AddAfter(refOf(p), rest)
			return false, nil
		}
		return false, m.retry(ctx, p) // the pod's change brings us back
	}
	// The attempt before must be known to be over, or it would be tried again once
	// this one is gone.
	if previous := m.cluster.get(previousName(p)); previous != nil && ours(previous, m.cluster.instance) && retryDue(previous) {
		m.work.AddAfter(refOf(p), time.Second)
		return false, nil
	}
	return true, nil
}

// tell makes the end of a worker known, once in this process.
func (m *Manager) tell(ctx context.Context, p *corev1.Pod, l *life, end End) error {
	m.mu.Lock()
	logged, told := l.endLogged, l.endTold
	l.endLogged = true
	m.mu.Unlock()
	if !logged {
		attrs := []any{"pod", end.Name, "event", end.Event, "task", end.TaskID, "pool", end.Pool, "end", string(end.Class), "reason", end.Reason, "attempt", end.Attempt}
		if end.ExitCode != nil {
			attrs = append(attrs, "exit_code", *end.ExitCode)
		}
		if !end.RetryAt.IsZero() {
			attrs = append(attrs, "retry_at", end.RetryAt)
		}
		m.metrics.finished.WithLabelValues(string(end.Class)).Inc()
		m.log.InfoContext(ctx, "worker finished", attrs...)
		if end.Class.failure() && p != nil {
			m.recorder.Eventf(p, corev1.EventTypeWarning, end.Class.event(), "%s", end.Reason)
		}
	}
	if told {
		return nil
	}
	if err := m.ended(ctx, end); err != nil {
		return fmt.Errorf("telling the end of worker %s: %w", end.Name, err)
	}
	m.mu.Lock()
	l.endTold = true
	m.mu.Unlock()
	return nil
}

// kept reports whether the pool wants to keep a finished worker for a while yet.
func (m *Manager) kept(p *corev1.Pod, l *life) bool {
	pool := m.pools.Current().Get(p.Labels[pod.LabelPool])
	if pool == nil || pool.KeepFinished == nil || p.Annotations[pod.AnnotationScaledDownBy] != "" {
		return false
	}
	m.mu.Lock()
	since := l.endSeen
	m.mu.Unlock()
	if t := agentEnd(p); t != nil && !t.FinishedAt.IsZero() {
		since = t.FinishedAt.Time
	}
	rest := pool.KeepFinished.Duration - time.Since(since)
	if rest > 0 {
		m.work.AddAfter(refOf(p), rest)
	}
	return rest > 0
}

// lifeOf returns what we know of a worker.
func (m *Manager) lifeOf(p *corev1.Pod) *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lives[p.UID]
	if l == nil {
		l = &life{name: p.Name, last: p, event: p.Annotations[pod.AnnotationEventID], task: p.Annotations[pod.AnnotationTaskID]}
		m.lives[p.UID] = l
	}
	return l
}

// forget ends what we know of a worker that is gone. If its end was not told, then
// somebody took it away by force.
func (m *Manager) forget(ctx context.Context, r ref) error {
	m.mu.Lock()
	l := m.lives[r.uid]
	m.mu.Unlock()
	if l == nil {
		return nil
	}
	if last := m.untold(l); last != nil {
		end, over := endOf(last)
		if !over {
			end = newEnd(last, ClassVanished, "the pod is gone, and nobody knows how the worker ended")
		}
		if err := m.tell(ctx, nil, l, end); err != nil {
			return err
		}
		if end.Class.failure() && last.Annotations[pod.AnnotationTarget] != "" && last.Annotations[pod.AnnotationScaledDownBy] == "" {
			if _, err := m.again(ctx, last); err != nil {
				return err
			}
		}
	}
	m.mu.Lock()
	delete(m.lives, r.uid)
	m.mu.Unlock()
	m.letGo(ctx, r.uid, l)
	return nil
}

// untold returns the last that was seen of a worker whose end nobody was told.
func (m *Manager) untold(l *life) *corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	released := !held(l.last) && l.last.Annotations[pod.AnnotationEnd] != ""
	if l.endTold || released {
		return nil
	}
	return l.last
}

// letGo has the queue forget a worker, once: a worker that is no longer held may
// change many times before it is gone. Nothing is awaited for it any more.
func (m *Manager) letGo(ctx context.Context, uid types.UID, l *life) {
	m.mu.Lock()
	again := l.letGo
	l.letGo = true
	m.leave(ref{name: l.name, uid: uid}, l)
	m.mu.Unlock()
	if !again {
		m.settle(ctx, uid)
	}
}

// witness takes note of what happens to a worker.
func (m *Manager) witness(p *corev1.Pod, l *life) {
	m.mu.Lock()
	running := p.Status.Phase == corev1.PodRunning && l.sawPending && !l.sawRunning
	l.sawPending = l.sawPending || p.Status.Phase == corev1.PodPending
	l.sawRunning = l.sawRunning || p.Status.Phase == corev1.PodRunning
	l.last = p
	if ended(p) && l.endSeen.IsZero() {
		l.endSeen = time.Now()
	}
	m.mu.Unlock()

	if d, known := sinceEvent(l.event, time.Now()); running && known {
		m.metrics.eventToRun.Observe(d.Seconds())
	}
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

// collect deletes a worker that has no reason to stay.
func (m *Manager) collect(ctx context.Context, p *corev1.Pod) error {
	if err := m.cluster.remove(ctx, refOf(p)); err != nil {
		m.metrics.deletes.WithLabelValues("failed").Inc()
		return err
	}
	m.metrics.deletes.WithLabelValues("deleted").Inc()
	return nil
}
