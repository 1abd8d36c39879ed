// Package worker is the life of workers as pods: it plans what a scale event asks
// for, builds and creates pods, removes them, has their logs followed, and lets
// go of them once nothing of theirs can be lost.
//
// Kubernetes is its only memory. What it promises rests on three habits:
//
//   - A worker's name derives from its event and index, so a repeated create
//     meets the pod of the first.
//   - A victim of a scale-down carries the event's ID before it is deleted, so a
//     repeated scale-down counts what it has taken already.
//   - A worker's finalizer stays until its last line is acknowledged and the
//     events that touched it are settled. As long as an event can be delivered
//     again, it finds its own traces.
//
// The way of an event: scale.go receives it, plan.go decides, build.go makes the
// pods, capacity.go says which of them have to wait, cluster.go writes them and
// sees them come back, admit.go gives places to those that wait, reconcile.go takes
// each worker from there to its end, which end.go classifies, retry.go makes another
// attempt, and follow.go hands it to the log-relay. lead.go sees to it that one
// scaler of an installation does all this at a time. A crash anywhere loses only
// what is counted here in memory; a restart reads all of it from the pods.
package worker
