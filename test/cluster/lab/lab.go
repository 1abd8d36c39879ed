// Package lab brings whole clusters up and down.
//
// Everything that [Lab.Up] does, it does only if it is not done yet. So a second
// call is quick, and a call after one that failed or was interrupted goes on
// where that stopped. [Lab.Down] looks at the machine, not at how far Up came.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/test/cluster/api"
	"github.com/ottoscaler/ottoscaler/test/cluster/cgroup"
	"github.com/ottoscaler/ottoscaler/test/cluster/controlplane"
	"github.com/ottoscaler/ottoscaler/test/cluster/kwok"
	"github.com/ottoscaler/ottoscaler/test/cluster/network"
	"github.com/ottoscaler/ottoscaler/test/cluster/node"
	"github.com/ottoscaler/ottoscaler/test/cluster/process"
	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
	"github.com/ottoscaler/ottoscaler/test/cluster/toolchain"
)

// downTimeout is how long processes have to go once they were killed.
const downTimeout = 30 * time.Second

// ErrNotUp says that there is no cluster of that name.
var ErrNotUp = errors.New("there is no such cluster: run up first")

// A Lab is where clusters are made.
type Lab struct {
	Root      state.Root
	Toolchain toolchain.Toolchain
	// Say reports a step that was taken.
	Say func(format string, args ...any)
}

// A Place is what the user said about addresses and ports; nil is left to us.
type Place struct {
	Slot *int
	CIDR *string
	Port *int
}

// A cluster is one at work.
type cluster struct {
	dir     state.Cluster
	record  state.Record
	group   process.Group
	control *controlplane.ControlPlane
	nodes   []*node.Node
	fake    *kwok.Nodes // nil: none
	client  *api.Client
}

// Up makes the cluster of that name what was wished, and returns when all its
// nodes are ready and have the images.
func (l Lab) Up(ctx context.Context, name string, wish state.Wish, place Place, images []string) (Status, error) {
	dir, err := l.Root.Cluster(name)
	if err != nil {
		return Status{}, err
	}
	unlock, err := l.Root.Lock(name)
	if err != nil {
		return Status{}, err
	}
	defer unlock()
	record, err := l.plan(ctx, dir, name, wish)
	if err != nil {
		return Status{}, err
	}
	if record.Config.Nodes > 0 && os.Geteuid() != 0 {
		return Status{}, errors.New("nodes need namespaces and control groups, which only root may make; --kwok 3 needs no root")
	}
	system, err := l.build(ctx, &record)
	if err != nil {
		return Status{}, err
	}
	if err := l.reserve(dir, &record, place); err != nil {
		return Status{}, err
	}
	c, err := assemble(dir, record, system)
	if err != nil {
		return Status{}, err
	}
	if err := c.linkPrograms(); err != nil {
		return Status{}, err
	}
	if !c.healthy(ctx) {
		if err := l.start(ctx, c); err != nil {
			return Status{}, fmt.Errorf("%w\nup goes on where this stopped; down removes what there is", err)
		}
	}
	for _, archive := range images {
		if err := c.load(ctx, archive); err != nil {
			return Status{}, err
		}
		l.Say("%s loaded", archive)
	}
	return c.status(ctx)
}

// plan returns what is to be recorded of the cluster: what is recorded, with the
// wish on top, or a new record that has no slot yet.
func (l Lab) plan(ctx context.Context, dir state.Cluster, name string, wish state.Wish) (state.Record, error) {
	boot, err := state.BootID()
	if err != nil {
		return state.Record{}, err
	}
	record, err := dir.Load()
	switch {
	case err == nil && record.BootID == boot:
		if record.Config, err = wish.Extend(record.Config); err != nil {
			return record, fmt.Errorf("cluster %s is up, and only down and up can change it so: %w", name, err)
		}
		return record, nil
	case err == nil:
		l.Say("the machine was restarted since cluster %s was started: starting over", name)
		wish = inherit(wish, record.Config)
		if err := l.remove(ctx, dir, record); err != nil {
			return record, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return record, err
	}
	config, err := wish.New()
	return state.Record{Name: name, Config: config, BootID: boot}, err
}

// reserve gives the record a slot that nobody else has, if it has none, and
// writes it down.
func (l Lab) reserve(dir state.Cluster, record *state.Record, place Place) error {
	unlock, err := l.Root.Lock("slots")
	if err != nil {
		return err
	}
	defer unlock()
	if !record.Slot.CIDR.IsValid() {
		if record.Slot, err = l.choose(place); err != nil {
			return err
		}
	}
	return dir.Save(*record)
}

// inherit fills what was not said from how the cluster was.
func inherit(wish state.Wish, old state.Config) state.Wish {
	if wish.Nodes == nil && wish.Kwok == nil {
		wish.Nodes, wish.Kwok = &old.Nodes, &old.Kwok
	}
	if wish.FeatureGates == nil {
		wish.FeatureGates = &old.FeatureGates
	}
	if wish.ContainerLogMaxSize == nil {
		wish.ContainerLogMaxSize = &old.ContainerLogMaxSize
	}
	return wish
}

// choose finds a slot that neither a cluster nor the machine has use for.
func (l Lab) choose(place Place) (slot.Slot, error) {
	records, err := l.Root.Records()
	if err != nil {
		return slot.Slot{}, err
	}
	taken := map[int]bool{}
	for _, r := range records {
		taken[r.Slot.Number] = true
	}
	var candidates []slot.Slot
	for number := range slot.Count {
		if taken[number] || place.Slot != nil && *place.Slot != number {
			continue
		}
		s, err := place.move(slot.New(number))
		if err != nil {
			return slot.Slot{}, err
		}
		candidates = append(candidates, s)
	}
	return slot.Choose(candidates, network.Busy)
}

// move puts a slot where the user wants it.
func (p Place) move(s slot.Slot) (slot.Slot, error) {
	if p.CIDR != nil {
		cidr, err := netip.ParsePrefix(*p.CIDR)
		if err != nil {
			return s, err
		}
		s.CIDR = cidr
	}
	if p.Port != nil {
		s.Port = *p.Port
	}
	return s, s.Validate()
}

// build makes sure that all programs are there which the cluster needs, and notes
// in the record where.
func (l Lab) build(ctx context.Context, record *state.Record) (system toolchain.System, err error) {
	type want struct {
		artifact toolchain.Artifact
		dir      *string
	}
	p := &record.Programs
	wants := []want{{toolchain.Kubernetes, &p.Kubernetes}}
	if record.Config.Nodes > 0 {
		wants = append(wants, want{toolchain.Containerd, &p.Containerd}, want{toolchain.Pause, &p.Pause})
		// Before the long build: it may have something to say.
		if system, err = l.Toolchain.EnsureSystem(ctx); err != nil {
			return system, err
		}
	}
	if record.Config.Kwok > 0 {
		wants = append(wants, want{toolchain.Kwok, &p.Kwok})
	}
	for _, w := range wants {
		if _, err := os.Stat(*w.dir); err == nil {
			continue
		}
		if *w.dir, err = l.Toolchain.Ensure(ctx, w.artifact); err != nil {
			return system, err
		}
	}
	return system, nil
}

// assemble describes a cluster; it starts nothing.
func assemble(dir state.Cluster, record state.Record, system toolchain.System) (*cluster, error) {
	p := record.Programs
	c := &cluster{dir: dir, record: record, group: process.Group(dir.Dir)}
	c.control = &controlplane.ControlPlane{
		Cluster: dir, Slot: record.Slot, Config: record.Config, Bin: p.Kubernetes, Group: c.group,
	}
	if record.Config.Kwok > 0 {
		c.fake = &kwok.Nodes{Count: record.Config.Kwok, Cluster: dir, Slot: record.Slot, Group: c.group, Bin: p.Kwok}
	}
	if record.Config.Nodes == 0 {
		return c, nil
	}
	cgroups, err := cgroup.Read()
	if err != nil {
		return nil, err
	}
	for i := 1; i <= record.Config.Nodes; i++ {
		c.nodes = append(c.nodes, &node.Node{
			Index: i, Cluster: dir, Slot: record.Slot, Config: record.Config, Group: c.group, Cgroups: cgroups,
			Kubernetes: p.Kubernetes, Containerd: p.Containerd, Pause: p.Pause, System: system,
		})
	}
	return c, nil
}

// healthy says that there is nothing to do. It is only a short cut: start would
// find that out, too, but takes longer.
func (c *cluster) healthy(ctx context.Context) bool {
	if err := c.open(); err != nil {
		return false
	}
	s, err := c.status(ctx)
	return err == nil && s.Ready
}

// open makes the client of a cluster whose certificates exist.
func (c *cluster) open() error {
	if err := c.control.Open(); err != nil {
		return err
	}
	client, err := c.control.Client()
	c.client = client
	return err
}

// linkPrograms makes bin/kubectl and others, for people.
func (c *cluster) linkPrograms() error {
	p := c.record.Programs
	links := map[string]string{"kubectl": filepath.Join(p.Kubernetes, "kubectl")}
	if p.Containerd != "" {
		links["ctr"] = filepath.Join(p.Containerd, "ctr")
	}
	if err := os.MkdirAll(c.dir.Path("bin"), 0o755); err != nil {
		return err
	}
	for name, target := range links {
		link := c.dir.Path("bin", name)
		if old, err := os.Readlink(link); err == nil && old == target {
			continue
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	return nil
}

// start starts what is not running, in the order of need: addresses, then the
// API server and the container runtimes side by side, then kubelets.
func (l Lab) start(ctx context.Context, c *cluster) error {
	l.Say("starting what is not running of cluster %s", c.record.Name)
	if len(c.nodes) > 0 {
		if err := network.Create(c.record.Slot, len(c.nodes)); err != nil {
			return err
		}
	}
	if err := c.control.Prepare(); err != nil {
		return err
	}
	client, err := c.control.Client()
	if err != nil {
		return err
	}
	c.client = client
	both, bothCtx := errgroup.WithContext(ctx)
	both.Go(func() error {
		if err := c.control.Start(bothCtx, client); err != nil {
			return err
		}
		l.Say("control plane is ready at %s", c.control.URL())
		return nil
	})
	both.Go(func() error {
		for _, n := range c.nodes {
			if err := n.Prepare(c.control.Authority(), c.control.URL()); err != nil {
				return fmt.Errorf("preparing node %s: %w", n.Name(), err)
			}
			if err := n.StartRuntime(bothCtx); err != nil {
				return err
			}
		}
		return nil
	})
	if err := both.Wait(); err != nil {
		return err
	}
	return l.join(ctx, c)
}

// join starts what makes nodes of a control plane, and waits for them.
func (l Lab) join(ctx context.Context, c *cluster) error {
	for _, n := range c.nodes {
		if err := n.StartKubelet(); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		l.Say("waiting for node %s", n.Name())
		if err := n.AwaitReady(ctx, c.client); err != nil {
			return err
		}
		l.Say("node %s is ready", n.Name())
	}
	if c.fake == nil {
		return nil
	}
	l.Say("waiting for %d kwok nodes", c.fake.Count)
	if err := c.fake.Start(ctx, c.client, c.control.Authority()); err != nil {
		return err
	}
	l.Say("%d kwok nodes are ready", c.fake.Count)
	return nil
}

// Load imports an image archive into every node.
func (l Lab) Load(ctx context.Context, name string, archives []string) error {
	c, unlock, err := l.open(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if len(c.nodes) == 0 {
		return fmt.Errorf("cluster %s has no node that could run an image", name)
	}
	for _, archive := range archives {
		if err := c.load(ctx, archive); err != nil {
			return err
		}
		l.Say("%s loaded", archive)
	}
	return nil
}

func (c *cluster) load(ctx context.Context, archive string) error {
	if _, err := os.Stat(archive); err != nil {
		return err
	}
	loads, loadCtx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		loads.Go(func() error { return n.Load(loadCtx, archive) })
	}
	return loads.Wait()
}

// Down ends the cluster and removes every trace of it. Without a cluster of that
// name it does nothing.
func (l Lab) Down(ctx context.Context, name string) error {
	dir, err := l.Root.Cluster(name)
	if err != nil {
		return err
	}
	unlock, err := l.Root.Lock(name)
	if err != nil {
		return err
	}
	defer unlock()
	record, err := dir.Load()
	if errors.Is(err, fs.ErrNotExist) {
		l.Say("there is no cluster %s", name)
		return nil
	}
	if err != nil {
		return err
	}
	if err := l.remove(ctx, dir, record); err != nil {
		return fmt.Errorf("removing cluster %s: %w", name, err)
	}
	l.Say("cluster %s is gone", name)
	return nil
}

// remove kills first and tidies up then. Nothing is asked to stop gracefully:
// whatever it would save is deleted next.
func (l Lab) remove(ctx context.Context, dir state.Cluster, record state.Record) error {
	// Half a removal is worth less than none: an interrupt does not stop it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	err := process.Group(dir.Dir).Kill(ctx, func(process.Process) bool { return true })
	if err != nil {
		return err
	}
	if record.Config.Nodes > 0 {
		cgroups, err := cgroup.Read()
		if err != nil {
			return err
		}
		if err := cgroups.Group(record.Slot.Cgroup()).Kill(ctx); err != nil {
			return err
		}
		if err := network.Remove(record.Slot); err != nil {
			return err
		}
		if err := os.RemoveAll(record.Slot.RunDir()); err != nil {
			return err
		}
	}
	return dir.Remove()
}
