// Package smoke is the test of the cluster command as a whole: it starts real
// clusters, two at a time, uses them, breaks them, and looks for what they leave
// behind. It needs root, and some minutes when nothing is built yet.
package smoke

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/test/cluster/image"
)

const probeImage = "ottoscaler.invalid/probe:1"

// command is the cluster command, built for this test.
type command struct {
	t    *testing.T
	path string
}

// status is what the test reads of `cluster status --json`.
type status struct {
	Slot       int
	Ready      bool
	Kubeconfig string
	Kubectl    string
	HostIP     string         `json:"host_ip"`
	KwokNodes  int            `json:"kwok_nodes"`
	Processes  map[string]int `json:"processes"`
}

func TestClustersLiveSideBySideAndLeaveNothing(t *testing.T) {
	c := command{t, build(t, "..", "cluster")}
	archive := filepath.Join(t.TempDir(), "probe.tar")
	if err := image.Write(archive, probeImage, build(t, "./probe", "probe")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // also after a failure
		c.run("down", "--name=smoke")
		c.run("down", "--name=smoke-scale")
	})
	start := time.Now()
	c.run("up", "--name=smoke", "--nodes=2", "--load="+archive)
	t.Logf("up with two nodes: %v", time.Since(start))
	start = time.Now()
	c.run("up", "--name=smoke-scale", "--kwok=3")
	t.Logf("up with three kwok nodes: %v", time.Since(start))
	real, fake := c.status("smoke"), c.status("smoke-scale")
	if real.Slot == fake.Slot {
		t.Errorf("both clusters are in slot %d", real.Slot)
	}

	if found := traces(t, real); len(found) < 6 { // or the check at the end would prove nothing
		t.Errorf("traces of a running cluster: %v", found)
	}

	t.Run("a pod's log is followed to its end", func(t *testing.T) { followToEnd(t, real) })
	t.Run("a pod says its last words", func(t *testing.T) { lastWords(t, real) })
	t.Run("host, pods and Services reach each other", func(t *testing.T) { reach(t, real) })
	t.Run("kwok runs many pods", func(t *testing.T) { manyPods(t, fake) })
	t.Run("a second up is quick", func(t *testing.T) {
		start := time.Now()
		c.run("up", "--name=smoke")
		t.Logf("second up: %v", time.Since(start))
		if diff := cmp.Diff(real.Processes, c.status("smoke").Processes); diff != "" {
			t.Errorf("it restarted something (-before +after):\n%s", diff)
		}
	})
	t.Run("up repairs what died", func(t *testing.T) { repair(t, c, real) })

	start = time.Now()
	c.run("down", "--name=smoke")
	c.run("down", "--name=smoke-scale")
	t.Logf("both down: %v", time.Since(start))
	c.run("down", "--name=smoke") // a second time: nothing to do
	for _, s := range []status{real, fake} {
		for kind, found := range traces(t, s) {
			t.Errorf("left behind: %s:\n%s", kind, found)
		}
	}
}

func followToEnd(t *testing.T, s status) {
	s.runPod(t, "count", "Never", "count", "50", "3")
	s.kubectl(t, "wait", "--for=jsonpath={.status.containerStatuses[0].state}", "--timeout=60s", "pod/count")
	got := s.eventually(t, "logs", "--follow", "count")
	var want strings.Builder
	for i := range 50 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if diff := cmp.Diff(want.String(), got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	s.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Failed", "--timeout=30s", "pod/count")
	if code := s.kubectl(t, "get", "pod", "count", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"); code != "3" {
		t.Errorf("exit code = %s, want 3", code)
	}
}

func lastWords(t *testing.T, s status) {
	start := time.Now()
	s.runPod(t, "leaving", "Never", "serve", "hello")
	s.kubectl(t, "wait", "--for=condition=Ready", "--timeout=60s", "pod/leaving")
	t.Logf("pod created to ready: %v", time.Since(start))
	follow := exec.CommandContext(t.Context(), s.Kubectl, "logs", "--follow", "leaving")
	follow.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig)
	var log bytes.Buffer
	follow.Stdout = &log
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "delete", "pod", "leaving", "--timeout=30s")
	if err := follow.Wait(); err != nil {
		t.Fatalf("following: %v", err)
	}
	if got, want := log.String(), "serving\nlast words\n"; got != want {
		t.Errorf("log = %q, want %q", got, want)
	}
}

func reach(t *testing.T, s status) {
	s.runPod(t, "web", "Always", "serve", "hello from a pod")
	s.kubectl(t, "wait", "--for=condition=Ready", "--timeout=60s", "pod/web")
	s.kubectl(t, "expose", "pod", "web", "--port=80", "--target-port=8080")
	podIP := s.kubectl(t, "get", "pod", "web", "-o", "jsonpath={.status.podIP}")
	serviceIP := s.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, address := range []string{podIP + ":8080", serviceIP + ":80"} {
		if got := fetch(t, "http://"+address); got != "hello from a pod" {
			t.Errorf("host to %s: %q", address, got)
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(s.HostIP, "0"))
	if err != nil {
		t.Fatal(err)
	}
	host := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello from the host") })}
	go func() { _ = host.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = host.Close() })
	for pod, tt := range map[string]struct{ args, want string }{
		"to-host":    {"get http://" + l.Addr().String(), "hello from the host"},
		"to-service": {"get http://" + serviceIP, "hello from a pod"},
		"to-pod":     {"get http://" + podIP + ":8080", "hello from a pod"},
		"to-api":     {"api", "serverAddressByClientCIDRs"},
	} {
		s.runPod(t, pod, "Never", strings.Fields(tt.args)...)
		s.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/"+pod)
		if got := s.kubectl(t, "logs", pod); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", pod, got, tt.want)
		}
	}
	if nodes := s.kubectl(t, "get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"); !strings.Contains(nodes, "n1") || !strings.Contains(nodes, "n2") {
		t.Errorf("pods ran on %q: nothing was tried between nodes", nodes)
	}
}

func manyPods(t *testing.T, s status) {
	s.kubectl(t, "create", "deployment", "many", "--image=registry.invalid/none:1", "--replicas=60")
	s.kubectl(t, "wait", "--for=condition=Available", "--timeout=90s", "deployment/many")
	if s.KwokNodes != 3 {
		t.Errorf("%d kwok nodes, want 3", s.KwokNodes)
	}
}

// repair kills processes of the control plane and of a node behind up's back.
func repair(t *testing.T, c command, s status) {
	for _, name := range []string{"kube-apiserver", "kube-scheduler", "n1/kubelet", "n2/containerd"} {
		if err := syscall.Kill(s.Processes[name], syscall.SIGKILL); err != nil {
			t.Fatalf("killing %s: %v", name, err)
		}
	}
	start := time.Now()
	c.run("up", "--name=smoke")
	t.Logf("repair: %v", time.Since(start))
	if restarts := s.kubectl(t, "get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); restarts != "0" {
		t.Errorf("the pod was restarted %s times, want it to have survived", restarts)
	}
	s.runPod(t, "after-repair", "Never", "count", "1", "0")
	s.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/after-repair")
}

// traces lists by kind what there is of a cluster on the machine. Other clusters
// may come and go meanwhile.
func traces(t *testing.T, s status) map[string]string {
	t.Helper()
	bridge, net := fmt.Sprintf("otto%d", s.Slot), fmt.Sprintf("10.%d.", 192+s.Slot)
	folder := filepath.Dir(s.Kubeconfig)
	ours := regexp.MustCompile(fmt.Sprintf(`\b%s(n\d+|-n\d+)?\b|\b%s|%s\b`, bridge, regexp.QuoteMeta(net), regexp.QuoteMeta(folder)))
	found := map[string]string{}
	for kind, script := range map[string]string{
		"devices":            "ls -1 /sys/class/net",
		"routes":             "ip -4 route show table all",
		"network namespaces": "ls -1 /run/netns",
		"sockets":            "ls -1d /run/otto*",
		"control groups":     "find /sys/fs/cgroup -maxdepth 3",
		"mounts":             "cat /proc/[0-9]*/mountinfo",
		"rules":              "nft list ruleset; iptables-save",
		"processes":          "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -a ^OTTOSCALER_CLUSTER_PROCESS=",
		"folders":            "ls -1d " + filepath.Dir(folder) + "/*/",
	} {
		// Errors are of what went away while it was listed, or of lists without entries.
		b, _ := exec.CommandContext(t.Context(), "sh", "-c", script+" 2>/dev/null").Output()
		var lines []string
		for line := range strings.Lines(string(b)) {
			if ours.MatchString(line) {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			found[kind] = strings.Join(lines[:min(5, len(lines))], "")
		}
	}
	return found
}

func build(t *testing.T, pkg, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v: %s", pkg, err, b)
	}
	return path
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		resp, err := (&http.Client{Timeout: 2 * time.Second}).Get(url)
		if err != nil {
			last = err
			continue
		}
		b, err := io.ReadAll(resp.Body)
		if err == nil {
			err = resp.Body.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	t.Errorf("fetching %s: %v", url, last)
	return ""
}

// run runs the command; the clean-up of a failed test runs it, too, so it uses
// no context of the test's.
func (c command) run(args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(context.Background(), c.path, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		c.t.Fatalf("cluster %s: %v\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String()
}

func (c command) status(name string) status {
	c.t.Helper()
	var s status
	if err := json.Unmarshal([]byte(c.run("status", "--json", "--name="+name)), &s); err != nil {
		c.t.Fatal(err)
	}
	if !s.Ready {
		c.t.Errorf("cluster %s is not ready: %+v", name, s)
	}
	return s
}

func (s status) runPod(t *testing.T, name, restart string, args ...string) {
	t.Helper()
	s.kubectl(t, append([]string{"run", name, "--image=" + probeImage, "--image-pull-policy=Never", "--restart=" + restart, "--"}, args...)...)
}

func (s status) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.try(t, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// eventually is for a container that may not have been started yet.
func (s status) eventually(t *testing.T, args ...string) string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := s.try(t, args...)
		if err == nil {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
		}
	}
}

func (s status) try(t *testing.T, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), s.Kubectl, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KUBECONFIG=") })
	cmd.Env = append(cmd.Env, "KUBECONFIG="+s.Kubeconfig)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, said.String())
	}
	return out.String(), nil
}
