package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/process"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// summary tells what the demo saw. Lines that were printed but not received, and
// workers that are left, are an error.
func (d *demo) summary(ctx context.Context) error {
	var created, running []time.Duration
	var printed, received int
	for name, w := range d.workers {
		created, running = append(created, w.created), append(running, w.running)
		p, r, err := d.countLines(name)
		if err != nil {
			return err
		}
		printed, received = printed+p, received+r
	}
	left, err := d.Core.Pods(demoNamespace).List(ctx, metav1.ListOptions{LabelSelector: pod.LabelTask + "=" + demoTask})
	if err != nil {
		return fmt.Errorf("listing the workers that are left: %w", err)
	}
	slices.Sort(created)
	slices.Sort(running)
	d.do("summary")
	d.say("    event to pod created    %s", spread(created))
	d.say("    event to pod running    %s", spread(running))
	d.say("    lines printed           %d, by the workers' own count", printed)
	d.say("    lines received          %d, in %s", received, d.logDir)
	d.say("    workers left            %d", len(left.Items))
	d.say("")
	d.say("It is all still up. Look around, and remove it with: make demo-down")
	d.say("    export KUBECONFIG=%s", d.Cluster.Kubeconfig)
	d.say("    kubectl -n %s logs deploy/%s -c %s", demoNamespace, lab.Release, lab.Scaler)
	d.say("    ENV_FILE=%s make test-event ARGS=--wait", d.envFile)
	if printed != received || len(left.Items) > 0 {
		return errors.New("the demo lost lines, or left workers behind")
	}
	return nil
}

func spread(sorted []time.Duration) string {
	if len(sorted) == 0 {
		return "never"
	}
	return fmt.Sprintf("%d ms the first, %d ms the last", sorted[0].Milliseconds(), sorted[len(sorted)-1].Milliseconds())
}

// countLines returns how many lines a worker printed, as its last words tell, and
// how many of them the log server has written to its files.
func (d *demo) countLines(worker string) (printed, received int, err error) {
	files, err := filepath.Glob(filepath.Join(d.logDir, worker, "*.log"))
	if err != nil {
		return 0, 0, fmt.Errorf("finding the lines of %s: %w", worker, err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return 0, 0, fmt.Errorf("counting the lines of %s: %w", worker, err)
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			received++
			if rest, ok := strings.CutPrefix(lines.Text(), "last words of "+worker+" after "); ok {
				n, err := strconv.Atoi(strings.TrimSuffix(rest, " lines"))
				if err != nil {
					return 0, 0, fmt.Errorf("reading the last words of %s: %w", worker, err)
				}
				printed = n + 1 // the last words are a line too
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return 0, 0, fmt.Errorf("counting the lines of %s: %w", worker, err)
		}
	}
	return printed, received, nil
}

type demoDownCommand struct{}

// Run removes the demo's cluster, Redis, log server and files.
func (c *demoDownCommand) Run(ctx context.Context) error {
	dir, err := demoDir()
	if err != nil {
		return err
	}
	kind, err := cluster.KindFromEnv()
	if err != nil {
		return err
	}
	root, err := source.Root(ctx)
	if err != nil {
		return err
	}
	var errs []error
	if kind == cluster.Current { // all we have there is a release in a namespace of its own
		l, err := lab.Up(ctx, lab.Options{Name: demoName, Kind: kind, Dir: dir, Output: os.Stdout})
		if err != nil {
			return err
		}
		errs = append(errs, l.Uninstall(demoNamespace), l.RemoveNamespace(ctx, demoNamespace))
	} else {
		errs = append(errs, cluster.Remove(ctx, cluster.Options{Kind: kind, Name: demoName, Root: root, Output: os.Stdout}))
	}
	for _, name := range []string{redis.ProcessName, logServer} {
		running, err := process.Find(dir, name)
		if running != nil {
			err = running.Stop(ctx, 5*time.Second)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the demo's files: %w", err)
	}
	fmt.Println("the demo is gone")
	return nil
}
