// Package logs takes what workers print to the log server: every line once, in
// order, from the first to the last.
//
// It works in three layers. [Relay] keeps the set of followed workers equal to
// the leases it holds on the workers queue. A follower keeps the log of one
// container instance moving, whatever breaks on either side. A single read takes
// lines from the kubelet until it breaks; a single session sends them to the log
// server until that breaks. Between the two lies the window: the lines that are
// read and not acknowledged. What of it waits for more than a moment lies in the spool,
// on disk, so that a slow or absent server does not hold the reading back.
//
// # What a crash loses
//
// Nothing. The log server knows the position of the last line it stored; the spool, if
// the next relay finds it, has lines behind it; and the kubelet still has the lines behind
// those. A new relay goes on exactly there. A lease ends only when the server has every
// line of the worker, and Kubernetes keeps the pod until then, or until the drain
// deadline, when what is lost is counted and said.
//
// # What is never silent
//
// Where lines are missing, or where it cannot be proven that none are, the log has a gap:
// an entry with a number of its own. A node may have rotated the log before it was read;
// the spool may have been full; the pod may have vanished.
//
// # What is bounded
//
// The memory of a log is bounded in batches and bytes. The memory of all together is
// bounded in bytes: past that bound, a log may still have one small batch to send, and one
// to read into, of 4 KiB or of one line that is longer, so that none stands still for the
// others. The spool is bounded for each worker and in total. At seven eighths of that the
// reading pauses, and the lines wait where they are, in the log files of the nodes; when a
// node rotates its file away meanwhile, the reading goes on and the oldest lines that
// were not sent make room. A line longer than 3 MiB is handed on as several lines, because
// a log server's messages are bounded as well.
package logs
