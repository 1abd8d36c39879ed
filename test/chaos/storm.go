package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
)

const (
	stormName = "random events, scaler and consumer killed at random"
	// stormTasks is how many tasks the events of a storm are about. Events of one
	// task act in order, so that each task has one right number of workers.
	stormTasks = 25
)

// A model knows how many workers each task should have.
type model map[string]int

// next makes up an event and takes it into account.
func (m model) next(r *rand.Rand) scaleevent.Event {
	task := fmt.Sprint("storm-", r.IntN(stormTasks))
	n := 1 + r.IntN(3)
	e := scaleevent.Event{Type: scaleevent.ScaleUp, TaskID: task}
	switch r.IntN(8) {
	case 0, 1, 2:
		e.PodCount = &n
		m[task] += n
	case 3:
		e.TargetReplicas = &n
		m[task] = max(m[task], n)
	case 4, 5:
		e.Type, e.PodCount = scaleevent.ScaleDown, &n
		m[task] = max(0, m[task]-n)
	case 6:
		e.Type, e.TargetReplicas = scaleevent.ScaleDown, &n
		m[task] = min(m[task], n)
	default:
		e.Type = scaleevent.ScaleDown
		m[task] = 0
	}
	return e
}

// storm publishes random events while it kills the scaler, the consumer or both at
// random, and a quota comes and goes, so that scale_ups wait or give way. It compares what
// is left in the end with the model.
func storm(ctx context.Context, l *lab.Lab, quick bool) (row Row, err error) {
	events, kills := 1000, 40
	if quick {
		events, kills = 200, 8
	}
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	s, err := newSite(ctx, l)
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	s.Set(lab.Consumer, "POISON_AFTER=0") // the crashes are ours, and an event may wait through many
	if err := s.limit(ctx, noLimit); err != nil {
		return row, err
	}
	seed := uint64(time.Now().UnixNano())
	fmt.Fprintf(os.Stderr, "%s: seed %d\n", stormName, seed)
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a storm, no secret
	want := model{}
	var ids []string
	var recoveries []time.Duration
	for kill := range kills {
		if err := s.limit(ctx, []int{noLimit, r.IntN(stormTasks)}[r.IntN(2)]); err != nil {
			return row, err
		}
		for range events / kills {
			id, err := s.events.Publish(ctx, want.next(r))
			if err != nil {
				return row, err
			}
			ids = append(ids, id)
		}
		pause(ctx, time.Duration(r.IntN(400))*time.Millisecond)
		victims := [][]string{{lab.Scaler}, {lab.Consumer}, {lab.Consumer, lab.Scaler}}[r.IntN(3)]
		begin := time.Now()
		if err := errors.Join(s.Kill(victims...), s.Start(victims...)); err != nil {
			return row, err
		}
		if err := s.AwaitReady(ctx, lab.Consumer, lab.Scaler); err != nil {
			return row, err
		}
		recoveries = append(recoveries, time.Since(begin))
		fmt.Fprintf(os.Stderr, "%s: kill %d of %d, %d events sent\n", stormName, kill+1, kills, len(ids))
	}
	if err := s.limit(ctx, noLimit); err != nil {
		return row, err
	}
	results, err := s.events.AwaitAll(ctx, ids...)
	if err != nil {
		return row, err
	}
	row = Row{
		Name: stormName, Runs: len(ids),
		RecoveryP50: report.Milliseconds(report.Quantile(recoveries, 0.5)), RecoveryMax: report.Milliseconds(report.Quantile(recoveries, 1)),
	}
	last := map[string]int{} // place of the last result of each task among the events
	place := map[string]int{}
	given := 0
	for i, id := range ids {
		place[id] = i
	}
	for _, result := range results {
		if result.Status != scaleevent.StatusDone {
			return row, fmt.Errorf("event %s: %s: %s", result.EventID, result.Status, result.Message)
		}
		if place[result.EventID] < last[result.TaskID] {
			row.Reordered++
		}
		last[result.TaskID] = place[result.EventID]
		if result.Details["not_made"] != "" {
			given++
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %d scale_downs were given something by scale_ups that could not be carried out\n", stormName, given)
	row.Lost, row.Duplicated, err = s.compare(ctx, want)
	return row, err
}

// noLimit is more workers than a storm has.
const noLimit = 10_000

// limit has a quota allow so many workers.
func (s *site) limit(ctx context.Context, n int) error {
	quota := corev1apply.ResourceQuota("storm", "").WithSpec(corev1apply.ResourceQuotaSpec().WithHard(corev1.ResourceList{
		corev1.ResourcePods: *resource.NewQuantity(int64(n), resource.DecimalSI),
	}))
	if _, err := s.quotas.Apply(ctx, quota, metav1.ApplyOptions{FieldManager: "chaos", Force: true}); err != nil {
		return fmt.Errorf("setting a quota: %w", err)
	}
	return nil
}

// compare counts the workers that a model wants and are not there, and those that
// are there and it does not want; two with the number of one count as the latter.
func (s *site) compare(ctx context.Context, want model) (missing, surplus int, err error) {
	list, err := s.pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, 0, fmt.Errorf("listing workers: %w", err)
	}
	have, seen := model{}, map[string]bool{}
	for i := range list.Items {
		p := &list.Items[i]
		if p.DeletionTimestamp != nil {
			continue
		}
		have[p.Annotations[pod.AnnotationTaskID]]++
		number := p.Annotations[pod.AnnotationEventID] + "/" + p.Annotations[pod.AnnotationEventIndex]
		if seen[number] {
			surplus++
		}
		seen[number] = true
	}
	for task, n := range want {
		missing += max(0, n-have[task])
		surplus += max(0, have[task]-n)
		if n != have[task] {
			fmt.Fprintf(os.Stderr, "%s: task %s has %d workers, should have %d\n", stormName, task, have[task], n)
		}
		delete(have, task)
	}
	for task, n := range have {
		fmt.Fprintf(os.Stderr, "%s: nobody asked for the %d workers of task %s\n", stormName, n, task)
		surplus += n
	}
	return missing, surplus, nil
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	for attempt := range (backoff.Policy{Initial: max(d, time.Millisecond), Max: max(d, time.Millisecond)}).Attempts(ctx) {
		if attempt.Number == 2 {
			return
		}
	}
}
