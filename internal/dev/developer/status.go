package developer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/redis/go-redis/v9"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
	"github.com/ottoscaler/ottoscaler/internal/dev/release"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/stream"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// lastEvents is how many results the status shows.
const lastEvents = 5

// Status prints how an environment is: what does not answer is said, and the rest
// is shown all the same. It returns an error if anything does not.
func (w *Workplace) Status(ctx context.Context, e *environment.Environment) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	table := tabwriter.NewWriter(w.steps.out, 0, 0, 2, ' ', 0)
	var failed []error
	row := func(what, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	part := func(what string, show func() error) {
		if err := show(); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
			row(what, "%v", err)
		}
	}
	row("user", "%s (%s)", e.User(), w.relative(e.File()))
	rdb := redisClient(e)
	defer rdb.Close() //nolint:errcheck // nothing was written
	part("Redis", func() error {
		info, err := rdb.InfoMap(ctx, "server", "persistence").Result()
		if err != nil {
			return fmt.Errorf("%s does not answer: %w (make setup-user USER=%s starts it)", e.RedisAddr(), err, e.User())
		}
		row("Redis", "%s in %s at %s, append-only file %s", info["Server"]["redis_version"], e.RedisContainer(), e.RedisAddr(), map[string]string{"1": "on", "0": "off"}[info["Persistence"]["aof_enabled"]])
		return nil
	})
	part("log server", func() error {
		if wanted, err := logServerWanted(w.release(e)); err != nil || wanted {
			if wanted {
				row("log server", "beside the main pod (%s-logs-0)", releaseName)
			}
			return err
		}
		c, err := docker.InspectContainer(ctx, e.LogContainer())
		if err != nil {
			return err
		}
		row("log server", "%s, %s", e.LogContainer(), c.State.Status)
		return nil
	})
	client, err := w.Client(e)
	part("cluster", func() error {
		if err != nil {
			return err
		}
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("%s does not answer: %w (make setup-user USER=%s starts it)", e.Vars[environment.KindCluster], err, e.User())
		}
		for _, node := range nodes.Items {
			row("cluster", "%s, Kubernetes %s, node %s %s", e.Vars[environment.KindCluster], node.Status.NodeInfo.KubeletVersion, node.Name, readiness(node))
		}
		return nil
	})
	part("release", func() error {
		state, found, err := release.Look(w.release(e))
		switch {
		case err != nil:
			return err
		case !found:
			return fmt.Errorf("nothing is installed in namespace %s: make deploy USER=%s", e.Vars[environment.Namespace], e.User())
		}
		row("release", "%s in namespace %s, revision %d %s %s ago", releaseName, e.Vars[environment.Namespace], state.Revision, state.Status, since(state.Updated))
		return nil
	})
	part("pods", func() error {
		if client == nil {
			return errNoCluster
		}
		pods, err := client.CoreV1().Pods(e.Vars[environment.Namespace]).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			row("pod", "%s  %s  %s", p.Name, describe(p), since(p.CreationTimestamp.Time))
		}
		if len(pods.Items) == 0 {
			row("pod", "none")
		}
		return nil
	})
	part("backlog", func() error { return showBacklog(ctx, rdb, e, row) })
	part("events", func() error { return showEvents(ctx, rdb, e, row) })
	if err := table.Flush(); err != nil {
		return fmt.Errorf("printing the status: %w", err)
	}
	if len(failed) > 0 {
		return errors.New("not everything works: see above")
	}
	return nil
}

func since(t time.Time) string { return duration.HumanDuration(time.Since(t)) }

func readiness(node corev1.Node) string {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return "ready"
		}
	}
	return "not ready"
}

// describe tells how a pod is, as kubectl get pods does, and whose work it does.
func describe(p corev1.Pod) string {
	var notes []string
	state := string(p.Status.Phase)
	if p.DeletionTimestamp != nil {
		state = "Terminating"
	}
	ready, restarts := 0, int32(0)
	for _, c := range p.Status.ContainerStatuses {
		if c.Ready {
			ready++
		}
		restarts += c.RestartCount
		if c.State.Waiting != nil && c.State.Waiting.Reason != "ContainerCreating" {
			notes = append(notes, c.Name+": "+c.State.Waiting.Reason)
		}
	}
	notes = append([]string{state, fmt.Sprintf("%d/%d ready", ready, len(p.Spec.Containers))}, notes...)
	if restarts > 0 {
		notes = append(notes, fmt.Sprintf("%d restarts", restarts))
	}
	if task := p.Labels[pod.LabelTask]; task != "" {
		notes = append(notes, "task "+task)
	}
	return strings.Join(notes, ", ")
}

func showBacklog(ctx context.Context, rdb *redis.Client, e *environment.Environment, row func(string, string, ...any)) error {
	groups, err := rdb.XInfoGroups(ctx, e.Vars[environment.RedisStream]).Result()
	if err != nil && !redis.HasErrorPrefix(err, "ERR no such key") {
		return err
	}
	i := slices.IndexFunc(groups, func(g redis.XInfoGroup) bool { return g.Name == e.Vars[environment.RedisGroup] })
	if i < 0 {
		row("backlog", "no consumer was there yet")
		return nil
	}
	unread := strconv.FormatInt(groups[i].Lag, 10)
	if groups[i].Lag < 0 {
		unread = "an unknown number"
	}
	if why, err := rdb.Get(ctx, stream.PauseKey(e.Vars[environment.RedisStream], groups[i].Name)).Result(); err == nil {
		row("paused", "%s (make resume)", why)
	}
	row("backlog", "%s unread, %d in work, %d consumers", unread, groups[i].Pending, groups[i].Consumers)
	return nil
}

func showEvents(ctx context.Context, rdb *redis.Client, e *environment.Environment, row func(string, string, ...any)) error {
	entries, err := rdb.XRevRangeN(ctx, e.Vars[environment.RedisResults], "+", "-", 100).Result()
	if err != nil {
		return err
	}
	var last []scaleevent.Result // the newest first
	for _, entry := range entries {
		fields := map[string]string{}
		for name, value := range entry.Values {
			fields[name] = fmt.Sprint(value)
		}
		if r := scaleevent.ParseResult(fields); r.Final() && len(last) < lastEvents {
			last = append(last, r)
		}
	}
	if len(last) == 0 {
		row("event", "none was carried out yet")
	}
	slices.Reverse(last)
	for _, r := range last {
		text := fmt.Sprintf("%s  %s %s, task %s, pool %s", r.EventID, r.Status, r.Type, r.TaskID, r.Pool)
		if r.Reason != "" {
			text += " (" + r.Reason + ")"
		}
		row("event", "%s", text)
	}
	return nil
}

// List prints the environments of this checkout.
func (w *Workplace) List(ctx context.Context) error {
	list, err := environment.List(w.Root)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(w.steps.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "USER\tREDIS\tCLUSTER\tNAMESPACE\tENVIRONMENT FILE")
	for _, e := range list {
		state := func(name string) string {
			c, err := docker.InspectContainer(ctx, name)
			switch {
			case errors.Is(err, docker.ErrNotFound):
				return "missing"
			case err != nil:
				return "unknown"
			}
			return c.State.Status
		}
		fmt.Fprintf(table, "%s\t%s %s\t%s %s\t%s\t%s\n", e.User(), e.RedisAddr(), state(e.RedisContainer()),
			e.Vars[environment.KindCluster], state(e.Vars[environment.KindCluster]+"-control-plane"), e.Vars[environment.Namespace], w.relative(e.File()))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("printing the list: %w", err)
	}
	if len(list) == 0 {
		w.steps.say("nobody has an environment here yet: make setup-user USER=<your name> makes one")
	}
	return nil
}
