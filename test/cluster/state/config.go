package state

import (
	"errors"
	"fmt"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
)

// A Wish is what the user said of a cluster; nil is what was not said.
type Wish struct {
	Nodes, Kwok         *int
	FeatureGates        *string
	ContainerLogMaxSize *string
}

// New returns the configuration of a new cluster: one node, unless kwok's nodes
// were asked for and nothing was said about others.
func (w Wish) New() (Config, error) {
	c := Config{Nodes: 1}
	if w.Kwok != nil && *w.Kwok > 0 {
		c.Nodes = 0
	}
	w.apply(&c)
	return c, c.validate()
}

// Extend returns the configuration of a cluster that runs already, as far as
// that can be had without starting it anew: nodes may be added. What was not
// said stays as it is.
func (w Wish) Extend(old Config) (Config, error) {
	c := old
	w.apply(&c)
	var errs []error
	if c.Nodes < old.Nodes || c.Kwok < old.Kwok {
		errs = append(errs, fmt.Errorf("it has %d nodes and %d kwok nodes, and cannot lose any", old.Nodes, old.Kwok))
	}
	if old.Nodes == 0 && c.Nodes > 0 {
		errs = append(errs, errors.New("its API server listens where nodes cannot reach it"))
	}
	if c.FeatureGates != old.FeatureGates {
		errs = append(errs, fmt.Errorf("its feature gates are %q", old.FeatureGates))
	}
	if c.ContainerLogMaxSize != old.ContainerLogMaxSize {
		errs = append(errs, fmt.Errorf("its size of container logs is %q", old.ContainerLogMaxSize))
	}
	return c, errors.Join(append(errs, c.validate())...)
}

func (w Wish) apply(c *Config) {
	set(&c.Nodes, w.Nodes)
	set(&c.Kwok, w.Kwok)
	set(&c.FeatureGates, w.FeatureGates)
	set(&c.ContainerLogMaxSize, w.ContainerLogMaxSize)
}

func set[T any](field, wish *T) {
	if wish != nil {
		*field = *wish
	}
}

func (c Config) validate() error {
	if c.Nodes < 0 || c.Nodes > slot.MaxNodes || c.Kwok < 0 {
		return fmt.Errorf("%d nodes and %d kwok nodes: want 0 to %d and 0 or more", c.Nodes, c.Kwok, slot.MaxNodes)
	}
	return nil
}
