package worker_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func TestInstallationsInOneNamespaceLeaveEachOtherAlone(t *testing.T) {
	s := start(t, time.Millisecond, nil, nil)
	mine, theirs := "inst", "theirs"
	e := up("task", 2)
	s.done(e, 1)
	foreign := startAs(t, theirs, s.Space, s.pools)
	foreign.done(e, 1) // their stream may have an entry of the same ID
	by := func(instance string) (live int) {
		for _, p := range s.Workers() {
			if p.Labels[pod.LabelInstance] == instance && p.DeletionTimestamp == nil {
				live++
			}
		}
		return live
	}
	if by(mine) != 2 || by(theirs) != 2 {
		t.Fatalf("%d are mine and %d theirs, want 2 of each", by(mine), by(theirs))
	}
	zero := 0
	s.done(scaleevent.Event{ID: newID(), Type: scaleevent.ScaleDown, Pool: "default", TargetReplicas: &zero}, 1)
	workertest.Eventually(t, "mine are gone", func() bool { return by(mine) == 0 })
	if by(theirs) != 2 {
		t.Errorf("%d of theirs are left, want 2", by(theirs))
	}
}

// A worker whose event nobody remembers is adopted: it lives to its end, counts,
// is tried again, and is let go of.
func TestAWorkerOfAForgottenEventIsAdopted(t *testing.T) {
	s := start(t, time.Millisecond, nil, nil)
	names := s.done(up("task", 2), 1).Details["workers"]
	s.events.open = map[string]bool{} // the stream was flushed
	s = start(t, time.Millisecond, s, nil)
	s.Set(s.names()[0], corev1.PodSucceeded, 0)
	workertest.Eventually(t, "the finished one is gone", func() bool { return len(s.Workers()) == 1 })
	v := s.done(down("task", 5), 1)
	if v.Details["count"] != "1" {
		t.Errorf("of %s, %+v was removed", names, v)
	}
	workertest.Eventually(t, "nothing is left", func() bool { return len(s.Workers()) == 0 })
}

func TestAPodThatOnlyHasTheNameOfAWorkerIsNotTouched(t *testing.T) {
	s := start(t, time.Millisecond, nil, nil)
	_, err := s.Client.Pods(s.Namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "bystander", Labels: map[string]string{pod.LabelManagedBy: pod.ManagedBy, pod.LabelPool: "default", pod.LabelTask: "task"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v := s.done(down("task", 1), 2); v.Details["count"] != "0" {
		t.Errorf("removed %+v", v)
	}
	s.Set("bystander", corev1.PodSucceeded, 0)
	s.done(up("task", 1), 1)
	if p := s.get("bystander"); p == nil || p.DeletionTimestamp != nil {
		t.Error("a bystander was removed")
	}
}
