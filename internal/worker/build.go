package worker

import (
	"cmp"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// Variables of a worker's environment. See docs/pools.md.
const (
	envTaskID      = "OTTO_TASK_ID"
	envPool        = "OTTO_POOL"
	envEventID     = "OTTO_EVENT_ID"
	envIndex       = "OTTO_WORKER_INDEX"
	envName        = "OTTO_WORKER_NAME"
	envRepository  = "OTTO_REPOSITORY"
	envCommitSHA   = "OTTO_COMMIT_SHA"
	envTriggeredBy = "OTTO_TRIGGERED_BY"
	envReason      = "OTTO_REASON"
	envTimestamp   = "OTTO_TIMESTAMP"
	envPriority    = "OTTO_PRIORITY"
	envAttempt     = "OTTO_ATTEMPT"
	envTraceparent = "TRACEPARENT"
	envMetaPrefix  = "OTTO_META_"
)

// reservedVariable reports whether Ottoscaler sets a variable itself. Others that
// begin with OTTO_ are free: they may be the agent's own.
func reservedVariable(name string) bool {
	switch name {
	case envTaskID, envPool, envEventID, envIndex, envName, envRepository, envCommitSHA, envTriggeredBy,
		envReason, envTimestamp, envPriority, envAttempt, envTraceparent:
		return true
	}
	return strings.HasPrefix(name, envMetaPrefix)
}

// defaultContainerAnnotation makes kubectl logs show the agent without asking.
const defaultContainerAnnotation = "kubectl.kubernetes.io/default-container"

// A builder makes the pods of one event. It is read-only once made.
type builder struct {
	event     scaleevent.Event
	pool      *Pool
	namespace string
	instance  string
	// base is the pod without what differs from worker to worker.
	base *corev1.Pod
}

// newBuilder checks the event's overrides against the pool's policy. The error is
// a [*rejection].
func newBuilder(e scaleevent.Event, p *Pool, namespace, instance string) (*builder, error) {
	b := &builder{event: e, pool: p, namespace: namespace, instance: instance}
	template := p.Template.DeepCopy()
	b.base = &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	b.base.Namespace = namespace
	b.base.Finalizers = append(b.base.Finalizers, pod.FinalizerWorker)
	if limit := p.TimeLimit; limit != nil && b.base.Spec.ActiveDeadlineSeconds == nil {
		seconds := int64(math.Ceil(limit.Seconds()))
		b.base.Spec.ActiveDeadlineSeconds = &seconds
	}
	b.label()
	b.annotate()
	agent := &b.base.Spec.Containers[p.agent]
	agent.Env = slices.Concat(b.environment(), agent.Env)
	if err := p.override(e, agent); err != nil {
		return nil, err
	}
	return b, nil
}

// name returns the name of the event's worker with the given index.
func (b *builder) name(index int) string {
	return pod.Name(b.instance, b.event.Pool, cmp.Or(b.event.IdempotencyKey, b.event.ID), index)
}

// build returns the event's worker with the given index.
func (b *builder) build(index int) *corev1.Pod {
	p := b.base.DeepCopy()
	p.Name = b.name(index)
	p.Annotations[pod.AnnotationEventIndex] = strconv.Itoa(index)
	agent := &p.Spec.Containers[b.pool.agent]
	// First, so that the template's variables may refer to them.
	agent.Env = slices.Concat([]corev1.EnvVar{
		{Name: envName, Value: p.Name},
		{Name: envIndex, Value: strconv.Itoa(index)},
	}, agent.Env)
	return p
}

// gate has a worker wait for a place, and says why.
func gate(p *corev1.Pod, why string) {
	p.Spec.SchedulingGates = append(p.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: pod.GateCapacity})
	p.Annotations[pod.AnnotationWaiting] = why
}

// taskOf returns the task of an event's workers. An event that is about a whole
// pool names none; its workers are a task of their own.
func taskOf(e scaleevent.Event) string { return cmp.Or(e.TaskID, e.ID) }

func (b *builder) label() {
	if b.base.Labels == nil {
		b.base.Labels = make(map[string]string)
	}
	maps.Copy(b.base.Labels, map[string]string{
		pod.LabelManagedBy: pod.ManagedBy,
		pod.LabelComponent: pod.ComponentWorker,
		pod.LabelInstance:  b.instance,
		pod.LabelPool:      b.pool.Name,
		pod.LabelTask:      pod.LabelValue(taskOf(b.event)),
	})
}

func (b *builder) annotate() {
	e := b.event
	if b.base.Annotations == nil {
		b.base.Annotations = make(map[string]string)
	}
	annotations := b.base.Annotations
	set := func(name, value string) {
		if value != "" {
			annotations[name] = value
		}
	}
	if _, set := annotations[defaultContainerAnnotation]; !set && len(b.base.Spec.Containers) > 1 {
		annotations[defaultContainerAnnotation] = b.base.Spec.Containers[b.pool.agent].Name
	}
	for _, field := range slices.Sorted(maps.Keys(e.Metadata)) {
		key := pod.AnnotationMetaPrefix + annotationName(field)
		if _, taken := annotations[key]; !taken {
			annotations[key] = e.Metadata[field]
		}
	}
	annotations[pod.AnnotationTaskID] = taskOf(e)
	annotations[pod.AnnotationEventID] = e.ID
	set(pod.AnnotationIdempotencyKey, e.IdempotencyKey)
	set(pod.AnnotationTraceparent, e.Traceparent)
	if b.pool.MaskSecrets {
		set(pod.AnnotationMaskSecrets, pod.FormatSecrets(secretsOf(b.base.Spec)))
	}
	set(pod.AnnotationFieldPrefix+scaleevent.FieldRepository, e.Repository)
	set(pod.AnnotationFieldPrefix+scaleevent.FieldCommitSHA, e.CommitSHA)
	set(pod.AnnotationFieldPrefix+scaleevent.FieldTriggeredBy, e.TriggeredBy)
	set(pod.AnnotationFieldPrefix+scaleevent.FieldReason, e.Reason)
	set(pod.AnnotationFieldPrefix+scaleevent.FieldTimestamp, e.Timestamp)
	set(pod.AnnotationNode, b.base.Spec.NodeName)
	if e.TargetReplicas != nil {
		annotations[pod.AnnotationTarget] = strconv.Itoa(*e.TargetReplicas)
	}
	if e.Priority != 0 {
		annotations[pod.AnnotationFieldPrefix+scaleevent.FieldPriority] = strconv.Itoa(e.Priority)
	}
}

// environment returns what the event says, as variables.
func (b *builder) environment() []corev1.EnvVar {
	e := b.event
	env := []corev1.EnvVar{
		{Name: envTaskID, Value: literal(taskOf(e))},
		{Name: envPool, Value: b.pool.Name},
		{Name: envEventID, Value: e.ID},
		{Name: envPriority, Value: strconv.Itoa(e.Priority)},
		{Name: envAttempt, Value: "1"},
	}
	add := func(name, value string) {
		taken := slices.ContainsFunc(env, func(v corev1.EnvVar) bool { return v.Name == name })
		if value != "" && !taken {
			env = append(env, corev1.EnvVar{Name: name, Value: literal(value)})
		}
	}
	add(envRepository, e.Repository)
	add(envCommitSHA, e.CommitSHA)
	add(envTriggeredBy, e.TriggeredBy)
	add(envReason, e.Reason)
	add(envTimestamp, e.Timestamp)
	add(envTraceparent, e.Traceparent)
	for _, field := range slices.Sorted(maps.Keys(e.Metadata)) {
		add(envMetaPrefix+variableName(field), e.Metadata[field])
	}
	return env
}

// literal keeps Kubernetes from expanding $(NAME) in a value that an event
// brought: an event must not read variables that the template sets.
func literal(value string) string { return strings.ReplaceAll(value, "$", "$$") }

// annotationName turns a field's name into the second half of an annotation's key.
func annotationName(field string) string {
	name := strings.Map(func(r rune) rune {
		if alphanumeric(r) || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, field)
	const most = 63
	name = strings.Trim(name[:min(len(name), most)], "-_.")
	return cmp.Or(name, "field")
}

// variableName turns a field's name into the end of a variable's name.
func variableName(field string) string {
	return strings.Map(func(r rune) rune {
		if alphanumeric(r) {
			return r
		}
		return '_'
	}, strings.ToUpper(field))
}

func alphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// override writes the event's overrides into the agent's container, or rejects them.
func (p *Pool) override(e scaleevent.Event, agent *corev1.Container) error {
	o := p.Overrides
	if e.Image != "" {
		if !matches(o.Image, e.Image) {
			return reject(ReasonOverrideNotAllowed, "image %q is not allowed in pool %s: its policy allows %s", e.Image, e.Pool, allowed(o.Image))
		}
		agent.Image = e.Image
	}
	if e.Command != nil {
		if !o.Command {
			return reject(ReasonOverrideNotAllowed, "pool %s does not allow another command", e.Pool)
		}
		agent.Command, agent.Args = e.Command, nil
	}
	for _, name := range slices.Sorted(maps.Keys(e.Env)) {
		if reservedVariable(name) {
			return reject(ReasonOverrideNotAllowed, "variable %s is set by Ottoscaler itself", name)
		}
		if !matches(o.Env, name) {
			return reject(ReasonOverrideNotAllowed, "variable %s is not allowed in pool %s: its policy allows %s", name, e.Pool, allowed(o.Env))
		}
		agent.Env = slices.DeleteFunc(agent.Env, func(v corev1.EnvVar) bool { return v.Name == name })
		agent.Env = append(agent.Env, corev1.EnvVar{Name: name, Value: literal(e.Env[name])})
	}
	if err := p.overrideResource(agent, corev1.ResourceCPU, e.CPU, o.CPU); err != nil {
		return err
	}
	return p.overrideResource(agent, corev1.ResourceMemory, e.Memory, o.Memory)
}

func (p *Pool) overrideResource(agent *corev1.Container, name corev1.ResourceName, value string, allowed bool) error {
	if value == "" {
		return nil
	}
	quantity, err := resource.ParseQuantity(value)
	if err != nil || quantity.Sign() <= 0 {
		return reject(scaleevent.ReasonInvalidField, "%s %q is not a Kubernetes quantity above zero", name, value)
	}
	switch most := p.Resources.Max[name]; {
	case !allowed:
		return reject(ReasonOverrideNotAllowed, "pool %s does not allow another %s", p.Name, name)
	case quantity.Cmp(most) > 0:
		return reject(ReasonOverrideNotAllowed, "%s %s is more than the %s that pool %s allows", name, value, most.String(), p.Name)
	}
	setResource(&agent.Resources, name, quantity)
	return nil
}

func matches(patterns []string, value string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, value)
		return ok && err == nil
	})
}

func allowed(patterns []string) string {
	if len(patterns) == 0 {
		return "none"
	}
	return strings.Join(patterns, ", ")
}

// ours reports whether a pod has this installation's labels.
func ours(p *corev1.Pod, instance string) bool {
	return p.Labels[pod.LabelManagedBy] == pod.ManagedBy &&
		p.Labels[pod.LabelComponent] == pod.ComponentWorker &&
		p.Labels[pod.LabelInstance] == instance
}

// held reports whether our finalizer is on a pod.
func held(p metav1.Object) bool { return slices.Contains(p.GetFinalizers(), pod.FinalizerWorker) }
