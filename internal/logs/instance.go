package logs

import (
	"log/slog"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// An Instance is one run of one container, which has one log.
type Instance struct {
	// PodUID, Namespace and Pod name the worker's pod.
	PodUID         types.UID
	Namespace, Pod string
	// Container is the container's name, and Init whether it is an init container.
	Container string
	Init      bool
	// RestartCount is 0 for the container's first run.
	RestartCount int32
}

// LogValue shows what tells instances apart.
func (in Instance) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", in.Container), slog.Int("restart_count", int(in.RestartCount)))
}

// spoolName names the instance's log within those of its pod. No container's name
// has an underscore.
func (in Instance) spoolName() string {
	name := in.Container + "_" + strconv.Itoa(int(in.RestartCount))
	if in.Init {
		name += "_init"
	}
	return name
}

// spooled returns the instance of a pod that spoolName has named, or false.
func spooled(of Instance, name string) (Instance, bool) {
	container, rest, ok := strings.Cut(name, "_")
	count, init := strings.CutSuffix(rest, "_init")
	n, err := strconv.ParseInt(count, 10, 32)
	if !ok || err != nil || container == "" {
		return Instance{}, false
	}
	of.Container, of.RestartCount, of.Init = container, int32(n), init
	return of, true
}

// A State is what the cluster says about an instance.
type State struct {
	// Ended says that its process has ended, so that its log grows no more.
	Ended bool
	// Previous says that a newer instance of the container has begun.
	Previous bool
	// Gone says that nobody can read its log any more: the pod is gone, or two
	// newer instances have begun and the kubelet keeps only one old log.
	Gone bool
	// Began and Finished are when its process did, in whole seconds, or zero where the
	// cluster does not tell.
	Began, Finished time.Time
	// Node is the address of the node that has the log, or empty where that is not known.
	Node string
}

// instancesOf lists the instances that a pod's status tells of: those that run or
// ran. It includes the one before a container's latest, if its log may still be
// read, because the update that showed it may have been missed.
func instancesOf(pod *corev1.Pod) []Instance {
	var all []Instance
	eachStatus(pod, func(status *corev1.ContainerStatus, init bool) {
		in := Instance{
			PodUID: pod.UID, Namespace: pod.Namespace, Pod: pod.Name,
			Container: status.Name, Init: init, RestartCount: status.RestartCount,
		}
		latest := latestRun(status)
		if before := status.LastTerminationState.Terminated; before != nil && before.ContainerID != "" &&
			latest != before && in.RestartCount > 0 {
			previous := in
			previous.RestartCount--
			all = append(all, previous)
		}
		if latest != nil || status.State.Running != nil {
			all = append(all, in)
		}
	})
	return all
}

// latestRun returns how the latest run of a container ended, or nil if it runs,
// or if it never ran.
func latestRun(status *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	if status.State.Running != nil {
		return nil
	}
	// A container that is between two runs, or whose next run could not begin, has
	// its latest one in its last state.
	for _, ended := range []*corev1.ContainerStateTerminated{status.State.Terminated, status.LastTerminationState.Terminated} {
		if ended != nil && ended.ContainerID != "" {
			return ended
		}
	}
	return nil
}

// stateOf returns what a pod's status says about an instance. A nil pod is gone.
func stateOf(pod *corev1.Pod, in Instance) State {
	if pod == nil || pod.UID != in.PodUID {
		return State{Ended: true, Gone: true}
	}
	state := State{Ended: over(pod)}
	eachStatus(pod, func(status *corev1.ContainerStatus, _ bool) {
		if status.Name != in.Container {
			return
		}
		switch behind := status.RestartCount - in.RestartCount; {
		case behind == 0:
			// Waiting alone is no end: a kubelet that has just restarted may show it
			// for a container that runs.
			ended := latestRun(status)
			state.Ended = state.Ended || status.State.Terminated != nil || ended != nil
			if running := status.State.Running; running != nil {
				state.Began = running.StartedAt.Time
			} else if ended != nil {
				state.Began, state.Finished = ended.StartedAt.Time, ended.FinishedAt.Time
			}
		case behind == 1:
			state = State{Ended: true, Previous: true}
			if before := status.LastTerminationState.Terminated; before != nil {
				state.Began, state.Finished = before.StartedAt.Time, before.FinishedAt.Time
			}
		case behind > 1:
			state = State{Ended: true, Gone: true}
		}
	})
	state.Node = pod.Status.HostIP
	return state
}

// over reports whether no container of a pod will run any more.
func over(pod *corev1.Pod) bool {
	switch {
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return true
	case pod.DeletionTimestamp != nil && pod.Spec.NodeName == "":
		return true // no kubelet has ever seen it, and none will
	}
	return false
}

// ordinary reports whether a container that waits for that reason is just about to begin.
func ordinary(reason string) bool {
	return reason == "" || reason == "PodInitializing" || reason == "ContainerCreating"
}

// endsOf tells how the containers of a pod ended, for the server. Of one that never
// ran, Kubernetes forgets why when its pod ends: waited knows it.
func endsOf(pod *corev1.Pod, waited map[string]corev1.ContainerStateWaiting) []*logsv1.ContainerEnd {
	statuses := map[string]*corev1.ContainerStatus{}
	eachStatus(pod, func(status *corev1.ContainerStatus, _ bool) { statuses[status.Name] = status })
	var ends []*logsv1.ContainerEnd
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			end := endOf(c.Name, statuses[c.Name])
			why, known := waited[c.Name]
			if known && end.ExitCode == nil && (ordinary(end.GetReason()) || end.GetReason() == "ContainerStatusUnknown") {
				end.Reason, end.Message = why.Reason, why.Message
			}
			ends = append(ends, end)
		}
	}
	return ends
}

func endOf(name string, status *corev1.ContainerStatus) *logsv1.ContainerEnd {
	end := &logsv1.ContainerEnd{Container: name}
	if status == nil {
		return end
	}
	end.RestartCount = uint32(status.RestartCount) //nolint:gosec // Kubernetes counts up from 0
	if waiting := status.State.Waiting; waiting != nil {
		end.Reason, end.Message = waiting.Reason, waiting.Message
	}
	ended := latestRun(status)
	if ended == nil {
		if lost := status.State.Terminated; lost != nil { // it never ran, or nobody saw its end
			end.Reason, end.Message = lost.Reason, lost.Message
		}
		return end
	}
	end.ExitCode = &ended.ExitCode
	end.Signal = ended.Signal
	end.Reason, end.Message = ended.Reason, ended.Message
	if !ended.StartedAt.IsZero() {
		end.StartedTime = timestamppb.New(ended.StartedAt.Time)
	}
	if !ended.FinishedAt.IsZero() {
		end.FinishedTime = timestamppb.New(ended.FinishedAt.Time)
	}
	return end
}

func eachStatus(pod *corev1.Pod, do func(status *corev1.ContainerStatus, init bool)) {
	for i := range pod.Status.InitContainerStatuses {
		do(&pod.Status.InitContainerStatuses[i], true)
	}
	for i := range pod.Status.ContainerStatuses {
		do(&pod.Status.ContainerStatuses[i], false)
	}
}
