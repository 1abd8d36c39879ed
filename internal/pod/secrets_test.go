package pod_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

func TestSecretsAreWrittenOnceAndReadBack(t *testing.T) {
	refs := []pod.SecretRef{{"b", "k"}, {"a", "y"}, {"a", "x.1"}, {"a", "y"}, {"c", "k"}, {"c", ""}}
	got := pod.FormatSecrets(refs)
	if want := "a/x.1,a/y,b/k,c"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if diff := cmp.Diff([]pod.SecretRef{{"a", "x.1"}, {"a", "y"}, {"b", "k"}, {"c", ""}}, pod.ParseSecrets(got)); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if got := pod.ParseSecrets(pod.FormatSecrets(nil)); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}
