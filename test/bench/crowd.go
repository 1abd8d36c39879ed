package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// crowd measures a scaler with as many live workers as one installation must hold:
// what it needs of memory, how long an event takes then, and how fast all of them
// are deleted, until a watch shows that they are gone. Their logs need no time: the
// scaler is told not to wait for them. The bare client's memory is what it may need at
// most. The bare client deletes pods with a finalizer by the same three calls for
// each, and others, which nothing holds, by one; as many at once as the scaler.
func crowd(ctx context.Context, l *lab.Lab, quick bool) (rows []Row, err error) {
	const memory = 150 // MiB
	events, samples := pick(quick, 1, 5), pick(quick, 20, 60)
	workers := pick(quick, 500, 1000) * events
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	s, err := newScale(ctx, l, "LOG_DRAIN_TIMEOUT=0s")
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
	ours, raw, err := s.inTurn(ctx, samples)
	if err != nil {
		return nil, err
	}
	rss, err := s.Memory(lab.Scaler)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%d live workers\n", workers+samples)
	if err := s.rest(ctx); err != nil {
		return nil, err
	}

	removed, err := s.removeCrowd(ctx, events, workers)
	if err != nil {
		return nil, err
	}
	held, err := s.removeBare(ctx, pick(quick, 300, 1000), true)
	if err != nil {
		return nil, err
	}
	free, err := s.removeBare(ctx, pick(quick, 300, 1000), false)
	if err != nil {
		return nil, err
	}
	return []Row{
		{Unit: "MiB", Value: float64(rss) / (1 << 20), Raw: memory},
		{Unit: "ms", Value: report.Milliseconds(report.Quantile(ours, 0.5)), Raw: report.Milliseconds(report.Quantile(raw, 0.5))},
		{Unit: "pods/s", Value: removed, Raw: held},
		{Unit: "pods/s", Value: removed, Raw: free},
	}, nil
}

// removeCrowd removes the workers of each task by an event, and returns how many a
// second that is until the last of them is gone.
func (s *scale) removeCrowd(ctx context.Context, events, workers int) (perSecond float64, err error) {
	begin := time.Now()
	for i := range events {
		_, err = s.events.Publish(ctx, scaleevent.Event{Type: scaleevent.ScaleDown, TaskID: fmt.Sprint("crowd-", i)})
		if err != nil {
			return 0, err
		}
	}
	if err := s.awaitGone(ctx, workers); err != nil {
		return 0, err
	}
	return float64(workers) / time.Since(begin).Seconds(), nil
}

// removeBare is removeCrowd for bare pods, with a finalizer and what that takes, or
// without.
func (s *scale) removeBare(ctx context.Context, n int, held bool) (perSecond float64, err error) {
	model, err := s.rawPod(ctx)
	if err != nil {
		return 0, err
	}
	if held {
		model.Finalizers = []string{"ottoscaler.dev/bench"}
	}
	names, err := s.createBare(ctx, model, n, worker.DefaultMaxWrites)
	if err == nil {
		err = s.rest(ctx)
	}
	if err != nil {
		return 0, err
	}
	patch := func(ctx context.Context, name, metadata string) error {
		_, err := s.pods.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":`+metadata+`}`), metav1.PatchOptions{})
		return err
	}
	begin := time.Now()
	deletes, dctx := errgroup.WithContext(ctx)
	deletes.SetLimit(worker.DefaultMaxWrites)
	for _, name := range names {
		deletes.Go(func() error {
			if held {
				if err := patch(dctx, name, `{"annotations":{"ottoscaler.dev/bench":"marked"}}`); err != nil {
					return fmt.Errorf("marking a bare pod: %w", err)
				}
			}
			if err := s.pods.Delete(dctx, name, metav1.DeleteOptions{}); err != nil {
				return fmt.Errorf("deleting a bare pod: %w", err)
			}
			if held {
				if err := patch(dctx, name, `{"finalizers":null}`); err != nil {
					return fmt.Errorf("letting go of a bare pod: %w", err)
				}
			}
			return nil
		})
	}
	if err := deletes.Wait(); err != nil {
		return 0, err
	}
	if err := s.awaitGone(ctx, n); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}
