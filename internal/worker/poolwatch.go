package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const (
	// settleFor is how long a file rests before it is read: an editor and the
	// kubelet both take several steps to replace one.
	settleFor = 100 * time.Millisecond
	// reread catches what notifications missed; there are none on some network
	// file systems, and a node has a limited number of them.
	reread = time.Minute
	// rereadUnnotified is for when there are none at all.
	rereadUnnotified = 2 * time.Second
)

// A PoolFile is the pool file as it was last found valid. All methods may be
// called concurrently.
type PoolFile struct {
	path       string
	agentImage string
	report     func(error)
	log        *slog.Logger
	current    atomic.Pointer[Pools]
	manager    atomic.Pointer[Manager] // that uses the file; nil until there is one
	content    []byte                  // of the last reading; only LoadPoolFile and Run use it
}

// LoadPoolFile reads the pool file, which must be valid. AgentImage is the image
// of a worker container that names none. Report is told how the file is; nil
// means well.
func LoadPoolFile(path, agentImage string, report func(error), log *slog.Logger) (*PoolFile, error) {
	f := &PoolFile{path: path, agentImage: agentImage, report: report, log: log}
	pools, err := f.read()
	if err != nil {
		return nil, err
	}
	f.current.Store(pools)
	report(nil)
	return f, nil
}

// Current returns the pools that are in force. A change of the file does not
// touch workers that exist.
func (f *PoolFile) Current() *Pools { return f.current.Load() }

func (f *PoolFile) read() (*Pools, error) {
	content, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("reading the pool file: %w", err)
	}
	f.content = content
	pools, err := ParsePools(content, f.agentImage)
	if err != nil {
		// One line, as every log line is.
		return nil, fmt.Errorf("pool file %s: %w", f.path, oneLine(err))
	}
	return pools, nil
}

// Run adopts each change of the file until ctx is done. A file that is not valid
// changes nothing.
func (f *PoolFile) Run(ctx context.Context) error {
	changes, closeWatch := f.watch(ctx)
	defer closeWatch()
	every := reread
	if changes == nil {
		every = rereadUnnotified
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	rest := time.NewTimer(settleFor) // once at first: it may have changed since it was loaded
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
			rest.Reset(settleFor)
			continue
		case <-rest.C:
		case <-ticker.C:
		}
		f.reload(ctx)
	}
}

// watch watches the file's folder: a ConfigMap is mounted as a symbolic link that
// is replaced, of which a watch on the file itself would not tell.
func (f *PoolFile) watch(ctx context.Context) (<-chan fsnotify.Event, func()) {
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		if err = watcher.Add(filepath.Dir(f.path)); err == nil {
			return watcher.Events, func() {
				if err := watcher.Close(); err != nil {
					f.log.WarnContext(ctx, "closing the watch on the pool file", "err", err)
				}
			}
		}
		err = errors.Join(err, watcher.Close())
	}
	f.log.WarnContext(ctx, "no notifications about the pool file, reading it every two seconds instead", "err", err)
	return nil, func() {}
}

// reload adopts the file if it has changed and is valid.
func (f *PoolFile) reload(ctx context.Context) {
	before := f.content
	m := f.manager.Load()
	if m == nil {
		return // nobody uses it yet, nor could have it checked
	}
	pools, err := f.read()
	same := bytes.Equal(before, f.content)
	if err == nil && same {
		f.report(nil)
		return
	}
	if err == nil {
		if refused := m.tryPools(ctx, pools); refused != nil {
			err = fmt.Errorf("pool file %s: refused by the API server: %w", f.path, oneLine(refused))
		}
	}
	switch {
	case err == nil:
		f.current.Store(pools)
		f.report(nil)
		m.capacity.signal() // there may be more places
		m.changed()
		f.log.InfoContext(ctx, "pool file adopted", "pools", strings.Join(pools.Names(), ","))
		m.metrics.poolReloads.WithLabelValues("adopted").Inc()
		m.metrics.poolRefused.Set(0)
	case same && !errors.Is(err, os.ErrNotExist):
		// said before
	default:
		// Still ready: the pools in force are as good as they were.
		f.log.ErrorContext(ctx, "pool file refused, the one before stays in force", "err", err)
		m.metrics.poolReloads.WithLabelValues("refused").Inc()
		m.metrics.poolRefused.Set(1)
		if m.self != nil {
			m.recorder.Eventf(m.self, corev1.EventTypeWarning, "PoolFileRefused", "the one before stays in force: %v", err)
		}
	}
}

// oneLine joins the problems of an errors.Join by semicolons.
func oneLine(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// CheckPools says of each pool whether the API server refuses its workers: an event
// for it will be rejected. It is for the pools that a scaler starts with; a later
// pool file is refused.
func (m *Manager) CheckPools(ctx context.Context) {
	if err := m.tryPools(ctx, m.pools.Current()); err != nil && ctx.Err() == nil {
		m.log.ErrorContext(ctx, "pools are refused by the API server: their events will be rejected", "err", oneLine(err))
	}
}

// tryPools has the API server check a worker of each pool without creating it. It
// says what ParsePools cannot know, such as what the namespace's policies forbid.
// What the API server does not say for good, such as that a quota is used up, is no
// error.
func (m *Manager) tryPools(ctx context.Context, pools *Pools) error {
	var problems []error
	for _, name := range pools.Names() {
		b, err := newBuilder(scaleevent.Event{ID: "check", TaskID: "check", Pool: name}, pools.Get(name), m.cluster.namespace, m.cluster.instance)
		if err == nil {
			err = m.cluster.dryRun(ctx, b.build(0))
		}
		switch f, _ := faultOf(err); {
		case err == nil, ctx.Err() != nil:
		case f == faultFinal:
			problems = append(problems, atPool(name, err)...)
		default:
			m.log.DebugContext(ctx, "pool could not be checked", "pool", name, "err", err)
		}
	}
	return errors.Join(problems...)
}

// atPool says where in the pool file is what the API server finds wrong with a
// worker.
func atPool(name string, err error) (all []error) {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		for _, cause := range status.Status().Details.Causes {
			if cause.Field != "" {
				all = append(all, fmt.Errorf("pools.%s.template.%s: %s", name, cause.Field, cause.Message))
			}
		}
	}
	if len(all) == 0 {
		all = append(all, fmt.Errorf("pools.%s.template: %w", name, err))
	}
	return all
}
