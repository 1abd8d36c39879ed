package worker

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// The answer to a create may come after the watch has shown the worker, and even
// after its gate was taken off. It must not give the place back.
func TestALateAnswerToACreateGivesNoPlaceBack(t *testing.T) {
	one := 1
	pools := &Pools{byName: map[string]*Pool{"default": {Name: "default", Rules: Rules{MaxWorkers: &one}}}}
	c := newCapacity(func() *Pools { return pools })
	worker := func(name string, gated bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name),
			Labels: map[string]string{pod.LabelPool: "default"}, Annotations: map[string]string{pod.AnnotationTaskID: "t"},
		}}
		if gated {
			gate(p, "it waits")
		}
		return p
	}
	s := scope{pool: "default", task: "t"}
	if wait, err := c.reserve("first", s); wait != "" || err != nil {
		t.Fatalf("the first waits: %q, %v", wait, err)
	}
	first := worker("first", false)
	c.created(first)
	c.observe(first)
	if wait, err := c.reserve("second", s); wait == "" || err != nil {
		t.Fatalf("the second does not wait: %v", err)
	}
	second := worker("second", true)
	c.observe(second) // before the answer
	c.gone(refOf(first))
	if chosen := c.admit([]*corev1.Pod{second}); len(chosen) != 1 {
		t.Fatalf("%d were chosen, want the second", len(chosen))
	}
	c.created(second) // the answer, with the gate that it was created with
	if n := c.taken[scope{pool: "default"}]; n != 1 {
		t.Errorf("%d places are taken, want 1", n)
	}
	if wait, err := c.reserve("third", s); wait == "" || err != nil {
		t.Errorf("the third does not wait: %v", err)
	}
}

// The API server may still be at work on a create whose answer was lost. That it refuses
// another one, because a quota is used up, says nothing of the first.
func TestARefusalDoesNotTellWhatBecameOfAnEarlierCreate(t *testing.T) {
	pools := &Pools{byName: map[string]*Pool{"default": {Name: "default"}}}
	c := newCapacity(func() *Pools { return pools })
	s := scope{pool: "default", task: "t"}
	reserve := func() {
		t.Helper()
		if wait, err := c.reserve("w", s); wait != "" || err != nil {
			t.Fatalf("it waits: %q, %v", wait, err)
		}
	}
	reserve()
	c.failed("w", true)
	if c.uncertain(s) {
		t.Error("a refused create leaves a doubt")
	}
	reserve()
	c.failed("w", false)
	for range 2 {
		reserve()
		c.failed("w", true)
		if !c.uncertain(s) || c.taken[s] != 1 {
			t.Error("the doubt is gone")
		}
	}
	c.resolve("w", nil)
	if c.uncertain(s) || c.taken[s] != 0 {
		t.Error("the API server has none, and the doubt stays")
	}
	reserve()
	c.failed("w", false)
	reserve()
	c.conflicts("w")
	if c.uncertain(s) {
		t.Error("another pod has the name, and the doubt stays")
	}
}
