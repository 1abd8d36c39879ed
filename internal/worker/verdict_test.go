package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
)

var podsResource = schema.GroupResource{Resource: "pods"}

func TestFaultsAreToldApart(t *testing.T) {
	terminating := apierrors.NewForbidden(podsResource, "w", errors.New("namespace is being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	for name, c := range map[string]struct {
		err    error
		fault  fault
		reason string
	}{
		"a rejection":             {reject(ReasonUnknownPool, "x"), faultFinal, ReasonUnknownPool},
		"an invalid pod":          {apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "w", nil), faultFinal, ReasonInvalidPod},
		"a bad request":           {apierrors.NewBadRequest("x"), faultFinal, ReasonInvalidPod},
		"too large an object":     {apierrors.NewRequestEntityTooLargeError("x"), faultFinal, ReasonInvalidPod},
		"a namespace that goes":   {terminating, faultTransient, ""},
		"a webhook's refusal":     {apierrors.NewForbidden(podsResource, "w", errors.New("the webhook says no")), faultTransient, ""},
		"a conflict":              {apierrors.NewConflict(podsResource, "w", nil), faultTransient, ""},
		"too many requests":       {apierrors.NewTooManyRequests("x", 3), faultTransient, ""},
		"an internal error":       {apierrors.NewInternalError(errors.New("x")), faultTransient, ""},
		"a timeout":               {context.DeadlineExceeded, faultTransient, ""},
		"no such namespace":       {apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "n"), faultTransient, ""},
		"something quite unknown": {errors.New("boo"), faultTransient, ""},
	} {
		if f, reason := faultOf(fmt.Errorf("creating pod w: %w", c.err)); f != c.fault || reason != c.reason {
			t.Errorf("%s: fault %d %q, want %d %q", name, f, reason, c.fault, c.reason)
		}
	}
}

func TestMissingPermissionIsKnownByTheAPIServersWords(t *testing.T) {
	space := workertest.ControlPlane(t, nil)
	_, err := space.As("stranger").Pods(space.Namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "w"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}}},
	}, metav1.CreateOptions{})
	if f, _ := faultOf(err); f != faultPermission {
		t.Errorf("fault %d of %v, want that of a missing permission", f, err)
	}
	if v := verdictOn(err, 1, nil); v.Status != 0 || v.After <= 0 {
		t.Errorf("verdict %+v, want a retry", v)
	}
}

func TestRetriesPauseLongerEachTimeUpToALimit(t *testing.T) {
	for attempt, most := range map[int]time.Duration{1: 300 * time.Millisecond, 4: 2400 * time.Millisecond, 100: 45 * time.Second} {
		v := verdictOn(errors.New("boo"), attempt, nil)
		if v.Status != 0 || v.After < most/3 || v.After > most {
			t.Errorf("attempt %d: %+v, want a pause between %v and %v", attempt, v, most/3, most)
		}
	}
	if v := verdictOn(apierrors.NewTooManyRequests("x", 60), 1, nil); v.After != time.Minute {
		t.Errorf("asked for 60s of patience, got %v", v.After)
	}
	if v := verdictOn(errCacheBehind, 100, nil); v.After > time.Second {
		t.Errorf("a cache that is behind rests for %v", v.After)
	}
	if v := verdictOn(reject("why", "x"), 1, nil); v.Status != queue.Rejected || v.Reason != "why" {
		t.Errorf("a rejection became %+v", v)
	}
}
