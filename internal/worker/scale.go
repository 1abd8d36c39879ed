package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const (
	// writesPerEvent bounds how many writes of one event are under way at once,
	// so that an event of a thousand workers leaves room for others.
	writesPerEvent = 32
	// clockSkew is how far our clock and Redis' may be apart.
	clockSkew = time.Minute
	// maxNames bounds how many workers the details of a result name.
	maxNames = 100
)

// Scale carries out one delivery of a scale event. It returns a verdict that ends
// the event only once its effect is in the API server and in the cache.
//
// It is safe to call concurrently, and to call again for an event that was
// carried out in part or in full, by this process or another.
func (m *Manager) Scale(ctx context.Context, d queue.Delivery[*scaleevent.Event]) queue.Verdict {
	e := *d.Value
	log := m.log.With("event", e.ID, "task", e.TaskID, "pool", e.Pool)
	a := &action{Manager: m, event: e, log: log, attempt: d.Attempt, behind: d.Behind, given: sumOf(d.Given), started: time.Now()}
	message, err := a.run(ctx)
	if f, _ := faultOf(err); f == faultFinal && a.unanswered() {
		err = fmt.Errorf("it is not known yet whether a worker was created; then the event is to be rejected: %v", err) //nolint:errorlint // not final yet
	}
	verdict := queue.Finish(message, a.details())
	verdict.Gives = a.gives
	if err != nil {
		verdict = verdictOn(err, d.Attempt, a.details())
	}
	a.account(ctx, verdict, err)
	return verdict
}

// An action is one delivery of one event.
type action struct {
	*Manager
	event   scaleevent.Event
	log     *slog.Logger
	attempt int
	// behind are later events of the same task, as far as they may take something.
	behind []queue.Item[*scaleevent.Event]
	// given is how many workers of earlier events were not made for this one's sake.
	given int
	// gives is how many workers of this one are not made for the sake of later ones, by their IDs.
	gives   map[string]int
	started time.Time

	mu      sync.Mutex
	workers []string // the event's workers or victims; guarded by mu
	first   string   // the earlier event that this one repeats
}

// account logs and counts the end of a delivery.
func (a *action) account(ctx context.Context, v queue.Verdict, err error) {
	result := "done"
	switch {
	case err != nil && stopped(ctx, err):
		return // the verdict will be dropped
	case v.Status == queue.Rejected:
		result = "rejected"
		a.log.WarnContext(ctx, "scale event rejected", "reason", v.Reason, "err", err)
	case v.Status != queue.Done:
		result = "retried"
		log := a.log.With("attempt", a.attempt, "after", v.After.Round(time.Millisecond), "err", err)
		if f, _ := faultOf(err); f == faultPermission {
			log.ErrorContext(ctx, "the service account lacks a permission; the scale event will be tried again")
		} else {
			log.WarnContext(ctx, "scale event will be tried again")
		}
	}
	a.metrics.events.WithLabelValues(string(a.event.Type), result).Inc()
}

// details are facts for the event's result.
func (a *action) details() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	details := map[string]string{"count": strconv.Itoa(len(a.workers))}
	if a.first != "" {
		details["duplicate_of"] = a.first
	}
	if a.given > 0 {
		details["not_made"] = strconv.Itoa(a.given)
	}
	if len(a.workers) > 0 {
		slices.SortFunc(a.workers, byLengthThenName) // in the order of their indices
		names := a.workers[:min(len(a.workers), maxNames)]
		details["workers"] = strings.Join(names, ",")
	}
	return details
}

func byLengthThenName(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

func (a *action) touched(p *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.workers = append(a.workers, p.Name)
}

// run returns a short account for humans.
func (a *action) run(ctx context.Context) (string, error) {
	e := a.event
	// A lease that was lost may leave the last delivery's handler at work. Events of
	// different keys need no lock: what one of them does not see of the other, it
	// might as well have come before; and a victim has only one mark.
	defer a.locks.lock(e.OrderingKey())()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if e.IdempotencyKey != "" && a.given == 0 { // what has begun is finished
		if first := duplicateOf(e, a.cluster.indexed(byKey, e.IdempotencyKey)); first != "" {
			return a.duplicate(ctx, first), nil
		}
	}
	switch e.Type {
	case scaleevent.ScaleUp:
		return a.scaleUp(ctx)
	case scaleevent.ScaleDown:
		return a.scaleDown(ctx)
	default:
		return "", reject(scaleevent.ReasonUnknownType, "type %q is unknown", e.Type)
	}
}

// hold has workers that count towards the event's target stand for it, like those
// that are made for it: they are replaced, or the target would not be kept.
func (a *action) hold(ctx context.Context, others []*corev1.Pod) error {
	var group errgroup.Group
	group.SetLimit(writesPerEvent)
	for _, p := range others {
		if p.Annotations[pod.AnnotationTarget] != "" {
			continue
		}
		group.Go(func() error {
			_, err := a.note(ctx, p, map[string]string{pod.AnnotationTarget: strconv.Itoa(*a.event.TargetReplicas)})
			return err
		})
	}
	return group.Wait()
}

func (a *action) duplicate(ctx context.Context, first string) string {
	a.mu.Lock()
	a.first = first
	a.mu.Unlock()
	a.log.InfoContext(ctx, "scale event is a duplicate", "duplicate_of", first)
	return "duplicate of event " + first
}

// seen returns the workers that the event is about.
//
// The cache shows everything that this process wrote for settled events, which is
// enough for an event's first delivery. An earlier delivery, or an earlier
// process, may have written what the cache does not show yet: then the API server
// itself is asked. An error is never taken for an empty cluster.
func (a *action) seen(ctx context.Context) ([]*corev1.Pod, error) {
	s := scope{pool: a.event.Pool, task: a.event.TaskID}
	arrived, known := eventTime(a.event.ID)
	if a.attempt > 1 || !known || arrived.Before(a.begun.Add(clockSkew)) {
		return a.cluster.list(ctx, s)
	}
	return a.cluster.seen(s), nil
}

func (a *action) scaleUp(ctx context.Context) (string, error) {
	e := a.event
	pool := a.pools.Current().Get(e.Pool)
	if pool == nil {
		return "", reject(ReasonUnknownPool, "there is no pool %q; there are: %s", e.Pool, strings.Join(a.pools.Current().Names(), ", "))
	}
	b, err := newBuilder(e, pool, a.cluster.namespace, a.cluster.instance)
	if err != nil {
		return "", err
	}
	var seen []*corev1.Pod
	if e.TargetReplicas != nil {
		if seen, err = a.seen(ctx); err == nil {
			err = decided(seen)
		}
		if err != nil {
			return "", err
		}
	}
	n, others := planScaleUp(e, seen)
	if own := a.cluster.indexed(byEvent, e.ID); len(own) == 0 || len(own) < n { // else all of it is done
		if err := a.checkExpiry(own); err != nil {
			return "", err
		}
	}
	created, err := a.createAll(ctx, b, n)
	if err == nil {
		err = a.hold(ctx, others)
	}
	var repeated *repeatedKey
	if errors.As(err, &repeated) {
		return a.duplicate(ctx, repeated.first), nil
	}
	if created > 0 {
		a.log.InfoContext(ctx, "workers created", "count", created, "of", n, "type", e.Type, "attempt", a.attempt, "duration", time.Since(a.started).Round(time.Microsecond))
	}
	if err != nil && len(a.behind) > 0 && a.mayGiveWay(err) {
		return a.giveWay(ctx, n, others, err)
	}
	if err != nil {
		return "", err
	}
	if n == 0 {
		return fmt.Sprintf("no worker created: there are %d already", *e.TargetReplicas), nil
	}
	return fmt.Sprintf("%d %s created", n, plural(n)), nil
}

// checkExpiry rejects an event that is of no use any more. What an earlier
// delivery created of its own workers stays: a scale_down is the way to remove it.
func (a *action) checkExpiry(own []*corev1.Pod) error {
	if !a.event.Expired(time.Now()) {
		return nil
	}
	for _, p := range own {
		a.touched(p)
	}
	message := "the event expired at " + a.event.ExpiresAt.Format(time.RFC3339) + ", before it was carried out"
	if len(own) > 0 {
		message += fmt.Sprintf("; %d of its workers had been created and stay", len(own))
	}
	return reject(scaleevent.ReasonExpired, "%s", message)
}

// A repeatedKey says that another event of the same idempotency key came first.
type repeatedKey struct{ first string }

func (r *repeatedKey) Error() string { return "duplicate of event " + r.first }

// createAll creates the event's workers with the indices below n, and returns how
// many of them were not there before.
func (a *action) createAll(ctx context.Context, b *builder, n int) (created int, err error) {
	var (
		count atomic.Int64
		fail  atomic.Bool // others need not begin
		mu    sync.Mutex
		made  []*corev1.Pod
		group errgroup.Group
	)
	one := func(index int) error {
		p, isNew, err := a.createOne(ctx, b, index)
		if err != nil {
			fail.Store(true)
			return err
		}
		if isNew {
			count.Add(1)
		}
		a.touched(p)
		mu.Lock()
		defer mu.Unlock()
		made = append(made, identity(p))
		return nil
	}
	begin := 0
	if a.event.IdempotencyKey != "" && n > 0 {
		// Whoever has the first worker has the key.
		if err := one(0); err != nil {
			return 0, err
		}
		begin = 1
	}
	group.SetLimit(writesPerEvent)
	for index := begin; index < n && !fail.Load(); index++ {
		group.Go(func() error { return one(index) })
	}
	err = group.Wait()
	// Also what was made of an event that fails has to be seen: if it ends now, the next
	// event of its task is planned from the cache.
	unseen := a.cluster.awaitSeen(ctx, made, func(wrote, seen *corev1.Pod) bool {
		return seen != nil && seen.UID == wrote.UID
	})
	return int(count.Load()), cmp.Or(unseen, err)
}

// createOne creates one worker, or finds that it is there already.
func (a *action) createOne(ctx context.Context, b *builder, index int) (*corev1.Pod, bool, error) {
	e := a.event
	if p := a.cluster.get(b.name(index)); p != nil && p.Annotations[pod.AnnotationEventID] == e.ID {
		a.metrics.creates.WithLabelValues("existed").Inc()
		return p, false, nil
	}
	worker := b.build(index)
	wait, err := a.capacity.reserve(worker.Name, scopeOf(worker))
	if err != nil {
		return nil, false, err
	}
	if wait != "" {
		gate(worker, wait)
	}
	p, created, err := a.cluster.create(ctx, worker)
	switch {
	case err != nil:
		a.capacity.failed(worker.Name, refused(err))
		a.metrics.creates.WithLabelValues("failed").Inc()
		return nil, false, err
	case created:
		a.capacity.created(p)
		a.metrics.creates.WithLabelValues("created").Inc()
		if d, known := sinceEvent(e.ID, time.Now()); known {
			a.metrics.eventToPod.Observe(d.Seconds())
		}
		return p, true, nil
	}
	a.metrics.creates.WithLabelValues("existed").Inc()
	if ours(p, a.cluster.instance) {
		a.capacity.created(p)
	} else {
		a.capacity.conflicts(worker.Name)
	}
	switch owner := p.Annotations[pod.AnnotationEventID]; {
	case ours(p, a.cluster.instance) && owner == e.ID:
		return p, false, nil
	case ours(p, a.cluster.instance) && e.IdempotencyKey != "" && p.Annotations[pod.AnnotationIdempotencyKey] == e.IdempotencyKey && owner != "":
		return nil, false, &repeatedKey{first: owner}
	default:
		return nil, false, reject(ReasonNameConflict, "pod %s exists and is not a worker of this event: remove it, or send the event again", p.Name)
	}
}

func (a *action) scaleDown(ctx context.Context) (string, error) {
	e := a.event
	if e.TaskID == "" && e.PodCount == nil && e.TargetReplicas == nil {
		return "", reject(scaleevent.ReasonMissingField, "a scale_down needs task_id, pod_count or target_replicas, or it would remove the whole pool: send target_replicas=0 if that is meant")
	}
	seen, err := a.seen(ctx)
	if err == nil {
		err = decided(seen)
	}
	if err != nil {
		return "", err
	}
	begun := a.given > 0 || slices.ContainsFunc(seen, func(p *corev1.Pod) bool { return p.Annotations[pod.AnnotationScaledDownBy] == e.ID })
	if !begun { // what has begun is finished, even if it expired meanwhile
		if err := a.checkExpiry(nil); err != nil {
			return "", err
		}
	}
	victims := planScaleDown(e, seen, a.given)
	removed, err := a.removeAll(ctx, victims)
	if removed > 0 {
		a.log.InfoContext(ctx, "workers removed", "count", removed, "of", len(victims), "type", e.Type, "attempt", a.attempt, "duration", time.Since(a.started).Round(time.Microsecond))
	}
	if err != nil {
		return "", err
	}
	if len(victims)+a.given == 0 {
		return "no worker removed: there are no more than that", nil
	}
	message := fmt.Sprintf("%d %s removed", len(victims), plural(len(victims)))
	if a.given > 0 {
		message += fmt.Sprintf(", and %d not made", a.given)
	}
	if n := value(e.PodCount, 0); len(victims)+a.given < n {
		message += fmt.Sprintf(", of %d asked for: there were no more", n)
	}
	return message, nil
}

// removeAll marks each victim and then deletes it, and returns how many deletions
// the API server has accepted.
//
// The mark comes first: a worker that is deleted but does not carry it would, after a
// crash, be taken for one that left by itself, and another would be removed in its
// place. Victims that are not marked yet when a crash comes are chosen anew, and as
// many as are missing.
func (a *action) removeAll(ctx context.Context, victims []*corev1.Pod) (removed int, err error) {
	marked := make([]*corev1.Pod, len(victims))
	var count atomic.Int64
	one := func(i int) (err error) {
		if marked[i], err = a.mark(ctx, victims[i]); err != nil {
			return err
		}
		if marked[i].DeletionTimestamp == nil {
			if err := a.cluster.remove(ctx, refOf(marked[i])); err != nil {
				a.metrics.deletes.WithLabelValues("failed").Inc()
				return err
			}
			a.metrics.deletes.WithLabelValues("deleted").Inc()
			count.Add(1)
		}
		a.touched(marked[i])
		marked[i] = identity(marked[i])
		return nil
	}
	var group errgroup.Group
	group.SetLimit(writesPerEvent)
	for i := range victims {
		group.Go(func() error { return one(i) })
	}
	if err := group.Wait(); err != nil {
		return int(count.Load()), err
	}
	return int(count.Load()), a.cluster.awaitSeen(ctx, marked, func(wrote, seen *corev1.Pod) bool {
		return seen == nil || seen.UID != wrote.UID || seen.DeletionTimestamp != nil
	})
}

// mark writes on the victim which event removes it.
func (a *action) mark(ctx context.Context, victim *corev1.Pod) (*corev1.Pod, error) {
	marks := map[string]string{pod.AnnotationScaledDownBy: a.event.ID}
	if a.event.IdempotencyKey != "" {
		marks[pod.AnnotationScaledDownKey] = a.event.IdempotencyKey
	}
	return a.note(ctx, victim, marks)
}

// note writes annotations on a worker that the event has chosen. One that was taken
// by another event, or left by itself, fails with errChanged: the next delivery plans
// anew.
func (a *action) note(ctx context.Context, p *corev1.Pod, notes map[string]string) (*corev1.Pod, error) {
	if retryDue(p) {
		defer a.retries.lock(p.Name)() // or its next attempt begins meanwhile
	}
	const tries = 5 // a worker that is just starting changes several times a second
	for try := 1; ; try++ {
		if has(p.Annotations, notes) {
			return p, nil
		}
		if !live(p) && !retryDue(p) {
			return nil, fmt.Errorf("marking pod %s: %w", p.Name, errChanged)
		}
		noted, err := a.cluster.annotate(ctx, p, notes)
		switch {
		case err == nil:
			return noted, nil
		case apierrors.IsNotFound(err):
			return nil, fmt.Errorf("marking pod %s: %w", p.Name, errChanged)
		case !apierrors.IsConflict(err) || try == tries:
			return nil, err
		}
		now, err := a.cluster.fetch(ctx, p.Name)
		if err != nil {
			return nil, err
		}
		if now == nil || now.UID != p.UID {
			return nil, fmt.Errorf("marking pod %s: %w", p.Name, errChanged)
		}
		p = now
	}
}

// has reports whether all notes are among annotations.
func has(annotations, notes map[string]string) bool {
	for key, value := range notes {
		if annotations[key] != value {
			return false
		}
	}
	return true
}

func plural(n int) string {
	if n == 1 {
		return "worker"
	}
	return "workers"
}
