// Package logs takes what workers print to the log server: every line once, in
// order, from the first to the last.
//
// It works in three layers. [Relay] keeps the set of followed workers equal to
// the leases it holds on the workers queue. A follower keeps the log of one
// container instance moving, whatever breaks on either side. A single read takes
// lines from the kubelet until it breaks; a single session sends them to the log
// server until that breaks. Between the two lies the window: the lines that are
// read and not acknowledged.
//
// # What a crash loses
//
// Nothing. The package keeps no record of its own: the log server knows the
// position of the last line it stored, the kubelet still has the lines behind it,
// and a new relay goes on exactly there. A lease ends only when the server has
// every line of the worker, and Kubernetes keeps the pod until then.
//
// # What is bounded
//
// The window of a log is bounded in batches and bytes. All windows together are
// bounded in bytes: past that bound, a log may still have one small batch in
// memory, of 4 KiB or of one line that is longer, so that none stands still for
// the others. A full window stops the reading; the lines then wait where they
// are, in the log files of the nodes. A line longer than 3 MiB is handed on
// as several lines, because a log server's messages are bounded as well.
package logs
