package kubeconfig_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/internal/kubeconfig"
)

func TestListOfFilesIsTakenAsOne(t *testing.T) {
	dir := t.TempDir()
	cluster, context := filepath.Join(dir, "cluster"), filepath.Join(dir, "context")
	write(t, cluster, `{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "http://here:1"}}]}`)
	write(t, context, `{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: c}}]}`)
	config, err := kubeconfig.Load(cluster + string(os.PathListSeparator) + context)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "http://here:1" {
		t.Errorf("host %q, want the one of the first file, which the second one chooses", config.Host)
	}
}

func TestErrorsSayWhatWasLookedFor(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // not in a cluster
	broken := filepath.Join(t.TempDir(), "broken")
	write(t, broken, "{")
	for path, want := range map[string]string{
		"":         "set KUBECONFIG",
		"/nowhere": "finding the cluster in kubeconfig /nowhere",
		broken:     broken,
	} {
		if _, err := kubeconfig.Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want %q", path, err, want)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
