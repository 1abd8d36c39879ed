package pod_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

func TestNamesAreValidHostNames(t *testing.T) {
	for _, pool := range []string{"default", "7", strings.Repeat("a", 63), strings.Repeat("a", 39) + "-bcd", "gpu-large"} {
		name := pod.Name("ottoscaler", pool, "1700000000000-0", 999_999_999)
		if len(name) > 63 || !dnsLabel.MatchString(name) {
			t.Errorf("pool %s: %q (%d bytes) is no DNS label", pool, name, len(name))
		}
	}
}

func TestNamesDifferInWhatTheyAreMadeOf(t *testing.T) {
	names := map[string]string{
		"the same again":   pod.Name("a", "pool", "1-0", 0),
		"another instance": pod.Name("b", "pool", "1-0", 0),
		"another pool":     pod.Name("a", "loop", "1-0", 0),
		"another event":    pod.Name("a", "pool", "1-1", 0),
		"another index":    pod.Name("a", "pool", "1-0", 1),
	}
	seen := map[string]string{}
	for what, name := range names {
		if other, taken := seen[name]; taken {
			t.Errorf("%s and %s: both are called %s", what, other, name)
		}
		seen[name] = what
	}
	if again := pod.Name("a", "pool", "1-0", 0); again != names["the same again"] {
		t.Errorf("the same arguments gave %s and %s", names["the same again"], again)
	}
}

func TestLabelValuesAreKeptOrHashed(t *testing.T) {
	for _, value := range []string{"", "build-7", "a.b_c", strings.Repeat("x", 63)} {
		if got := pod.LabelValue(value); got != value {
			t.Errorf("valid %q became %q", value, got)
		}
	}
	seen := map[string]bool{}
	for _, value := range []string{"repo/branch", "-a", "é", strings.Repeat("x", 64), strings.Repeat("x", 65)} {
		got := pod.LabelValue(value)
		if !strings.HasPrefix(got, "hash-") || seen[got] {
			t.Errorf("invalid %q became %q", value, got)
		}
		seen[got] = true
	}
}
