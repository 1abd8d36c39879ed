package worker

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// maxRetryPause bounds the pause before another attempt.
const maxRetryPause = 5 * time.Minute

// nextAttempt says when a worker that ended so is to be tried again; zero means
// never. One that stands for a target is replaced whatever ended it.
func nextAttempt(p *corev1.Pod, class Class, pool *Pool, now time.Time) time.Time {
	if pool == nil || p.Annotations[pod.AnnotationScaledDownBy] != "" || !class.failure() {
		return time.Time{}
	}
	done := attemptOf(p)
	again := done <= pool.Retries.Failures
	switch {
	case p.Annotations[pod.AnnotationTarget] != "":
		again = true
	case class.infrastructure():
		again = done <= value(pool.Retries.Infrastructure, DefaultInfrastructureRetries)
	case class == ClassDeleted, class == ClassVanished:
		again = false // somebody wanted it gone
	}
	if !again {
		return time.Time{}
	}
	return now.Add(backoff.Policy{Initial: pool.Retries.backoff(), Max: maxRetryPause}.Pause(done))
}

// nextName returns the name of the attempt after a pod.
func nextName(p *corev1.Pod) string {
	return firstName(p) + "-a" + strconv.Itoa(attemptOf(p)+1)
}

// previousName returns the name of the attempt before a pod, or "".
func previousName(p *corev1.Pod) string {
	switch n := attemptOf(p); n {
	case 1:
		return ""
	case 2:
		return firstName(p)
	default:
		return firstName(p) + "-a" + strconv.Itoa(n-1)
	}
}

// firstName returns the name of the first attempt.
func firstName(p *corev1.Pod) string {
	return strings.TrimSuffix(p.Name, "-a"+strconv.Itoa(attemptOf(p)))
}

// successor returns the next attempt at a worker: the same pod, whatever the pool
// file says by now, for it is the same work.
func successor(p *corev1.Pod) *corev1.Pod {
	next := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: nextName(p), Namespace: p.Namespace,
			Labels: p.DeepCopy().Labels, Annotations: p.DeepCopy().Annotations,
			Finalizers: []string{pod.FinalizerWorker},
		},
		Spec: *p.Spec.DeepCopy(),
	}
	for _, key := range []string{
		pod.AnnotationEnd, pod.AnnotationEndReason, pod.AnnotationRetryAt, pod.AnnotationRetriedBy,
		pod.AnnotationWaiting, pod.AnnotationAdmitted,
	} {
		delete(next.Annotations, key)
	}
	next.Annotations[pod.AnnotationAttempt] = strconv.Itoa(attemptOf(p) + 1)
	next.Spec.NodeName = p.Annotations[pod.AnnotationNode] // only what the template said
	next.Spec.EphemeralContainers = nil
	next.Spec.SchedulingGates = nil
	// The API server fills it in from the class.
	next.Spec.Priority = nil
	for i := range next.Spec.Containers {
		for j := range next.Spec.Containers[i].Env {
			switch env := &next.Spec.Containers[i].Env[j]; env.Name {
			case envName:
				env.Value = next.Name
			case envAttempt:
				env.Value = next.Annotations[pod.AnnotationAttempt]
			}
		}
	}
	return next
}

// retry makes the next attempt at a worker, once its time has come, and writes on
// the worker that it did. Doing so twice makes one pod: it has the same name.
//
// The worker is read afresh, and not marked by a scale_down meanwhile: what that
// one counted as removed must not come back.
func (m *Manager) retry(ctx context.Context, p *corev1.Pod) error {
	defer m.retries.lock(p.Name)()
	now, err := m.cluster.fetch(ctx, p.Name)
	if err != nil {
		return err
	}
	if now == nil || now.UID != p.UID || !retryDue(now) {
		return nil // its change brings us back
	}
	next, err := m.again(ctx, now)
	if f, _ := faultOf(err); err != nil && f == faultFinal {
		m.log.ErrorContext(ctx, "worker cannot be tried again", "pod", now.Name, "err", err)
		next = "nobody: " + err.Error()
	} else if err != nil {
		return err
	}
	if _, err := m.cluster.annotate(ctx, now, map[string]string{pod.AnnotationRetriedBy: next}); err != nil {
		return err
	}
	m.metrics.retries.WithLabelValues(now.Annotations[pod.AnnotationEnd]).Inc()
	m.log.InfoContext(ctx, "worker is tried again", "pod", now.Name, "next", next, "attempt", attemptOf(now)+1,
		"event", now.Annotations[pod.AnnotationEventID], "task", now.Annotations[pod.AnnotationTaskID], "pool", now.Labels[pod.LabelPool])
	return nil
}

// again creates the next attempt, unless it is there, and returns its name.
func (m *Manager) again(ctx context.Context, p *corev1.Pod) (string, error) {
	next := successor(p)
	wait, err := m.capacity.reserve(next.Name, scopeOf(next))
	if err != nil {
		return "", err
	}
	if wait != "" {
		gate(next, wait)
	}
	made, created, err := m.cluster.create(ctx, next)
	if err != nil {
		m.capacity.failed(next.Name, refused(err))
		m.metrics.creates.WithLabelValues("failed").Inc()
		return "", err
	}
	same := ours(made, m.cluster.instance) && attemptOf(made) == attemptOf(next) &&
		made.Annotations[pod.AnnotationEventID] == next.Annotations[pod.AnnotationEventID]
	if !created && !same {
		m.capacity.failed(next.Name, true)
		return "", fmt.Errorf("trying worker %s again: pod %s exists and is not an attempt of it: remove it", p.Name, next.Name)
	}
	m.capacity.created(made)
	m.metrics.creates.WithLabelValues(map[bool]string{true: "created", false: "existed"}[created]).Inc()
	return made.Name, m.cluster.awaitSeen(ctx, []*corev1.Pod{made}, func(wrote, seen *corev1.Pod) bool {
		return seen != nil && seen.UID == wrote.UID
	})
}

// backoff returns the pause before the second attempt.
func (r Retries) backoff() time.Duration {
	if r.Backoff == nil {
		return DefaultRetryBackoff
	}
	return cmp.Or(r.Backoff.Duration, time.Millisecond)
}
