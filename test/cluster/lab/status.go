package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/ottoscaler/ottoscaler/test/cluster/process"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

// Status is what there is to know about a cluster from outside.
type Status struct {
	Name string `json:"name"`
	Slot int    `json:"slot"`
	// Ready says that the API server and every node are.
	Ready      bool   `json:"ready"`
	Kubeconfig string `json:"kubeconfig"`
	Kubectl    string `json:"kubectl"`
	Server     string `json:"server"`
	// HostIP is an address of this machine that pods reach.
	HostIP string `json:"host_ip"`
	// PodNets and ServiceNet are routed from this machine.
	PodNets    []string       `json:"pod_nets,omitempty"`
	ServiceNet string         `json:"service_net"`
	Version    string         `json:"version,omitempty"`
	Nodes      []Node         `json:"nodes"`
	KwokNodes  int            `json:"kwok_nodes"`
	Processes  map[string]int `json:"processes"`
	// Problem says why it is not ready.
	Problem string `json:"problem,omitempty"`
}

// A Node is one with a kubelet.
type Node struct {
	Name    string `json:"name"`
	Ready   bool   `json:"ready"`
	Version string `json:"version"`
	Runtime string `json:"runtime"`
}

// Status asks the cluster how it is. One that is broken is described, too, as far
// as it answers.
func (l Lab) Status(ctx context.Context, name string) (Status, error) {
	c, unlock, err := l.open(ctx, name)
	if err != nil {
		return Status{}, err
	}
	defer unlock()
	return c.status(ctx)
}

// Kubeconfig returns the path of the cluster's kubeconfig.
func (l Lab) Kubeconfig(name string) (string, error) {
	dir, err := l.Root.Cluster(name)
	if err != nil {
		return "", err
	}
	if _, err := dir.Load(); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cluster %s: %w", name, ErrNotUp)
	} else if err != nil {
		return "", err
	}
	return dir.Kubeconfig(), nil
}

// Logs returns the paths of the cluster's logs by component.
func (l Lab) Logs(name string) (map[string]string, error) {
	dir, err := l.Root.Cluster(name)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(dir.Path("logs", "*.log"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("cluster %s: %w", name, ErrNotUp)
	}
	logs := map[string]string{}
	for _, file := range files {
		base := filepath.Base(file)
		logs[base[:len(base)-len(".log")]] = file
	}
	return logs, nil
}

// open returns a cluster that is up, with programs built already.
func (l Lab) open(ctx context.Context, name string) (*cluster, func(), error) {
	dir, err := l.Root.Cluster(name)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := l.Root.Lock(name)
	if err != nil {
		return nil, nil, err
	}
	c, err := l.reopen(ctx, dir, name)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return c, unlock, nil
}

func (l Lab) reopen(ctx context.Context, dir state.Cluster, name string) (*cluster, error) {
	record, err := dir.Load()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cluster %s: %w", name, ErrNotUp)
	}
	if err != nil {
		return nil, err
	}
	system, err := l.build(ctx, &record)
	if err != nil {
		return nil, err
	}
	c, err := assemble(dir, record, system)
	if err != nil {
		return nil, err
	}
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("cluster %s is incomplete, run up again: %w", name, err)
	}
	return c, nil
}

func (c *cluster) status(ctx context.Context) (Status, error) {
	s := Status{
		Name: c.record.Name, Slot: c.record.Slot.Number,
		Kubeconfig: c.dir.Kubeconfig(), Kubectl: c.dir.Path("bin", "kubectl"), Server: c.control.URL(),
		HostIP: c.control.IP().String(), ServiceNet: c.record.Slot.ServiceNet().String(),
		Nodes: []Node{}, Processes: map[string]int{},
	}
	for _, n := range c.nodes {
		s.PodNets = append(s.PodNets, c.record.Slot.PodNet(n.Index).String())
	}
	running, err := c.group.All()
	if err != nil {
		return s, err
	}
	var missing []string
	for _, spec := range c.specs() {
		i := slices.IndexFunc(running, spec.Matches)
		if i < 0 {
			missing = append(missing, spec.Name)
			continue
		}
		s.Processes[spec.Name] = running[i].PID
	}
	if len(missing) > 0 {
		s.Problem = fmt.Sprintf("not running: %v", missing)
	}
	if err := c.ask(ctx, &s); err != nil && s.Problem == "" {
		s.Problem = err.Error()
	}
	s.Ready = s.Problem == ""
	return s, nil
}

// ask fills in what the API server knows.
func (c *cluster) ask(ctx context.Context, s *Status) error {
	if err := c.client.Ready(ctx); err != nil {
		return err
	}
	version, err := c.client.Version(ctx)
	if err != nil {
		return err
	}
	s.Version = version
	real, err := c.client.Nodes(ctx, false)
	if err != nil {
		return err
	}
	ready := 0
	for _, n := range real {
		s.Nodes = append(s.Nodes, Node(n))
		if n.Ready {
			ready++
		}
	}
	fake, err := c.client.Nodes(ctx, true)
	if err != nil {
		return err
	}
	for _, n := range fake {
		if n.Ready {
			s.KwokNodes++
		}
	}
	if ready < c.record.Config.Nodes || s.KwokNodes < c.record.Config.Kwok {
		return fmt.Errorf("%d of %d nodes and %d of %d kwok nodes are ready", ready, c.record.Config.Nodes, s.KwokNodes, c.record.Config.Kwok)
	}
	return nil
}

func (c *cluster) specs() []process.Spec {
	specs := c.control.Specs()
	for _, n := range c.nodes {
		specs = append(specs, n.Specs()...)
	}
	if c.fake != nil {
		specs = append(specs, c.fake.Specs(c.control.Authority())...)
	}
	return specs
}
