package logs

import "testing"

// Whoever waits for a worker that another has forgotten looks again: the change
// that it waits for would never be told.
func TestForgettingAWorkerWakesWhoLooksAtIt(t *testing.T) {
	r := newRelayRig(t)
	pods, err := NewPods(r.cluster)
	if err != nil {
		t.Fatalf("making the view: %v", err)
	}
	p := workerPod()
	_, changed := pods.look(p.Namespace, p.Name, p.UID)
	pods.forget(p.UID)
	select {
	case <-changed:
	default:
		t.Fatal("nobody tells who looks at the worker to look again")
	}
	_, changed = pods.look(p.Namespace, p.Name, p.UID)
	pods.changed(p)
	select {
	case <-changed:
	default:
		t.Error("a change is not told to who looks again")
	}
}
