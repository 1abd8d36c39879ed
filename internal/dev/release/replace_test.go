package release

import (
	"encoding/json"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// mainPod is one that runs the programs a, b and c in containers of their names.
func mainPod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "main", UID: "u", Annotations: map[string]string{"other": "kept"}}}
	for _, name := range []string{"a", "b", "c"} {
		p.Annotations[ProgramAnnotation(name)] = name + "1"
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name, Image: "example.test/main:dev", Command: []string{"/" + name}})
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: name, ContainerID: name + "-id", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		})
	}
	return p
}

// patched returns the pod as the API server would make it of the patch.
func patched(t *testing.T, p *corev1.Pod, patch any) *corev1.Pod {
	t.Helper()
	before, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	change, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	after, err := strategicpatch.StrategicMergePatch(before, change, corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	out := new(corev1.Pod)
	if err := json.Unmarshal(after, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOnlyWhatHasChangedIsReplaced(t *testing.T) {
	p := mainPod()
	patch, replaced := replacement(p, "example.test/main:dev-2", map[string]string{"a": "a1", "b": "b2", "c": "c1", "unknown": "x"})
	if want := []string{"b"}; !slices.Equal(replaced, want) {
		t.Fatalf("replaced %v, want %v", replaced, want)
	}
	after := patched(t, p, patch)
	for i, want := range []string{"example.test/main:dev", "example.test/main:dev-2", "example.test/main:dev"} {
		if c := after.Spec.Containers[i]; c.Image != want || len(c.Command) != 1 {
			t.Errorf("container %s: image %s, command %v, want image %s and its command", c.Name, c.Image, c.Command, want)
		}
	}
	if got := after.Annotations; got["other"] != "kept" || got[ProgramAnnotation("b")] != "b2" || got[ProgramAnnotation("c")] != "c1" {
		t.Errorf("annotations are %v", got)
	}
	if _, again := replacement(after, "example.test/main:dev-2", map[string]string{"a": "a1", "b": "b2", "c": "c1"}); len(again) > 0 {
		t.Errorf("asked once more, it would replace %v", again)
	}
}

func TestAPodThatSaysNothingOfItsProgramsIsReplacedWhole(t *testing.T) {
	p := mainPod()
	p.Annotations = nil
	if _, replaced := replacement(p, "i", map[string]string{"a": "a1", "b": "b1", "c": "c1"}); len(replaced) != 3 {
		t.Errorf("replaced %v, want all three", replaced)
	}
}

func TestReplacingEndsWhenTheNewContainersAreReadyAndNotBefore(t *testing.T) {
	before := mainPod()
	for _, row := range []struct {
		what    string
		change  func(b *corev1.ContainerStatus)
		answers bool
		want    bool
	}{
		{"the old container, still ready", func(*corev1.ContainerStatus) {}, true, false},
		{"the old one has ended", func(b *corev1.ContainerStatus) { b.Ready, b.State = false, corev1.ContainerState{} }, true, false},
		{"the new one is not ready", func(b *corev1.ContainerStatus) { b.ContainerID, b.Ready = "new", false }, false, false},
		{"the new one says that it is ready", func(b *corev1.ContainerStatus) { b.ContainerID, b.Ready = "new", false }, true, true},
		{"the kubelet says so", func(b *corev1.ContainerStatus) { b.ContainerID = "new" }, false, true},
	} {
		now := mainPod()
		row.change(&now.Status.ContainerStatuses[1])
		answers := func(c corev1.Container) bool {
			if c.Name != "b" {
				t.Errorf("%s: %s was asked", row.what, c.Name)
			}
			return row.answers
		}
		if got := isReplaced(before, now, []string{"b"}, answers); got != row.want {
			t.Errorf("%s: got %t, want %t", row.what, got, row.want)
		}
	}
	now := mainPod()
	now.Status.ContainerStatuses[2].Ready = false // it needs b, for example
	for _, ready := range []bool{false, true} {
		if got := isReplaced(before, now, nil, func(c corev1.Container) bool { return c.Name == "c" && ready }); got != ready {
			t.Errorf("another container that says that it is ready is %t: got %t", ready, got)
		}
	}
}
