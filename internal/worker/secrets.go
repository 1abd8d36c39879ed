package worker

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// Secrets returns the names of the Secrets that the pool's template refers to,
// sorted. Whoever hides them must be allowed to read them.
func (p *Pool) Secrets() []string {
	var names []string
	for _, ref := range secretsOf(p.Template.Spec) {
		names = append(names, ref.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// secretsOf returns what a pod uses of Secrets: variables and volumes of all its
// containers. What the kubelet or a driver uses for itself, such as the
// credentials for an image, no worker can print.
func secretsOf(spec corev1.PodSpec) []pod.SecretRef {
	var refs []pod.SecretRef
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		for _, v := range c.Env {
			if v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil {
				refs = append(refs, pod.SecretRef{Name: v.ValueFrom.SecretKeyRef.Name, Key: v.ValueFrom.SecretKeyRef.Key})
			}
		}
		for _, from := range c.EnvFrom {
			if from.SecretRef != nil {
				refs = append(refs, pod.SecretRef{Name: from.SecretRef.Name})
			}
		}
	}
	add := func(name string, items []corev1.KeyToPath) {
		if len(items) == 0 {
			refs = append(refs, pod.SecretRef{Name: name})
		}
		for _, item := range items {
			refs = append(refs, pod.SecretRef{Name: name, Key: item.Key})
		}
	}
	for _, v := range spec.Volumes {
		if v.Secret != nil {
			add(v.Secret.SecretName, v.Secret.Items)
		}
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.Secret != nil {
				add(source.Secret.Name, source.Secret.Items)
			}
		}
	}
	return refs
}
