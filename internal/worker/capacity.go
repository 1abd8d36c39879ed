package worker

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// errWaitingFull says that as many workers wait for capacity as the pool file
// allows. The event waits in Redis instead.
var errWaitingFull = errors.New("too many workers wait for capacity already")

// capacity knows which workers take a place in their pool, in their task and in
// total, and decides who gets the next one.
//
// What it knows is a set by pod name: what the cache shows, and on top of that
// what our own writes under way will make of it. Its sums follow from that set: a
// pod that is seen twice is in it once, and nothing has to be given back by whom
// a crash may take away. An entry whose write ended without an answer stays until
// the API server says what became of it; an error is never taken for a free place.
type capacity struct {
	limits func() *Pools
	wake   chan struct{} // one element while there may be a place for a worker that waits

	mu      sync.Mutex
	workers map[string]*placed // by pod name
	taken   map[scope]int      // places taken: of a task, of a pool, and, with the zero scope, in total
	waiting map[string]int     // workers that wait, by pool
	queued  int                // workers that wait, in total
}

// placed is a worker that is live or will be.
type placed struct {
	scope
	uid   types.UID // empty while its creation has no answer
	gated bool      // it waits, and takes no place
	// ours says that a write of ours is not in the cache yet.
	ours bool
	// writing says that this write is under way.
	writing bool
	// again says that a creation before this one had no answer.
	again bool
	// failed says that it was to take the gate off and did not.
	failed bool
	// since is when the write began.
	since time.Time
}

func newCapacity(limits func() *Pools) *capacity {
	return &capacity{
		limits: limits, wake: make(chan struct{}, 1),
		workers: make(map[string]*placed), taken: make(map[scope]int), waiting: make(map[string]int),
	}
}

// scopeOf returns the task that a worker belongs to.
func scopeOf(p *corev1.Pod) scope {
	return scope{pool: p.Labels[pod.LabelPool], task: p.Annotations[pod.AnnotationTaskID]}
}

// isGated reports whether a worker waits for us to give it a place.
func isGated(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == pod.GateCapacity })
}

// signal has the workers that wait looked at.
func (c *capacity) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// count adds or removes what an entry contributes. It is called with mu held.
func (c *capacity) count(p *placed, n int) {
	if p.gated {
		c.waiting[p.pool] += n
		c.queued += n
		return
	}
	for _, s := range []scope{p.scope, {pool: p.pool}, {}} {
		if c.taken[s] += n; c.taken[s] == 0 {
			delete(c.taken, s)
		}
	}
}

// put replaces the entry of a name; nil removes it. It is called with mu held.
func (c *capacity) put(name string, p *placed) {
	if was := c.workers[name]; was != nil {
		c.count(was, -1)
		if !was.gated {
			c.signal()
		}
	}
	if p == nil {
		delete(c.workers, name)
		return
	}
	c.workers[name] = p
	c.count(p, 1)
	if p.gated {
		c.signal()
	}
}

// observe takes over what the cache shows of a worker.
func (c *capacity) observe(p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.workers[p.Name]
	if ended(p) {
		if was != nil && (was.uid == p.UID || was.uid == "") {
			c.put(p.Name, nil)
		}
		return
	}
	is := &placed{scope: scopeOf(p), uid: p.UID, gated: isGated(p)}
	if was != nil && was.uid == p.UID {
		if was.ours && is.gated && !was.gated {
			return // the cache does not show yet that we took its gate off
		}
		if was.gated == is.gated && !was.ours {
			return
		}
	}
	c.put(p.Name, is)
}

// gone takes over that the cache shows a worker no more.
func (c *capacity) gone(r ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if was := c.workers[r.name]; was != nil && was.uid == r.uid {
		c.put(r.name, nil)
	}
}

// reserve decides about a worker that is about to be created: whether it is to
// wait, and why. The decision stays with the name until the API server's answer
// is known, so that a repeated create asks for the same pod.
func (c *capacity) reserve(name string, s scope) (wait string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	limits := c.limits()
	if was := c.workers[name]; was != nil {
		was.writing, was.again = true, true
		if was.gated {
			return cmp.Or(c.full(limits, s, true), "it waited before"), nil
		}
		return "", nil
	}
	wait = c.full(limits, s, true)
	if wait != "" && c.queued >= limits.maxWaiting() {
		return "", fmt.Errorf("%w: there are %d, and limits.maxWaiting is %d", errWaitingFull, c.queued, limits.maxWaiting())
	}
	c.put(name, &placed{scope: s, gated: wait != "", ours: true, writing: true, since: time.Now()})
	return wait, nil
}

// full says which limit leaves no place for one more worker, or "". A newcomer
// does not overtake those that wait for the same place already.
func (c *capacity) full(limits *Pools, s scope, newcomer bool) string {
	p := limits.Get(s.pool)
	total, pool := limits.Limits.MaxWorkers, (*int)(nil)
	if p != nil {
		pool = p.MaxWorkers
		if n := c.taken[s]; p.MaxWorkersPerTask != nil && n >= *p.MaxWorkersPerTask {
			return fmt.Sprintf("task %s has %d of at most %d workers in pool %s", s.task, n, *p.MaxWorkersPerTask, s.pool)
		}
	}
	if n := c.taken[scope{pool: s.pool}]; pool != nil {
		switch ahead := c.waiting[s.pool]; {
		case n >= *pool:
			return fmt.Sprintf("pool %s has %d of at most %d workers", s.pool, n, *pool)
		case newcomer && ahead > 0:
			return fmt.Sprintf("%d workers of pool %s wait before it", ahead, s.pool)
		}
	}
	if n := c.taken[scope{}]; total != nil {
		switch {
		case n >= *total:
			return fmt.Sprintf("there are %d of at most %d workers in all", n, *total)
		case newcomer && c.queued > 0:
			return fmt.Sprintf("%d workers wait before it", c.queued)
		}
	}
	return ""
}

// created takes over the API server's answer to a create.
func (c *capacity) created(p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.workers[p.Name]
	if was == nil || was.uid != "" {
		return // the cache was quicker, and knows more: its gate may be off already
	}
	was.uid, was.writing = p.UID, false
	if gated := isGated(p); gated != was.gated { // it was there before
		c.put(p.Name, &placed{scope: was.scope, uid: p.UID, gated: gated, ours: true, since: was.since})
	}
}

// failed takes over that a create failed. If it is not certain that nothing was
// created, the place stays taken: a refusal says nothing of an earlier try.
func (c *capacity) failed(name string, refused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.workers[name]
	if was == nil || was.uid != "" {
		return
	}
	was.writing = false
	if refused && !was.again {
		c.put(name, nil)
	}
}

// conflicts takes over that another pod has the name of a worker, which is not there then.
func (c *capacity) conflicts(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if was := c.workers[name]; was != nil && was.uid == "" {
		c.put(name, nil)
	}
}

// uncertain reports whether a worker of a task may or may not be there.
func (c *capacity) uncertain(s scope) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.workers {
		if p.scope == s && p.uid == "" {
			return true
		}
	}
	return false
}

// doubtful returns the workers that a write of ours should have brought into the
// cache long ago.
func (c *capacity) doubtful(olderThan time.Duration) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, p := range c.workers {
		if p.ours && !p.writing && time.Since(p.since) > olderThan {
			names = append(names, name)
		}
	}
	return names
}

// resolve takes over what the API server says about a doubtful worker; nil means
// that there is none.
func (c *capacity) resolve(name string, now *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.workers[name]
	switch {
	case was == nil || !was.ours || was.writing:
	case now == nil, ended(now):
		c.put(name, nil)
	default:
		c.put(name, &placed{scope: was.scope, uid: now.UID, gated: isGated(now), ours: true, since: time.Now()})
	}
}

// admit chooses who of the waiting workers gets a place, and takes it for them:
// those of a higher priority first, then those whose task has fewer workers, then
// the older ones. It also returns those that were chosen before and still have
// their gate, because taking it off failed.
func (c *capacity) admit(waiting []*corev1.Pod) (chosen []*corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	limits := c.limits()
	groups := make(map[scope]*taskQueue)
	for _, p := range waiting {
		switch known := c.workers[p.Name]; {
		case known == nil || known.uid != p.UID:
		case !known.gated: // chosen before
			if known.failed {
				known.writing, known.failed = true, false
				chosen = append(chosen, p)
			}
		default:
			s := scopeOf(p)
			if groups[s] == nil {
				groups[s] = &taskQueue{scope: s}
			}
			groups[s].pods = append(groups[s].pods, p)
		}
	}
	var next ranked
	for s, g := range groups {
		slices.SortFunc(g.pods, byRank)
		if c.full(limits, s, false) == "" {
			g.taken = c.taken[s]
			next = append(next, g)
		}
	}
	heap.Init(&next)
	for len(next) > 0 {
		g := next[0]
		if c.full(limits, g.scope, false) != "" {
			heap.Pop(&next) // and it stays so: places are only taken here
			continue
		}
		p := g.pods[0]
		c.put(p.Name, &placed{scope: g.scope, uid: p.UID, ours: true, writing: true, since: time.Now()})
		chosen = append(chosen, p)
		if g.pods = g.pods[1:]; len(g.pods) == 0 {
			heap.Pop(&next)
			continue
		}
		g.taken++
		heap.Fix(&next, 0)
	}
	return chosen
}

// ungated takes over that the gate of a worker was taken off, or that this failed:
// then its place stays taken, and it is tried again.
func (c *capacity) ungated(r ref, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.workers[r.name]; p != nil && p.uid == r.uid && p.ours {
		p.writing, p.failed = false, !ok
	}
}

// taskQueue is the waiting workers of one task, by rank.
type taskQueue struct {
	scope
	taken int
	pods  []*corev1.Pod
}

// ranked is a heap of them by whose turn it is.
type ranked []*taskQueue

func (r ranked) Len() int { return len(r) }
func (r ranked) Less(i, j int) bool {
	a, b := r[i].pods[0], r[j].pods[0]
	return cmp.Or(
		cmp.Compare(priorityOf(b), priorityOf(a)),
		cmp.Compare(r[i].taken, r[j].taken),
		byAge(a, b),
	) < 0
}
func (r ranked) Swap(i, j int) { r[i], r[j] = r[j], r[i] }
func (r *ranked) Push(x any)   { *r = append(*r, x.(*taskQueue)) }
func (r *ranked) Pop() any {
	last := (*r)[len(*r)-1]
	*r = (*r)[:len(*r)-1]
	return last
}

func byRank(a, b *corev1.Pod) int {
	return cmp.Or(cmp.Compare(priorityOf(b), priorityOf(a)), byAge(a, b))
}

// byAge orders by the age of the event, which is known to the millisecond, and
// then by the number within it.
func byAge(a, b *corev1.Pod) int {
	at, _ := eventTime(a.Annotations[pod.AnnotationEventID])
	bt, _ := eventTime(b.Annotations[pod.AnnotationEventID])
	return cmp.Or(
		at.Compare(bt),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		byLengthThenName(a.Annotations[pod.AnnotationEventID], b.Annotations[pod.AnnotationEventID]),
		byLengthThenName(a.Annotations[pod.AnnotationEventIndex], b.Annotations[pod.AnnotationEventIndex]),
		cmp.Compare(a.Name, b.Name),
	)
}

// priorityOf returns the event's priority; without one, it is 0.
func priorityOf(p *corev1.Pod) int {
	n, err := strconv.Atoi(p.Annotations[pod.AnnotationFieldPrefix+scaleevent.FieldPriority])
	if err != nil {
		return 0
	}
	return n
}
