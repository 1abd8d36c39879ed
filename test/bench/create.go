package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// scale is a consumer and a scaler at work, with a watch on what they make.
type scale struct {
	*lab.Processes
	events *lab.Events
	pods   corev1client.PodInterface
	added  <-chan struct{} // a token for each pod that the watch showed; closed when it ended
	gone   <-chan struct{} // a token for each pod whose end it showed; likewise
	stop   func()
}

// newScale starts them. The scaler gets the variables given.
func newScale(ctx context.Context, l *lab.Lab, env ...string) (*scale, error) {
	ns, err := l.Namespace(ctx, "bench")
	if err != nil {
		return nil, err
	}
	p, err := l.Processes(ctx, ns, "127.0.0.1:1") // no relay, no log server
	if err != nil {
		return nil, err
	}
	p.Set(lab.Scaler, env...)
	s := &scale{Processes: p, events: l.Events(ns), pods: l.Core.Pods(ns)}
	none, err := s.pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing workers: %w", err)
	}
	// The API server ends the watch of whoever falls behind in a burst.
	w, err := watchtools.NewRetryWatcherWithContext(ctx, none.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return s.pods.Watch(ctx, options)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watching workers: %w", err)
	}
	s.added, s.gone = tokens(w.ResultChan())
	s.stop = w.Stop
	err = s.Start(lab.Consumer, lab.Scaler)
	if err == nil {
		err = s.AwaitReady(ctx, lab.Consumer, lab.Scaler)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *scale) close() error {
	s.stop()
	return s.Close()
}

// tokens takes a watch's events as they come and counts the pods that come and go.
func tokens(events <-chan watch.Event) (added, gone <-chan struct{}) {
	const most = 10_000 // more than any measurement makes
	come, went := make(chan struct{}, most), make(chan struct{}, most)
	go func() {
		defer close(come)
		defer close(went)
		for e := range events {
			switch e.Type {
			case watch.Added:
				come <- struct{}{}
			case watch.Deleted:
				went <- struct{}{}
			}
		}
	}()
	return come, went
}

// await returns once n further pods were seen to be created.
func (s *scale) await(ctx context.Context, n int) error { return take(ctx, s.added, n) }

// awaitGone returns once n further pods were seen to be gone.
func (s *scale) awaitGone(ctx context.Context, n int) error { return take(ctx, s.gone, n) }

func take(ctx context.Context, pods <-chan struct{}, n int) error {
	for ; n > 0; n-- {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d more pods: %w", n, ctx.Err())
		case _, ok := <-pods:
			if !ok {
				return fmt.Errorf("the watch on the workers ended with %d to come", n)
			}
		}
	}
	return nil
}

// publish sends a scale-up of n workers.
func (s *scale) publish(ctx context.Context, task string, n int) (string, error) {
	return s.events.Publish(ctx, scaleevent.Event{Type: scaleevent.ScaleUp, TaskID: task, PodCount: &n})
}

// rawPod is the pod that the bare client creates: one that the scaler made, so
// that both send the same bytes.
func (s *scale) rawPod(ctx context.Context) (*corev1.Pod, error) {
	list, err := s.pods.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil || len(list.Items) == 0 {
		return nil, fmt.Errorf("taking a worker as the model of the bare client's pods: %d found: %w", len(list.Items), err)
	}
	model := &list.Items[0]
	spec := model.Spec.DeepCopy()
	spec.NodeName = "" // or the scheduler has less to do beside the bare client
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "raw-", Annotations: model.Annotations,
			Labels: map[string]string{pod.LabelManagedBy: "bench", pod.LabelTask: "raw"},
		},
		Spec: *spec,
	}, nil
}

// eventToCreate measures one event at a time on an idle system: from before XADD
// to the moment at which a watch shows the pod. The bare client's figure is from
// before its create call to the same moment.
func eventToCreate(ctx context.Context, l *lab.Lab, quick bool) (rows []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s, err := newScale(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.warmUp(ctx); err != nil {
		return nil, err
	}
	ours, raw, err := s.inTurn(ctx, pick(quick, 40, 200))
	if err != nil {
		return nil, err
	}
	row := func(q float64) Row {
		return Row{Unit: "ms", Value: report.Milliseconds(report.Quantile(ours, q)), Raw: report.Milliseconds(report.Quantile(raw, q))}
	}
	return []Row{row(0.5), row(0.99)}, nil
}

// warmUp has one worker made, which is also the model of the bare pods.
func (s *scale) warmUp(ctx context.Context) error {
	if _, err := s.publish(ctx, "warm-up", 1); err != nil {
		return err
	}
	return s.await(ctx, 1)
}

// inTurn takes the time from an event to its worker, and that of a bare create, in
// turn, so that both see the same noise.
func (s *scale) inTurn(ctx context.Context, samples int) (ours, raw []time.Duration, err error) {
	model, err := s.rawPod(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range samples {
		begin := time.Now()
		if _, err := s.publish(ctx, fmt.Sprint("single-", i), 1); err != nil {
			return nil, nil, err
		}
		if err := s.await(ctx, 1); err != nil {
			return nil, nil, err
		}
		ours = append(ours, time.Since(begin))

		begin = time.Now()
		if _, err := s.createBare(ctx, model, 1, 1); err != nil {
			return nil, nil, err
		}
		raw = append(raw, time.Since(begin))
	}
	return ours, raw, nil
}

// createBare creates pods, so many at a time, and awaits them.
func (s *scale) createBare(ctx context.Context, model *corev1.Pod, n, concurrency int) (names []string, err error) {
	names = make([]string, n)
	creates, cctx := errgroup.WithContext(ctx)
	creates.SetLimit(concurrency)
	for i := range names {
		creates.Go(func() error {
			p, err := s.pods.Create(cctx, model, metav1.CreateOptions{})
			if err == nil {
				names[i] = p.Name
			}
			return err
		})
	}
	if err := creates.Wait(); err != nil {
		return nil, fmt.Errorf("creating bare pods: %w", err)
	}
	return names, s.await(ctx, n)
}

// manyEvents measures many events of one worker each, and oneEvent one of many.
func manyEvents(ctx context.Context, l *lab.Lab, quick bool) ([]Row, error) {
	workers := pick(quick, 300, 1000)
	return burst(ctx, l, workers, 1, 96) // three quarters of MAX_WRITES
}

func oneEvent(ctx context.Context, l *lab.Lab, quick bool) ([]Row, error) {
	return burst(ctx, l, 1, pick(quick, 300, 1000), 32) // the scaler's bound for one event
}

func pick(quick bool, few, many int) int {
	if quick {
		return few
	}
	return many
}

// burst measures many workers at once: from before the first XADD until a watch
// has shown every pod. The bare client creates as many pods, with as many creates
// under way at once as the scaler has. Both are measured three times, in turn, each
// when the cluster has come to rest; the medians count.
func burst(ctx context.Context, l *lab.Lab, events, workers, concurrency int) (rows []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s, err := newScale(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.warmUp(ctx); err != nil {
		return nil, err
	}
	model, err := s.rawPod(ctx)
	if err != nil {
		return nil, err
	}
	var ours, raw []time.Duration
	for round := range 3 {
		if err := s.rest(ctx); err != nil {
			return nil, err
		}
		begin := time.Now()
		ids := make([]string, events)
		producers, pctx := errgroup.WithContext(ctx)
		producers.SetLimit(concurrency) // or it is the producer that is measured
		for i := range events {
			producers.Go(func() (err error) {
				ids[i], err = s.publish(pctx, fmt.Sprint("burst-", round, "-", i), workers)
				return err
			})
		}
		if err := producers.Wait(); err != nil {
			return nil, err
		}
		if err := s.await(ctx, events*workers); err != nil {
			return nil, err
		}
		ours = append(ours, time.Since(begin))
		if _, err := s.events.AwaitAll(ctx, ids...); err != nil { // or their results fall into the other's time
			return nil, err
		}
		if err := s.rest(ctx); err != nil {
			return nil, err
		}

		begin = time.Now()
		if _, err := s.createBare(ctx, model, events*workers, concurrency); err != nil {
			return nil, err
		}
		raw = append(raw, time.Since(begin))
	}
	rate := func(d []time.Duration) float64 { return float64(events*workers) / report.Quantile(d, 0.5).Seconds() }
	return []Row{{Unit: "pods/s", Value: rate(ours), Raw: rate(raw)}}, nil
}

// rest waits until every pod runs: scheduler and nodes are busy with them for a
// while after their creation, at the cost of whoever is measured next.
func (s *scale) rest(ctx context.Context) error {
	for range backoff.Default.Attempts(ctx) {
		pending, err := s.pods.List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Pending", Limit: 1})
		if err != nil {
			return fmt.Errorf("listing pods: %w", err)
		}
		if len(pending.Items) == 0 {
			return nil
		}
	}
	return fmt.Errorf("waiting for pods to run: %w", ctx.Err())
}
