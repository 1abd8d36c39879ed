package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// finishToGone measures one worker at a time, from before its status says that it
// has succeeded to the moment at which a watch shows that it is gone. Its logs
// need no time: the scaler is told not to wait for them. The bare client makes the
// same three calls one after the other: status, finalizer, delete.
func finishToGone(ctx context.Context, l *lab.Lab, quick bool) (rows []Row, err error) {
	samples := pick(quick, 30, 100)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s, err := newScale(ctx, l, "LOG_DRAIN_TIMEOUT=0s")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if _, err := s.publish(ctx, "finish", samples+1); err != nil {
		return nil, err
	}
	if err := s.await(ctx, samples+1); err != nil {
		return nil, err
	}
	model, err := s.rawPod(ctx)
	if err != nil {
		return nil, err
	}
	model.Finalizers = []string{"ottoscaler.dev/bench"}
	list, err := s.pods.List(ctx, metav1.ListOptions{LabelSelector: pod.LabelTask + "=finish"})
	if err != nil {
		return nil, fmt.Errorf("listing workers: %w", err)
	}
	var ours, raw []time.Duration
	for i := range samples {
		took, err := s.finish(ctx, list.Items[i].Name, func() error { return nil })
		if err != nil {
			return nil, err
		}
		ours = append(ours, took)

		bare, err := s.pods.Create(ctx, model, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("creating a bare pod: %w", err)
		}
		took, err = s.finish(ctx, bare.Name, func() error {
			_, err := s.pods.Patch(ctx, bare.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
			if err != nil {
				return fmt.Errorf("letting go of a bare pod: %w", err)
			}
			if err := s.pods.Delete(ctx, bare.Name, metav1.DeleteOptions{}); err != nil {
				return fmt.Errorf("deleting a bare pod: %w", err)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		raw = append(raw, took)
	}
	return []Row{{Unit: "ms", Value: report.Milliseconds(report.Quantile(ours, 0.5)), Raw: report.Milliseconds(report.Quantile(raw, 0.5))}}, nil
}

// finish has a pod succeed and returns how long it takes until it is gone.
func (s *scale) finish(ctx context.Context, name string, then func() error) (time.Duration, error) {
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	list, err := s.pods.List(ctx, metav1.ListOptions{FieldSelector: only})
	if err != nil {
		return 0, fmt.Errorf("reading pod %s: %w", name, err)
	}
	w, err := s.pods.Watch(ctx, metav1.ListOptions{FieldSelector: only, ResourceVersion: list.ResourceVersion})
	if err != nil {
		return 0, fmt.Errorf("watching pod %s: %w", name, err)
	}
	defer w.Stop()
	begin := time.Now()
	succeeded := []byte(`{"status":{"phase":"` + string(corev1.PodSucceeded) + `"}}`)
	if _, err := s.pods.Patch(ctx, name, types.MergePatchType, succeeded, metav1.PatchOptions{}, "status"); err != nil {
		return 0, fmt.Errorf("finishing pod %s: %w", name, err)
	}
	if err := then(); err != nil {
		return 0, err
	}
	for e := range w.ResultChan() {
		if e.Type == watch.Deleted {
			return time.Since(begin), nil
		}
	}
	return 0, fmt.Errorf("pod %s does not go: %w", name, ctx.Err())
}
