package chart_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/ottoscaler/ottoscaler/internal/worker"
)

const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

func TestEveryPodPassesTheRestrictedStandard(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range valuesFiles(t) {
		specs := podSpecs(t, render(t, "ottoscaler", load(t, file)))
		if len(specs) < 2 {
			t.Fatalf("%s: only %d pods found", name(file), len(specs))
		}
		for what, pod := range specs {
			result := policy.AggregateCheckResults(evaluator.EvaluatePod(
				api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec))
			if !result.Allowed {
				t.Errorf("%s: %s would be refused: %s", name(file), what, result.ForbiddenDetail())
			}
			// The standard does not ask for this; we do.
			for _, c := range pod.Spec.Containers {
				if sc := c.SecurityContext; sc == nil || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
					t.Errorf("%s: %s, container %s may write to its root file system", name(file), what, c.Name)
				}
			}
		}
	}
}

func TestRestrictedStandardWouldCatchAWorkerThatRunsAsRoot(t *testing.T) {
	vals := load(t, "../../charts/ottoscaler/values-jinwoo.yaml")
	vals["pools"].(values)["default"].(values)["template"].(values)["spec"].(values)["securityContext"] = values{"runAsNonRoot": false, "runAsUser": 0}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pod := podSpecs(t, render(t, "ottoscaler", vals))["pool default"]
	result := policy.AggregateCheckResults(evaluator.EvaluatePod(
		api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec))
	if result.Allowed {
		t.Error("a worker that runs as root was found to be restricted")
	}
}

func TestOnlyTheConsumerHasTheRedisPassword(t *testing.T) {
	d := one[*appsv1.Deployment](t, render(t, "ottoscaler", load(t, "testdata/everything.yaml")))
	for _, c := range d.Spec.Template.Spec.Containers {
		var secrets []string
		for _, v := range c.Env {
			if v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil && v.ValueFrom.SecretKeyRef.Name == "redis-jinwoo" {
				secrets = append(secrets, v.Name)
			}
		}
		want := []string(nil)
		if c.Name == "consumer" {
			want = []string{"REDIS_PASSWORD", "REDIS_SENTINEL_PASSWORD"}
		}
		if mounts := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "redis-tls" }); mounts != (c.Name == "consumer") {
			t.Errorf("%s: has the certificates of Redis: %t", c.Name, mounts)
		}
		if diff := cmp.Diff(want, secrets); diff != "" {
			t.Errorf("%s: variables from the Redis secret (-want +got):\n%s", c.Name, diff)
		}
	}
}

func TestOnlyTheLogRelayHasTheCredentialsOfTheLogServer(t *testing.T) {
	pod := one[*appsv1.Deployment](t, render(t, "ottoscaler", load(t, "testdata/everything.yaml"))).Spec.Template.Spec
	var want, got []string
	for _, v := range pod.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.Secret != nil {
				want = append(want, v.Name+" "+source.Secret.Name)
			}
		}
	}
	if diff := cmp.Diff([]string{"log-server log-server-ca", "log-server log-relay-cert", "log-server log-relay-token"}, want); diff != "" {
		t.Errorf("Secrets in volumes (-want +got):\n%s", diff)
	}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			if m.Name == "log-server" {
				got = append(got, c.Name)
				if !m.ReadOnly {
					t.Errorf("%s may write there", c.Name)
				}
			}
		}
	}
	if diff := cmp.Diff([]string{"log-relay"}, got); diff != "" {
		t.Errorf("containers that see them (-want +got):\n%s", diff)
	}
	relay := container(t, one[*appsv1.Deployment](t, render(t, "ottoscaler", load(t, "testdata/everything.yaml"))), "log-relay")
	for name, want := range map[string]string{
		"LOG_SERVER_CA_FILE":    "/etc/ottoscaler/log-server/ca.crt",
		"LOG_SERVER_CERT_FILE":  "/etc/ottoscaler/log-server/tls.crt",
		"LOG_SERVER_KEY_FILE":   "/etc/ottoscaler/log-server/tls.key",
		"LOG_SERVER_TOKEN_FILE": "/etc/ottoscaler/log-server/token",
	} {
		if got := variable(t, relay, name).Value; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestOnlyScalerAndLogRelayHaveTheKubernetesToken(t *testing.T) {
	for _, file := range valuesFiles(t) {
		r := render(t, "ottoscaler", load(t, file))
		for what, pod := range podSpecs(t, r) {
			if auto := pod.Spec.AutomountServiceAccountToken; auto == nil || *auto {
				t.Errorf("%s: %s mounts the token into every container", name(file), what)
			}
		}
		pod := one[*appsv1.Deployment](t, r).Spec.Template
		var holders []string
		for _, c := range pod.Spec.Containers {
			for _, m := range c.VolumeMounts {
				if m.MountPath != tokenPath {
					continue
				}
				holders = append(holders, c.Name)
				if got, want := projectedPaths(t, pod.Spec, m.Name), []string{"token", "ca.crt", "namespace"}; !slices.Equal(got, want) {
					t.Errorf("%s: %s finds %v there, want %v", name(file), c.Name, got, want)
				}
			}
		}
		if want := []string{"scaler", "log-relay"}; !slices.Equal(holders, want) {
			t.Errorf("%s: the token is in %v, want %v", name(file), holders, want)
		}
	}
}

func projectedPaths(t *testing.T, spec corev1.PodSpec, volume string) (paths []string) {
	t.Helper()
	for _, v := range spec.Volumes {
		if v.Name != volume {
			continue
		}
		if v.Projected == nil {
			t.Fatalf("volume %s is not projected", volume)
		}
		for _, s := range v.Projected.Sources {
			switch {
			case s.ServiceAccountToken != nil:
				paths = append(paths, s.ServiceAccountToken.Path)
			case s.ConfigMap != nil:
				for _, item := range s.ConfigMap.Items {
					paths = append(paths, item.Path)
				}
			case s.DownwardAPI != nil:
				for _, item := range s.DownwardAPI.Items {
					paths = append(paths, item.Path)
				}
			}
		}
	}
	return paths
}

func TestWorkersRunUnderAnAccountThatMayDoNothing(t *testing.T) {
	for _, file := range valuesFiles(t) {
		r := render(t, "ottoscaler", load(t, file))
		bound := map[string]bool{}
		for _, b := range all[*rbacv1.RoleBinding](r) {
			for _, s := range b.Subjects {
				bound[s.Name] = true
			}
		}
		accounts := map[string]bool{}
		for _, a := range all[*corev1.ServiceAccount](r) {
			accounts[a.Name] = true
			if a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken {
				t.Errorf("%s: account %s gives its token to every pod", name(file), a.Name)
			}
		}
		for pool, p := range pools(t, r) {
			account := p.Template.Spec.ServiceAccountName
			if account == "own-account" { // a pool may bring its own
				continue
			}
			if !accounts[account] || bound[account] {
				t.Errorf("%s: workers of pool %s run as %q (made by the chart: %t, has a role: %t)",
					name(file), pool, account, accounts[account], bound[account])
			}
		}
	}
}

// The exact list, so that a permission is never added in passing.
func TestRoleIsNamespacedAndHasOnlyWhatIsUsed(t *testing.T) {
	r := render(t, "ottoscaler", load(t, "../../charts/ottoscaler/values-jinwoo.yaml"))
	want := map[string][]string{
		"ottoscaler": {
			"pods create", "pods get", "pods list", "pods watch", "pods patch", "pods delete",
			"pods/log get",
			"coordination.k8s.io/leases create", "coordination.k8s.io/leases get ottoscaler-owner",
			"coordination.k8s.io/leases get ottoscaler-scaler", "coordination.k8s.io/leases update ottoscaler-scaler",
			"events create", "events patch",
		},
		"ottoscaler-release-rest": {
			"pods get", "pods list", "pods watch", "pods patch", "pods delete",
			"coordination.k8s.io/leases get ottoscaler-owner", "coordination.k8s.io/leases delete ottoscaler-owner",
			"coordination.k8s.io/leases delete ottoscaler-scaler",
		},
	}
	if diff := cmp.Diff(want, permissions(r)); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
	for _, object := range r.objects {
		switch object.(type) {
		case *rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding:
			t.Errorf("%s reaches past the namespace", object.GetName())
		}
		if object.GetNamespace() != namespace {
			t.Errorf("%T %s is in namespace %q", object, object.GetName(), object.GetNamespace())
		}
	}
}

// A node sees the token that it is shown: it must not be the main pod's, and open nothing but logs.
func TestTheRightToRotatedLogsIsOneAccountsAndNothingElse(t *testing.T) {
	vals := minimal()
	before := permissions(render(t, "ottoscaler", roundTrip(t, vals)))
	vals["logRelay"].(values)["rotatedLogs"] = values{"enabled": true}
	r := render(t, "ottoscaler", roundTrip(t, vals))
	got := permissions(r)
	want := append(slices.Clone(before["ottoscaler"]), "serviceaccounts/token create ottoscaler-node-logs")
	slices.Sort(want)
	slices.Sort(got["ottoscaler"])
	if diff := cmp.Diff(want, got["ottoscaler"]); diff != "" {
		t.Errorf("permissions of the main pod (-want +got):\n%s", diff)
	}
	role, binding := one[*rbacv1.ClusterRole](t, r), one[*rbacv1.ClusterRoleBinding](t, r)
	if diff := cmp.Diff([]rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/log"}, Verbs: []string{"get"}}}, role.Rules); diff != "" {
		t.Errorf("permissions on the cluster (-want +got):\n%s", diff)
	}
	if binding.RoleRef.Name != role.Name {
		t.Errorf("the binding is to %s, want %s", binding.RoleRef.Name, role.Name)
	}
	account := rbacv1.Subject{Kind: "ServiceAccount", Namespace: namespace, Name: "ottoscaler-node-logs"}
	if diff := cmp.Diff([]rbacv1.Subject{account}, binding.Subjects); diff != "" {
		t.Errorf("who has them (-want +got):\n%s", diff)
	}
	relay := container(t, one[*appsv1.Deployment](t, r), "log-relay")
	if got := variable(t, relay, "ROTATED_LOGS_ACCOUNT").Value; got != account.Name {
		t.Errorf("ROTATED_LOGS_ACCOUNT is %q, want %q", got, account.Name)
	}
	if !slices.ContainsFunc(all[*corev1.ServiceAccount](r), func(a *corev1.ServiceAccount) bool { return a.Name == account.Name }) {
		t.Error("the account is not made")
	}
}

// What may be read is exactly what the scaler writes on the workers of the pools that ask.
func TestOnlySecretsThatAPoolAsksToHideMayBeRead(t *testing.T) {
	spec := values{
		"initContainers": []any{values{"name": "clone", "image": "i", "env": []any{
			values{"name": "T", "valueFrom": values{"secretKeyRef": values{"name": "git", "key": "token"}}},
		}}},
		"containers": []any{values{
			"name": "agent",
			"env": []any{
				values{"name": "A", "value": "plain"},
				values{"name": "B", "valueFrom": values{"fieldRef": values{"fieldPath": "metadata.name"}}},
				values{"name": "C", "valueFrom": values{"secretKeyRef": values{"name": "registry", "key": "password"}}},
			},
			"envFrom": []any{values{"secretRef": values{"name": "all"}}, values{"configMapRef": values{"name": "other"}}},
		}},
		"imagePullSecrets": []any{values{"name": "pull"}},
		"volumes": []any{
			values{"name": "a", "secret": values{"secretName": "whole"}},
			values{"name": "b", "projected": values{"sources": []any{
				values{"secret": values{"name": "projected"}}, values{"configMap": values{"name": "other"}}, values{"secret": values{"name": "git"}},
			}}},
			values{"name": "c", "emptyDir": values{}},
		},
	}
	for _, logs := range []any{nil, values{}, values{"maskSecrets": false}, values{"maskSecrets": true}} {
		asked := logs != nil && logs.(values)["maskSecrets"] == true
		vals := minimal()
		vals["pools"] = values{"default": nil, "other": values{"logs": logs, "template": values{"spec": spec}}}
		r := render(t, "ottoscaler", roundTrip(t, vals))
		var got []string
		for _, right := range permissions(r)["ottoscaler"] {
			if strings.HasPrefix(right, "secrets ") {
				got = append(got, right)
			}
		}
		var want []string
		if asked {
			file, err := worker.ParsePools([]byte(one[*corev1.ConfigMap](t, r).Data["pools.yaml"]), "agent:1")
			if err != nil {
				t.Fatal(err)
			}
			names := strings.Join(file.Get("other").Secrets(), " ")
			if names != "all git projected registry whole" {
				t.Errorf("the scaler finds %q", names)
			}
			want = []string{"secrets get " + names, "secrets list " + names, "secrets watch " + names}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("asked for: %t; rights (-want +got):\n%s", asked, diff)
		}
	}
}

func TestMainPodIsNotSelectedByItsWorkersOrHook(t *testing.T) {
	r := render(t, "ottoscaler", load(t, "testdata/everything.yaml"))
	d := one[*appsv1.Deployment](t, r)
	matches := func(labels map[string]string) bool {
		for k, v := range d.Spec.Selector.MatchLabels {
			if labels[k] != v {
				return false
			}
		}
		return true
	}
	if !matches(d.Spec.Template.Labels) {
		t.Error("the Deployment does not select its own pod")
	}
	for _, job := range all[*batchv1.Job](r) {
		if matches(job.Spec.Template.Labels) {
			t.Errorf("the Deployment would adopt the pod of hook %s", job.Name)
		}
	}
	worker := map[string]string{
		"app.kubernetes.io/managed-by": "ottoscaler", "app.kubernetes.io/component": "worker",
		"app.kubernetes.io/instance": "ottoscaler", "app.kubernetes.io/name": "ottoscaler",
	}
	if matches(worker) {
		t.Error("the Deployment would adopt a worker")
	}
}
