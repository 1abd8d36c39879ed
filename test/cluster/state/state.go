// Package state keeps what is known about clusters between two commands.
//
// A cluster's folder holds its [Record], certificates, configuration, logs and
// data. The record is written before anything is taken from the machine, so a
// crash at any point leaves a cluster that `down` can find and remove. Whether
// something runs is never recorded: that is read from the machine.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
)

// A Config is what the user asked of a cluster.
type Config struct {
	// Nodes is how many nodes run a kubelet.
	Nodes int `json:"nodes"`
	// Kwok is how many nodes are only pretended, by kwok.
	Kwok int `json:"kwok"`
	// FeatureGates are "Name=true,…", for every component.
	FeatureGates string `json:"feature_gates,omitempty"`
	// ContainerLogMaxSize is the size at which the kubelet rotates a container's log.
	ContainerLogMaxSize string `json:"container_log_max_size,omitempty"`
}

// A Record is what is remembered of a cluster.
type Record struct {
	Name   string    `json:"name"`
	Slot   slot.Slot `json:"slot"`
	Config Config    `json:"config"`
	// BootID is the machine's boot that the cluster was started in. After a
	// reboot its data is of no use: etcd runs without fsync.
	BootID string `json:"boot_id"`
	// Programs are what the cluster runs until it ends, even when newer ones
	// were built since.
	Programs Programs `json:"programs"`
}

// Programs are folders of programs; those that the cluster does not need are "".
type Programs struct {
	Kubernetes string `json:"kubernetes,omitempty"`
	Containerd string `json:"containerd,omitempty"`
	Pause      string `json:"pause,omitempty"`
	Kwok       string `json:"kwok,omitempty"`
}

// A Root holds the folders of all clusters of one user.
type Root struct{ Dir string }

// A Cluster is the folder of one of them.
type Cluster struct{ Dir string }

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// Cluster returns the folder of the cluster of that name, which need not exist.
func (r Root) Cluster(name string) (Cluster, error) {
	if !validName.MatchString(name) {
		return Cluster{}, fmt.Errorf("cluster name %q: want up to 40 lower-case letters, digits and dashes", name)
	}
	return Cluster{Dir: filepath.Join(r.Dir, name)}, nil
}

// Records lists the clusters that there are.
func (r Root) Records() ([]Record, error) {
	entries, err := os.ReadDir(r.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var records []Record
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		record, err := Cluster{Dir: filepath.Join(r.Dir, e.Name())}.Load()
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			records = append(records, record)
		}
	}
	return records, nil
}

// Lock waits until no other command works on that name, and returns how to let
// others in. The file stays: removing a lock file would let two hold it.
func (r Root) Lock(name string) (unlock func(), err error) {
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return nil, err
	}
	return Lock(filepath.Join(r.Dir, name+".lock"))
}

// Lock waits for the exclusive use of the file, which it creates.
func Lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return func() {
		_ = f.Close() // closing is unlocking; nothing was written
	}, nil
}

// Load reads the record; [fs.ErrNotExist] says that there is no such cluster.
func (c Cluster) Load() (Record, error) {
	var r Record
	b, err := os.ReadFile(c.recordFile())
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("reading %s: %w", c.recordFile(), err)
	}
	return r, nil
}

// Save writes the record, all of it or nothing.
func (c Cluster) Save(r Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	return WriteFile(c.recordFile(), append(b, '\n'), 0o644)
}

// Remove deletes the folder and all in it.
func (c Cluster) Remove() error { return os.RemoveAll(c.Dir) }

// Path returns the path of something in the folder.
func (c Cluster) Path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (c Cluster) Kubeconfig() string { return c.Path("kubeconfig") }

// Log is the path of a component's log; a node's component is "n1/kubelet".
func (c Cluster) Log(component string) string {
	return c.Path("logs", strings.ReplaceAll(component, "/", "-")+".log")
}

func (c Cluster) recordFile() string { return c.Path("cluster.json") }

// WriteFile replaces a file as a whole, so that a crash leaves the old one or
// the new one, never half of it.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// BootID identifies the machine's current boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
