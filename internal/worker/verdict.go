package worker

import (
	"context"
	"errors"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/queue"
)

// retry paces an event that could not be carried out. The queue does the resting.
var retry = backoff.Policy{Initial: 200 * time.Millisecond, Max: 30 * time.Second}

// A fault is what an error means for the event.
type fault int

const (
	// faultTransient: it may work next time.
	faultTransient fault = iota
	// faultQuota: it works once other pods are gone.
	faultQuota
	// faultPermission: it works once someone grants the right.
	faultPermission
	// faultFinal: it never works.
	faultFinal
)

// faultOf classifies an error. What it does not know is transient: an event is
// rather tried for ever, visibly, than lost.
func faultOf(err error) (f fault, reason string) {
	var final *rejection
	if errors.As(err, &final) {
		return faultFinal, final.reason
	}
	switch {
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return faultFinal, ReasonInvalidPod
	case apierrors.IsForbidden(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return forbidden(err)
	}
	return faultTransient, ""
}

// forbidden tells the refusals apart that share the status code 403. Kubernetes
// says which it is in words only: the texts are those of its resource quota, Pod
// Security and RBAC code.
func forbidden(err error) (fault, string) {
	switch text := err.Error(); {
	case strings.Contains(text, "exceeded quota"):
		return faultQuota, ""
	case strings.Contains(text, "violates PodSecurity"):
		return faultFinal, ReasonPolicyViolation
	case strings.Contains(text, `" cannot `): // User "…" cannot create resource "pods" in …
		return faultPermission, ""
	default: // a webhook, a limit range, a service account that is not there yet
		return faultTransient, ""
	}
}

// verdictOn turns an error into the verdict on the event.
func verdictOn(err error, attempt int, details map[string]string) queue.Verdict {
	f, reason := faultOf(err)
	if f == faultFinal {
		return queue.Reject(reason, err.Error(), details)
	}
	pause := retry.Pause(attempt)
	if errors.Is(err, errWaitingFull) || errors.Is(err, errCacheBehind) || errors.Is(err, errChanged) || apierrors.IsConflict(err) {
		pause = min(pause, time.Second) // someone was quicker: no reason to rest long
	}
	if seconds, asked := apierrors.SuggestsClientDelay(err); asked {
		pause = max(pause, time.Duration(seconds)*time.Second)
	}
	return queue.RetryAfter(pause, err.Error())
}

// refused reports whether the API server has said that it did not do a call. Any
// other failure may have come after the deed.
func refused(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return errors.Is(err, errNotSent)
	}
	code := status.Status().Code
	return code >= 400 && code < 500 && !apierrors.IsTimeout(err)
}

// stopped reports whether err only says that the caller's context has ended.
func stopped(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, ctx.Err())
}
