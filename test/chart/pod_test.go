package chart_test

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ottoscaler/ottoscaler/internal/worker"
)

func TestProbesAskThePortThatTheProgramListensOn(t *testing.T) {
	d := one[*appsv1.Deployment](t, render(t, "ottoscaler", minimal()))
	for _, c := range d.Spec.Template.Spec.Containers {
		if len(c.Ports) != 1 {
			t.Fatalf("%s has %d ports, want 1", c.Name, len(c.Ports))
		}
		port := c.Ports[0]
		if len(port.Name) > 15 {
			t.Errorf("%s: port name %s is too long for Kubernetes", c.Name, port.Name)
		}
		if got, want := variable(t, c, "HEALTH_ADDR").Value, ":"+itoa(port.ContainerPort); got != want {
			t.Errorf("%s listens on %s, its port is %s", c.Name, got, want)
		}
		for path, probe := range map[string]string{
			c.StartupProbe.HTTPGet.Path + " startup":     c.StartupProbe.HTTPGet.Port.String(),
			c.LivenessProbe.HTTPGet.Path + " liveness":   c.LivenessProbe.HTTPGet.Port.String(),
			c.ReadinessProbe.HTTPGet.Path + " readiness": c.ReadinessProbe.HTTPGet.Port.String(),
		} {
			if probe != port.Name {
				t.Errorf("%s: %s asks port %s, want %s", c.Name, path, probe, port.Name)
			}
		}
		if c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" {
			t.Errorf("%s: liveness %s, readiness %s", c.Name, c.LivenessProbe.HTTPGet.Path, c.ReadinessProbe.HTTPGet.Path)
		}
	}
}

// The log of a container is that of its next attempt, as soon as there is one.
func TestTheLastWordsOfAProgramAreInItsStatus(t *testing.T) {
	for what, pod := range podSpecs(t, render(t, "ottoscaler", withLogServer())) {
		if strings.HasPrefix(what, "pool ") {
			continue // the user's own programs
		}
		for _, c := range pod.Spec.Containers {
			if got := c.TerminationMessagePolicy; got != corev1.TerminationMessageFallbackToLogsOnError {
				t.Errorf("%s, container %s: terminationMessagePolicy is %q", what, c.Name, got)
			}
		}
	}
}

func TestValuesReachTheProgramsAsTheyWereWritten(t *testing.T) {
	vals := minimal()
	env := vals["consumer"].(values)["env"].(values)
	env["MAX_EVENT_BYTES"] = 1000000    // a number, which YAML gives as a float
	env["RESULTS_MAX_LEN"] = "250000"   // a string, as --set-string gives it
	env["REDIS_STREAM"] = "otto: {odd}" // would be YAML if it were not quoted
	env["REDIS_USERNAME"] = ""          // empty: the program's default
	env["REDIS_CONSUMER"] = any(nil)    // null: the same
	env["REDIS_DB"] = 0                 // zero is a value
	vals = roundTrip(t, vals)
	c := container(t, one[*appsv1.Deployment](t, render(t, "ottoscaler", vals)), "consumer")
	got := map[string]string{}
	for _, v := range c.Env {
		got[v.Name] = v.Value
	}
	want := map[string]string{
		"HEALTH_ADDR": ":8081", "REDIS_HOST": "redis", "MAX_EVENT_BYTES": "1000000", "RESULTS_MAX_LEN": "250000",
		"REDIS_STREAM": "otto: {odd}", "REDIS_DB": "0", "NAMESPACE": namespace, "INSTANCE_ID": "ottoscaler",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment of the consumer (-want +got):\n%s", diff)
	}
}

func TestGracePeriodHasRoomForEveryDrainAndTheWritesAfterIt(t *testing.T) {
	for _, row := range []struct {
		drain string
		grace int
		ok    bool
	}{
		{"", 45, true},
		{"", 40, true},
		{"", 39, false},
		{"10s", 30, true},
		{"11s", 30, false},
		{"1m30s", 110, true},
		{"1m30s", 109, false},
		{"1500ms", 22, true},
		{"1500ms", 21, false},
		{"0.5h", 1820, true},
		{"0.5h", 1819, false},
	} {
		for _, program := range []string{"consumer", "scaler", "logRelay"} {
			vals := minimal()
			// The others' drain must not be what decides.
			for _, p := range []string{"consumer", "scaler", "logRelay"} {
				vals[p].(values)["env"].(values)["DRAIN_TIMEOUT"] = "1s"
			}
			vals[program].(values)["env"].(values)["DRAIN_TIMEOUT"] = row.drain
			vals["terminationGracePeriodSeconds"] = row.grace
			_, err := tryRender(t, "ottoscaler", roundTrip(t, vals))
			if ok := err == nil; ok != row.ok {
				t.Errorf("%s drains for %q, grace period %d s: got error %v, want one: %t", program, row.drain, row.grace, err, !row.ok)
			}
			if err != nil && !strings.Contains(err.Error(), program+".env.DRAIN_TIMEOUT") {
				t.Errorf("error does not name the value: %v", err)
			}
		}
	}
}

func TestMissingAddressIsNamed(t *testing.T) {
	for _, row := range []struct{ program, variable string }{
		{"consumer", "REDIS_HOST"},
		{"scaler", "OTTO_AGENT_IMAGE"},
		{"logRelay", "LOG_SERVER_ADDR"},
	} {
		vals := minimal()
		delete(vals[row.program].(values)["env"].(values), row.variable)
		_, err := tryRender(t, "ottoscaler", vals)
		if want := row.program + ".env." + row.variable + " is not set"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: got error %v, want %q", row.variable, err, want)
		}
	}
}

func TestAgentImageIsNotNeededWhenThePoolsNameTheirs(t *testing.T) {
	vals := minimal()
	delete(vals["scaler"].(values)["env"].(values), "OTTO_AGENT_IMAGE")
	vals["pools"] = values{"default": values{"template": values{"spec": values{
		"containers": []any{values{"name": "sidecar"}, values{"name": "agent", "image": "agent:1"}},
	}}}}
	render(t, "ottoscaler", roundTrip(t, vals))
}

func TestPoolsAreRenderedAsTheyWereWritten(t *testing.T) {
	r := render(t, "ottoscaler", load(t, "testdata/everything.yaml"))
	// The scaler's own reader: what the chart lets pass, the scaler must take.
	for _, file := range valuesFiles(t) {
		text := one[*corev1.ConfigMap](t, render(t, "ottoscaler", load(t, file))).Data["pools.yaml"]
		if _, err := worker.ParsePools([]byte(text), "agent:1"); err != nil {
			t.Errorf("%s: the scaler refuses its pools: %v", name(file), err)
		}
	}

	got := pools(t, r)
	large, ok := got["large"]
	if !ok || len(got) != 1 {
		t.Fatalf("pools %v, want large alone: null removes the default one", got)
	}
	if diff := cmp.Diff(map[string]any{
		"image": []any{"registry.example/agents/*"}, "command": true, "env": []any{"CI_*"}, "cpu": true, "memory": true,
	}, large.Overrides); diff != "" {
		t.Errorf("overrides (-want +got):\n%s", diff)
	}
	if got := large.Template.Spec.ServiceAccountName; got != "own-account" {
		t.Errorf("service account %q, want the pool's own", got)
	}
	if got := large.Template.Labels["team"]; got != "tools" {
		t.Errorf("label team %q, want tools", got)
	}
}

func TestChangedPoolsRestartTheMainPod(t *testing.T) {
	checksum := func(vals values) string {
		return one[*appsv1.Deployment](t, render(t, "ottoscaler", vals)).Spec.Template.Annotations["checksum/pools"]
	}
	changed := minimal()
	changed["pools"] = values{"default": values{"overrides": values{"command": true}}}
	before, after := checksum(minimal()), checksum(changed)
	if before == "" || before == after {
		t.Errorf("checksum %q, with other pools %q", before, after)
	}
}

func TestDigestWinsOverTag(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for _, row := range []struct{ name, tag, digest, want string }{
		{"neither", "", "", "registry.example/otto:0.1.0"},
		{"tag", "v2", "", "registry.example/otto:v2"},
		{"both", "v2", digest, "registry.example/otto@" + digest},
	} {
		vals := minimal()
		vals["image"] = values{"repository": "registry.example/otto", "tag": row.tag, "digest": row.digest}
		r := render(t, "ottoscaler", vals)
		for what, pod := range podSpecs(t, r) {
			if strings.HasPrefix(what, "pool ") {
				continue
			}
			for _, c := range pod.Spec.Containers {
				if c.Image != row.want {
					t.Errorf("%s: %s, container %s runs %s, want %s", row.name, what, c.Name, c.Image, row.want)
				}
			}
		}
	}
}

func TestUninstallReleasesTheWorkersFirst(t *testing.T) {
	r := render(t, "ottoscaler", minimal())
	job := hook(t, r, "pre-delete")
	if job.Spec.Template.Spec.ServiceAccountName != one[*appsv1.Deployment](t, r).Spec.Template.Spec.ServiceAccountName {
		t.Error("the hook runs as another account than the main pod, which still has its role")
	}
	if got := job.Annotations["helm.sh/hook"]; got != "pre-delete" {
		t.Errorf("hook %q, want pre-delete", got)
	}
	if got := job.Annotations["helm.sh/hook-delete-policy"]; !strings.Contains(got, "hook-succeeded") || !strings.Contains(got, "before-hook-creation") {
		t.Errorf("hook-delete-policy %q leaves the Job behind, or trips over an old one", got)
	}
	c := job.Spec.Template.Spec.Containers[0]
	if diff := cmp.Diff([]string{"/scaler", "release-workers"}, c.Command); diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
	for given, want := range map[string]time.Duration{"": 3 * time.Minute, "90s": 4 * time.Minute, "500ms": 62 * time.Second} {
		vals := minimal()
		vals["scaler"].(values)["env"].(values)["RELEASE_TIMEOUT"] = given
		job := hook(t, render(t, "ottoscaler", vals), "pre-delete")
		if got := time.Duration(*job.Spec.ActiveDeadlineSeconds) * time.Second; got != want {
			t.Errorf("RELEASE_TIMEOUT %q: the Job may take %s, want %s: two tries and a minute", given, got, want)
		}
	}
	vals := minimal()
	vals["releaseWorkers"] = values{"enabled": false}
	r = render(t, "ottoscaler", vals)
	if jobs, roles := all[*batchv1.Job](r), all[*rbacv1.Role](r); len(jobs) > 0 || len(roles) != 1 {
		t.Errorf("releaseWorkers.enabled=false still makes %d hooks and %d roles", len(jobs), len(roles))
	}
}

// hook returns the only Job of a hook.
func hook(t *testing.T, r rendering, event string) *batchv1.Job {
	t.Helper()
	jobs := slices.DeleteFunc(all[*batchv1.Job](r), func(j *batchv1.Job) bool { return j.Annotations["helm.sh/hook"] != event })
	if len(jobs) != 1 {
		t.Fatalf("%d Jobs at %s, want 1", len(jobs), event)
	}
	return jobs[0]
}

func TestUninstallReleasesTheRestOnceTheMainPodIsGone(t *testing.T) {
	for _, file := range valuesFiles(t) {
		r := render(t, "ottoscaler", load(t, file))
		job := hook(t, r, "post-delete")
		c := job.Spec.Template.Spec.Containers[0]
		if diff := cmp.Diff([]string{"/scaler", "release-workers"}, c.Command); diff != "" {
			t.Errorf("%s: command (-want +got):\n%s", name(file), diff)
		}
		after, err := labels.Parse(variable(t, c, "RELEASE_AFTER").Value)
		if err != nil || after.Empty() {
			t.Fatalf("%s: it waits for pods of %q, %v", name(file), after, err)
		}
		main := one[*appsv1.Deployment](t, r)
		if got, want := after.String(), labels.SelectorFromSet(main.Spec.Selector.MatchLabels).String(); got != want {
			t.Errorf("%s: it waits for pods of %s, the Deployment's are %s", name(file), got, want)
		}
		if after.Matches(labels.Set(job.Spec.Template.Labels)) {
			t.Errorf("%s: it waits for itself", name(file))
		}

		// The release's own account and role are gone by then: the hook brings all it needs.
		account := job.Spec.Template.Spec.ServiceAccountName
		if account == main.Spec.Template.Spec.ServiceAccountName {
			t.Errorf("%s: it runs as %s, which is deleted by then", name(file), account)
		}
		made := map[string]bool{}
		for _, object := range r.objects {
			if object.GetName() != account {
				continue
			}
			kind := object.GetObjectKind().GroupVersionKind().Kind
			made[kind] = true
			annotations := object.(interface{ GetAnnotations() map[string]string }).GetAnnotations()
			weight, err := strconv.Atoi(annotations["helm.sh/hook-weight"])
			if annotations["helm.sh/hook"] != "post-delete" || annotations["helm.sh/hook-delete-policy"] != "before-hook-creation,hook-succeeded" ||
				err != nil || kind != "Job" && weight >= 0 {
				t.Errorf("%s: %s is not there before the Job, or stays behind: %v", name(file), kind, annotations)
			}
		}
		if want := map[string]bool{"Job": true, "ServiceAccount": true, "Role": true, "RoleBinding": true}; !maps.Equal(made, want) {
			t.Errorf("%s: the hook brings %v, want %v", name(file), made, want)
		}
	}
}

func TestNotesWarnOfWhatIsUnsafe(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(values)
		says   string
	}{
		{"no password", func(values) {}, "without a password"},
		{"no TLS", func(values) {}, "to the log server unencrypted"},
		{"a token in plaintext", func(v values) {
			relay := v["logRelay"].(values)
			relay["tokenSecret"] = values{"name": "token"}
			relay["env"].(values)["LOG_SERVER_TOKEN_PLAINTEXT"] = true
		}, "to the log server unencrypted"},
		{"moving tag", func(v values) { v["image"] = values{"tag": "latest"} }, `image.tag is "latest"`},
		{"workers stay", func(v values) { v["releaseWorkers"] = values{"enabled": false} }, "leave workers behind"},
	} {
		vals := minimal()
		row.change(vals)
		if notes := render(t, "ottoscaler", vals).notes(); !strings.Contains(notes, row.says) {
			t.Errorf("%s: the notes do not say %q:\n%s", row.name, row.says, notes)
		}
	}
	if notes := render(t, "ottoscaler", load(t, "testdata/everything.yaml")).notes(); strings.Contains(notes, "WARNING") {
		t.Errorf("a warning without a cause:\n%s", notes)
	}
}
