package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ErrNoPod says that there is no main pod, or more than one, so that nothing can be
// replaced in it.
var ErrNoPod = errors.New("there is no main pod to replace containers of")

// ProgramAnnotation returns the annotation of the main pod that identifies the
// program which a container of it runs.
func ProgramAnnotation(container string) string { return "ottoscaler.dev/program-" + container }

// Replace has the main pod run an image in those of its containers whose programs
// are not the ones of the image, and waits until they are ready. Programs identify
// what is in the image, by container. It returns the containers that were replaced.
//
// The kubelet does that in place: it ends the container and starts it anew as soon
// as it sees another image in the pod. The pod, its address and its other containers
// stay, which spares a developer the sandbox, the network and the scheduler, and all
// of a container's back-off. What crashes meanwhile finds its way as it always does.
// A pod that is made later runs what the Deployment says.
func Replace(ctx context.Context, opts Options, image string, programs map[string]string) (replaced []string, err error) {
	client, err := opts.client()
	if err != nil {
		return nil, err
	}
	pods := client.CoreV1().Pods(opts.Namespace)
	list, err := watcher{client: client, opts: opts}.pods(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking for the main pod: %w", err)
	}
	if len(list) != 1 || list[0].DeletionTimestamp != nil {
		return nil, ErrNoPod
	}
	before := list[0]
	patch, replaced := replacement(&before, image, programs)
	if len(replaced) > 0 {
		body, err := json.Marshal(patch)
		if err != nil {
			return nil, fmt.Errorf("replacing containers of pod %s: %w", before.Name, err)
		}
		if _, err := pods.Patch(ctx, before.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}); err != nil {
			return nil, fmt.Errorf("replacing containers of pod %s: %w", before.Name, err)
		}
	}
	return replaced, await(ctx, opts, func(ctx context.Context, w watcher) bool {
		now, err := w.client.CoreV1().Pods(opts.Namespace).Get(ctx, before.Name, metav1.GetOptions{})
		return err == nil && isReplaced(&before, now, replaced, func(c corev1.Container) bool { return w.answers(ctx, now, c) })
	})
}

// answers asks a container itself whether it is ready, as its probe would: the
// kubelet gets to it a second or two later.
func (w watcher) answers(ctx context.Context, p *corev1.Pod, c corev1.Container) bool {
	if c.ReadinessProbe == nil || c.ReadinessProbe.HTTPGet == nil {
		return false
	}
	get := c.ReadinessProbe.HTTPGet
	port := get.Port.String()
	for _, named := range c.Ports {
		if named.Name == port {
			port = strconv.Itoa(int(named.ContainerPort))
		}
	}
	_, err := w.client.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, port, get.Path, nil).DoRaw(ctx)
	return err == nil
}

// replacement returns what to change of a pod so that it runs the programs, and the
// containers that this is about.
func replacement(p *corev1.Pod, image string, programs map[string]string) (patch any, replaced []string) {
	type container struct {
		Name  string `json:"name"`
		Image string `json:"image"`
	}
	var containers []container
	annotations := map[string]string{}
	for _, c := range p.Spec.Containers {
		program, ours := programs[c.Name]
		if name := ProgramAnnotation(c.Name); ours && p.Annotations[name] != program {
			containers = append(containers, container{c.Name, image})
			annotations[name] = program
			replaced = append(replaced, c.Name)
		}
	}
	return map[string]any{
		"metadata": map[string]any{"uid": p.UID, "annotations": annotations},
		"spec":     map[string]any{"containers": containers},
	}, replaced
}

// isReplaced tells whether all containers are ready, and those that were to be
// replaced are not the ones of before any more. Answers asks one of which the pod's
// status says that it is not ready: it may be, in the meantime.
func isReplaced(before, now *corev1.Pod, replaced []string, answers func(corev1.Container) bool) bool {
	was, is := statuses(before), statuses(now)
	for _, c := range now.Spec.Containers {
		status := is[c.Name]
		if status.State.Running == nil {
			return false
		}
		if slices.Contains(replaced, c.Name) && status.ContainerID == was[c.Name].ContainerID {
			return false
		}
		if !status.Ready && !answers(c) {
			return false
		}
	}
	return true
}

func statuses(p *corev1.Pod) map[string]corev1.ContainerStatus {
	statuses := map[string]corev1.ContainerStatus{}
	for _, c := range p.Status.ContainerStatuses {
		statuses[c.Name] = c
	}
	return statuses
}
