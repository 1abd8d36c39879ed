package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// crowd measures a scaler with as many live workers as one installation must hold:
// what it needs of memory, how long an event takes then, and how fast all of them
// are deleted. The bare client's memory is what it may need at most; the bare
// client deletes as many pods, which nothing holds, with the scaler's concurrency.
func crowd(ctx context.Context, l *lab.Lab, quick bool) (rows []Row, err error) {
	const memory = 150 // MiB
	events, samples := pick(quick, 1, 5), pick(quick, 20, 60)
	workers := pick(quick, 500, 1000) * events
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	s, err := newScale(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for i := range events {
		if _, err := s.publish(ctx, fmt.Sprint("crowd-", i), workers/events); err != nil {
			return nil, err
		}
	}
	if err := s.await(ctx, workers); err != nil {
		return nil, err
	}
	model, err := s.rawPod(ctx)
	if err != nil {
		return nil, err
	}
	var ours, raw []time.Duration
	for i := range samples {
		begin := time.Now()
		if _, err := s.publish(ctx, fmt.Sprint("late-", i), 1); err != nil {
			return nil, err
		}
		if err := s.await(ctx, 1); err != nil {
			return nil, err
		}
		ours = append(ours, time.Since(begin))
		begin = time.Now()
		if _, err := s.pods.Create(ctx, model, metav1.CreateOptions{}); err != nil {
			return nil, fmt.Errorf("creating a bare pod: %w", err)
		}
		if err := s.await(ctx, 1); err != nil {
			return nil, err
		}
		raw = append(raw, time.Since(begin))
	}
	rss, err := s.Memory(lab.Scaler)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%d live workers\n", workers+samples)

	removed, err := s.removeCrowd(ctx, events, workers)
	if err != nil {
		return nil, err
	}
	bare, err := s.removeBare(ctx, pick(quick, 300, 1000))
	if err != nil {
		return nil, err
	}
	return []Row{
		{Unit: "MiB", Value: float64(rss) / (1 << 20), Raw: memory},
		{Unit: "ms", Value: report.Milliseconds(report.Quantile(ours, 0.5)), Raw: report.Milliseconds(report.Quantile(raw, 0.5))},
		{Unit: "pods/s", Value: removed, Raw: bare},
	}, nil
}

// removeCrowd removes the workers of each task by an event, and returns how many a
// second that is until the last event is done: each is marked and deleted by then.
func (s *scale) removeCrowd(ctx context.Context, events, workers int) (perSecond float64, err error) {
	begin := time.Now()
	ids := make([]string, events)
	for i := range events {
		ids[i], err = s.events.Publish(ctx, scaleevent.Event{Type: scaleevent.ScaleDown, TaskID: fmt.Sprint("crowd-", i)})
		if err != nil {
			return 0, err
		}
	}
	if _, err := s.events.AwaitAll(ctx, ids...); err != nil {
		return 0, err
	}
	return float64(workers) / time.Since(begin).Seconds(), nil
}

func (s *scale) removeBare(ctx context.Context, n int) (perSecond float64, err error) {
	model, err := s.rawPod(ctx)
	if err != nil {
		return 0, err
	}
	names := make([]string, n)
	creates, cctx := errgroup.WithContext(ctx)
	creates.SetLimit(32)
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
		return 0, fmt.Errorf("creating bare pods: %w", err)
	}
	if err := s.await(ctx, n); err != nil {
		return 0, err
	}
	begin := time.Now()
	deletes, dctx := errgroup.WithContext(ctx)
	deletes.SetLimit(32)
	for _, name := range names {
		deletes.Go(func() error { return s.pods.Delete(dctx, name, metav1.DeleteOptions{}) })
	}
	if err := deletes.Wait(); err != nil {
		return 0, fmt.Errorf("deleting bare pods: %w", err)
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}
