package logs

import (
	"context"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// Pods is the relay's view of the cluster: the workers of one installation, kept
// by one watch. There is no polling.
type Pods struct {
	informer cache.SharedIndexInformer

	mu sync.Mutex
	// waiting has a channel for each worker that somebody looks at. It is closed
	// and replaced when the worker changes.
	waiting map[types.UID]chan struct{}
}

// NewPods makes a view of what lw lists. It shows nothing before Run has synced it.
func NewPods(lw cache.ListerWatcher) (*Pods, error) {
	p := &Pods{waiting: map[types.UID]chan struct{}{}}
	p.informer = cache.NewSharedIndexInformer(lw, &corev1.Pod{}, 0, cache.Indexers{})
	if err := p.informer.SetTransform(slim); err != nil {
		return nil, fmt.Errorf("preparing the pod informer: %w", err)
	}
	// The informer tries again by itself, and who makes lw knows of its errors.
	quiet := func(context.Context, *cache.Reflector, error) {}
	if err := p.informer.SetWatchErrorHandlerWithContext(quiet); err != nil {
		return nil, fmt.Errorf("preparing the pod informer: %w", err)
	}
	_, err := p.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    p.changed,
		UpdateFunc: func(_, now any) { p.changed(now) },
		DeleteFunc: p.changed,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the pod informer: %w", err)
	}
	return p, nil
}

// Run keeps the view up to date until ctx ends.
func (p *Pods) Run(ctx context.Context) error {
	p.informer.RunWithContext(ctx)
	return nil
}

// WaitForSync blocks until every pod that exists is in the view, or ctx ends,
// which is false.
func (p *Pods) WaitForSync(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), p.informer.HasSynced)
}

func (p *Pods) changed(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	changed, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake(changed.UID)
}

// look returns a pod, or nil if it is not in the view, and a channel that is
// closed at the pod's next change, or earlier. A pod of the same name with another
// UID is another pod. The pod must not be modified.
func (p *Pods) look(namespace, name string, uid types.UID) (*corev1.Pod, <-chan struct{}) {
	p.mu.Lock()
	c, ok := p.waiting[uid]
	if !ok {
		c = make(chan struct{})
		p.waiting[uid] = c
	}
	p.mu.Unlock()
	// Read after the channel is in place, so that no change goes unseen.
	object, exists, err := p.informer.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !exists {
		return nil, c
	}
	found, ok := object.(*corev1.Pod)
	if !ok || found.UID != uid {
		return nil, c
	}
	return found, c
}

// has reports whether a worker is in the view, whatever its name.
func (p *Pods) has(uid types.UID) bool {
	for _, object := range p.informer.GetStore().List() {
		if seen, ok := object.(*corev1.Pod); ok && seen.UID == uid {
			return true
		}
	}
	return false
}

// forget ends the looking at a worker. Whoever still looks at it is told to look
// again: the worker may have been leased anew already.
func (p *Pods) forget(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake(uid)
}

// wake ends the waiting for a change of a worker. It is called with mu held.
func (p *Pods) wake(uid types.UID) {
	if c, ok := p.waiting[uid]; ok {
		close(c)
		delete(p.waiting, uid)
	}
}

// slim keeps what the relay needs of a pod: thousands of them are in memory.
func slim(object any) (any, error) {
	full, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	kept := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: full.Namespace, Name: full.Name, UID: full.UID,
			ResourceVersion: full.ResourceVersion, DeletionTimestamp: full.DeletionTimestamp,
			Annotations: map[string]string{},
		},
		Spec: corev1.PodSpec{
			NodeName:       full.Spec.NodeName,
			InitContainers: names(full.Spec.InitContainers),
			Containers:     names(full.Spec.Containers),
		},
		Status: corev1.PodStatus{
			Phase: full.Status.Phase, Reason: full.Status.Reason, Message: full.Status.Message, HostIP: full.Status.HostIP,
			InitContainerStatuses: runs(full.Status.InitContainerStatuses),
			ContainerStatuses:     runs(full.Status.ContainerStatuses),
		},
	}
	for name, value := range full.Annotations {
		if strings.HasPrefix(name, pod.AnnotationFieldPrefix) || strings.HasPrefix(name, pod.AnnotationMetaPrefix) {
			kept.Annotations[name] = value
		}
	}
	return kept, nil
}

func names(full []corev1.Container) []corev1.Container {
	kept := make([]corev1.Container, len(full))
	for i := range full {
		kept[i].Name = full[i].Name
	}
	return kept
}

func runs(full []corev1.ContainerStatus) []corev1.ContainerStatus {
	kept := make([]corev1.ContainerStatus, len(full))
	for i := range full {
		kept[i] = corev1.ContainerStatus{
			Name: full[i].Name, RestartCount: full[i].RestartCount,
			State: full[i].State, LastTerminationState: full[i].LastTerminationState,
		}
	}
	return kept
}
