package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
)

const (
	// writeTimeout bounds one call. A write goes on when the event's lease ends:
	// the answer to it tells the next delivery more than a broken call would. A
	// process that is told to stop may wait for two, one after the other; the pod's
	// grace period in the chart allows for that.
	writeTimeout = 10 * time.Second
	// seenTimeout bounds the wait for the cache to show our own writes. It takes
	// milliseconds unless the watch is broken.
	seenTimeout = 10 * time.Second
)

// DefaultMaxWrites bounds how many writes are under way at once. The API server
// has fairness of its own, and answers 429 when that is too much for it.
const DefaultMaxWrites = 128

// errCacheBehind says that the cache does not show our own writes yet.
var errCacheBehind = errors.New("the watch on pods is behind: it does not show what was just written")

// errNotSent says that a write did not begin.
var errNotSent = errors.New("not sent")

// Indexes of the cache.
const (
	byGate  = "gate" // whether it waits for a place
	byPool  = "pool"
	byTask  = "task"  // pool and task
	byEvent = "event" // the event that created the worker
	byKey   = "key"   // idempotency keys of the events that created or removed it
)

// waits is the value of those that do in the index byGate.
const waits = "waits"

var indexers = cache.Indexers{
	byGate: index(func(p *corev1.Pod) []string {
		if isGated(p) && live(p) {
			return []string{waits}
		}
		return nil
	}),
	byPool: index(func(p *corev1.Pod) []string { return []string{p.Labels[pod.LabelPool]} }),
	byTask: index(func(p *corev1.Pod) []string {
		return []string{taskKey(p.Labels[pod.LabelPool], p.Annotations[pod.AnnotationTaskID])}
	}),
	byEvent: index(func(p *corev1.Pod) []string { return []string{p.Annotations[pod.AnnotationEventID]} }),
	byKey: index(func(p *corev1.Pod) []string {
		return slices.DeleteFunc([]string{
			p.Annotations[pod.AnnotationIdempotencyKey],
			p.Annotations[pod.AnnotationScaledDownKey],
		}, func(key string) bool { return key == "" })
	}),
}

func index(of func(p *corev1.Pod) []string) cache.IndexFunc {
	return func(obj any) ([]string, error) {
		p, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, fmt.Errorf("indexing pods: found a %T", obj)
		}
		return of(p), nil
	}
}

func taskKey(pool, task string) string { return pool + "/" + task }

// A ref identifies a worker. The UID tells it from a later pod of that name.
type ref struct {
	name string
	uid  types.UID
}

func refOf(p *corev1.Pod) ref { return ref{name: p.Name, uid: p.UID} }

// A scope is what an event is about: a task in a pool, or the whole pool.
type scope struct {
	pool, task string
}

// cluster is the API server: one informer to read from, and the calls that write.
// Cached pods are read-only.
type cluster struct {
	client    corev1client.PodInterface
	selector  string
	namespace string
	instance  string
	informer  cache.SharedIndexInformer
	mayWrite  func() error
	halted    context.Context // ends when no write may go on; it is no call's context
	halt      context.CancelFunc
	writes    chan struct{} // one element for each write under way
	creates   chan struct{} // one element for each create that is under way or about to be

	mu      sync.Mutex
	waiters map[string]map[*waiter]struct{} // by pod name; guarded by mu
}

type waiter struct {
	cond func(*corev1.Pod) bool // nil: there is no such pod
	done chan struct{}
	once sync.Once
}

// allow bounds how many writes are under way at once.
func (c *cluster) allow(writes int) {
	c.writes = make(chan struct{}, writes)
	c.creates = make(chan struct{}, max(1, writes*3/4))
}

// An observer is told about every change of a worker in the cache, in order. It
// must be quick.
type observer interface {
	// observe is told what a worker has become.
	observe(p *corev1.Pod)
	// gone is told that a worker is no more.
	gone(r ref)
}

// newCluster starts nothing. Report is told about every list and watch: nil when
// it worked.
func newCluster(client corev1client.PodsGetter, namespace, instance string, report func(error), observer observer) (*cluster, error) {
	halted, halt := context.WithCancel(context.Background())
	c := &cluster{
		halted: halted, halt: halt, mayWrite: func() error { return nil },
		client:    client.Pods(namespace),
		selector:  pod.Selector(instance),
		namespace: namespace,
		instance:  instance,
		waiters:   make(map[string]map[*waiter]struct{}),
	}
	c.allow(DefaultMaxWrites)
	listWatch := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.LabelSelector = c.selector
			if opts.ResourceVersion == "0" {
				// Whatever the API server's cache has may be older than what our
				// predecessor wrote.
				opts.ResourceVersion = ""
			}
			list, err := c.client.List(ctx, opts)
			report(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.LabelSelector = c.selector
			w, err := c.client.Watch(ctx, opts)
			report(err)
			return w, err
		},
	}
	c.informer = cache.NewSharedIndexInformer(listWatch, &corev1.Pod{}, 0, indexers)
	return c, errors.Join(
		c.informer.SetTransform(onlyWhatIsRead),
		// Report knows already; the reflector would only log it once more.
		c.informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}),
		c.handle(observer),
	)
}

func (c *cluster) handle(observer observer) error {
	update := func(obj any) {
		if p, ok := obj.(*corev1.Pod); ok {
			observer.observe(p) // first: who is notified may reckon with it
			c.notify(p.Name, p)
		}
	}
	_, err := c.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: update,
		UpdateFunc: func(before, after any) {
			// A worker that was deleted and made again between two lists arrives
			// as an update; the old one has to be let go of as well.
			was, ok := before.(*corev1.Pod)
			if is, same := after.(*corev1.Pod); ok && same && was.UID != is.UID {
				observer.gone(refOf(was))
			}
			update(after)
		},
		DeleteFunc: func(obj any) {
			// After a broken watch, the last state is all that is known of the pod.
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if p, ok := obj.(*corev1.Pod); ok {
				observer.gone(refOf(p))
				c.notify(p.Name, nil)
			}
		},
	})
	return err
}

// onlyWhatIsRead drops the greater part of a pod before it is cached: thousands of
// them are. A worker that stands for a target keeps its spec, of which its successor
// is made should it vanish; that of any other is read afresh.
func onlyWhatIsRead(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	p.ManagedFields = nil
	if p.Annotations[pod.AnnotationTarget] == "" {
		spec := corev1.PodSpec{
			NodeName: p.Spec.NodeName, SchedulingGates: p.Spec.SchedulingGates, ActiveDeadlineSeconds: p.Spec.ActiveDeadlineSeconds,
			Containers: make([]corev1.Container, len(p.Spec.Containers)),
		}
		for i, c := range p.Spec.Containers {
			spec.Containers[i] = corev1.Container{Name: c.Name, Resources: corev1.ResourceRequirements{Limits: c.Resources.Limits}}
		}
		p.Spec = spec
	}
	status := corev1.PodStatus{
		Phase: p.Status.Phase, Reason: p.Status.Reason, Message: p.Status.Message,
		InitContainerStatuses: states(p.Status.InitContainerStatuses), ContainerStatuses: states(p.Status.ContainerStatuses),
	}
	for _, of := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodReady, corev1.DisruptionTarget} {
		if c := condition(p, of); c != nil {
			status.Conditions = append(status.Conditions, *c)
		}
	}
	p.Status = status
	return p, nil
}

func states(of []corev1.ContainerStatus) []corev1.ContainerStatus {
	if len(of) == 0 {
		return nil
	}
	all := make([]corev1.ContainerStatus, len(of))
	for i, c := range of {
		all[i] = corev1.ContainerStatus{Name: c.Name, State: c.State}
	}
	return all
}

// Run keeps the cache up to date until ctx is done.
func (c *cluster) run(ctx context.Context) { c.informer.RunWithContext(ctx) }

// synced blocks until the cache has been filled once.
func (c *cluster) synced(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.informer.HasSynced) {
		return ctx.Err()
	}
	return nil
}

// catchUp blocks until the cache shows what the API server has now. Right after
// another scaler has led, it may not show that one's last writes yet.
func (c *cluster) catchUp(ctx context.Context) error {
	for range backoff.Default.Attempts(ctx) {
		before := c.all()
		pods, err := c.listAll(ctx)
		if err != nil {
			continue // the watch says so
		}
		if c.shows(ctx, pods, before) == nil {
			return nil
		}
	}
	return ctx.Err()
}

// shows waits a moment for the cache to show pods as they are in a list, and none
// of those that were in the cache before and are not in the list.
func (c *cluster) shows(ctx context.Context, list []corev1.Pod, before []*corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second) // one may be gone since the list was made
	defer cancel()
	listed := make(map[types.UID]bool, len(list))
	pods := make([]*corev1.Pod, 0, len(list))
	for i := range list {
		listed[list[i].UID] = true
		pods = append(pods, &list[i])
	}
	err := c.awaitSeen(ctx, pods, func(wrote, seen *corev1.Pod) bool {
		if seen == nil || seen.UID != wrote.UID {
			return seen != nil
		}
		order, err := resourceversion.CompareResourceVersion(seen.ResourceVersion, wrote.ResourceVersion)
		return err != nil || order >= 0
	})
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(before, func(p *corev1.Pod) bool { return listed[p.UID] })
	return c.awaitSeen(ctx, gone, func(was, seen *corev1.Pod) bool { return seen == nil || seen.UID != was.UID })
}

// get returns the cached pod of that name, or nil.
func (c *cluster) get(name string) *corev1.Pod {
	obj, _, err := c.informer.GetStore().GetByKey(c.namespace + "/" + name)
	if err != nil {
		return nil // only a store without a key function errs
	}
	if p, ok := obj.(*corev1.Pod); ok {
		return p
	}
	return nil
}

// all returns every cached worker.
func (c *cluster) all() []*corev1.Pod { return podsOf(c.informer.GetStore().List()) }

// indexed returns the cached workers with that value in an index.
func (c *cluster) indexed(index, value string) []*corev1.Pod {
	objs, err := c.informer.GetIndexer().ByIndex(index, value)
	if err != nil {
		panic("worker: " + err.Error()) // the index is not in indexers
	}
	return podsOf(objs)
}

// seen returns the cached workers of a scope.
func (c *cluster) seen(s scope) []*corev1.Pod {
	if s.task == "" {
		return c.indexed(byPool, s.pool)
	}
	return c.indexed(byTask, taskKey(s.pool, s.task))
}

func podsOf(objs []any) []*corev1.Pod {
	pods := make([]*corev1.Pod, 0, len(objs))
	for _, obj := range objs {
		if p, ok := obj.(*corev1.Pod); ok {
			pods = append(pods, p)
		}
	}
	return pods
}

// list asks the API server itself for the workers of a scope: what it returns is
// no older than the call, which the cache cannot promise.
func (c *cluster) list(ctx context.Context, s scope) ([]*corev1.Pod, error) {
	wanted := labels.Set{pod.LabelPool: s.pool}
	if s.task != "" {
		wanted[pod.LabelTask] = pod.LabelValue(s.task)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	list, err := c.client.List(ctx, metav1.ListOptions{LabelSelector: c.selector + "," + wanted.String()})
	if err != nil {
		return nil, fmt.Errorf("listing workers of pool %s: %w", s.pool, err)
	}
	pods := make([]*corev1.Pod, 0, len(list.Items))
	for i := range list.Items {
		pods = append(pods, &list.Items[i])
	}
	return pods, nil
}

// listAll asks the API server itself for all workers.
func (c *cluster) listAll(ctx context.Context) ([]corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	list, err := c.client.List(ctx, metav1.ListOptions{LabelSelector: c.selector})
	if err != nil {
		return nil, fmt.Errorf("listing workers: %w", err)
	}
	return list.Items, nil
}

// running asks the API server itself for the names of the pods of a selector,
// workers or not, that have not ended.
func (c *cluster) running(ctx context.Context, selector string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	list, err := c.client.List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("listing pods of %s: %w", selector, err)
	}
	var names []string
	for i := range list.Items {
		if !finished(&list.Items[i]) {
			names = append(names, list.Items[i].Name)
		}
	}
	return names, nil
}

// write runs one call that changes something. It is not cut off by the end of ctx,
// but does not begin after it either.
func (c *cluster) write(ctx context.Context, call func(ctx context.Context) error) error {
	select {
	case c.writes <- struct{}{}:
		defer func() { <-c.writes }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	}
	if err := cmp.Or(ctx.Err(), c.halted.Err()); err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	if err := c.mayWrite(); err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	defer context.AfterFunc(c.halted, cancel)()
	return call(ctx)
}

// create creates a pod. Where its name is taken, it returns the pod that has it,
// and false.
func (c *cluster) create(ctx context.Context, p *corev1.Pod) (_ *corev1.Pod, created bool, err error) {
	select {
	case c.creates <- struct{}{}:
		defer func() { <-c.creates }()
	case <-ctx.Done():
		return nil, false, fmt.Errorf("creating pod %s: %w: %w", p.Name, errNotSent, ctx.Err())
	}
	var made *corev1.Pod
	err = c.write(ctx, func(ctx context.Context) (err error) {
		made, err = c.client.Create(ctx, p, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			created = err == nil
			return err
		}
		made, err = c.client.Get(ctx, p.Name, metav1.GetOptions{})
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("creating pod %s: %w", p.Name, err)
	}
	return made, created, nil
}

// dryRun has the API server check a pod without creating it. It changes nothing,
// so the end of ctx may cut it off.
func (c *cluster) dryRun(ctx context.Context, p *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err := c.client.Create(ctx, p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// annotate adds annotations to the pod as it was seen: it fails with a conflict
// if the pod has changed since.
func (c *cluster) annotate(ctx context.Context, p *corev1.Pod, annotations map[string]string) (*corev1.Pod, error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":             p.UID,
		"resourceVersion": p.ResourceVersion,
		"annotations":     annotations,
	}})
	if err != nil {
		return nil, fmt.Errorf("annotating pod %s: %w", p.Name, err)
	}
	var patched *corev1.Pod
	err = c.write(ctx, func(ctx context.Context) (err error) {
		patched, err = c.client.Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("annotating pod %s: %w", p.Name, err)
	}
	return patched, nil
}

// ungate takes our gate off a worker. Whatever else happens to it meanwhile does
// not matter; it is no error if that very pod is gone.
func (c *cluster) ungate(ctx context.Context, p *corev1.Pod) error {
	at := slices.IndexFunc(p.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == pod.GateCapacity })
	reason := "/metadata/annotations/" + strings.ReplaceAll(pod.AnnotationWaiting, "/", "~1")
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/uid", "value": p.UID},
		{"op": "test", "path": fmt.Sprintf("/spec/schedulingGates/%d/name", at), "value": pod.GateCapacity},
		{"op": "remove", "path": fmt.Sprintf("/spec/schedulingGates/%d", at)},
		{"op": "add", "path": reason, "value": ""}, // or removing it fails where somebody did
		{"op": "remove", "path": reason},
		{"op": "add", "path": "/metadata/annotations/" + strings.ReplaceAll(pod.AnnotationAdmitted, "/", "~1"), "value": time.Now().UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return fmt.Errorf("ungating pod %s: %w", p.Name, err)
	}
	err = c.write(ctx, func(ctx context.Context) error {
		_, err := c.client.Patch(ctx, p.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
		return err
	})
	// A failed test means that it was done before, and the answer lost.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) {
		return fmt.Errorf("ungating pod %s: %w", p.Name, err)
	}
	return nil
}

// fetch asks the API server itself for a pod, or returns nil.
func (c *cluster) fetch(ctx context.Context, name string) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	p, err := c.client.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil // no pod is an answer, not an error
	case err != nil:
		return nil, fmt.Errorf("reading pod %s: %w", name, err)
	}
	return p, nil
}

// remove deletes a worker with the grace of its template. It is no error if that
// very pod is gone.
func (c *cluster) remove(ctx context.Context, r ref) error {
	err := c.write(ctx, func(ctx context.Context) error {
		return c.client.Delete(ctx, r.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &r.uid}})
	})
	// A conflict means that another pod has the name.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting pod %s: %w", r.name, err)
	}
	return nil
}

// release takes our finalizer off the pod as it was seen, and adds annotations. It
// fails with errChanged if the pod has changed since, and returns nil if that very
// pod is gone.
func (c *cluster) release(ctx context.Context, p *corev1.Pod, annotations map[string]string) error {
	rest := slices.DeleteFunc(slices.Clone(p.Finalizers), func(f string) bool { return f == pod.FinalizerWorker })
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":             p.UID,
		"resourceVersion": p.ResourceVersion,
		"finalizers":      rest,
		"annotations":     annotations,
	}})
	if err != nil {
		return fmt.Errorf("releasing pod %s: %w", p.Name, err)
	}
	err = c.write(ctx, func(ctx context.Context) error {
		_, err := c.client.Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	switch {
	case err == nil, apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		return fmt.Errorf("releasing pod %s: %w", p.Name, errChanged)
	default:
		return fmt.Errorf("releasing pod %s: %w", p.Name, err)
	}
}

// errChanged says that a pod is not as the cache shows it any more.
var errChanged = errors.New("the pod has changed since it was seen")

// expect returns a channel that is closed once the cache shows of the pod what
// cond wants; cond is given nil when there is no such pod.
func (c *cluster) expect(name string, cond func(*corev1.Pod) bool) (done <-chan struct{}, cancel func()) {
	w := &waiter{cond: cond, done: make(chan struct{})}
	c.mu.Lock()
	if c.waiters[name] == nil {
		c.waiters[name] = make(map[*waiter]struct{})
	}
	c.waiters[name][w] = struct{}{}
	c.mu.Unlock()
	w.check(c.get(name)) // only now, or a change in between would be missed
	return w.done, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiters[name], w)
		if len(c.waiters[name]) == 0 {
			delete(c.waiters, name)
		}
	}
}

func (w *waiter) check(p *corev1.Pod) {
	if w.cond(p) {
		w.once.Do(func() { close(w.done) })
	}
}

func (c *cluster) notify(name string, p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.waiters[name] {
		w.check(p)
	}
}

// identity is all that is needed of a pod to await it: an event of thousands of
// workers is not to hold all of them until then.
func identity(p *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, UID: p.UID}}
}

// awaitSeen blocks until the cache shows of each pod what cond wants of it.
//
// A verdict must not be given before: the next event of the task is planned from
// the cache, and would count workers that are on their way out, or miss those
// that are on their way in.
func (c *cluster) awaitSeen(ctx context.Context, pods []*corev1.Pod, cond func(wrote, seen *corev1.Pod) bool) error {
	timeout := time.NewTimer(seenTimeout)
	defer timeout.Stop()
	for _, wrote := range pods {
		done, cancel := c.expect(wrote.Name, func(seen *corev1.Pod) bool { return cond(wrote, seen) })
		select {
		case <-done:
			cancel()
		case <-timeout.C:
			cancel()
			return errCacheBehind
		case <-ctx.Done():
			cancel()
			return ctx.Err()
		}
	}
	return nil
}
