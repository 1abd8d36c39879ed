package lab

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rbacclient "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// NodeLogsAccount makes a service account in a namespace for RotatedLogsAccount of the log
// relay. What it may do is what the chart gives it, get nodes/log, or nothing.
func (l *Lab) NodeLogsAccount(ctx context.Context, namespace, name string, allowed bool) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := l.Core.ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making service account %s: %w", name, err)
	}
	if !allowed {
		return nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", l.Cluster.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading kubeconfig %s: %w", l.Cluster.Kubeconfig, err)
	}
	rights, err := rbacclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connecting to the cluster: %w", err)
	}
	meta := metav1.ObjectMeta{Name: namespace + "-" + name}
	_, roleErr := rights.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: meta,
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/log"}, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{})
	_, bindingErr := rights.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}},
	}, metav1.CreateOptions{})
	if err := errors.Join(roleErr, bindingErr); err != nil {
		return fmt.Errorf("allowing service account %s to get nodes/log: %w", name, err)
	}
	return nil
}
