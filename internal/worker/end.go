package worker

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// A Class says how a worker came to its end.
type Class string

// The classes of ends. Those of infrastructure are nobody's fault who wrote the
// worker, and are tried again by a rule of their own.
const (
	// ClassSucceeded is an exit code of 0.
	ClassSucceeded Class = "succeeded"
	// ClassRemoved is the end of a scale_down's victim.
	ClassRemoved Class = "removed"
	// ClassDeleted is a pod that somebody else deleted.
	ClassDeleted Class = "deleted"
	// ClassExitCode is an exit code other than 0.
	ClassExitCode Class = "exit_code"
	// ClassOOMKilled is a container that needed more memory than its limit.
	ClassOOMKilled Class = "oom_killed"
	// ClassDeadline is a worker that ran for longer than its time limit.
	ClassDeadline Class = "deadline"
	// ClassConfig is a container that cannot be made, such as for a missing Secret.
	ClassConfig Class = "config_error"
	// ClassEvicted is a worker that had to leave its node, or was not let on it.
	// Infrastructure.
	ClassEvicted Class = "evicted"
	// ClassNodeLost is a worker whose node is gone. Infrastructure.
	ClassNodeLost Class = "node_lost"
	// ClassImagePull is an image that cannot be pulled. Infrastructure.
	ClassImagePull Class = "image_pull"
	// ClassUnschedulable is a worker for which there was no node. Infrastructure.
	ClassUnschedulable Class = "unschedulable"
	// ClassPending is a worker that did not start for another reason. Infrastructure.
	ClassPending Class = "pending_too_long"
	// ClassVanished is a pod that is gone though it was held: somebody took off its
	// finalizer. How it ended is not known.
	ClassVanished Class = "vanished"
)

// infrastructure reports whether the class is nobody's fault who wrote the worker.
func (c Class) infrastructure() bool {
	switch c {
	case ClassEvicted, ClassNodeLost, ClassImagePull, ClassUnschedulable, ClassPending:
		return true
	}
	return false
}

// failure reports whether the worker did not do what it was made for.
func (c Class) failure() bool { return c != ClassSucceeded && c != ClassRemoved }

// event returns the reason of the Kubernetes Event: ImagePull for image_pull.
func (c Class) event() string {
	var b strings.Builder
	for word := range strings.SplitSeq(string(c), "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return "Worker" + b.String()
}

// An End is how one worker ended. A worker that is tried again has an end for each
// attempt.
type End struct {
	// Name and UID of the pod.
	Name, UID string
	// Event is the ID of the event that the worker was made for, TaskID and Pool its
	// task and pool.
	Event, TaskID, Pool string
	// Attempt is 1 for the first pod.
	Attempt int
	// Class and Reason say how it ended; Reason is for people.
	Class  Class
	Reason string
	// ExitCode is that of the container that does the work; nil if it never ended.
	ExitCode *int32
	// RetryAt is when the worker is tried again; zero means never.
	RetryAt time.Time
	// LogsLost says that the end was told before, and is now told once more because
	// of log lines that were lost.
	LogsLost bool
}

// ID is the same whenever the same end is told again.
func (e End) ID() string {
	if e.LogsLost {
		return e.UID + "/logs-lost"
	}
	return e.UID
}

// newEnd returns the end of a worker.
func newEnd(p *corev1.Pod, class Class, reason string) End {
	e := End{
		Name: p.Name, UID: string(p.UID),
		Event: p.Annotations[pod.AnnotationEventID], TaskID: p.Annotations[pod.AnnotationTaskID], Pool: p.Labels[pod.LabelPool],
		Attempt: attemptOf(p), Class: class, Reason: reason,
	}
	if t := agentEnd(p); t != nil {
		e.ExitCode = &t.ExitCode
	}
	e.RetryAt, _ = retryTime(p)
	return e
}

// endOf says how a worker ended, from what is written on it or, before that, from
// its status. It reports false for one that has not ended.
func endOf(p *corev1.Pod) (End, bool) {
	if class := p.Annotations[pod.AnnotationEnd]; class != "" {
		return newEnd(p, Class(class), p.Annotations[pod.AnnotationEndReason]), true
	}
	if !ended(p) {
		return End{}, false
	}
	class, reason := classify(p)
	return newEnd(p, class, reason), true
}

// classify says how a worker that has ended did. One that was deleted before its
// end did not succeed, whatever its exit code.
func classify(p *corev1.Pod) (Class, string) {
	by := p.Annotations[pod.AnnotationScaledDownBy]
	t := agentEnd(p)
	disrupted := condition(p, corev1.DisruptionTarget)
	if disrupted != nil && disrupted.Status != corev1.ConditionTrue {
		disrupted = nil
	}
	switch {
	case p.Status.Phase == corev1.PodSucceeded && !deletedBeforeEnd(p):
		return ClassSucceeded, "the worker has done its work"
	case by != "":
		return ClassRemoved, "removed by event " + by
	case disrupted != nil && (disrupted.Reason == "DeletionByPodGC" || disrupted.Reason == "DeletionByTaintManager"):
		return ClassNodeLost, cmp.Or(disrupted.Message, "the node is gone") + onNode(p)
	case disrupted != nil: // EvictionByEvictionAPI, PreemptionByScheduler, TerminationByKubelet
		return ClassEvicted, cmp.Or(disrupted.Message, disrupted.Reason) + onNode(p)
	case p.Status.Reason == "DeadlineExceeded":
		return ClassDeadline, "it ran for longer than its time limit" + limitOf(p)
	case p.Status.Reason == "NodeLost":
		return ClassNodeLost, cmp.Or(p.Status.Message, "the node is gone") + onNode(p)
	case p.Status.Phase == corev1.PodFailed && p.Status.Reason != "" && t == nil:
		// Evicted, Preempting, NodeShutdown, OutOfcpu, NodeAffinity …
		return ClassEvicted, p.Status.Reason + ": " + cmp.Or(p.Status.Message, "the node did not keep it") + onNode(p)
	case p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted":
		return ClassEvicted, cmp.Or(p.Status.Message, "evicted") + onNode(p)
	case p.DeletionTimestamp != nil && deletedBeforeEnd(p):
		return ClassDeleted, "somebody deleted the pod"
	}
	if name, oom := oomKilled(p); oom {
		return ClassOOMKilled, fmt.Sprintf("container %s needed more memory than its limit%s", name, memoryLimit(p, name))
	}
	if t == nil {
		return ClassExitCode, cmp.Or(p.Status.Message, "it failed, and Kubernetes does not say why")
	}
	reason := fmt.Sprintf("exit code %d", t.ExitCode)
	if t.Signal != 0 {
		reason += fmt.Sprintf(" (signal %d)", t.Signal)
	}
	if t.Message != "" {
		reason += ": " + strings.TrimSpace(t.Message)
	}
	return ClassExitCode, reason
}

// deletedBeforeEnd reports whether a worker was asked to go while it still ran.
func deletedBeforeEnd(p *corev1.Pod) bool {
	if p.DeletionTimestamp == nil {
		return false
	}
	asked := p.DeletionTimestamp.Time
	if p.DeletionGracePeriodSeconds != nil {
		asked = asked.Add(-time.Duration(*p.DeletionGracePeriodSeconds) * time.Second)
	}
	t := agentEnd(p)
	return t == nil || t.FinishedAt.IsZero() || t.FinishedAt.After(asked)
}

func condition(p *corev1.Pod, of corev1.PodConditionType) *corev1.PodCondition {
	i := slices.IndexFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == of })
	if i < 0 {
		return nil
	}
	return &p.Status.Conditions[i]
}

func onNode(p *corev1.Pod) string {
	if p.Spec.NodeName == "" {
		return ""
	}
	return " (node " + p.Spec.NodeName + ")"
}

func limitOf(p *corev1.Pod) string {
	if p.Spec.ActiveDeadlineSeconds == nil {
		return ""
	}
	return " of " + (time.Duration(*p.Spec.ActiveDeadlineSeconds) * time.Second).String()
}

func oomKilled(p *corev1.Pod) (container string, oom bool) {
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if c.State.Terminated != nil && c.State.Terminated.Reason == "OOMKilled" {
			return c.Name, true
		}
	}
	return "", false
}

func memoryLimit(p *corev1.Pod, container string) string {
	for _, c := range p.Spec.Containers {
		if limit, ok := c.Resources.Limits[corev1.ResourceMemory]; c.Name == container && ok {
			return " of " + limit.String()
		}
	}
	return ""
}

// startLimit is how long the kubelet may fail to start a container before the
// worker is given up: a registry may be away for a moment.
const startLimit = 2 * time.Minute

// stuck says whether a worker that has not started should be given up, and if
// not, when to look again; zero means that nothing has to be looked at.
func stuck(p *corev1.Pod, limit time.Duration, now time.Time) (class Class, reason string, after time.Duration) {
	if p.Status.Phase != corev1.PodPending || p.DeletionTimestamp != nil || isGated(p) {
		return "", "", 0
	}
	pending := pendingSince(p)
	deadline := pending.Add(limit)
	class, reason = ClassPending, "it did not start"
	scheduled := condition(p, corev1.PodScheduled)
	switch failing, of, at := failingToStart(p); {
	case failing != "":
		class, reason = failing, of
		begun := pending
		if scheduled != nil && scheduled.LastTransitionTime.After(begun) {
			begun = scheduled.LastTransitionTime.Time
		}
		if soon := begun.Add(min(startLimit, limit)); soon.Before(deadline) {
			deadline = soon
		}
		if at {
			deadline = now
		}
	case scheduled != nil && scheduled.Status == corev1.ConditionFalse:
		class, reason = ClassUnschedulable, "there was no node for it: "+cmp.Or(scheduled.Message, scheduled.Reason)
	}
	if rest := deadline.Sub(now); rest > 0 {
		return "", "", rest
	}
	return class, reason + " (waited " + now.Sub(pending).Round(time.Second).String() + ")", 0
}

// pendingSince returns since when a worker could have started.
func pendingSince(p *corev1.Pod) time.Time {
	if at, err := time.Parse(time.RFC3339, p.Annotations[pod.AnnotationAdmitted]); err == nil {
		return at
	}
	return p.CreationTimestamp.Time
}

// failingToStart returns what keeps the kubelet from starting a container, if that
// is known, and whether it is hopeless.
func failingToStart(p *corev1.Pod) (class Class, reason string, hopeless bool) {
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if c.State.Waiting == nil {
			continue
		}
		w := c.State.Waiting
		text := fmt.Sprintf("container %s: %s: %s", c.Name, w.Reason, w.Message)
		switch w.Reason {
		case "InvalidImageName", "ErrImageNeverPull":
			return ClassImagePull, text, true
		case "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			return ClassImagePull, text, false
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			return ClassConfig, text, false
		}
	}
	return "", "", false
}

// attemptOf returns which attempt at its work a pod is: 1 for the first.
func attemptOf(p *corev1.Pod) int {
	n, err := strconv.Atoi(p.Annotations[pod.AnnotationAttempt])
	if err != nil {
		return 1
	}
	return max(n, 1)
}

// retryTime returns when a worker that has ended is to be tried again, if it is
// and has not been yet.
func retryTime(p *corev1.Pod) (time.Time, bool) {
	at, err := time.Parse(time.RFC3339Nano, p.Annotations[pod.AnnotationRetryAt])
	return at, err == nil && p.Annotations[pod.AnnotationRetriedBy] == ""
}

// retryDue reports whether another attempt at a worker is to come. Such a worker
// counts as one that has not started.
func retryDue(p *corev1.Pod) bool {
	_, due := retryTime(p)
	return due && p.Annotations[pod.AnnotationScaledDownBy] == ""
}
