package worker

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	psaapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

const agentImage = "ottoscaler/agent:test"

func mustParse(t *testing.T, file string) *Pools {
	t.Helper()
	pools, err := ParsePools([]byte(file), agentImage)
	if err != nil {
		t.Fatalf("parsing pools: %v", err)
	}
	return pools
}

const smallest = `
pools:
  default:
    template:
      spec:
        containers: [{name: agent}]
`

func TestSmallestPoolIsCompletedToTheRestrictedStandard(t *testing.T) {
	spec := mustParse(t, smallest).Get("default").Template.Spec

	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := psaapi.LevelVersion{Level: psaapi.LevelRestricted, Version: psaapi.LatestVersion()}
	result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &metav1.ObjectMeta{}, &spec))
	if !result.Allowed {
		t.Errorf("the pod violates the restricted standard: %s", result.ForbiddenDetail())
	}
	if got := spec.Containers[0].Image; got != agentImage {
		t.Errorf("image = %q, want %q", got, agentImage)
	}
	if spec.RestartPolicy != corev1.RestartPolicyNever {
		t.Errorf("restart policy = %q, want Never", spec.RestartPolicy)
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		t.Error("the service account's token is mounted")
	}
}

func TestTemplateKeepsWhatItSays(t *testing.T) {
	spec := mustParse(t, `
pools:
  builder:
    template:
      spec:
        restartPolicy: OnFailure
        automountServiceAccountToken: true
        securityContext: {runAsUser: 0, seccompProfile: {type: Unconfined}}
        initContainers:
        - {name: setup, image: setup, securityContext: {runAsUser: 0}}
        containers:
        - {name: sidecar, image: sidecar, securityContext: {capabilities: {add: [SYS_ADMIN]}}}
        - {name: agent, image: builder, securityContext: {privileged: true}}
`).Get("builder").Template.Spec

	yes, no, root := true, false, int64(0)
	want := corev1.PodSpec{
		RestartPolicy:                corev1.RestartPolicyOnFailure,
		AutomountServiceAccountToken: &yes,
		SecurityContext:              &corev1.PodSecurityContext{RunAsUser: &root, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}},
		InitContainers: []corev1.Container{{Name: "setup", Image: "setup", SecurityContext: &corev1.SecurityContext{
			RunAsUser: &root, RunAsNonRoot: &no, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		}}},
		Containers: []corev1.Container{
			{Name: "sidecar", Image: "sidecar", SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}}}},
			{Name: "agent", Image: "builder", SecurityContext: &corev1.SecurityContext{Privileged: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}},
		},
	}
	if diff := cmp.Diff(want, spec); diff != "" {
		t.Errorf("completed template (-want +got):\n%s", diff)
	}
}

func TestEveryProblemOfAPoolFileIsNamed(t *testing.T) {
	file := `
limits: {maxWorkers: -1}
pools:
  Big_One:
    template: {spec: {containers: [{name: agent}]}}
  cpu:
    overrides: {image: ["[a"], cpu: true, maxmemory: 1Gi}
    resources: {default: {cpu: "0", memory: 4Gi}, max: {memory: 2Gi, nvidia.com/gpu: 1}}
    template:
      metadata:
        name: mine
        finalizers: [example.com/stay]
        labels: {app.kubernetes.io/instance: other, "bad key": x}
        annotations: {ottoscaler.dev/task-id: forged}
      spec:
        restartPolicy: Always
        containers:
        - {name: agent, securitycontext: {}, env: [{name: OTTO_TASK_ID, value: forged}, {name: OTTO_SERVER, value: fine}]}
        - {name: agent, image: x}
        - {name: side_car}
        - {name: hungry, image: x, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}
  large:
    resources: {max: {cpu: 2, nvidia.com/gpu: 1}}
    template: {spec: {containers: [{name: side, image: x, resources: {limits: {cpu: 9}}}, {name: agent, resources: {requests: {cpu: 3}, limits: {cpu: 4, nvidia.com/gpu: 2}}}]}}
  empty:
    maxWorkers: -2
    maxWorkersPerTask: -3
    template: {spec: {}}
`
	_, err := ParsePools([]byte(file), agentImage)
	if err == nil {
		t.Fatal("the file was accepted")
	}
	for _, want := range []string{
		`unknown field "pools.cpu.overrides.maxmemory"`,
		`unknown field "pools.cpu.template.spec.containers[0].securitycontext"`,
		"pools.Big_One: its name must have",
		"pools.cpu.template.metadata: name, generateName and namespace",
		"pools.cpu.template.metadata: finalizers",
		"pools.cpu.template.metadata.labels[app.kubernetes.io/instance]: it is reserved",
		"pools.cpu.template.metadata.labels[bad key]: ",
		"pools.cpu.template.metadata.annotations[ottoscaler.dev/task-id]: it is reserved",
		"pools.cpu.template.spec.restartPolicy: with Always",
		"pools.cpu.template.spec.containers[0].env[0].name: variable OTTO_TASK_ID is set by Ottoscaler",
		"pools.cpu.template.spec.containers[1].name: agent is taken",
		"pools.cpu.template.spec.containers[2].name: side_car",
		"pools.cpu.template.spec.containers[2].image: the container has none",
		"pools.cpu.template.spec.containers[3].resources.requests.cpu: 2 exceeds the limit, which is 1",
		`pools.cpu.overrides.image[0]: "[a" is no valid pattern`,
		"pools.cpu.overrides.cpu: it needs resources.max.cpu, or an event could ask for any amount",
		"pools.cpu.resources.default.cpu: 0 is not more than zero",
		"pools.cpu.resources.default.memory: 4Gi is more than resources.max.memory, which is 2Gi",
		"pools.large.template.spec.containers[1].resources.requests.cpu: 3 is more than resources.max.cpu, which is 2",
		"pools.large.template.spec.containers[1].resources.limits.cpu: 4 is more than resources.max.cpu, which is 2",
		"pools.large.template.spec.containers[1].resources.limits.nvidia.com/gpu: 2 is more than resources.max.nvidia.com/gpu, which is 1",
		"limits.maxWorkers: -1 is less than zero",
		"pools.empty.maxWorkers: -2 is less than zero",
		"pools.empty.maxWorkersPerTask: -3 is less than zero",
		"pools.empty.template.spec.containers: a worker needs",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not among the problems: %s", want)
		}
	}
	if strings.Contains(err.Error(), "pools.large.template.spec.containers[0]") {
		t.Error("the bound of the worker's container was put on another")
	}
	if strings.Contains(err.Error(), "OTTO_SERVER") {
		t.Error("a variable of the agent's own was refused")
	}
	if t.Failed() {
		t.Logf("the problems:\n%v", err)
	}
}

func TestUnreadablePoolFilesAreRefused(t *testing.T) {
	for name, file := range map[string]string{
		"empty":             "",
		"no pools":          "pools: {}",
		"another key":       "pool: {}",
		"not YAML":          "pools: [",
		"a key twice":       smallest + "pools: {}\n",
		"a wrong type":      "pools: {default: {template: {spec: {containers: 7}}}}",
		"a bad quantity":    "pools: {default: {resources: {max: {cpu: lots}}, template: {spec: {containers: [{name: agent}]}}}}",
		"a command as text": "pools: {default: {template: {spec: {containers: [{name: agent, command: run}]}}}}",
	} {
		if pools, err := ParsePools([]byte(file), agentImage); err == nil {
			t.Errorf("%s: accepted, with pools %v", name, pools.Names())
		}
	}
}

func TestAgentWithoutAnyImageIsAProblem(t *testing.T) {
	if _, err := ParsePools([]byte(smallest), ""); err == nil || !strings.Contains(err.Error(), "OTTO_AGENT_IMAGE") {
		t.Errorf("got %v, want a problem that names OTTO_AGENT_IMAGE", err)
	}
}
