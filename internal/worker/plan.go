package worker

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// planScaleUp returns how many workers of the event there should be: those with
// the indices below that number. It also returns those of other events that count
// towards its target. Seen is what there is in the event's scope, its own workers
// included.
//
// It only counts other events' workers, so that the plan of a second delivery is
// that of the first, whichever workers the first had created. For the same reason,
// what later events have removed still counts: a second delivery may come after them,
// and must not make up for it.
func planScaleUp(e scaleevent.Event, seen []*corev1.Pod) (n int, others []*corev1.Pod) {
	if e.TargetReplicas == nil {
		return value(e.PodCount, 1), nil
	}
	removed := 0 // by later events
	for _, p := range seen {
		made := p.Annotations[pod.AnnotationEventID]
		switch {
		case made == e.ID:
		case counts(p, seen):
			others = append(others, p)
		case after(p.Annotations[pod.AnnotationScaledDownBy], e.ID):
			removed++
		}
	}
	return max(0, *e.TargetReplicas-len(others)-removed), others
}

// planScaleDown returns the victims of the event, those first that are missed
// least. Seen is what there is in the event's scope, and given how many workers of
// earlier events were not made for its sake; see [planGiveWay].
//
// The first of them may carry the event's mark from an earlier delivery. They
// count, so that a second delivery removes no more than the first. Workers of later
// events are none of its business: it may be delivered again when they are there.
func planScaleDown(e scaleevent.Event, seen []*corev1.Pod, given int) []*corev1.Pod {
	var marked, candidates []*corev1.Pod
	for _, p := range seen {
		switch {
		case p.Annotations[pod.AnnotationScaledDownBy] == e.ID:
			marked = append(marked, p)
		case counts(p, seen) && !after(p.Annotations[pod.AnnotationEventID], e.ID):
			candidates = append(candidates, p)
		}
	}
	surplus := len(candidates) // all of the task
	switch {
	case e.TargetReplicas != nil:
		surplus = len(candidates) - *e.TargetReplicas
	case e.PodCount != nil:
		surplus = *e.PodCount - given - len(marked)
	}
	slices.SortStableFunc(candidates, missedLess)
	return append(marked, candidates[:min(max(surplus, 0), len(candidates))]...)
}

// planGiveWay returns which of the later events take how many of the workers that an
// event could not make, and how many are left to be made after that. There are live
// workers of its task.
//
// Those that are not made are the first to go. If later events take all of them, the
// event may end, and each of those has so much less to do, which is why they are told: in
// the end there are as many workers as if the event had been carried out. If something
// is left, later ones take nothing that exists, and waiting costs nothing. It makes no
// difference how many workers a later scale_up makes, or whether it is rejected, but for
// those that go by what there is:
//   - To a target, it must be known how many there will be, or that they will be enough.
//   - A scale_down with an idempotency key must remove a worker that exists, or no trace
//     of its key is left, and a second one acts as well. The event itself may have made
//     none, and then one with the same key is no duplicate.
//
// From an event on of which that is not certain, only one that removes all takes anything.
// It does not wait even for the trace of a key.
func planGiveWay(e scaleevent.Event, unmade, live int, behind []queue.Item[*scaleevent.Event], now time.Time, duplicate func(scaleevent.Event) bool) (gives map[string]int, left int) {
	gives, left = make(map[string]int), unmade
	keys := map[string]bool{e.IdempotencyKey: true}
	certain := true
	exact := e.TaskID != "" // whether there will be as many workers as live, and not only at least
	if !exact {
		live = 0 // events of the pool's tasks may remove any of them
	}
	for i := range behind {
		later, given := behind[i].Value, sumOf(behind[i].Given)
		if given == 0 && later.Expired(now) {
			continue // it will be rejected
		}
		key, target := later.IdempotencyKey, value(later.TargetReplicas, 0)
		keyed := key != ""
		repeated := keyed && given == 0 && (keys[key] || duplicate(*later))
		keys[key] = true
		take := 0
		switch {
		case later.Type == scaleevent.ScaleUp:
			certain = certain && target <= live && (!keyed || key != e.IdempotencyKey)
			exact = false
		case repeated:
			certain = false
		case later.RemovesAll():
			take = left
		case !certain:
		case later.TargetReplicas != nil && (live > target || live == target && !keyed):
			take = left
		case later.TargetReplicas != nil:
			certain = exact && !keyed
			take = left + live - target
		case keyed:
			certain = live > 0
			take = *later.PodCount - given - 1
			live, exact = live-1, false // unless it is rejected
		default:
			take = *later.PodCount - given
		}
		if take = min(take, left); take > 0 && (certain || later.RemovesAll()) {
			gives[behind[i].ID] = take
			left -= take
		}
		if left == 0 {
			return gives, 0
		}
	}
	return nil, left
}

// sumOf is how much an event was given by others.
func sumOf(given map[string]int) (total int) {
	for _, n := range given {
		total += n
	}
	return total
}

// after reports whether the event with one ID came after the one with another, as far
// as both are IDs of entries of the stream.
func after(one, other string) bool {
	a, known := eventTime(one)
	b, knownToo := eventTime(other)
	if !known || !knownToo {
		return false
	}
	_, m, _ := strings.Cut(one, "-")
	_, n, _ := strings.Cut(other, "-")
	return cmp.Or(a.Compare(b), byLengthThenName(m, n)) > 0
}

// counts reports whether a worker counts among those that were seen with it: it is
// live, or another attempt at it is still to come.
func counts(p *corev1.Pod, seen []*corev1.Pod) bool {
	return live(p) || retryDue(p) && !slices.ContainsFunc(seen, func(other *corev1.Pod) bool { return other.Name == nextName(p) })
}

// decided returns an error while it is open whether there will be another attempt
// at one of the workers, and with it whether that one counts. It takes one patch.
func decided(seen []*corev1.Pod) error {
	for _, p := range seen {
		if !held(p) || !finished(p) || p.Annotations[pod.AnnotationEnd] != "" {
			continue
		}
		if class, _ := classify(p); class.failure() {
			return fmt.Errorf("pod %s has just failed, and may be tried again: %w", p.Name, errChanged)
		}
	}
	return nil
}

// missedLess orders workers as a ReplicaSet does: before all others those that are
// only to be tried again, then gated before unscheduled before
// pending before running, not ready before ready, lower deletion cost, newer
// before older. The name decides between equals, so that the order is total.
func missedLess(a, b *corev1.Pod) int {
	return cmp.Or(
		cmp.Compare(progress(a), progress(b)),
		cmp.Compare(deletionCost(a), deletionCost(b)),
		b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
		cmp.Compare(b.Name, a.Name),
	)
}

// progress says how far a worker has come.
func progress(p *corev1.Pod) int {
	switch {
	case !live(p):
		return -1
	case len(p.Spec.SchedulingGates) > 0:
		return 0
	case p.Spec.NodeName == "":
		return 1
	case p.Status.Phase != corev1.PodRunning:
		return 2
	case !ready(p):
		return 3
	default:
		return 4
	}
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// deletionCost is 0 for a pod without a valid one, as for a ReplicaSet.
func deletionCost(p *corev1.Pod) int32 {
	cost, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return int32(cost)
}

// live reports whether a worker counts: it is neither at its end nor on its way
// there.
func live(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && !finished(p) && p.Annotations[pod.AnnotationScaledDownBy] == ""
}

// finished reports whether a worker came to an end of its own.
func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// ended reports whether a worker will not print another line: it has finished, or
// it is deleted and only finalizers hold it (no grace is left, which is so from
// the start where it was never scheduled), or each container has terminated while
// the pod is being deleted.
func ended(p *corev1.Pod) bool {
	switch {
	case finished(p):
		return true
	case p.DeletionTimestamp == nil:
		return false
	case p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0:
		return true
	}
	return len(p.Status.ContainerStatuses) > 0 &&
		!slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Terminated == nil })
}

// duplicateOf returns the ID of an earlier event with the same idempotency key, as
// far as a trace of it is among the pods, or "".
func duplicateOf(e scaleevent.Event, sameKey []*corev1.Pod) string {
	for _, p := range sameKey {
		by := pod.AnnotationEventID
		if p.Annotations[pod.AnnotationScaledDownKey] == e.IdempotencyKey {
			by = pod.AnnotationScaledDownBy
		}
		if first := p.Annotations[by]; first != e.ID {
			return first
		}
	}
	return ""
}

func value(n *int, otherwise int) int {
	if n == nil {
		return otherwise
	}
	return *n
}
