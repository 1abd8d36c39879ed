package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
)

func claim(t *testing.T, s *workertest.Space, user, instance string) error {
	t.Helper()
	return worker.ClaimNamespace(t.Context(), s.Leases(), s.Namespace, worker.Owner{User: user, Instance: instance}, slog.New(slog.DiscardHandler))
}

func refuses(t *testing.T, err error, says ...string) {
	t.Helper()
	var foreign *worker.ForeignNamespaceError
	if !errors.As(err, &foreign) {
		t.Fatalf("got %v, want a ForeignNamespaceError", err)
	}
	for _, want := range says {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it says %q, want %q in it", err, want)
		}
	}
}

func TestANamespaceBelongsToTheUserWhoIsThereFirst(t *testing.T) {
	t.Parallel()
	s := workertest.ControlPlane(t, nil)
	if err := claim(t, s, "", "nobodys"); err != nil {
		t.Fatalf("where nobody is: %v", err)
	}
	for _, instance := range []string{"ottoscaler", "ottoscaler", "second"} { // a restart, and another of the same user's
		if err := claim(t, s, "jinwoo", instance); err != nil {
			t.Fatalf("jinwoo's %s: %v", instance, err)
		}
	}
	refuses(t, claim(t, s, "minji", "ottoscaler"), "NAMESPACE", s.Namespace, "jinwoo", "instance ottoscaler", "delete lease "+worker.OwnerLease)
	refuses(t, claim(t, s, "", "nobodys"), "jinwoo")
}

func TestANamespaceIsGivenBackByTheLastOfItsUsersInstallations(t *testing.T) {
	t.Parallel()
	s := workertest.ControlPlane(t, nil)
	release := func(user, instance string) {
		t.Helper()
		if err := worker.ReleaseNamespace(t.Context(), s.Leases(), s.Client, s.Namespace, worker.Owner{User: user, Instance: instance}); err != nil {
			t.Fatalf("%s's %s gives the namespace back: %v", user, instance, err)
		}
	}
	held := func() bool {
		t.Helper()
		_, err := s.Leases().Leases(s.Namespace).Get(t.Context(), worker.OwnerLease, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	release("jinwoo", "ottoscaler") // what was never claimed
	if err := claim(t, s, "jinwoo", "ottoscaler"); err != nil {
		t.Fatal(err)
	}
	release("minji", "ottoscaler")
	release("", "ottoscaler")
	if !held() {
		t.Fatal("another installation has given jinwoo's namespace away")
	}
	second, err := s.Client.Pods(s.Namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "second", Labels: map[string]string{
			pod.LabelUser: "jinwoo", pod.LabelComponent: "main", pod.LabelInstance: "second",
		}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "scaler", Image: "example.invalid/x:1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	release("jinwoo", "ottoscaler")
	if !held() {
		t.Fatal("jinwoo's second installation has lost its namespace")
	}
	now := int64(0)
	if err := s.Client.Pods(s.Namespace).Delete(t.Context(), second.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	release("jinwoo", "second")
	if held() {
		t.Fatal("the last installation is gone, and the namespace is not free")
	}
	if err := claim(t, s, "minji", "ottoscaler"); err != nil {
		t.Errorf("minji takes the free namespace: %v", err)
	}
}

func TestTheClaimWaitsForAnAPIServerThatIsAway(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var attempts atomic.Int32
	nowhere, err := coordinationv1client.NewForConfig(&rest.Config{Host: "127.0.0.1:1", Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if attempts.Add(1) == 3 {
			cancel()
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}})
	if err != nil {
		t.Fatal(err)
	}
	log := &strings.Builder{}
	if err := worker.ClaimNamespace(ctx, nowhere, "x", worker.Owner{User: "jinwoo", Instance: "ottoscaler"}, slog.New(slog.NewTextHandler(log, nil))); err != nil {
		t.Errorf("told to stop while waiting: got %v, want nil", err)
	}
	if got := attempts.Load(); got < 3 {
		t.Errorf("it gave up after %d attempts", got)
	}
	if n := strings.Count(log.String(), "trying again"); n != 1 {
		t.Errorf("it says so %d times, want once: %s", n, log)
	}
}
