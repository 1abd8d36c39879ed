// Package logview shows a developer what the containers of the main pod say:
// together, in order, readable, and through whatever happens while they work. A
// rollout replaces the pod, a container crashes, the API server is away: the view
// goes on where it was.
package logview

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Options say what to show.
type Options struct {
	// Client of the cluster.
	Client kubernetes.Interface
	// Namespace and Selector find the main pod.
	Namespace, Selector string
	// Containers are shown; none means all.
	Containers []string
	// Follow goes on until the context ends. Without it, what the newest pod has
	// said is printed in the order of time.
	Follow bool
	// Tail is how many of each container's last lines to begin with; negative: all.
	Tail int64
	// Raw prints lines as they were written, not as text for people.
	Raw bool
	// Color marks the containers and levels.
	Color bool
	// Out receives the lines.
	Out io.Writer
}

// previousLines is how much is shown of the instance of a container that crashed:
// that is where the reason is.
const previousLines = 20

// lookEvery is how often the view looks for new pods and instances.
const lookEvery = 300 * time.Millisecond

// Follow shows the logs. It returns nil when the context of a following view ends.
func Follow(ctx context.Context, opts Options) error {
	v := &view{Options: opts, printer: newPrinter(opts), followed: map[instance]bool{}}
	if !opts.Follow {
		return v.print(ctx)
	}
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before the wait: what is refused late ends the followers too
	for {
		err := v.look(ctx, &group)
		if errors.Is(err, errNoContainer) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		v.printer.state(v.stateOf(err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
	}
}

// An instance is one life of a container.
type instance struct {
	pod       types.UID
	container string
	restarts  int32
}

type view struct {
	Options
	printer  *printer
	followed map[instance]bool
	shown    types.UID // the pod that was last announced
}

var (
	errNoPod       = errors.New("there is no main pod")
	errNoContainer = errors.New("no such container")
	errNotStarted  = errors.New("waiting for")
)

// stateOf puts into words what keeps the view from showing anything, or "".
func (v *view) stateOf(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errNoPod):
		return "waiting for the main pod in namespace " + v.Namespace + " (make deploy starts it)"
	case errors.Is(err, errNotStarted):
		return err.Error()
	default:
		return "the cluster does not answer, trying again: " + err.Error()
	}
}

// newest returns the main pod that was made last.
func (v *view) newest(ctx context.Context) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pods, err := v.Client.CoreV1().Pods(v.Namespace).List(ctx, metav1.ListOptions{LabelSelector: v.Selector})
	if err != nil {
		return nil, fmt.Errorf("looking for the main pod: %w", err)
	}
	if len(pods.Items) == 0 {
		return nil, errNoPod
	}
	newest := slices.MaxFunc(pods.Items, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return &newest, v.check(&newest)
}

// check says which containers there are when one is asked for that is not.
func (v *view) check(pod *corev1.Pod) error {
	var names []string
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	for _, want := range v.Containers {
		if !slices.Contains(names, want) {
			return fmt.Errorf("%w: %s; there are %s", errNoContainer, want, strings.Join(names, ", "))
		}
	}
	return nil
}

func (v *view) wants(container string) bool {
	return len(v.Containers) == 0 || slices.Contains(v.Containers, container)
}

// look begins to follow what is new.
func (v *view) look(ctx context.Context, group *sync.WaitGroup) error {
	pod, err := v.newest(ctx)
	if err != nil {
		return err
	}
	if v.shown != "" && v.shown != pod.UID {
		v.printer.note("pod " + pod.Name + " takes over")
	}
	v.shown = pod.UID
	var late []string
	for _, status := range pod.Status.ContainerStatuses {
		in := instance{pod.UID, status.Name, status.RestartCount}
		if !v.wants(status.Name) || v.followed[in] {
			continue
		}
		if waiting := status.State.Waiting; waiting != nil && !backsOff(status) {
			if waiting.Reason != "ContainerCreating" && waiting.Reason != "PodInitializing" {
				late = append(late, strings.TrimSpace(status.Name+": "+waiting.Reason+" "+waiting.Message))
			}
			continue
		}
		known := v.followed[instance{pod.UID, status.Name, status.RestartCount - 1}]
		v.followed[in] = true
		group.Go(func() {
			switch {
			case backsOff(status):
				v.printer.note(endOf(status) + " and waits to be started again; its last words:")
			case known:
				v.printer.note(endOf(status) + " and was started again")
			case status.RestartCount > 0:
				v.previous(ctx, pod, status)
			}
			v.follow(ctx, pod.Name, in)
		})
	}
	if len(late) > 0 {
		return fmt.Errorf("%w %s", errNotStarted, strings.Join(late, "; "))
	}
	return nil
}

// backsOff tells whether a container that ended waits for its next life. Until then
// its log and its previous log are the same one.
func backsOff(status corev1.ContainerStatus) bool {
	return status.State.Waiting != nil && status.LastTerminationState.Terminated != nil
}

// endOf says how the instance before this one ended.
func endOf(status corev1.ContainerStatus) string {
	end := status.LastTerminationState.Terminated
	if end == nil {
		return status.Name + " ended"
	}
	return fmt.Sprintf("%s ended with exit code %d (%s)", status.Name, end.ExitCode, end.Reason)
}

// previous shows the end of the instance before this one.
func (v *view) previous(ctx context.Context, pod *corev1.Pod, status corev1.ContainerStatus) {
	lines := int64(previousLines)
	v.printer.note(endOf(status) + " and was started again; its last words:")
	_ = v.read(ctx, pod.Name, &corev1.PodLogOptions{Container: status.Name, Previous: true, TailLines: &lines}, func(l line) { v.printer.print(l) }) // the kubelet may not have them any more
}

// follow shows one instance to its end. When the stream breaks it is opened again
// behind the last line that was shown. Only a reading that began after the end and
// came to its own end has everything.
func (v *view) follow(ctx context.Context, pod string, in instance) {
	var last cursor
	options := &corev1.PodLogOptions{Container: in.container, Follow: true}
	if v.Tail >= 0 {
		options.TailLines = &v.Tail
	}
	for {
		now := v.phaseOf(ctx, pod, in)
		switch now {
		case gone:
			return
		case replaced:
			options.Previous, options.Follow = true, false
		}
		if now != unknown {
			last.rewind()
			err := v.read(ctx, pod, options, func(l line) {
				if last.isNew(l.stamp) {
					v.printer.print(l)
				}
			})
			if now == replaced || now == ended && err == nil {
				return // a log before the last one may be gone: it is asked for once
			}
		}
		if !last.at.IsZero() {
			since := metav1.NewTime(last.at)
			options.SinceTime, options.TailLines = &since, nil
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

// A phase is where an instance is in its life.
type phase int

const (
	unknown  phase = iota // the API server does not answer
	alive                 // it may write more
	ended                 // it writes no more, and its log is the container's
	replaced              // the next instance runs, and its log is the previous one
	gone                  // nothing can be read of it
)

func (v *view) phaseOf(ctx context.Context, pod string, in instance) phase {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p, err := v.Client.CoreV1().Pods(v.Namespace).Get(ctx, pod, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return gone
	case err != nil:
		return unknown
	case p.UID != in.pod:
		return gone
	}
	for _, status := range p.Status.ContainerStatuses {
		if status.Name != in.container {
			continue
		}
		switch {
		case status.RestartCount == in.restarts && status.State.Running != nil:
			return alive
		case status.RestartCount == in.restarts:
			return ended
		case status.RestartCount == in.restarts+1 && !backsOff(status):
			return replaced
		}
	}
	return gone
}

// A cursor tells lines that were shown from new ones when a log is read again from
// a whole second on, which is what the API offers.
type cursor struct {
	at    time.Time // the latest time of a line that was shown
	lines int       // that were shown with that time
	seen  int       // of those, in this reading
	again bool      // this reading has not come past them yet
}

func (c *cursor) rewind() { c.seen, c.again = 0, !c.at.IsZero() }

// isNew tells whether a line is to be shown. What comes behind the last line that
// was shown is new whatever its time: standard output and error are stamped apart.
func (c *cursor) isNew(stamp time.Time) bool {
	if c.again {
		if stamp.Before(c.at) {
			return false
		}
		if stamp.Equal(c.at) && c.seen < c.lines {
			c.seen++
			return false
		}
		c.again = false
	}
	switch {
	case stamp.After(c.at):
		c.at, c.lines = stamp, 1
	case stamp.Equal(c.at):
		c.lines++
	}
	return true
}

// A line is one that a container wrote.
type line struct {
	container string
	stamp     time.Time
	text      string
}

// read opens a log and gives each of its lines to take, of whatever length.
func (v *view) read(ctx context.Context, pod string, options *corev1.PodLogOptions, take func(line)) error {
	options.Timestamps = true
	stream, err := v.Client.CoreV1().Pods(v.Namespace).GetLogs(pod, options).Stream(ctx)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", options.Container, err)
	}
	defer stream.Close() //nolint:errcheck // it was only read
	reader := bufio.NewReaderSize(stream, 64<<10)
	for {
		text, err := reader.ReadString('\n')
		if text != "" && (err == nil || errors.Is(err, io.EOF)) {
			stamp, rest, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
			at, terr := time.Parse(time.RFC3339Nano, stamp)
			if terr != nil {
				rest = strings.TrimSuffix(text, "\n") // the kubelet itself complains
			}
			take(line{options.Container, at, rest})
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the log of %s: %w", options.Container, err)
		}
	}
}

// print shows what the newest pod has said so far, in the order of time.
func (v *view) print(ctx context.Context) error {
	pod, err := v.newest(ctx)
	if errors.Is(err, errNoPod) {
		return fmt.Errorf("%w in namespace %s: make deploy starts it", err, v.Namespace)
	}
	if err != nil {
		return err
	}
	var lines []line
	for _, status := range pod.Status.ContainerStatuses {
		if !v.wants(status.Name) {
			continue
		}
		options := &corev1.PodLogOptions{Container: status.Name}
		if v.Tail >= 0 {
			options.TailLines = &v.Tail
		}
		collect := func(l line) { lines = append(lines, l) }
		if status.RestartCount > 0 && !backsOff(status) {
			before := options.DeepCopy()
			before.Previous = true
			_ = v.read(ctx, pod.Name, before, collect) // the kubelet may not have them any more
		}
		if backsOff(status) {
			v.printer.note(endOf(status) + " and waits to be started again: " + status.State.Waiting.Reason)
		} else if status.State.Waiting != nil {
			v.printer.note(status.Name + " has not started: " + status.State.Waiting.Reason + " " + status.State.Waiting.Message)
			continue
		}
		if err := v.read(ctx, pod.Name, options, collect); err != nil {
			v.printer.note(err.Error())
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.stamp.Compare(b.stamp) })
	for _, l := range lines {
		v.printer.print(l)
	}
	return v.printer.err
}
