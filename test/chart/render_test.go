// Package chart_test renders the chart with Helm's own engine and looks at the
// result with the types and the Pod Security checks of the API server.
package chart_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/ottoscaler/ottoscaler/internal/worker"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	chartDir  = "../../charts/ottoscaler"
	namespace = "team-otto"
	kube      = "v1.37.0"
)

// strict refuses a field that the API server does not know, or that is there twice.
var strict = serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()

func TestRendersEveryValuesFileLikeItsGolden(t *testing.T) {
	for _, file := range valuesFiles(t) {
		t.Run(name(file), func(t *testing.T) {
			got := render(t, "ottoscaler", load(t, file)).text()
			golden := filepath.Join("testdata", "golden", name(file)+".yaml")
			if *update {
				if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v\n(make golden writes it)", err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("render (-want +got), after a look at it `make golden` accepts it:\n%s", diff)
			}
		})
	}
}

func TestReleaseNamedOttoscalerGivesDeployOttoscaler(t *testing.T) {
	for _, row := range []struct{ release, override, want string }{
		{"ottoscaler", "", "ottoscaler"},
		{"jinwoo", "", "jinwoo-ottoscaler"},
		{"ottoscaler-jinwoo", "", "ottoscaler-jinwoo"},
		{"ottoscaler", "other", "other"},
		{strings.Repeat("r", 53), "", strings.Repeat("r", 47)},
	} {
		r := render(t, row.release, values{
			"fullnameOverride": row.override,
			"consumer":         values{"env": values{"REDIS_HOST": "redis"}},
			"scaler":           values{"env": values{"OTTO_AGENT_IMAGE": "agent:1"}},
			"logRelay":         values{"env": values{"LOG_SERVER_ADDR": "logs:1"}},
		})
		deployment := one[*appsv1.Deployment](t, r)
		if deployment.Name != row.want {
			t.Errorf("release %s, override %q: Deployment %s, want %s", row.release, row.override, deployment.Name, row.want)
		}
		if got := variable(t, container(t, deployment, "scaler"), "INSTANCE_ID").Value; got != row.want {
			t.Errorf("release %s, override %q: INSTANCE_ID %s, want %s", row.release, row.override, got, row.want)
		}
		for _, object := range r.objects {
			if got := object.GetName(); len(got) > 63 {
				t.Errorf("release %s: name %s is too long", row.release, got)
			}
		}
	}
}

// A values file is somebody's values, or a case of testdata.
type values = map[string]any

// meta is what every Kubernetes object has.
type meta interface {
	runtime.Object
	GetName() string
	GetNamespace() string
	GetLabels() map[string]string
}

// A rendering is what the chart makes of values: each template's text, and the
// objects in it.
type rendering struct {
	templates map[string]string
	objects   []meta
}

// text is everything that was rendered, NOTES included, for comparison.
func (r rendering) text() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(r.templates)) {
		if content := strings.TrimSpace(r.templates[path]); content != "" {
			fmt.Fprintf(&b, "# %s\n---\n%s\n", path, content)
		}
	}
	return b.String()
}

func (r rendering) notes() string { return r.templates["ottoscaler/templates/NOTES.txt"] }

func render(t *testing.T, release string, vals values) rendering {
	t.Helper()
	r, err := tryRender(t, release, vals)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryRender(t *testing.T, release string, vals values) (rendering, error) {
	t.Helper()
	ch := loadChart(t)
	capabilities := chartutil.DefaultCapabilities.Copy()
	version, err := chartutil.ParseKubeVersion(kube) // Helm's default believes in an old cluster
	if err != nil {
		t.Fatal(err)
	}
	capabilities.KubeVersion = *version
	if !chartutil.IsCompatibleRange(ch.Metadata.KubeVersion, version.String()) {
		t.Fatalf("the chart refuses Kubernetes %s", version)
	}
	input, err := chartutil.ToRenderValuesWithSchemaValidation(ch, vals, chartutil.ReleaseOptions{
		Name: release, Namespace: namespace, Revision: 1, IsInstall: true,
	}, capabilities, false)
	if err != nil {
		return rendering{}, err
	}
	templates, err := engine.Engine{Strict: true}.Render(ch, input)
	if err != nil {
		return rendering{}, err
	}
	r := rendering{templates: templates}
	for _, path := range slices.Sorted(maps.Keys(templates)) {
		if filepath.Ext(path) == ".yaml" {
			r.objects = append(r.objects, decode(t, path, templates[path])...)
		}
	}
	return r, nil
}

// decode reads objects as strictly as an API server that validates fields.
func decode(t *testing.T, path, text string) (objects []meta) {
	t.Helper()
	for i, document := range bytes.Split([]byte(text), []byte("\n---\n")) {
		if isEmpty(document) {
			continue
		}
		object, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%s, object %d: %v\n%s", path, i, err, document)
		}
		objects = append(objects, object.(meta))
	}
	return objects
}

func isEmpty(document []byte) bool {
	for line := range bytes.Lines(document) {
		if line := bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}

// one returns the only object of its type.
func one[T meta](t *testing.T, r rendering) T {
	t.Helper()
	found := all[T](r)
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T, want 1", len(found), *new(T))
	}
	return found[0]
}

func all[T meta](r rendering) (found []T) {
	for _, object := range r.objects {
		if o, ok := object.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

func container(t *testing.T, d *appsv1.Deployment, name string) corev1.Container {
	t.Helper()
	for _, c := range d.Spec.Template.Spec.Containers {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no container %s", name)
	return corev1.Container{}
}

func variable(t *testing.T, c corev1.Container, name string) corev1.EnvVar {
	t.Helper()
	for _, v := range c.Env {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("container %s has no variable %s", c.Name, name)
	return corev1.EnvVar{}
}

// podSpecs returns every pod that the chart leads to, by what makes it: the main
// pod, the log server, the hook, and a worker of each pool.
func podSpecs(t *testing.T, r rendering) map[string]corev1.PodTemplateSpec {
	t.Helper()
	specs := map[string]corev1.PodTemplateSpec{}
	for _, object := range r.objects {
		switch o := object.(type) {
		case *appsv1.Deployment:
			specs["Deployment "+o.Name] = o.Spec.Template
		case *appsv1.StatefulSet:
			specs["StatefulSet "+o.Name] = o.Spec.Template
		case *batchv1.Job:
			specs["Job "+o.Name] = o.Spec.Template
		case *corev1.Pod:
			specs["Pod "+o.Name] = corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec}
		}
	}
	for name, pool := range pools(t, r) {
		specs["pool "+name] = pool.Template
	}
	return specs
}

type pool struct {
	Overrides map[string]any         `json:"overrides"`
	Logs      map[string]any         `json:"logs"`
	Template  corev1.PodTemplateSpec `json:"template"`
}

// pools reads the pool file out of its ConfigMap.
func pools(t *testing.T, r rendering) map[string]pool {
	t.Helper()
	var file struct {
		Pools map[string]pool `json:"pools"`
	}
	content := []byte(one[*corev1.ConfigMap](t, r).Data["pools.yaml"])
	if _, err := worker.ParsePools(content, "agent:test"); err != nil {
		t.Fatalf("the scaler refuses the pool file: %v", err)
	}
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatalf("pool file: %v", err)
	}
	return file.Pools
}

// permissions returns what each Role allows, by its name.
func permissions(r rendering) map[string][]string {
	allowed := map[string][]string{}
	for _, role := range all[*rbacv1.Role](r) {
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				for _, group := range rule.APIGroups {
					for _, verb := range rule.Verbs {
						right := strings.Join(append([]string{resource, verb}, rule.ResourceNames...), " ")
						allowed[role.Name] = append(allowed[role.Name], strings.TrimPrefix(group+"/"+right, "/"))
					}
				}
			}
		}
	}
	return allowed
}

// valuesFiles are those that the chart ships and those of testdata.
func valuesFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, pattern := range []string{filepath.Join(chartDir, "values-jinwoo.yaml"), "testdata/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 {
			t.Fatalf("no file matches %s", pattern)
		}
		files = append(files, found...)
	}
	return files
}

func name(file string) string { return strings.TrimSuffix(filepath.Base(file), ".yaml") }

func load(t *testing.T, file string) values {
	t.Helper()
	vals, err := chartutil.ReadValuesFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return vals
}

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	ch, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}
