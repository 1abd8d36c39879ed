package release

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// pollEvery is short because a developer waits, for one object in a cluster of
	// their own. Helm looks every two seconds.
	pollEvery = 50 * time.Millisecond
	// hopelessAfter is how long a state that only its user can mend may last.
	hopelessAfter = 5 * time.Second
	// exitMisconfigured is the exit code of a program of ours that refuses its
	// configuration; starting it again does not help.
	exitMisconfigured = 2
)

// client returns a client of the release's cluster.
func (opts Options) client() (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", opts.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", opts.Kubeconfig, err)
	}
	cfg.QPS = -1
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to the cluster: %w", err)
	}
	return client, nil
}

// await waits until the release is ready, as the condition decides
// it. What waiting does not cure, such as a configuration that a program refuses,
// ends it early, with the reason.
func await(ctx context.Context, opts Options, ready func(context.Context, watcher) bool) error {
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	client, err := opts.client()
	if err != nil {
		return err
	}
	w := watcher{client, opts, map[string]time.Time{}}
	for {
		if ready(ctx, w) {
			return nil
		}
		if err := w.hopeless(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for release %s: it is not ready after %s (%w)%s", opts.Name, opts.Timeout, ctx.Err(), w.story())
		case <-time.After(pollEvery):
		}
	}
}

// A watcher looks at the pods of a release again and again.
type watcher struct {
	client kubernetes.Interface
	opts   Options
	since  map[string]time.Time // when a container was first seen in a hopeless state
}

// rolledOut tells whether the release's Deployment is rolled out, and the StatefulSet
// of a log server beside it, as `kubectl rollout status` decides it.
func rolledOut(ctx context.Context, w watcher) bool {
	d := w.deployment(ctx)
	if d == nil {
		return false
	}
	want, s := *d.Spec.Replicas, d.Status
	if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.Replicas != want || s.AvailableReplicas != want {
		return false
	}
	sets, err := w.statefulSets(ctx)
	return err == nil && !slices.ContainsFunc(sets, func(set appsv1.StatefulSet) bool {
		want, s := *set.Spec.Replicas, set.Status
		return s.ObservedGeneration < set.Generation || s.UpdateRevision != s.CurrentRevision || s.UpdatedReplicas != want || s.AvailableReplicas != want
	})
}

// deployment returns the release's Deployment, or nil: an API server that does not
// answer is asked again, until the time is over.
func (w watcher) deployment(ctx context.Context) *appsv1.Deployment {
	list, err := w.client.AppsV1().Deployments(w.opts.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=main"})
	if err != nil {
		return nil
	}
	for i := range list.Items {
		if d := &list.Items[i]; d.Annotations["meta.helm.sh/release-name"] == w.opts.Name {
			return d
		}
	}
	return nil
}

// statefulSets returns the release's, of which there is at most that of a log server.
func (w watcher) statefulSets(ctx context.Context) ([]appsv1.StatefulSet, error) {
	list, err := w.client.AppsV1().StatefulSets(w.opts.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(s appsv1.StatefulSet) bool { return s.Annotations["meta.helm.sh/release-name"] != w.opts.Name }), nil
}

// pods returns the main pods of the release.
func (w watcher) pods(ctx context.Context) ([]corev1.Pod, error) {
	d := w.deployment(ctx)
	if d == nil {
		return nil, nil
	}
	list, err := w.client.CoreV1().Pods(w.opts.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// allPods returns the main pods of the release, and those of a log server.
func (w watcher) allPods(ctx context.Context) ([]corev1.Pod, error) {
	pods, err := w.pods(ctx)
	if err != nil {
		return nil, err
	}
	sets, err := w.statefulSets(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		list, err := w.client.CoreV1().Pods(w.opts.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(s.Spec.Selector)})
		if err != nil {
			return nil, err
		}
		pods = append(pods, list.Items...)
	}
	return pods, nil
}

// hopeless returns why a pod of the release will never be ready.
func (w watcher) hopeless(ctx context.Context) error {
	pods, err := w.allPods(ctx)
	if err != nil {
		return nil //nolint:nilerr // the time-out ends this
	}
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		for _, c := range p.Status.ContainerStatuses {
			if end := ended(c); end != nil && end.ExitCode == exitMisconfigured {
				return fmt.Errorf("%s refuses to start: %s", c.Name, lastWords(c))
			}
			waiting := c.State.Waiting
			if waiting == nil {
				continue
			}
			switch waiting.Reason {
			case "ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError":
				key := p.Name + "/" + c.Name
				if w.since[key].IsZero() {
					w.since[key] = time.Now()
				}
				if time.Since(w.since[key]) > hopelessAfter {
					return fmt.Errorf("%s cannot start: %s: %s", c.Name, waiting.Reason, waiting.Message)
				}
			}
		}
	}
	return nil
}

func ended(c corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	if c.State.Terminated != nil {
		return c.State.Terminated
	}
	return c.LastTerminationState.Terminated
}

// lastWords returns the last line that the latest attempt of a container to have
// ended has said. It is of the status, in which the chart has the kubelet put it
// together with the exit code: what the log shows may be of the next attempt by now.
func lastWords(c corev1.ContainerStatus) string {
	if end := ended(c); end != nil {
		lines := strings.Split(strings.TrimSpace(end.Message), "\n")
		if last := lines[len(lines)-1]; last != "" {
			return last
		}
	}
	return "its log may say why (make logs C=" + c.Name + ")"
}

// story tells what the containers wait for, when the time is over.
func (w watcher) story() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	pods, err := w.allPods(ctx)
	if err != nil {
		return ": " + err.Error()
	}
	var story strings.Builder
	for _, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			if !c.Ready {
				fmt.Fprintf(&story, "; %s: %s", c.Name, lastWords(c))
			}
		}
		for _, condition := range p.Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
				fmt.Fprintf(&story, "; %s is not scheduled: %s", p.Name, condition.Message)
			}
		}
	}
	return story.String()
}
