package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/process"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const (
	demoName      = "demo" // of the cluster and of what runs beside it
	demoNamespace = "ottoscaler-jinwoo"
	demoTask      = "demo"
	logServer     = "logserver"
)

type demoCommand struct {
	Workers int           `default:"3" help:"How many workers the scale-up asks for."`
	Watch   time.Duration `default:"6s" help:"How long to show what the workers print before the scale-down."`
}

// demo is one run: what it stands on, and what it saw.
type demo struct {
	*lab.Lab
	*narrator
	events  *lab.Events
	dir     string // what it keeps on disk
	logDir  string
	envFile string
	workers map[string]*worker
}

// worker is what the demo saw of one worker, as times after its event.
type worker struct{ created, running time.Duration }

// Run shows the main job from an event in Redis to lines at the log server.
func (c *demoCommand) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	say := newNarrator(os.Stdout)
	defer say.stop()
	d := &demo{narrator: say, workers: map[string]*worker{}}
	if err := d.setUp(ctx); err != nil {
		return err
	}
	if err := d.scaleUp(ctx, c.Workers); err != nil {
		return err
	}
	say.do("showing for %v what the workers print, as the log server receives it", c.Watch)
	if err := d.showLines(ctx, c.Watch); err != nil {
		return err
	}
	if err := d.scaleDown(ctx); err != nil {
		return err
	}
	return d.summary(ctx)
}

func demoDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder: %w", err)
	}
	return filepath.Join(cache, "ottoscaler", demoName), nil
}

func (d *demo) setUp(ctx context.Context) error {
	var err error
	if d.dir, err = demoDir(); err != nil {
		return err
	}
	kind, err := cluster.KindFromEnv()
	if err != nil {
		return err
	}
	d.do("bringing up a cluster and a Redis (the first cluster from source takes a quarter of an hour)")
	if d.Lab, err = lab.Up(ctx, lab.Options{Name: demoName, Kind: kind, Nodes: 1, Dir: d.dir, Output: d.output()}); err != nil {
		return err
	}
	d.done("cluster %s (%s), Redis at %s:%d", demoName, d.Cluster.Kind, d.Redis.Host, d.Redis.Port)

	d.do("compiling the product and the sample agent into images, loading them into the cluster")
	if err := d.LoadImages(ctx); err != nil {
		return err
	}
	d.do("starting a log server")
	addr, err := d.startLogServer(ctx)
	if err != nil {
		return err
	}
	d.do("installing the chart with values-jinwoo.yaml in namespace %s", demoNamespace)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: demoNamespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}
	if _, err := d.Core.Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making namespace %s: %w", demoNamespace, err)
	}
	if err := d.Install(ctx, demoNamespace, addr); err != nil {
		return err
	}
	d.events = d.Events(demoNamespace)
	d.envFile = filepath.Join(d.dir, ".env.jinwoo.local")
	if err := d.WriteEnvFile(d.envFile, demoNamespace); err != nil {
		return err
	}
	d.done("the main pod is ready")
	return nil
}

// startLogServer runs the reference log server beside the demo, so that the
// installation works on when the demo is over.
func (d *demo) startLogServer(ctx context.Context) (addr string, err error) {
	d.logDir = filepath.Join(d.dir, "logs")
	addrFile := filepath.Join(d.dir, "logserver.addr")
	running, err := process.Find(d.dir, logServer)
	if err != nil {
		return "", err
	}
	if running != nil {
		if known, err := os.ReadFile(addrFile); err == nil {
			return string(known), nil
		}
	}
	bin := filepath.Join(d.Root, "bin", logServer)
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "./test/logserver/cmd/logserver")
	build.Dir = d.Root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the log server: %w\n%s", err, out)
	}
	// Take a free port, then let the server have it.
	listener, err := d.Listen(ctx)
	if err != nil {
		return "", err
	}
	addr = listener.Addr().String()
	if err := listener.Close(); err != nil {
		return "", fmt.Errorf("freeing the log server's port: %w", err)
	}
	if _, err := process.Start(process.Spec{Dir: d.dir, Name: logServer, Args: []string{bin, "--listen", addr, "--dir", d.logDir, "--print"}}); err != nil {
		return "", err
	}
	if err := os.WriteFile(addrFile, []byte(addr), 0o600); err != nil {
		return "", fmt.Errorf("remembering the log server's address: %w", err)
	}
	for ctx.Err() == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return addr, conn.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", ctx.Err()
}

// scaleUp sends the event and shows each worker come to life.
func (d *demo) scaleUp(ctx context.Context, workers int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pods, err := d.watch(ctx)
	if err != nil {
		return err
	}
	defer pods.Stop()
	sent := time.Now()
	id, err := d.events.Publish(ctx, scaleevent.Event{
		Type: scaleevent.ScaleUp, TaskID: demoTask, PodCount: &workers, TriggeredBy: "make demo",
		Env: map[string]string{"AGENT_LINES": "0", "AGENT_RATE": "2"},
	})
	if err != nil {
		return err
	}
	d.do("sent event %s: scale_up, %d workers of task %s", id, workers, demoTask)
	for running := 0; running < workers; {
		e, ok := <-pods.ResultChan()
		if !ok {
			return fmt.Errorf("waiting for the workers to run: %w", cmp.Or(ctx.Err(), errors.New("the watch ended")))
		}
		p, isPod := e.Object.(*corev1.Pod)
		if !isPod || p.Annotations[pod.AnnotationEventID] != id {
			continue
		}
		w := d.workers[p.Name]
		if w == nil {
			w = &worker{created: time.Since(sent)}
			d.workers[p.Name] = w
			d.done("worker %s created, %d ms after the event", p.Name, w.created.Milliseconds())
		}
		if p.Status.Phase == corev1.PodRunning && w.running == 0 {
			w.running = time.Since(sent)
			running++
			d.done("worker %s runs, %d ms after the event", p.Name, w.running.Milliseconds())
		}
	}
	return nil
}

// scaleDown sends the event and shows each worker leave.
func (d *demo) scaleDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pods, err := d.watch(ctx)
	if err != nil {
		return err
	}
	defer pods.Stop()
	id, err := d.events.Publish(ctx, scaleevent.Event{Type: scaleevent.ScaleDown, TaskID: demoTask, TriggeredBy: "make demo"})
	if err != nil {
		return err
	}
	d.do("sent event %s: scale_down, all workers of task %s", id, demoTask)
	lines, stop := d.followLines()
	defer stop()
	for left := len(d.workers); left > 0; {
		select {
		case line := <-lines:
			d.say("    %s", line)
		case e, ok := <-pods.ResultChan():
			if !ok {
				return fmt.Errorf("waiting for the workers to leave: %w", cmp.Or(ctx.Err(), errors.New("the watch ended")))
			}
			if p, isPod := e.Object.(*corev1.Pod); isPod && e.Type == watch.Deleted && d.workers[p.Name] != nil {
				left--
				d.done("worker %s is gone, its last line acknowledged", p.Name)
			}
		}
	}
	return nil
}

func (d *demo) watch(ctx context.Context) (watch.Interface, error) {
	w, err := d.Core.Pods(demoNamespace).Watch(ctx, metav1.ListOptions{LabelSelector: pod.LabelTask + "=" + demoTask})
	if err != nil {
		return nil, fmt.Errorf("watching the workers: %w", err)
	}
	return w, nil
}

// showLines prints what the log server receives, for a while.
func (d *demo) showLines(ctx context.Context, duration time.Duration) error {
	lines, stop := d.followLines()
	defer stop()
	end := time.NewTimer(duration)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			return nil
		case line := <-lines:
			d.say("    %s", line)
		}
	}
}

// followLines returns what the log server prints from now on.
func (d *demo) followLines() (lines <-chan string, stop func()) {
	out := make(chan string)
	done := make(chan struct{})
	go func() {
		file, err := os.Open(process.LogFile(d.dir, logServer))
		if err != nil {
			return // the summary tells what was received
		}
		defer file.Close() //nolint:errcheck // it was only read
		if _, err := file.Seek(0, io.SeekEnd); err != nil {
			return
		}
		var pending string
		buffer := make([]byte, 64<<10)
		for {
			n, err := file.Read(buffer)
			pending += string(buffer[:n])
			for {
				line, rest, found := strings.Cut(pending, "\n")
				if !found {
					break
				}
				pending = rest
				select {
				case out <- line:
				case <-done:
					return
				}
			}
			if err != nil || n == 0 { // the end, for now
				select {
				case <-time.After(50 * time.Millisecond):
				case <-done:
					return
				}
			}
		}
	}()
	return out, func() { close(done) }
}
