package worker_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func condition(of corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) corev1.PodCondition {
	return corev1.PodCondition{Type: of, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(time.Now().Add(-time.Hour))}
}

func terminated(code int32, reason string) []corev1.ContainerStatus {
	return []corev1.ContainerStatus{{Name: "agent", Image: "agent:test", State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, StartedAt: metav1.Now(), FinishedAt: metav1.Now()},
	}}}
}

func waits(reason, message string) []corev1.ContainerStatus {
	return []corev1.ContainerStatus{{Name: "agent", Image: "agent:test", State: corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message},
	}}}
}

func TestEachFailureHasItsClassAndIsTriedAgainByItsRule(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("", "pendingLimit: 2s, retries: {infrastructure: 1, backoff: 10ms}, ")
	for _, c := range []struct {
		name   string
		want   worker.Class
		reason string
		again  bool
		status func(p *corev1.Pod)
	}{
		{"exit code", worker.ClassExitCode, "exit code 3", false, func(p *corev1.Pod) {
			p.Status.Phase, p.Status.ContainerStatuses = corev1.PodFailed, terminated(3, "Error")
		}},
		{"out of memory", worker.ClassOOMKilled, "container agent needed more memory than its limit", false, func(p *corev1.Pod) {
			p.Status.Phase, p.Status.ContainerStatuses = corev1.PodFailed, terminated(137, "OOMKilled")
		}},
		{"deadline", worker.ClassDeadline, "longer than its time limit", false, func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason = corev1.PodFailed, "DeadlineExceeded"
		}},
		{"evicted by the kubelet", worker.ClassEvicted, "low on resource", true, func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "Evicted", "The node was low on resource: memory."
		}},
		{"preempted", worker.ClassEvicted, "a better pod", true, func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodFailed
			p.Status.Conditions = []corev1.PodCondition{condition(corev1.DisruptionTarget, corev1.ConditionTrue, "PreemptionByScheduler", "a better pod")}
		}},
		{"node lost", worker.ClassNodeLost, "node not found", true, func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodFailed
			p.Status.Conditions = []corev1.PodCondition{condition(corev1.DisruptionTarget, corev1.ConditionTrue, "DeletionByPodGC", "PodGC: node not found")}
		}},
		{"image pull", worker.ClassImagePull, "ImagePullBackOff: no such image", true, func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{condition(corev1.PodScheduled, corev1.ConditionTrue, "", "")}
			p.Status.ContainerStatuses = waits("ImagePullBackOff", "no such image")
		}},
		{"hopeless image", worker.ClassImagePull, "InvalidImageName", true, func(p *corev1.Pod) {
			p.Status.ContainerStatuses = waits("InvalidImageName", "???")
		}},
		{"missing secret", worker.ClassConfig, `secret "x" not found`, false, func(p *corev1.Pod) {
			p.Status.ContainerStatuses = waits("CreateContainerConfigError", `secret "x" not found`)
		}},
		{"unschedulable", worker.ClassUnschedulable, "no nodes available", true, func(*corev1.Pod) {}}, // the scheduler is a real one
		{"pending", worker.ClassPending, "it did not start", true, func(*corev1.Pod) {}},
	} {
		e := up(c.name, 1)
		if c.want == worker.ClassPending {
			e.Pool = "unbound"
		}
		name := s.done(e, 1).Details["workers"]
		s.SetStatus(name, c.status)
		workertest.Eventually(t, c.name+": its end is told", func() bool { ends, _ := s.ends.of(name); return len(ends) == 1 })
		ends, events := s.ends.of(name)
		if end := ends[0]; end.Class != c.want || !strings.Contains(end.Reason, c.reason) || end.TaskID != c.name || end.Event != e.ID || end.Attempt != 1 {
			t.Errorf("%s: told %+v", c.name, end)
		}
		if len(events) != 1 || !strings.Contains(events[0], c.reason) {
			t.Errorf("%s: Kubernetes Events %q", c.name, events)
		}
		p := s.get(name)
		if p == nil || p.Annotations[pod.AnnotationEnd] != string(c.want) || !strings.Contains(p.Annotations[pod.AnnotationEndReason], c.reason) {
			t.Errorf("%s: annotations %v", c.name, p.Annotations)
		}
		if s.log.lines("worker finished", "pod="+name, "end="+string(c.want)) != 1 {
			t.Errorf("%s: the log does not say it once", c.name)
		}
		next := name + "-a2"
		if !c.again {
			continue
		}
		workertest.Eventually(t, c.name+": it is tried again", func() bool { return s.get(next) != nil })
		p = s.get(next)
		if p.Annotations[pod.AnnotationAttempt] != "2" || p.Annotations[pod.AnnotationEnd] != "" || p.Annotations[pod.AnnotationEventID] != e.ID || p.Spec.Containers[0].Image != "agent:test" {
			t.Errorf("%s: the second attempt is %+v", c.name, p.ObjectMeta)
		}
		for _, env := range p.Spec.Containers[0].Env {
			if env.Name == "OTTO_WORKER_NAME" && env.Value != next || env.Name == "OTTO_ATTEMPT" && env.Value != "2" {
				t.Errorf("%s: the second attempt is told %s=%s", c.name, env.Name, env.Value)
			}
		}
		s.done(e, 2) // a redelivery adds nothing
		s.Set(next, corev1.PodFailed, 1)
		workertest.Eventually(t, c.name+": the second end is told", func() bool { ends, _ := s.ends.of(next); return len(ends) == 1 })
	}
	for _, p := range s.Workers() {
		if strings.HasSuffix(p.Name, "-a3") {
			t.Errorf("%s exceeds the budget", p.Name)
		}
		if strings.HasSuffix(p.Name, "-a2") && s.get(strings.TrimSuffix(p.Name, "-a2")).Annotations[pod.AnnotationEnd] == string(worker.ClassExitCode) {
			t.Errorf("%s: a worker's own failure was tried again", p.Name)
		}
	}
}

func TestAWorkerThatStandsForATargetIsReplacedWhateverEndsIt(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	s.useRules("", "retries: {infrastructure: 0, backoff: 10ms}, ")
	two := 2
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TargetReplicas: &two}, 1)
	for range 2 {
		r.next()
	}
	running := func() (all []string) {
		for _, p := range s.Workers() {
			if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodPending {
				all = append(all, p.Name)
			}
		}
		return all
	}
	replaced := func(what string, end func(name string)) {
		t.Helper()
		name := running()[0]
		end(name)
		d := r.next() // its successor
		workertest.Eventually(t, what+": there are two again", func() bool { return len(running()) == 2 })
		if d.Value.Name == name {
			t.Errorf("%s: offered %s again", what, name)
		}
	}
	replaced("it failed", func(name string) { s.Set(name, corev1.PodFailed, 1) })
	replaced("it failed again", func(name string) { s.Set(name, corev1.PodFailed, 1) })
	replaced("somebody deleted it", func(name string) {
		if err := s.Client.Pods(s.Namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	replaced("it vanished", func(name string) {
		_, err := s.Client.Pods(s.Namespace).Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		now := int64(0)
		if err := s.Client.Pods(s.Namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	})
	zero := 0
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TargetReplicas: &zero}, 1)
	time.Sleep(300 * time.Millisecond)
	if left := running(); len(left) != 0 {
		t.Errorf("the target is 0, but there are %v", left)
	}
}

func TestAWorkerThatCountsTowardsATargetIsReplacedToo(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("", "retries: {infrastructure: 0, backoff: 10ms}, ")
	names := strings.Split(s.done(up("task", 2), 1).Details["workers"], ",")
	three, one := 3, 1
	e := scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TaskID: "task", TargetReplicas: &three}
	s.Faults.Break("PATCH", workertest.ReplyLost, 0, 1)
	if v := s.deliver(e, 1); v.Status != 0 {
		t.Fatalf("verdict %+v, want a retry: a worker may not stand for the target", v)
	}
	s.done(e, 2)
	after := up("task", 1)
	extra := s.done(after, 1).Details["workers"]
	s.Set(names[0], corev1.PodFailed, 1)
	workertest.Eventually(t, "it is replaced", func() bool { return s.get(names[0]+"-a2") != nil })
	s.Set(extra, corev1.PodFailed, 1)
	workertest.Eventually(t, "its end is told", func() bool { ends, _ := s.ends.of(extra); return len(ends) == 1 })
	if ends, _ := s.ends.of(extra); !ends[0].RetryAt.IsZero() {
		t.Errorf("one that came after the target is tried again: %+v", ends[0])
	}
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TaskID: "task", TargetReplicas: &one}, 1)
	s.done(e, 3) // it is delivered again, after later events have taken workers
	live := 0
	for _, p := range s.Workers() {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodPending {
			live++
		}
	}
	if live != 1 {
		t.Errorf("%d workers are left, want 1", live)
	}
}

func TestAScaleDownTakesWhatIsOnlyToBeTriedAgainFirst(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("", "retries: {failures: 5, backoff: 1h}, ")
	names := strings.Split(s.done(up("task", 2), 1).Details["workers"], ",")
	s.Set(names[1], corev1.PodFailed, 1)
	workertest.Eventually(t, "it is to be tried again", func() bool { return s.get(names[1]).Annotations[pod.AnnotationRetryAt] != "" })
	three := 3
	e := scaleevent.Event{ID: newID(), Type: scaleevent.ScaleUp, Pool: "default", TaskID: "task", TargetReplicas: &three}
	var v queue.Verdict
	workertest.Eventually(t, "the cache shows it", func() bool { v = s.deliver(e, 1); return v.Status == queue.Done })
	if v.Details["count"] != "1" {
		t.Errorf("the one to be tried again does not count towards the target: %+v", v)
	}
	v = s.done(down("task", 1), 2)
	if v.Details["workers"] != names[1] {
		t.Errorf("removed %+v, want %s", v, names[1])
	}
	s = start(t, time.Hour, s, nil)
	time.Sleep(300 * time.Millisecond)
	if s.get(names[1]+"-a2") != nil {
		t.Error("what was removed came back")
	}
}

func TestAWorkerIsHeldUntilItsEndIsToldAndKeptForAsLongAsThePoolSays(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	r := newRelay(s)
	s.useRules("", "keepFinished: 2s, timeLimit: 90s, ")
	name := s.done(up("task", 1), 1).Details["workers"]
	if limit := s.get(name).Spec.ActiveDeadlineSeconds; limit == nil || *limit != 90 {
		t.Errorf("time limit %v, want 90 s", limit)
	}
	d := r.next()
	s.ends.mu.Lock()
	s.ends.failing = errors.New("nobody listens")
	s.ends.mu.Unlock()
	s.Set(name, corev1.PodSucceeded, 0)
	r.finish(d)
	workertest.Eventually(t, "it was tried", func() bool { return s.log.lines("worker is stuck", "nobody listens") > 0 })
	if p := s.get(name); p == nil || len(p.Finalizers) == 0 {
		t.Fatal("it is let go of before its end is told")
	}
	s.ends.mu.Lock()
	s.ends.failing = nil
	s.ends.mu.Unlock()
	workertest.Eventually(t, "it is released", func() bool { p := s.get(name); return p != nil && len(p.Finalizers) == 0 })
	if p := s.get(name); p == nil || p.Annotations[pod.AnnotationEnd] != "succeeded" || p.DeletionTimestamp != nil {
		t.Errorf("the kept worker: %+v", p)
	}
	workertest.Eventually(t, "it is gone", func() bool { return s.get(name) == nil })
}

func TestAPoolIsKeptAtItsMinimum(t *testing.T) {
	s := start(t, time.Millisecond, nil, nil)
	s.useRules("", "minWorkers: 2, retries: {backoff: 10ms}, ")
	is := func(n int) func() bool {
		return func() bool {
			live := 0
			for _, p := range s.Workers() {
				if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodPending {
					live++
				}
			}
			return live == n
		}
	}
	workertest.Eventually(t, "there are two", is(2))
	s.Set(s.names()[0], corev1.PodSucceeded, 0)
	workertest.Eventually(t, "one is gone", func() bool { return s.log.lines("worker released") == 1 })
	workertest.Eventually(t, "there are two again", is(2))
	s.Set(s.names()[0], corev1.PodFailed, 1)
	workertest.Eventually(t, "the failed one is followed by another attempt", func() bool { return s.log.lines("worker is tried again") == 1 })
	workertest.Eventually(t, "there are two again", is(2))
	zero := 0
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TargetReplicas: &zero}, 1)
	workertest.Eventually(t, "there are two again", is(2))
	s = start(t, time.Millisecond, s, nil)
	time.Sleep(1500 * time.Millisecond)
	if !is(2)() {
		t.Errorf("after a restart, there are %v", s.names())
	}
}

func TestAVanishedWorkerIsNeverASuccess(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	name := s.done(up("task", 1), 1).Details["workers"]
	s.Set(name, corev1.PodRunning, 0)
	workertest.Eventually(t, "it was seen to run", func() bool { return s.metric("ottoscaler_worker_event_to_running_seconds") == 1 })
	_, err := s.Client.Pods(s.Namespace).Patch(t.Context(), name, types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{})
	if err == nil {
		now := int64(0)
		err = s.Client.Pods(s.Namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	}
	if err != nil {
		t.Fatal(err)
	}
	workertest.Eventually(t, "its end is told", func() bool { ends, _ := s.ends.of(name); return len(ends) == 1 })
	if ends, _ := s.ends.of(name); ends[0].Class == worker.ClassSucceeded || ends[0].ExitCode != nil {
		t.Errorf("told %+v", ends[0])
	}
}

func TestARetryMakesOnePodHoweverItIsBroken(t *testing.T) {
	s := start(t, time.Hour, nil, nil)
	s.useRules("", "retries: {failures: 1, backoff: 10ms}, ")
	for i, fault := range []workertest.Fault{workertest.NotDone, workertest.ReplyLost} {
		for _, method := range []string{"POST", "PATCH"} {
			name := s.done(up(fmt.Sprint(method, i), 1), 1).Details["workers"]
			s.Faults.Break(method, fault, 0, 2)
			s.Set(name, corev1.PodFailed, 1)
			workertest.Eventually(t, method+": it is tried again", func() bool { p := s.get(name); return p != nil && p.Annotations[pod.AnnotationRetriedBy] == name+"-a2" })
			s.Faults.Repair()
			if s.get(name+"-a2") == nil {
				t.Errorf("%s, %v: there is no second attempt", method, fault)
			}
		}
	}
	if v := s.deliver(down("nobody", 1), 1); v.Status != queue.Done {
		t.Errorf("verdict %+v", v)
	}
}
