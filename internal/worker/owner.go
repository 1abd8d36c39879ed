package worker

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// OwnerLease is the Lease by which a namespace belongs to a developer. It does not
// expire.
const OwnerLease = "ottoscaler-owner"

// An Owner is whose installation this is.
type Owner struct {
	// User is a developer, or empty for an installation that is nobody's own.
	User string
	// Instance is the installation's ID; one user may have several in a namespace.
	Instance string
}

// A ForeignNamespaceError says that a namespace belongs to another developer.
type ForeignNamespaceError struct {
	namespace, user, instance string
	since                     time.Time
}

// Error tells whose the namespace is, and what to do.
func (e *ForeignNamespaceError) Error() string {
	return fmt.Sprintf("NAMESPACE: %s belongs to user %s (instance %s, since %s): install into a namespace of your own, or, if that installation is gone, delete lease %s there",
		e.namespace, e.user, e.instance, e.since.UTC().Format(time.RFC3339), OwnerLease)
}

// ClaimNamespace makes the namespace the user's, or returns a
// [ForeignNamespaceError] if it is another's. An installation that is nobody's own
// claims nothing, but does not go where somebody is. It waits for an API server
// that is away; it returns nil when ctx ends.
func ClaimNamespace(ctx context.Context, leases coordinationv1client.LeasesGetter, namespace string, owner Owner, log *slog.Logger) error {
	for attempt := range backoff.Default.Attempts(ctx) {
		err := claimNamespace(ctx, leases.Leases(namespace), namespace, owner)
		switch {
		case err == nil:
			return nil
		case foreign(err):
			return err
		case apierrors.IsForbidden(err):
			return fmt.Errorf("%w: the chart's Role allows it", err)
		case ctx.Err() == nil && attempt.Number == 1:
			log.WarnContext(ctx, "cannot find out whose the namespace is, trying again", "err", err)
		}
	}
	return nil
}

func foreign(err error) bool {
	_, is := err.(*ForeignNamespaceError) //nolint:errorlint // claimNamespace does not wrap it
	return is
}

func claimNamespace(ctx context.Context, leases coordinationv1client.LeaseInterface, namespace string, owner Owner) error {
	if owner.User != "" {
		_, err := leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: OwnerLease, Annotations: map[string]string{pod.AnnotationInstance: owner.Instance}},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &owner.User, AcquireTime: &metav1.MicroTime{Time: time.Now()}},
		}, metav1.CreateOptions{})
		if err == nil {
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("claiming namespace %s: %w", namespace, err)
		}
	}
	lease, err := leases.Get(ctx, OwnerLease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && owner.User == "" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding out whose namespace %s is: %w", namespace, err)
	}
	if holder := holderOf(lease); holder != owner.User {
		return &ForeignNamespaceError{namespace, holder, lease.Annotations[pod.AnnotationInstance], lease.CreationTimestamp.Time}
	}
	return nil
}

func holderOf(lease *coordinationv1.Lease) string {
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// ReleaseNamespace gives the namespace back, if it is the user's and no other
// installation of theirs is in it. It is for an installation that is gone.
func ReleaseNamespace(ctx context.Context, leases coordinationv1client.LeasesGetter, pods corev1client.PodsGetter, namespace string, owner Owner) error {
	if owner.User == "" {
		return nil
	}
	lease, err := leases.Leases(namespace).Get(ctx, OwnerLease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && holderOf(lease) != owner.User {
		return nil
	}
	if err != nil {
		return fmt.Errorf("giving namespace %s back: %w", namespace, err)
	}
	others, err := pods.Pods(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: pod.LabelUser + "=" + owner.User + ",app.kubernetes.io/component=main,app.kubernetes.io/instance!=" + owner.Instance,
	})
	if err != nil {
		return fmt.Errorf("giving namespace %s back: looking for other installations: %w", namespace, err)
	}
	if len(others.Items) > 0 {
		return nil
	}
	err = leases.Leases(namespace).Delete(ctx, OwnerLease, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("giving namespace %s back: %w", namespace, err)
	}
	return nil
}
