package worker

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const twoContainers = `
pools:
  gpu:
    overrides: {image: ["registry.example/agents/*", "other:1"], command: true, env: ["CI_*", BRANCH], cpu: true, memory: true}
    resources: {max: {cpu: "2", memory: 4Gi}}
    template:
      metadata: {labels: {team: a}, annotations: {note: b}}
      spec:
        containers:
        - {name: proxy, image: proxy}
        - name: agent
          args: [serve]
          env: [{name: HELLO, value: "I am $(OTTO_WORKER_NAME)"}, {name: CI_MODE, value: slow}]
          resources: {requests: {cpu: 100m, ephemeral-storage: 1Gi}}
`

func buildOne(t *testing.T, e scaleevent.Event) *corev1.Pod {
	t.Helper()
	b, err := newBuilder(e, mustParse(t, twoContainers).Get("gpu"), "space", "inst")
	if err != nil {
		t.Fatalf("building: %v", err)
	}
	return b.build(3)
}

func environment(c corev1.Container) map[string]string {
	env := map[string]string{}
	for _, v := range c.Env {
		env[v.Name] = v.Value
	}
	return env
}

func TestWorkerCarriesItsEvent(t *testing.T) {
	p := buildOne(t, scaleevent.Event{
		ID: "1700000000000-0", Type: scaleevent.ScaleUp, TaskID: "repo/branch", Pool: "gpu", Priority: 7, IdempotencyKey: "key",
		Repository: "r", CommitSHA: "c", TriggeredBy: "t", Reason: "why $(HELLO)", Timestamp: "2026", Traceparent: "00-ab",
		Metadata: map[string]string{"build url": "https://x", "build-url": "second", "é": "accent"},
	})

	if want := pod.Name("inst", "gpu", "key", 3); p.Name != want || p.Namespace != "space" {
		t.Errorf("pod %s/%s, want space/%s", p.Namespace, p.Name, want)
	}
	if diff := cmp.Diff([]string{pod.FinalizerWorker}, p.Finalizers); diff != "" {
		t.Errorf("finalizers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{
		"team": "a", pod.LabelManagedBy: pod.ManagedBy, pod.LabelComponent: pod.ComponentWorker, pod.LabelInstance: "inst",
		pod.LabelPool: "gpu", pod.LabelTask: pod.LabelValue("repo/branch"),
	}, p.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{
		"note": "b", defaultContainerAnnotation: "agent",
		pod.AnnotationTaskID: "repo/branch", pod.AnnotationEventID: "1700000000000-0", pod.AnnotationEventIndex: "3",
		pod.AnnotationIdempotencyKey: "key", pod.AnnotationTraceparent: "00-ab",
		"ottoscaler.dev/repository": "r", "ottoscaler.dev/commit_sha": "c", "ottoscaler.dev/triggered_by": "t",
		"ottoscaler.dev/reason": "why $(HELLO)", "ottoscaler.dev/timestamp": "2026", "ottoscaler.dev/priority": "7",
		"meta.ottoscaler.dev/build-url": "https://x", "meta.ottoscaler.dev/field": "accent",
	}, p.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	agent := p.Spec.Containers[1]
	if diff := cmp.Diff(map[string]string{
		"OTTO_WORKER_NAME": p.Name, "OTTO_WORKER_INDEX": "3", "OTTO_TASK_ID": "repo/branch", "OTTO_POOL": "gpu",
		"OTTO_EVENT_ID": "1700000000000-0", "OTTO_PRIORITY": "7", "OTTO_ATTEMPT": "1", "OTTO_REPOSITORY": "r", "OTTO_COMMIT_SHA": "c",
		"OTTO_TRIGGERED_BY": "t", "OTTO_REASON": "why $$(HELLO)", "OTTO_TIMESTAMP": "2026", "TRACEPARENT": "00-ab",
		"OTTO_META_BUILD_URL": "https://x", "OTTO_META__": "accent",
		"HELLO": "I am $(OTTO_WORKER_NAME)", "CI_MODE": "slow",
	}, environment(agent)); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if last := agent.Env[len(agent.Env)-2].Name; last != "HELLO" {
		t.Errorf("the template's variables do not come last: %s does", last)
	}
	if env := p.Spec.Containers[0].Env; len(env) != 0 {
		t.Errorf("the proxy was given %v", env)
	}
}

func TestAllowedOverridesAreApplied(t *testing.T) {
	p := buildOne(t, scaleevent.Event{
		ID: "1-0", TaskID: "t", Pool: "gpu", Image: "registry.example/agents/go:1", Command: []string{"make", "all"},
		Env: map[string]string{"CI_MODE": "$HOME", "BRANCH": "main"}, CPU: "1500m", Memory: "4Gi",
	})
	agent := p.Spec.Containers[1]
	if agent.Image != "registry.example/agents/go:1" || len(agent.Args) != 0 || !cmp.Equal(agent.Command, []string{"make", "all"}) {
		t.Errorf("image %s, command %v, args %v", agent.Image, agent.Command, agent.Args)
	}
	env := environment(agent)
	if env["CI_MODE"] != "$$HOME" || env["BRANCH"] != "main" {
		t.Errorf("environment: %v", env)
	}
	for what, list := range map[string]corev1.ResourceList{"request": agent.Resources.Requests, "limit": agent.Resources.Limits} {
		if list.Cpu().String() != "1500m" || list.Memory().String() != "4Gi" {
			t.Errorf("%s: cpu %s, memory %s", what, list.Cpu(), list.Memory())
		}
	}
	if storage := agent.Resources.Requests.StorageEphemeral().String(); storage != "1Gi" {
		t.Errorf("the template's storage became %s", storage)
	}
	if p.Spec.Containers[0].Image != "proxy" {
		t.Errorf("the proxy's image became %s", p.Spec.Containers[0].Image)
	}
}

func TestForbiddenOverridesAreRejected(t *testing.T) {
	strict := mustParse(t, strings.Replace(smallest, "default:", "gpu:", 1)).Get("gpu")
	open := mustParse(t, twoContainers).Get("gpu")
	for name, c := range map[string]struct {
		pool   *Pool
		event  scaleevent.Event
		reason string
	}{
		"image, none allowed":       {strict, scaleevent.Event{Image: "a"}, ReasonOverrideNotAllowed},
		"image, another allowed":    {open, scaleevent.Event{Image: "registry.example/other"}, ReasonOverrideNotAllowed},
		"image, a folder deeper":    {open, scaleevent.Event{Image: "registry.example/agents/x/y"}, ReasonOverrideNotAllowed},
		"command":                   {strict, scaleevent.Event{Command: []string{"sh"}}, ReasonOverrideNotAllowed},
		"variable, none allowed":    {strict, scaleevent.Event{Env: map[string]string{"A": "1"}}, ReasonOverrideNotAllowed},
		"variable, another allowed": {open, scaleevent.Event{Env: map[string]string{"PATH": "/"}}, ReasonOverrideNotAllowed},
		"variable of ours":          {open, scaleevent.Event{Env: map[string]string{"OTTO_TASK_ID": "x"}}, ReasonOverrideNotAllowed},
		"cpu, none allowed":         {strict, scaleevent.Event{CPU: "1"}, ReasonOverrideNotAllowed},
		"cpu, too much":             {open, scaleevent.Event{CPU: "2001m"}, ReasonOverrideNotAllowed},
		"memory, too much":          {open, scaleevent.Event{Memory: "5Gi"}, ReasonOverrideNotAllowed},
		"cpu, negative":             {open, scaleevent.Event{CPU: "-1"}, scaleevent.ReasonInvalidField},
		"memory, no quantity":       {open, scaleevent.Event{Memory: "much"}, scaleevent.ReasonInvalidField},
	} {
		c.event.ID, c.event.TaskID, c.event.Pool = "1-0", "t", "gpu"
		_, err := newBuilder(c.event, c.pool, "space", "inst")
		var rejected *rejection
		if !errors.As(err, &rejected) || rejected.reason != c.reason {
			t.Errorf("%s: got %v, want a rejection as %s", name, err, c.reason)
		}
	}
}

func TestBuildingLeavesThePoolAlone(t *testing.T) {
	pools := mustParse(t, twoContainers)
	before := pools.Get("gpu").Template.DeepCopy()
	b, err := newBuilder(scaleevent.Event{ID: "1-0", TaskID: "t", Pool: "gpu", CPU: "1", Image: "other:1", Env: map[string]string{"CI_MODE": "x"}}, pools.Get("gpu"), "space", "inst")
	if err != nil {
		t.Fatal(err)
	}
	first, second := b.build(0), b.build(1)
	if diff := cmp.Diff(before, &pools.Get("gpu").Template); diff != "" {
		t.Errorf("the template changed (-before +after):\n%s", diff)
	}
	if got := environment(first.Spec.Containers[1])["OTTO_WORKER_INDEX"]; got != "0" || first.Name == second.Name {
		t.Errorf("workers share state: index %s, names %s and %s", got, first.Name, second.Name)
	}
}
