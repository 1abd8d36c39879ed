// Package workertest gives tests a real API server and a way to break the calls
// to it. client-go's fake is not used: it ignores preconditions, which are what
// keeps Ottoscaler from deleting the wrong worker.
package workertest

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/retry"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
)

// clusterName is the control plane that all packages' tests share.
const clusterName = "worker-test"

// controlPlane starts the control plane once per test binary. A cluster that is up
// already is taken as it is, within a second or two. It stays up for the other
// packages; scripts/test takes it down.
var controlPlane = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	root, err := source.Root(ctx)
	if err != nil {
		return "", err
	}
	c, err := cluster.Up(ctx, cluster.Options{Kind: cluster.Source, Name: clusterName, Root: root, Output: os.Stderr})
	if err != nil {
		return "", err
	}
	return c.Kubeconfig, nil
})

// Kubeconfig returns the path of the kubeconfig of the shared control plane: etcd,
// API server, controller manager and scheduler, without a node. It starts it
// first where it does not run.
func Kubeconfig(t testing.TB) string {
	t.Helper()
	path, err := controlPlane()
	if err != nil {
		t.Fatalf("a test needs a control plane: %v", err)
	}
	return path
}

// A Space is a namespace of its own on the shared control plane.
type Space struct {
	// Namespace is its name.
	Namespace string
	// Client bypasses Faults.
	Client corev1client.CoreV1Interface
	// Faulty goes through Faults.
	Faulty corev1client.CoreV1Interface
	// Faults breaks the calls of Faulty. It does nothing unless told.
	Faults *Faults

	t      testing.TB
	config *rest.Config
}

// Leases returns a client for Leases. It bypasses Faults.
func (s *Space) Leases() coordinationv1client.LeasesGetter {
	s.t.Helper()
	client, err := coordinationv1client.NewForConfig(s.config)
	if err != nil {
		s.t.Fatalf("making a client: %v", err)
	}
	return client
}

// FaultyLeases returns a client for Leases that goes through Faults.
func (s *Space) FaultyLeases() coordinationv1client.LeasesGetter {
	s.t.Helper()
	config := rest.CopyConfig(s.config)
	config.Wrap(s.Faults.wrap)
	client, err := coordinationv1client.NewForConfig(config)
	if err != nil {
		s.t.Fatalf("making a client: %v", err)
	}
	return client
}

// Again returns the same namespace with faults of its own, for a second process.
func (s *Space) Again() *Space {
	s.t.Helper()
	again := *s
	again.Faults = &Faults{}
	faulty := rest.CopyConfig(s.config)
	faulty.Wrap(again.Faults.wrap)
	again.Faulty = client(s.t, faulty)
	return &again
}

// As returns a client that acts as a user, who has no rights unless given some.
func (s *Space) As(user string) corev1client.CoreV1Interface {
	s.t.Helper()
	config := rest.CopyConfig(s.config)
	config.Impersonate.UserName = user
	return client(s.t, config)
}

// ControlPlane returns a new namespace on a real API server, which is removed
// when the test ends. Labels are put on the namespace.
func ControlPlane(t testing.TB, labels map[string]string) *Space {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", Kubeconfig(t))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	s := &Space{Client: client(t, config), Faults: &Faults{}, t: t, config: config}
	faulty := rest.CopyConfig(config)
	faulty.Wrap(s.Faults.wrap)
	s.Faulty = client(t, faulty)

	ctx := t.Context()
	namespace, err := s.Client.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating a namespace: %v", err)
	}
	s.Namespace = namespace.Name
	t.Cleanup(s.remove)
	// The controller manager would do it, a moment later.
	_, err = s.Client.ServiceAccounts(s.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatalf("creating a service account: %v", err)
	}
	return s
}

func client(t testing.TB, config *rest.Config) corev1client.CoreV1Interface {
	t.Helper()
	c, err := corev1client.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// remove takes finalizers off what is left, or the namespace would never go.
func (s *Space) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Client.Namespaces().Delete(ctx, s.Namespace, metav1.DeleteOptions{}); err != nil {
		s.t.Logf("removing namespace %s: %v", s.Namespace, err)
	}
	pods, err := s.Client.Pods(s.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.t.Logf("removing the pods of %s: %v", s.Namespace, err)
		return
	}
	for _, p := range pods.Items {
		_, err := s.Client.Pods(s.Namespace).Patch(ctx, p.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			s.t.Logf("removing finalizers of %s: %v", p.Name, err)
		}
		now := int64(0)
		err = s.Client.Pods(s.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		if err != nil && !apierrors.IsNotFound(err) {
			s.t.Logf("removing %s: %v", p.Name, err)
		}
	}
}

// Workers returns all pods of the namespace, as the API server has them now.
func (s *Space) Workers() []corev1.Pod {
	s.t.Helper()
	list, err := s.Client.Pods(s.Namespace).List(s.t.Context(), metav1.ListOptions{})
	if err != nil {
		s.t.Fatalf("listing pods: %v", err)
	}
	return list.Items
}

// SetStatus plays the kubelet, and whoever else writes a pod's status.
func (s *Space) SetStatus(name string, change func(p *corev1.Pod)) {
	s.t.Helper()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { // others write as well
		p, err := s.Client.Pods(s.Namespace).Get(s.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(p)
		_, err = s.Client.Pods(s.Namespace).UpdateStatus(s.t.Context(), p, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		s.t.Fatalf("setting the status of pod %s: %v", name, err)
	}
}

// Set plays the kubelet: it writes a pod's phase, and its containers' end once
// that is an end.
func (s *Space) Set(name string, phase corev1.PodPhase, exitCode int32) {
	s.t.Helper()
	s.SetStatus(name, func(p *corev1.Pod) {
		p.Status.Phase = phase
		p.Status.ContainerStatuses = nil
		for _, c := range p.Spec.Containers {
			status := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
			if phase == corev1.PodSucceeded || phase == corev1.PodFailed {
				status.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: exitCode}
			} else {
				status.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.Now()}
			}
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, status)
		}
	})
}

// Eventually fails the test unless cond holds within ten seconds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("after ten seconds, still not: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
