package release

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestLastWordsAreThoseOfTheAttemptThatEnded(t *testing.T) {
	said := &corev1.ContainerStateTerminated{ExitCode: exitMisconfigured, Message: "starting\nthe group belongs to minji\n"}
	before := &corev1.ContainerStateTerminated{ExitCode: 1, Message: "no Redis yet\n"}
	for what, row := range map[string]struct {
		state, last corev1.ContainerState
		want        string
	}{
		"it has ended":            {state: corev1.ContainerState{Terminated: said}, want: "the group belongs to minji"},
		"and is started again":    {state: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, last: corev1.ContainerState{Terminated: said}, want: "the group belongs to minji"},
		"and waits for that":      {state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}, last: corev1.ContainerState{Terminated: said}, want: "the group belongs to minji"},
		"not for the first time":  {state: corev1.ContainerState{Terminated: said}, last: corev1.ContainerState{Terminated: before}, want: "the group belongs to minji"},
		"it ended without a word": {state: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137}}, want: "make logs C=b"},
		"it has never ended":      {state: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, want: "make logs C=b"},
	} {
		if got := lastWords(corev1.ContainerStatus{Name: "b", State: row.state, LastTerminationState: row.last}); !strings.Contains(got, row.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: got %q, want %q", what, got, row.want)
		}
	}
}
