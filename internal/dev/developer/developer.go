// Package developer does what the developers of the platform do every day with
// environments of their own: set one up, deploy to it, look at it, remove it.
//
// Everything converges: what is there is kept, what is missing is made, so that
// each command may be interrupted and run again. What it stands on, and what a
// crash in between leaves, is told by the environment file and by labels in the
// Docker engine; see package environment.
package developer

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
)

// A Workplace is a checkout of the source tree in which somebody works.
type Workplace struct {
	// Root is the top of the tree.
	Root string

	steps *steps
}

// New returns the workplace of a source tree. What is done is told to out.
func New(root string, out io.Writer) *Workplace { return &Workplace{Root: root, steps: newSteps(out)} }

// relative shortens a path of the tree for people.
func (w *Workplace) relative(path string) string {
	if short, err := filepath.Rel(w.Root, path); err == nil && filepath.IsLocal(short) {
		return short
	}
	return path
}

// Client returns a client of the user's cluster, which is never the one that
// their own kubeconfig points to.
func (w *Workplace) Client(e *environment.Environment) (kubernetes.Interface, error) {
	file := e.Vars[environment.Kubeconfig]
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("%w (no file %s): make setup-user USER=%s", errNoCluster, w.relative(file), e.User())
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", file, err)
	}
	cfg.QPS = -1
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to the cluster: %w", err)
	}
	return client, nil
}
