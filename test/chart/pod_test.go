package chart_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

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
		"REDIS_STREAM": "otto: {odd}", "REDIS_DB": "0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment of the consumer (-want +got):\n%s", diff)
	}
}

func TestGracePeriodMustBeLongerThanEveryDrain(t *testing.T) {
	for _, row := range []struct {
		drain string
		grace int
		ok    bool
	}{
		{"", 30, true},
		{"", 20, false},
		{"", 21, true},
		{"29s", 30, true},
		{"30s", 30, false},
		{"1m30s", 91, true},
		{"1m30s", 90, false},
		{"1500ms", 2, true},
		{"0.5h", 1801, true},
		{"0.5h", 1800, false},
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
		"image": []any{"registry.example/agents/*"}, "command": true, "env": []any{"CI_*"}, "maxCPU": "2", "maxMemory": "4Gi",
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
	job := one[*batchv1.Job](t, render(t, "ottoscaler", minimal()))
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
		job := one[*batchv1.Job](t, render(t, "ottoscaler", vals))
		if got := time.Duration(*job.Spec.ActiveDeadlineSeconds) * time.Second; got != want {
			t.Errorf("RELEASE_TIMEOUT %q: the Job may take %s, want %s: two tries and a minute", given, got, want)
		}
	}
	vals := minimal()
	vals["releaseWorkers"] = values{"enabled": false}
	if jobs := all[*batchv1.Job](render(t, "ottoscaler", vals)); len(jobs) > 0 {
		t.Error("releaseWorkers.enabled=false still makes a hook")
	}
}

func TestNotesWarnOfWhatIsUnsafe(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(values)
		says   string
	}{
		{"no password", func(values) {}, "without a password"},
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
