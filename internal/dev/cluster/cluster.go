// Package cluster gives tests, the demo and developers a Kubernetes cluster to
// work on: one built from source by test/cluster, one of kind, or the one that
// the user's kubeconfig points to, which is only ever used when asked for.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"
)

// Kind says where a cluster comes from; the CLUSTER variable selects it.
type Kind string

const (
	// Auto is kind where a Docker engine runs and the node image can be had, and
	// Source elsewhere.
	Auto Kind = ""
	// Source is a real Kubernetes built from its Go modules (test/cluster).
	Source Kind = "source"
	// InDocker is kind, in a Docker engine.
	InDocker Kind = "kind"
	// Current is whatever the user's kubeconfig points to.
	Current Kind = "current"
)

// Options say which cluster is wanted.
type Options struct {
	// Kind says where it comes from.
	Kind Kind
	// Name tells clusters on one machine apart.
	Name string
	// Nodes is the number of real nodes; 0 is a control plane alone.
	Nodes int
	// FakeNodes is the number of kwok nodes, which run no containers, instead of
	// real ones. Only from source.
	FakeNodes int
	// LogMaxSize is the size at which a container's log is rotated, such as 256Ki, if
	// not the kubelet's own. Only from source.
	LogMaxSize string
	// Network is the Docker network of a kind cluster; by default kind's own, which
	// all of its clusters share.
	Network string
	// Kubeconfig is where the kubeconfig of a kind cluster goes; by default into the
	// cache folder.
	Kubeconfig string
	// Root is the top of the source tree.
	Root string
	// Output receives the progress of whatever takes long.
	Output io.Writer
}

// Cluster is a running cluster.
type Cluster struct {
	// Kind says where it came from; never Auto.
	Kind Kind
	// Kubeconfig is the path of a file that leads to it.
	Kubeconfig string
	// HostAddr is the address at which its pods reach this machine, or empty when
	// that is not known (Current).
	HostAddr string
	// Made tells that Up made a kind cluster which was not there.
	Made bool

	kubectl string // empty: the one on PATH
	opts    Options
}

// KindFromEnv reads the CLUSTER variable.
func KindFromEnv() (Kind, error) {
	switch k := Kind(os.Getenv("CLUSTER")); k {
	case Auto, Source, InDocker, Current:
		return k, nil
	default:
		return "", fmt.Errorf("CLUSTER=%s: want source, kind or current", k)
	}
}

// Up returns a running cluster: it makes one, or finds the one of that name.
func Up(ctx context.Context, opts Options) (*Cluster, error) {
	c := &Cluster{Kind: opts.Kind, opts: opts}
	switch opts.Kind {
	case Current:
		return c, c.useCurrent()
	case InDocker:
		return c, c.kindUp(ctx)
	case Source:
		return c, c.sourceUp(ctx)
	}
	if opts.FakeNodes == 0 && opts.Nodes > 0 && exec.CommandContext(ctx, "docker", "info").Run() == nil {
		c.Kind = InDocker
		err := c.kindUp(ctx)
		if err == nil {
			return c, nil
		}
		fmt.Fprintf(opts.Output, "kind gives no cluster here (%v); building one from source\n", err)
	}
	c.Kind = Source
	return c, c.sourceUp(ctx)
}

// Open returns a kind cluster that an Up with the same options made.
func Open(opts Options) *Cluster {
	return &Cluster{Kind: InDocker, Kubeconfig: opts.Kubeconfig, opts: opts}
}

// Load makes image archives known to every node.
func (c *Cluster) Load(ctx context.Context, archives ...string) error {
	inventory, err := c.Inventory(ctx)
	if err != nil {
		return err
	}
	return c.LoadBeside(ctx, inventory, archives...)
}

// LoadBeside is Load where the inventory has been made already.
func (c *Cluster) LoadBeside(ctx context.Context, inventory *Inventory, archives ...string) error {
	switch c.Kind {
	case Source:
		return c.source(ctx, nil, append([]string{"load"}, archives...)...)
	case InDocker:
		return inventory.kindLoad(ctx, archives)
	default:
		return errors.New("images are not loaded into a cluster that is not ours")
	}
}

// Down removes the cluster, but never the user's own.
func (c *Cluster) Down(ctx context.Context) error {
	switch c.Kind {
	case Source:
		return c.source(ctx, nil, "down")
	case InDocker:
		return c.kindDown(ctx)
	default:
		return nil
	}
}

// Remove removes the cluster that an Up with the same options made, if there is one.
func Remove(ctx context.Context, opts Options) error {
	var errs []error
	if opts.Kind == Source || opts.Kind == Auto {
		errs = append(errs, (&Cluster{Kind: Source, opts: opts}).Down(ctx))
	}
	if opts.Kind == InDocker || opts.Kind == Auto && exec.CommandContext(ctx, "docker", "info").Run() == nil {
		errs = append(errs, (&Cluster{Kind: InDocker, opts: opts}).Down(ctx))
	}
	return errors.Join(errs...)
}

func (c *Cluster) useCurrent() error {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	cfg, err := rules.Load()
	if err != nil {
		return fmt.Errorf("reading the current kubeconfig: %w", err)
	}
	if cfg.CurrentContext == "" {
		return errors.New("CLUSTER=current, but the kubeconfig has no current context: set KUBECONFIG or run kubectl config use-context")
	}
	c.Kubeconfig = os.Getenv("KUBECONFIG")
	if c.Kubeconfig == "" {
		c.Kubeconfig = clientcmd.RecommendedHomeFile
	}
	if c.HostAddr = os.Getenv("HOST_ADDR"); c.HostAddr == "" {
		return errors.New("CLUSTER=current needs HOST_ADDR, the address of this machine at which the cluster's pods reach it")
	}
	return nil
}

// sourceUp runs the cluster command of test/cluster. It is a module of its own,
// so that Kubernetes never enters the product's import graph.
func (c *Cluster) sourceUp(ctx context.Context) error {
	args := []string{"up", "--nodes", strconv.Itoa(c.opts.Nodes)}
	if c.opts.FakeNodes > 0 {
		args = []string{"up", "--kwok", strconv.Itoa(c.opts.FakeNodes)}
	}
	if c.opts.LogMaxSize != "" {
		args = append(args, "--container-log-max-size", c.opts.LogMaxSize)
	}
	if err := c.source(ctx, nil, args...); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := c.source(ctx, &out, "status", "--json"); err != nil {
		return err
	}
	var status struct {
		Kubeconfig string `json:"kubeconfig"`
		Kubectl    string `json:"kubectl"`
		HostIP     string `json:"host_ip"`
	}
	if err := json.Unmarshal(out.Bytes(), &status); err != nil {
		return fmt.Errorf("reading the status of cluster %s: %w", c.opts.Name, err)
	}
	c.Kubeconfig, c.kubectl, c.HostAddr = status.Kubeconfig, status.Kubectl, status.HostIP
	return nil
}

// Kill ends a component of a cluster from source with SIGKILL, such as
// kube-apiserver or n1/kubelet.
func (c *Cluster) Kill(ctx context.Context, component string) error {
	var out bytes.Buffer
	if err := c.source(ctx, &out, "status", "--json"); err != nil && out.Len() == 0 {
		return err
	}
	var status struct {
		Processes map[string]int `json:"processes"`
	}
	if err := json.Unmarshal(out.Bytes(), &status); err != nil {
		return fmt.Errorf("reading the status of cluster %s: %w", c.opts.Name, err)
	}
	pid := status.Processes[component]
	if pid == 0 {
		return fmt.Errorf("killing %s of cluster %s: it does not run", component, c.opts.Name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("killing %s of cluster %s: %w", component, c.opts.Name, err)
	}
	return nil
}

// Repair starts what does not run of a cluster from source.
func (c *Cluster) Repair(ctx context.Context) error { return c.sourceUp(ctx) }

func (c *Cluster) source(ctx context.Context, out io.Writer, args ...string) error {
	args = append([]string{"-C", filepath.Join(c.opts.Root, "test/cluster"), "run", ".", "--name", c.opts.Name}, args...)
	return c.run(ctx, nil, out, "go", args...)
}

func (c *Cluster) tool(name string) string {
	return filepath.Join(c.opts.Root, "tools", name, "go.mod")
}

// run executes a command with more variables; its output goes to out, or to the progress output.
func (c *Cluster) run(ctx context.Context, env []string, out io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.opts.Root
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = c.opts.Output, io.MultiWriter(c.opts.Output, &stderr)
	if out != nil {
		cmd.Stdout, cmd.Stderr = out, &stderr
	}
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return fmt.Errorf("running %s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, lines[len(lines)-1])
	}
	return nil
}

// Kubectl returns the path of a kubectl for the cluster: its own, or the one on PATH.
func (c *Cluster) Kubectl() (string, error) {
	if c.kubectl != "" {
		return c.kubectl, nil
	}
	path, err := exec.LookPath("kubectl")
	if err != nil {
		return "", fmt.Errorf("finding kubectl: %w: install it, or use CLUSTER=source, which has its own", err)
	}
	return path, nil
}
