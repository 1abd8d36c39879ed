// Package development tells a day of two developers who share a machine and
// nothing else, as they would live it: by the make targets, in a checkout of their
// own, on a real Docker engine with real kind clusters.
package development

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
	"github.com/ottoscaler/ottoscaler/internal/dev/nestjs"
	"github.com/ottoscaler/ottoscaler/internal/dev/release"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
	"github.com/ottoscaler/ottoscaler/internal/pod"
)

// The two of the story. The second writes herself in letters that neither Docker
// nor Kubernetes takes for names.
const (
	jinwoo  = "jinwoo"
	hanjinu = "한진우"
)

// A checkout is a copy of the source tree in which the story takes place: a
// developer's own environments are none of its business.
type checkout struct{ root string }

func newCheckout(t *testing.T) checkout {
	t.Helper()
	tree, err := source.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := exec.CommandContext(t.Context(), "git", "-C", tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("listing the files of the tree: %v", err)
	}
	c := checkout{filepath.Join(t.TempDir(), "check out")} // with a space, as home folders have
	for file := range strings.SplitSeq(strings.TrimSuffix(string(files), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join(tree, file))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed, and not committed yet
		}
		info, serr := os.Stat(filepath.Join(tree, file))
		if err = errors.Join(err, serr); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(c.root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, content, info.Mode().Perm())); err != nil {
			t.Fatal(err)
		}
	}
	// What git knows decides what clean leaves.
	for _, args := range [][]string{{"init", "--quiet"}, {"add", "--all"}} {
		if out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", c.root}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args[0], err, out)
		}
	}
	return c
}

// make runs make in the checkout, as somebody would whose login name is root.
func (c checkout) make(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := c.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (c checkout) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "make", append([]string{"--no-print-directory"}, args...)...)
	cmd.Dir = c.root
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"ENV_FILE", "KUBECONFIG", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "YES", "OTTODEV_USER", "CLUSTER"}, name)
	})
	cmd.Env = append(cmd.Env, "USER=root", "NO_COLOR=1")
	return cmd
}

// must is make when it is to succeed.
func (c checkout) must(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	start := time.Now()
	out, err := c.make(ctx, args...)
	if err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	t.Logf("%5.1f s  make %s", time.Since(start).Seconds(), strings.Join(args, " "))
	return out
}

// refuses is make when it is to fail, with one clear line.
func (c checkout) refuses(t *testing.T, says string, args ...string) {
	t.Helper()
	out, err := c.make(t.Context(), args...)
	var complaints []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "make:") && !strings.HasPrefix(line, "exit status") {
			complaints = append(complaints, strings.TrimSpace(line))
		}
	}
	if err == nil || len(complaints) != 1 || !strings.Contains(complaints[0], says) {
		t.Errorf("make %s: got %v and %q, want one line that says %q", strings.Join(args, " "), err, complaints, says)
	}
}

// open returns a developer's environment and a client of their cluster.
func (c checkout) open(t *testing.T, user string) (*environment.Environment, kubernetes.Interface) {
	t.Helper()
	e, err := environment.Open(c.root, user)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", e.Vars[environment.Kubeconfig])
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e, client
}

// workers returns the names of the workers in a developer's cluster.
func workers(t *testing.T, client kubernetes.Interface) []string {
	t.Helper()
	pods, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{LabelSelector: pod.LabelTask})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range pods.Items {
		names = append(names, p.Name)
	}
	return names
}

// eventually waits for something that takes its time.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

func contains(t *testing.T, what, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not have %q:\n%s", what, want, text)
		}
	}
}

// traces lists everything that the checkout has left in the engine.
func (c checkout) traces(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, kind := range []string{"container", "network", "volume"} {
		names, err := docker.List(t.Context(), kind, "ottoscaler.dev/checkout="+c.root)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			found = append(found, kind+" "+name)
		}
	}
	for _, slug := range []string{"jinwoo", "hanjinu"} {
		nodes, err := docker.List(t.Context(), "container", "io.x-k8s.kind.cluster=ottoscaler-"+slug)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, nodes...)
	}
	return found
}

func TestTwoDevelopersShareAMachineAndNothingElse(t *testing.T) {
	c := newCheckout(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if out, err := c.make(ctx, "clean", "YES=1"); err != nil {
			t.Errorf("cleaning up: %v\n%s", err, out)
		}
	})
	before := processes(t)

	t.Run("without a user there is a question", func(t *testing.T) {
		c.refuses(t, "USER=", "setup-user")
		c.refuses(t, "make setup-user USER=", "deploy")
		c.refuses(t, "make setup-user USER=minji", "status", "USER=minji")
	})
	t.Run("both set up at once", func(t *testing.T) {
		var group sync.WaitGroup
		for _, user := range []string{jinwoo, hanjinu} {
			group.Go(func() {
				out, err := c.make(t.Context(), "setup-user", "USER="+user)
				if err != nil {
					t.Errorf("make setup-user USER=%s: %v", user, err)
				}
				t.Logf("%s", out)
			})
		}
		group.Wait()
	})
	if t.Failed() {
		return
	}
	ours, ourCluster := c.open(t, jinwoo)
	theirs, theirCluster := c.open(t, hanjinu)

	t.Run("a second set-up changes nothing", func(t *testing.T) {
		file, err := os.ReadFile(ours.File())
		if err != nil {
			t.Fatal(err)
		}
		id := func() string {
			out, err := docker.Run(t.Context(), "container", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", ours.RedisContainer(), ours.Vars[environment.KindCluster]+"-control-plane")
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		was := id()
		out := c.must(t, "setup-user", "USER="+jinwoo)
		if n := strings.Count(out, "kept"); n != 7 {
			t.Errorf("steps that kept what was there: got %d, want 7:\n%s", n, out)
		}
		if now := id(); now != was {
			t.Errorf("containers: got %s, want %s", now, was)
		}
		if again, err := os.ReadFile(ours.File()); err != nil || !bytes.Equal(file, again) {
			t.Errorf("the environment file changed (%v):\n%s", err, again)
		}
	})
	t.Run("a clash of names is refused", func(t *testing.T) {
		c.refuses(t, "taken by 한진우", "setup-user", "USER=hanjinu")
		c.refuses(t, "take another name", "setup-user", "USER=🤖")
	})
	t.Run("both deploy", func(t *testing.T) {
		c.refuses(t, "USER=<name>", "deploy")
		contains(t, "what deploy prints", c.must(t, "deploy", "USER="+jinwoo), "running", "make logs USER=jinwoo")
		c.must(t, "deploy", "USER="+hanjinu)
	})
	t.Run("an event of one makes workers of that one", func(t *testing.T) {
		out := c.must(t, "test-event", "ENV_FILE="+filepath.Base(ours.File()), "ARGS=--wait --count 2 --task t1 --field env.AGENT_LINES=0")
		contains(t, "what test-event prints", out, "done")
		if got := workers(t, ourCluster); len(got) != 2 {
			t.Errorf("workers in the cluster of %s: got %v, want 2", jinwoo, got)
		}
		if got := workers(t, theirCluster); len(got) != 0 {
			t.Errorf("workers in the cluster of %s: got %v, want none", hanjinu, got)
		}
		eventually(t, "the lines of the workers at the log server", time.Minute, func() bool {
			out, err := docker.Run(t.Context(), "logs", "--tail", "50", ours.LogContainer())
			return err == nil && strings.Contains(out, "line 3")
		})
	})
	t.Run("logs of all containers and of one", func(t *testing.T) {
		out := c.must(t, "logs", "USER="+jinwoo, "ARGS=--no-follow")
		for _, container := range []string{"consumer", "scaler", "log-relay"} {
			if !regexp.MustCompile(`(?m)^\s*` + container + `\b`).MatchString(out) {
				t.Errorf("no line of %s in:\n%s", container, out)
			}
		}
		out = c.must(t, "logs", "USER="+jinwoo, "C=scaler", "ARGS=--no-follow")
		contains(t, "the scaler's log", out, "workers created")
		if strings.Contains(out, "log-relay") {
			t.Errorf("C=scaler shows others:\n%s", out)
		}
	})
	t.Run("status, users, redis-cli, kubectl", func(t *testing.T) {
		contains(t, "the status", c.must(t, "status", "USER="+jinwoo), "redis-jinwoo", "append-only file on", "ottoscaler-jinwoo-control-plane ready",
			"deployed", "3/3 ready", "task t1", "0 unread", "done scale_up, task t1")
		contains(t, "the list", c.must(t, "list-users"), jinwoo, hanjinu, ours.RedisAddr(), theirs.RedisAddr(), "running")
		contains(t, "redis-cli", c.must(t, "redis-cli", "USER="+jinwoo, "ARGS=XLEN otto:scale:events"), "1")
		contains(t, "redis-cli", c.must(t, "redis-cli", "USER="+hanjinu, "ARGS=XLEN otto:scale:events"), "0")
		contains(t, "kubectl", c.must(t, "kubectl", "USER="+jinwoo, "ARGS=get pods"), "ottoscaler-")
	})
	t.Run("secrets are on no command line and in no setting", func(t *testing.T) {
		inspect, err := docker.Run(t.Context(), "container", "inspect", ours.RedisContainer())
		if err != nil {
			t.Fatal(err)
		}
		values, err := os.ReadFile(ours.ValuesFile())
		if err != nil {
			t.Fatal(err)
		}
		for where, text := range map[string]string{"docker inspect": inspect, "the values": string(values), "the processes": strings.Join(processes(t), "\n")} {
			if strings.Contains(text, ours.Vars[environment.RedisPassword]) {
				t.Errorf("the password of Redis is in %s", where)
			}
		}
	})
	t.Run("a pod of one neither resolves nor reaches the Redis of the other", func(t *testing.T) { checkIsolation(t, c) })
	t.Run("events survive a Redis that is killed", func(t *testing.T) {
		if _, err := docker.Run(t.Context(), "kill", ours.RedisContainer()); err != nil {
			t.Fatal(err)
		}
		c.must(t, "setup-user", "USER="+jinwoo)
		contains(t, "redis-cli", c.must(t, "redis-cli", "USER="+jinwoo, "ARGS=XLEN otto:scale:events"), "1")
	})
	t.Run("an edit runs in the cluster", func(t *testing.T) { checkInnerLoop(t, c) })
	t.Run("an installation on somebody else's Redis group refuses to start", func(t *testing.T) {
		options := installation(c, ours)
		options.Name, options.Namespace = "intruder", "intruder"
		options.Set = append(options.Set, "user=minji", "consumer.env.REDIS_HOST="+address(t, ours.RedisContainer(), ours.Network()))
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "intruder"}}
		if _, err := ourCluster.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: environment.RedisSecret}, StringData: map[string]string{"password": ours.Vars[environment.RedisPassword]}}
		if _, err := ourCluster.CoreV1().Secrets("intruder").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		err := release.Apply(t.Context(), options)
		if err == nil || !strings.Contains(err.Error(), "consumer refuses to start") || !strings.Contains(err.Error(), jinwoo) {
			t.Errorf("got %v, want the consumer to refuse and to say whose the group is", err)
		}
		if err := release.Remove(options); err != nil {
			t.Error(err)
		}
	})
	t.Run("helm install by hand", func(t *testing.T) {
		options := installation(c, ours)
		if err := release.Remove(options); err != nil {
			t.Fatal(err)
		}
		if err := release.Apply(t.Context(), options); err != nil {
			t.Fatal(err)
		}
		out := c.must(t, "test-event", "USER="+jinwoo, "ARGS=--wait --task by-hand --field env.AGENT_LINES=3")
		contains(t, "what test-event prints", out, "done")
	})
	t.Run("one value brings a log server with a page", func(t *testing.T) { checkLogServer(t, c) })
	t.Run("uninstalling leaves what setup-user made", func(t *testing.T) { checkUninstall(t, c) })
	t.Run("clean of one leaves the other", func(t *testing.T) {
		// A finalizer that nobody will ever take off must not hold anything up.
		stuck := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "stuck", Finalizers: []string{"example.com/never"}}}
		if _, err := ourCluster.CoreV1().ConfigMaps(ours.Vars[environment.Namespace]).Create(t.Context(), stuck, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.must(t, "deploy", "USER="+jinwoo)
		c.must(t, "test-event", "USER="+jinwoo, "ARGS=--wait --task unfinished --field env.AGENT_LINES=0")
		c.must(t, "clean", "USER="+jinwoo)
		for _, trace := range c.traces(t) {
			if strings.Contains(trace, "jinwoo") {
				t.Errorf("left of %s: %s", jinwoo, trace)
			}
		}
		for _, file := range []string{ours.File(), ours.Vars[environment.Kubeconfig]} {
			if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left (%v)", file, err)
			}
		}
		if _, err := os.Stat(ours.ValuesFile()); err != nil {
			t.Errorf("the values that git knows: %v", err)
		}
		// The only environment there is needs no name.
		out := c.must(t, "test-event", "ARGS=--wait --count 1 --task t2 --field env.AGENT_LINES=3")
		contains(t, "what test-event prints", out, "done")
		eventually(t, "the worker's logs are stored and it is gone", time.Minute, func() bool { return len(workers(t, theirCluster)) == 0 })
	})
	t.Run("what is half done is completed", func(t *testing.T) {
		// As if the set-up had been interrupted while kind made the cluster, and somebody had tidied up since.
		for _, args := range [][]string{
			{"exec", theirs.Vars[environment.KindCluster] + "-control-plane", "rm", "/kind/made-by-ottoscaler"},
			{"rm", "--force", theirs.LogContainer()},
			{"stop", theirs.RedisContainer()},
		} {
			if _, err := docker.Run(t.Context(), args...); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(theirs.ValuesFile()); err != nil {
			t.Fatal(err)
		}
		out := c.must(t, "setup-user", "USER="+hanjinu)
		contains(t, "what setup-user prints", out, "environment file: .env.hanjinu.local kept", "Redis redis-hanjinu: started",
			"log server logs-hanjinu: made", "cluster ottoscaler-hanjinu: made", "namespace ottoscaler-hanjinu: made", "values-hanjinu.yaml made")
		if out, err := c.make(t.Context(), "status"); err == nil || !strings.Contains(out, "make deploy USER=한진우") {
			t.Errorf("the status where nothing is installed: got %v, want what to do:\n%s", err, out)
		}
	})
	t.Run("clean of all leaves nothing", func(t *testing.T) {
		c.refuses(t, "YES=1", "clean")
		c.must(t, "clean", "YES=1")
		if left := c.traces(t); len(left) > 0 {
			t.Errorf("left in the engine: %v", left)
		}
		files, err := filepath.Glob(filepath.Join(c.root, ".env*"))
		values, verr := filepath.Glob(filepath.Join(c.root, "charts/ottoscaler/values-*.yaml"))
		if err = errors.Join(err, verr); err != nil || len(files) > 0 || len(values) != 1 {
			t.Errorf("files left: %v, %v (%v), want values-jinwoo.yaml alone", files, values, err)
		}
		eventually(t, "no process is left", 30*time.Second, func() bool {
			return !slices.ContainsFunc(processes(t), func(p string) bool {
				return !slices.Contains(before, p) && inContainer(p) && (strings.Contains(p, "kubelet") || strings.Contains(p, "redis-server") || strings.Contains(p, "logserver"))
			})
		})
		c.must(t, "clean") // nothing to ask about
	})
}

func TestWithoutDockerTheRemedyIsSaid(t *testing.T) {
	c := newCheckout(t)
	c.refuses(t, "docker", "setup-user", "USER=jinwoo", "DOCKER=/no/such/docker")
	if files, err := filepath.Glob(filepath.Join(c.root, ".env*")); err != nil || len(files) > 0 {
		t.Errorf("files that were made: %v, %v, want none", files, err)
	}
	out, err := c.make(t.Context(), "doctor", "DOCKER=/no/such/docker")
	if err == nil || !strings.Contains(out, "docker") {
		t.Errorf("make doctor without docker: got %v:\n%s", err, out)
	}
}

// installation is what `helm install ottoscaler charts/ottoscaler -f values-<user>.yaml` means.
func installation(c checkout, e *environment.Environment) release.Options {
	return release.Options{
		Kubeconfig: e.Vars[environment.Kubeconfig], Namespace: e.Vars[environment.Namespace], Name: "ottoscaler",
		Chart: filepath.Join(c.root, "charts", "ottoscaler"), ValuesFiles: []string{e.ValuesFile()}, Timeout: 2 * time.Minute,
	}
}

// address returns the address of a container in a network.
func address(t *testing.T, container, network string) string {
	t.Helper()
	found, err := docker.InspectContainer(t.Context(), container)
	if err != nil {
		t.Fatal(err)
	}
	return found.NetworkSettings.Networks[network].IPAddress
}

// checkIsolation runs the same questions in a pod of each cluster: to whom the
// Redis belongs gets answers, the other gets none.
func checkIsolation(t *testing.T, c checkout) {
	ours, _ := c.open(t, jinwoo)
	redis, err := docker.InspectContainer(t.Context(), ours.RedisContainer())
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "redis.tar")
	if _, err := docker.Run(t.Context(), "save", "--output", archive, redis.Config.Image); err != nil {
		t.Fatal(err)
	}
	network, err := docker.InspectNetwork(t.Context(), ours.Network())
	if err != nil {
		t.Fatal(err)
	}
	ip := redis.NetworkSettings.Networks[ours.Network()].IPAddress
	// Redis answers whoever reaches it, if only that they are not let in.
	ask := func(host, port string) string {
		return fmt.Sprintf("timeout 5 redis-cli -h %s -p %s PING 2>&1 | grep -q NOAUTH && echo reached %s", host, port, host)
	}
	script := strings.Join([]string{
		fmt.Sprintf("getent hosts %s >/dev/null && echo resolved", ours.RedisContainer()),
		ask(ours.RedisContainer(), "6379"), ask(ip, "6379"), ask(network.Gateway(), ours.Vars[environment.RedisPort]), "echo asked",
	}, "\n")
	for user, want := range map[string]string{
		jinwoo:  fmt.Sprintf("resolved\nreached %s\nreached %s\nasked", ours.RedisContainer(), ip),
		hanjinu: "asked",
	} {
		e, client := c.open(t, user)
		if err := cluster.Open(cluster.Options{Name: e.Vars[environment.KindCluster]}).Load(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
		if got := runPod(t, client, e.Vars[environment.Namespace], redis.Config.Image, script); got != want {
			t.Errorf("a pod of %s: got %q, want %q", user, got, want)
		}
	}
}

// runPod runs a script in a pod and returns what it prints.
func runPod(t *testing.T, client kubernetes.Interface, namespace, image, script string) string {
	t.Helper()
	no, yes, user := false, true, int64(65532)
	pods := client.CoreV1().Pods(namespace)
	_, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probe"},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "probe", Image: image, ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", script},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, RunAsNonRoot: &yes, RunAsUser: &user,
					Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
					SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the probe ends", time.Minute, func() bool {
		p, err := pods.Get(t.Context(), "probe", metav1.GetOptions{})
		return err == nil && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed)
	})
	logs, err := pods.GetLogs("probe", &corev1.PodLogOptions{}).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close() //nolint:errcheck // it was only read
	out, err := io.ReadAll(logs)
	if err = errors.Join(err, pods.Delete(t.Context(), "probe", metav1.DeleteOptions{})); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// checkInnerLoop changes a line of each program in turn and deploys it: that very
// container is replaced, and nothing else of the main pod.
func checkInnerLoop(t *testing.T, c checkout) {
	e, client := c.open(t, jinwoo)
	main := func() corev1.Pod { return mainPod(t, client, e.Vars[environment.Namespace]) }
	for program, message := range map[string]string{"consumer": `"consuming"`, "scaler": `"ready to scale"`, "log-relay": `"relaying logs"`} {
		file := filepath.Join(c.root, "cmd", program, "main.go")
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		edited := bytes.Replace(code, []byte(message), []byte(strings.TrimSuffix(message, `"`)+` with an edit"`), 1)
		if bytes.Equal(code, edited) {
			t.Fatalf("%s does not log %s any more: adapt the edit", program, message)
		}
		if err := os.WriteFile(file, edited, 0o644); err != nil {
			t.Fatal(err)
		}
		before := main()
		start := time.Now()
		out := c.must(t, "deploy", "USER="+jinwoo)
		t.Logf("edit of %s to running: %.1f s\n%s", program, time.Since(start).Seconds(), out)
		contains(t, "what deploy prints", out, program+" replaced")
		contains(t, "the log of "+program, c.must(t, "logs", "USER="+jinwoo, "C="+program, "ARGS=--no-follow"), strings.Trim(message, `"`)+" with an edit")
		after := main()
		if before.UID != after.UID {
			t.Errorf("the main pod was replaced as a whole: %s by %s", before.Name, after.Name)
		}
		for i, was := range before.Status.ContainerStatuses {
			if is := after.Status.ContainerStatuses[i]; (was.ContainerID != is.ContainerID) != (is.Name == program) {
				t.Errorf("after an edit of %s, container %s: was %s, is %s", program, is.Name, was.ContainerID, is.ContainerID)
			}
		}
	}
	contains(t, "what deploy prints without an edit", c.must(t, "deploy", "USER="+jinwoo), "nothing has changed")

	values, err := os.ReadFile(e.ValuesFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.ValuesFile(), append(values, "podLabels: {edited: \"yes\"}\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must(t, "deploy", "USER="+jinwoo)
	if after := main(); after.Labels["edited"] != "yes" {
		t.Errorf("after an edit of the values, the main pod has the labels %v", after.Labels)
	}
	// Its scaler stands by until the one before it has let go of the Lease.
	eventually(t, "the edit in the log of a whole new pod", time.Minute, func() bool {
		return strings.Contains(c.must(t, "logs", "USER="+jinwoo, "C=scaler", "ARGS=--no-follow"), "with an edit")
	})
}

// checkLogServer has the NestJS log server beside the main pod by the one value that a
// developer's values have for it, and reads what its page shows, also when its pod is
// another one.
func checkLogServer(t *testing.T, c checkout) {
	e, client := c.open(t, jinwoo)
	values, err := os.ReadFile(e.ValuesFile())
	if err != nil {
		t.Fatal(err)
	}
	edited := bytes.Replace(values, []byte("\nlogServer:\n  enabled: false\n"), []byte("\nlogServer:\n  enabled: true\n"), 1)
	if bytes.Equal(values, edited) {
		t.Fatal("the values have no logServer.enabled to change: adapt the edit")
	}
	if err := os.WriteFile(e.ValuesFile(), edited, 0o644); err != nil {
		t.Fatal(err)
	}
	out := c.must(t, "deploy", "USER="+jinwoo)
	t.Logf("%s", out)
	contains(t, "what deploy prints", out, "log server image", "port-forward statefulset/ottoscaler-logs 8080")
	c.must(t, "test-event", "USER="+jinwoo, "ARGS=--wait --task with-page --count 2 --field env.AGENT_LINES=100 --field env.AGENT_RATE=0")
	eventually(t, "the workers' logs are stored and they are gone", time.Minute, func() bool { return len(workers(t, client)) == 0 })
	c.checkPage(t)

	pods := client.CoreV1().Pods(e.Vars[environment.Namespace])
	before, err := pods.Get(t.Context(), "ottoscaler-logs-0", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := pods.Delete(t.Context(), before.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another pod of the log server is ready", time.Minute, func() bool {
		now, err := pods.Get(t.Context(), before.Name, metav1.GetOptions{})
		return err == nil && now.UID != before.UID && len(now.Status.ContainerStatuses) == 1 && now.Status.ContainerStatuses[0].Ready
	})
	c.checkPage(t)
}

// checkPage compares what the log server's page shows with what the workers printed.
func (c checkout) checkPage(t *testing.T) {
	t.Helper()
	page := nestjs.Server{Page: c.forward(t, "statefulset/ottoscaler-logs", "8080")}
	workers, err := page.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(workers) != 2 {
		t.Errorf("workers on the page: got %d, want 2", len(workers))
	}
	for _, w := range workers {
		if w.TaskID != "with-page" || len(w.Logs) != 1 || w.Logs[0].Lines != 100 || !w.Logs[0].Matches || len(w.Ends) != 1 {
			t.Errorf("a worker on the page: got %+v, want 100 lines that match, and its end", w)
		}
	}
}

// forward has `make kubectl` forward a port of jinwoo's cluster, until the test ends,
// and returns where it is then.
func (c checkout) forward(t *testing.T, to, port string) (addr string) {
	t.Helper()
	cmd := c.command(t.Context(), "kubectl", "USER="+jinwoo, "ARGS=port-forward "+to+" :"+port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // make, and what it starts
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // it was ended by the test's context, before
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if where, ok := strings.CutPrefix(lines.Text(), "Forwarding from 127.0.0.1:"); ok {
			local, _, _ := strings.Cut(where, " ")
			return net.JoinHostPort("127.0.0.1", local)
		}
	}
	t.Fatalf("make kubectl ARGS=\"port-forward %s :%s\" forwards nothing", to, port)
	return ""
}

// checkUninstall compares what is in the namespace after `helm uninstall` with what is
// in a new one.
func checkUninstall(t *testing.T, c checkout) {
	e, _ := c.open(t, jinwoo)
	if err := release.Remove(installation(c, e)); err != nil {
		t.Fatal(err)
	}
	const kinds = "deployments,statefulsets,jobs,pods,services,persistentvolumeclaims,configmaps,secrets,leases,serviceaccounts,roles,rolebindings,poddisruptionbudgets"
	want := "configmap/kube-root-ca.crt\nsecret/" + environment.RedisSecret + "\nserviceaccount/default"
	left := func(kinds string) string {
		return strings.TrimSpace(c.must(t, "kubectl", "USER="+jinwoo, "ARGS=get --output name "+kinds))
	}
	var got string
	eventually(t, "the volume goes with its claim", time.Minute, func() bool { got = left("persistentvolumes"); return got == "" })
	if got = left(kinds); got != want {
		t.Errorf("left of the release: got\n%s\nwant\n%s", got, want)
	}
}

// mainPod returns the main pod of a developer's installation, of which there is one.
func mainPod(t *testing.T, client kubernetes.Interface, namespace string) corev1.Pod {
	t.Helper()
	pods, err := client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=main"})
	if err != nil {
		t.Fatal(err)
	}
	pods.Items = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(pods.Items) != 1 {
		t.Fatalf("main pods: got %d, want 1", len(pods.Items))
	}
	slices.SortFunc(pods.Items[0].Status.ContainerStatuses, func(a, b corev1.ContainerStatus) int { return strings.Compare(a.Name, b.Name) })
	return pods.Items[0]
}

// inContainer tells whether a process is in a container of a Docker engine: others
// may run on this machine for somebody else.
func inContainer(process string) bool {
	pid, _, _ := strings.Cut(process, " ")
	groups, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	return err == nil && strings.Contains(string(groups), "docker") // else it has ended
}

// processes returns the processes of this machine, by pid and command line.
func processes(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil { // else it has ended
			list = append(list, strings.TrimSuffix(strings.TrimPrefix(file, "/proc/"), "/cmdline")+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return list
}
