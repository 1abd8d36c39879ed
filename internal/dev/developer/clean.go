package developer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/doctor"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
)

// Clean removes everything of an environment and nothing else. It does not ask the
// cluster about anything, so no finalizer can hold it up: the cluster goes as a
// whole.
func (w *Workplace) Clean(ctx context.Context, slug string) error {
	if err := doctor.Engine(ctx); err != nil {
		return err
	}
	e, err := environment.Named(w.Root, slug)
	if err != nil {
		return err
	}
	network, err := docker.InspectNetwork(ctx, e.Network())
	if err != nil && !errors.Is(err, docker.ErrNotFound) {
		return err
	}
	if err == nil {
		if err := w.own(e, "network", e.Network(), network.Labels); err != nil {
			return err
		}
		// A cluster is ours if it is on our network; without one it is not there.
		if err := w.steps.do("cluster "+e.Vars[environment.KindCluster], func() (string, error) {
			return "removed", cluster.Remove(ctx, w.clusterOptions(e))
		}); err != nil {
			return err
		}
	}
	for _, kind := range []string{"container", "volume", "network"} {
		names, err := w.labelled(ctx, kind, labelUser+"="+slug)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := w.steps.do(kind+" "+name, func() (string, error) {
				_, err := docker.Run(ctx, map[string][]string{
					"container": {"container", "rm", "--force", "--volumes", name},
					"volume":    {"volume", "rm", "--force", name},
					"network":   {"network", "rm", name},
				}[kind]...)
				return "removed", err
			}); err != nil {
				return err
			}
		}
	}
	return w.steps.do("files", func() (string, error) { return w.removeFiles(ctx, e) })
}

// labelled lists what has a label and was made in this checkout.
func (w *Workplace) labelled(ctx context.Context, kind, label string) ([]string, error) {
	ours, err := docker.List(ctx, kind, labelCheckout+"="+w.Root)
	if err != nil {
		return nil, err
	}
	names, err := docker.List(ctx, kind, label)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(ours, name) }), nil
}

// removeFiles removes the files of an environment; the environment file last, as
// it is the record of the rest. A values file that git knows stays; the kubeconfig
// went with the cluster, unless its user put other clusters into it.
func (w *Workplace) removeFiles(ctx context.Context, e *environment.Environment) (string, error) {
	var files []string
	tracked := exec.CommandContext(ctx, "git", "-C", w.Root, "ls-files", "--error-unmatch", e.ValuesFile()).Run() == nil
	if !tracked {
		files = append(files, e.ValuesFile())
	}
	var removed []string
	for _, file := range append(files, e.File()) {
		switch err := os.Remove(file); {
		case err == nil:
			removed = append(removed, filepath.Base(file))
		case !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("removing the files: %w", err)
		}
	}
	if len(removed) == 0 {
		return "none were left", nil
	}
	return "removed " + strings.Join(removed, ", "), nil
}

// Leftovers returns the slugs of all users of whom this checkout has anything:
// files, or what the engine still holds of them.
func (w *Workplace) Leftovers(ctx context.Context) ([]string, error) {
	users := map[string]bool{}
	list, err := environment.List(w.Root)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		users[e.Slug] = true
	}
	kinds := []string{"container", "volume", "network"}
	if doctor.Engine(ctx) != nil {
		kinds = nil // an engine that does not answer shows nothing; Clean says why
	}
	for _, kind := range kinds {
		names, err := docker.List(ctx, kind, labelCheckout+"="+w.Root)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			user, err := docker.Run(ctx, kind, "inspect", "--format", docker.LabelFormat(kind, labelUser), name)
			if err != nil && !errors.Is(err, docker.ErrNotFound) {
				return nil, err
			}
			if user != "" {
				users[user] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(users)), nil
}
