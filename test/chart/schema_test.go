package chart_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"sigs.k8s.io/yaml"
)

func TestLintFindsNothing(t *testing.T) {
	version, err := chartutil.ParseKubeVersion(kube)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range valuesFiles(t) {
		result := lint.AllWithKubeVersion(chartDir, load(t, file), namespace, version)
		for _, message := range result.Messages {
			if message.Severity > support.InfoSev { // the info is that there is no icon
				t.Errorf("%s: %s", name(file), message)
			}
		}
	}
}

func TestTypoInValuesIsRefused(t *testing.T) {
	for _, row := range []struct {
		name string
		set  string // dotted path
		to   any
		says string
	}{
		{"top level", "poolz", values{}, "poolz"},
		{"a variable", "consumer.env.REDIS_HOTS", "redis", "REDIS_HOTS"},
		{"another program's variable", "scaler.env.REDIS_HOST", "redis", "REDIS_HOST"},
		{"a secret", "consumer.env.REDIS_PASSWORD", "hunter2", "REDIS_PASSWORD"},
		{"what the template sets", "scaler.env.NAMESPACE", "default", "NAMESPACE"},
		{"an override", "pools.default.overrides.maxCpu", "2", "maxCpu"},
		{"what to do with logs", "pools.default.logs.maskSecret", true, "maskSecret"},
		{"a part of the image", "image.tags", "v1", "tags"},
		{"a duration without a unit", "consumer.env.RECLAIM_AFTER", "60", "RECLAIM_AFTER"},
		{"a number in words", "logRelay.env.BATCH_LINES", "many", "BATCH_LINES"},
		{"a port that does not exist", "consumer.env.REDIS_PORT", 65536, "REDIS_PORT"},
		{"an address without a port", "logRelay.env.LOG_SERVER_ADDR", "logs", "LOG_SERVER_ADDR"},
		{"a TLS mode that YAML made a boolean", "logRelay.env.LOG_SERVER_TLS", true, "LOG_SERVER_TLS"},
		{"a compression", "logRelay.env.LOG_SERVER_COMPRESSION", "zstd", "LOG_SERVER_COMPRESSION"},
		{"no connections", "logRelay.env.LOG_SERVER_CONNECTIONS", 0, "LOG_SERVER_CONNECTIONS"},
		{"a file that the chart mounts", "logRelay.env.LOG_SERVER_CA_FILE", "/ca.crt", "LOG_SERVER_CA_FILE"},
		{"a token in the values", "logRelay.tokenSecret.value", "hunter2", "value"},
		{"a certificate without its key", "logRelay.tls.certSecret", values{"name": "cert", "keyKey": ""}, "keyKey"},
		{"a key alone", "logRelay.tls.keySecret", values{"name": "key"}, "keySecret"},
		{"a Secret's name", "logRelay.tls.caSecret.name", "My CA", "name"},
		{"certificates without TLS", "logRelay", values{
			"env": values{"LOG_SERVER_ADDR": "logs:1", "LOG_SERVER_TLS": "off"}, "tls": values{"caSecret": values{"name": "ca"}},
		}, "have no meaning without TLS"},
		{"a token without TLS", "logRelay", values{
			"env": values{"LOG_SERVER_ADDR": "logs:1", "LOG_SERVER_TLS": "off"}, "tokenSecret": values{"name": "token"},
		}, "could read the token"},
		{"a way to the nodes that is not taken", "logRelay.env.KUBELET_INSECURE", true, "have no meaning"},
		{"an authority that is not asked", "logRelay", values{
			"env":         values{"LOG_SERVER_ADDR": "logs:1", "KUBELET_INSECURE": true},
			"rotatedLogs": values{"enabled": true, "caSecret": values{"name": "ca"}},
		}, "takes any certificate"},
		{"a digest that is none", "image.digest", "sha256:abc", "digest"},
		{"a pull policy", "image.pullPolicy", "Sometimes", "pullPolicy"},
		{"a user that is no label", "user", "Jin Woo", "user"},
		{"a pool's name", "pools.Large", values{"template": values{"spec": values{"containers": []any{values{"name": "a"}}}}}, "Large"},
		{"a label that is a number", "podLabels.version", 2, "version"},
	} {
		vals := minimal()
		set(vals, row.set, row.to)
		_, err := tryRender(t, "ottoscaler", roundTrip(t, vals))
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: got error %v, want one about %s", row.name, err, row.says)
		}
	}
}

// reserved are the variables that no value sets: the template does, or the three
// containers must agree on them, or they have no meaning in a pod.
var reserved = map[string]bool{
	"HEALTH_ADDR":    true, // the probes must know it
	"NAMESPACE":      true, // where the release is
	"INSTANCE_ID":    true, // what the release is called
	"INSTANCE_USER":  true, // the value user
	"POOLS_FILE":     true, // where the ConfigMap is mounted
	"SPOOL_DIR":      true, // where the emptyDir is
	"QUEUE_ADDR":     true, // one container listens, the others dial
	"REDIS_PASSWORD": true, // redis.existingSecret; values are no place for it
	"POD_NAME":       true, // the pod's own
	"POD_UID":        true, // likewise
	"KUBECONFIG":     true, // in a pod, the service account
	"RELEASE_AFTER":  true, // the main pod's labels
	// Where logRelay.tls and logRelay.tokenSecret are mounted.
	"LOG_SERVER_CA_FILE": true, "LOG_SERVER_CERT_FILE": true, "LOG_SERVER_KEY_FILE": true, "LOG_SERVER_TOKEN_FILE": true,
	// What logRelay.rotatedLogs makes and mounts.
	"ROTATED_LOGS_ACCOUNT": true, "KUBELET_CA_FILE": true,
	// Secrets come from existingSecret, as a variable.
	"REDIS_PASSWORD_FILE":          true,
	"REDIS_SENTINEL_PASSWORD":      true,
	"REDIS_SENTINEL_PASSWORD_FILE": true,
}

func TestSchemaKnowsExactlyTheVariablesOfThePrograms(t *testing.T) {
	schema := readSchema(t)
	bin := t.TempDir()
	programs := map[string]string{"consumer": "consumer", "scaler": "scaler", "logRelay": "log-relay"}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "./cmd/consumer", "./cmd/scaler", "./cmd/log-relay")
	build.Dir = "../.."
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	variable := regexp.MustCompile(`(?m)^\s*([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\s`)
	for key, program := range programs {
		output, err := exec.CommandContext(t.Context(), filepath.Join(bin, program), "--help").CombinedOutput()
		if err != nil {
			t.Fatalf("%s --help: %v\n%s", program, err, output)
		}
		want := map[string]bool{}
		for _, match := range variable.FindAllStringSubmatch(string(output), -1) {
			if name := match[1]; !reserved[name] {
				want[name] = true
			}
		}
		env := schema.Properties[key].Properties["env"]
		got := map[string]bool{}
		for name := range env.Properties {
			got[name] = true
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
			t.Errorf("%s.env: variables of `%s --help` (-) and of values.schema.json (+):\n%s\n%s", key, program, diff, output)
		}
	}
}

func TestEveryValueIsInTheSchemaAndEveryPropertyInValues(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var vals values
	if err := yaml.UnmarshalStrict(content, &vals); err != nil {
		t.Fatal(err)
	}
	schema := readSchema(t)
	delete(schema.Properties, "global") // Helm's, not ours
	compare(t, "", schema, vals)
}

// compare looks at the levels that are ours: where the schema lists properties.
func compare(t *testing.T, path string, schema schemaNode, vals values) {
	t.Helper()
	for key, value := range vals {
		node, ok := schema.Properties[key]
		if !ok {
			t.Errorf("values.yaml has %s%s, the schema does not", path, key)
			continue
		}
		if inner, ok := value.(values); ok && node.Ref == "" && len(node.Properties) > 0 && key != "env" {
			compare(t, path+key+".", node, inner)
		}
	}
	for key := range schema.Properties {
		if _, ok := vals[key]; !ok {
			t.Errorf("the schema has %s%s, values.yaml does not", path, key)
		}
	}
	if schema.AdditionalProperties == nil || *schema.AdditionalProperties {
		t.Errorf("the schema lets unknown keys pass at %q", path)
	}
}

type schemaNode struct {
	Ref                  string                `json:"$ref"`
	Properties           map[string]schemaNode `json:"properties"`
	AdditionalProperties *bool                 `json:"additionalProperties"`
}

func readSchema(t *testing.T) schemaNode {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		schemaNode
		Defs json.RawMessage `json:"$defs"`
	}
	if err := json.Unmarshal(content, &schema); err != nil {
		t.Fatal(err)
	}
	return schema.schemaNode
}

// minimal are the least values that the chart accepts.
func minimal() values {
	return values{
		"consumer": values{"env": values{"REDIS_HOST": "redis"}},
		"scaler":   values{"env": values{"OTTO_AGENT_IMAGE": "agent:1"}},
		"logRelay": values{"env": values{"LOG_SERVER_ADDR": "logs:50051"}},
	}
}

// set sets a value by its dotted path, making what is missing on the way.
func set(vals values, path string, to any) {
	keys := strings.Split(path, ".")
	for _, key := range keys[:len(keys)-1] {
		inner, ok := vals[key].(values)
		if !ok {
			inner = values{}
			vals[key] = inner
		}
		vals = inner
	}
	vals[keys[len(keys)-1]] = to
}

// roundTrip gives values the types that Helm reads from a file.
func roundTrip(t *testing.T, vals values) values {
	t.Helper()
	content, err := yaml.Marshal(vals)
	if err != nil {
		t.Fatal(err)
	}
	read, err := chartutil.ReadValues(content)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }
