package developer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
)

// Labels of what is made in the engine. Two checkouts on one machine share the
// engine; what is made in one is not touched from the other.
const (
	labelUser     = "ottoscaler.dev/user"
	labelCheckout = "ottoscaler.dev/checkout"
	labelSettings = "ottoscaler.dev/settings"
)

// A container is what should run beside the user's cluster.
type container struct {
	name, image string
	imageForced bool // one that was made from another image is made again
	publish     string
	volume      string // name:path
	files       map[string][]byte
	command     []string
}

// settings identify what a container is made from, its image apart.
func (c container) settings() string {
	h := sha256.New()
	h.Write(fmt.Appendln(nil, c.publish, c.volume, c.command)) // a hash's Write returns no error
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		h.Write(fmt.Appendf(nil, "%s %d ", path, len(c.files[path])))
		h.Write(c.files[path])
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// labels are on everything of an environment.
func (w *Workplace) labels(e *environment.Environment) map[string]string {
	return map[string]string{labelUser: e.Slug, labelCheckout: w.Root}
}

func labelArgs(labels map[string]string) []string {
	var args []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		args = append(args, "--label", name+"="+labels[name])
	}
	return args
}

// own refuses what is there under our name, but not ours.
func (w *Workplace) own(e *environment.Environment, kind, name string, labels map[string]string) error {
	if labels[labelUser] == e.Slug && labels[labelCheckout] == w.Root {
		return nil
	}
	if checkout := labels[labelCheckout]; checkout != "" {
		return fmt.Errorf("%s %s is that of user %s in the checkout %s: take another name, or run make clean USER=%s there",
			kind, name, labels[labelUser], checkout, labels[labelUser])
	}
	return fmt.Errorf("%s %s is there already, and Ottoscaler has not made it: remove it (docker %s rm %s), or take another USER", kind, name, kind, name)
}

// ensureNetwork makes the user's network. kind would put every cluster on one.
func (w *Workplace) ensureNetwork(ctx context.Context, e *environment.Environment) (string, error) {
	network, err := docker.InspectNetwork(ctx, e.Network())
	if err == nil {
		return "kept", w.own(e, "network", e.Network(), network.Labels)
	}
	if !errors.Is(err, docker.ErrNotFound) {
		return "", err
	}
	args := append([]string{"network", "create", "--driver", "bridge"}, labelArgs(w.labels(e))...)
	if _, err := docker.Run(ctx, append(args, e.Network())...); err != nil {
		return "", fmt.Errorf("making the network: %w", err)
	}
	return "made", nil
}

// ensureContainer makes a container run as it should: one that is there is kept,
// or started, or made again if its settings are others. Its volume stays.
func (w *Workplace) ensureContainer(ctx context.Context, e *environment.Environment, want container) (did string, err error) {
	did = "made"
	have, err := docker.InspectContainer(ctx, want.name)
	switch {
	case errors.Is(err, docker.ErrNotFound):
	case err != nil:
		return "", err
	default:
		if err := w.own(e, "container", want.name, have.Config.Labels); err != nil {
			return "", err
		}
		if have.Config.Labels[labelSettings] == want.settings() && (!want.imageForced || have.Config.Image == want.image) {
			if have.State.Running {
				return "kept", nil
			}
			return "started", w.start(ctx, want)
		}
		if _, err := docker.Run(ctx, "rm", "--force", want.name); err != nil {
			return "", err
		}
		did = "made again, with new settings"
	}
	args := []string{"create", "--name", want.name, "--network", e.Network(), "--restart", "unless-stopped"}
	labels := w.labels(e)
	if want.volume != "" {
		volume, _, _ := strings.Cut(want.volume, ":")
		create := append([]string{"volume", "create"}, labelArgs(labels)...)
		if _, err := docker.Run(ctx, append(create, volume)...); err != nil {
			return "", err
		}
		args = append(args, "--volume", want.volume)
	}
	labels[labelSettings] = want.settings()
	args = append(args, labelArgs(labels)...)
	if want.publish != "" {
		args = append(args, "--publish", want.publish)
	}
	args = append(append(args, want.image), want.command...)
	if _, err := docker.Run(ctx, args...); err != nil {
		return "", err
	}
	return did, w.start(ctx, want)
}

func (w *Workplace) start(ctx context.Context, c container) error {
	for path, content := range c.files {
		if err := docker.CopyTo(ctx, c.name, path, content); err != nil {
			return err
		}
	}
	if _, err := docker.Run(ctx, "start", c.name); err != nil {
		if strings.Contains(err.Error(), "allocated") || strings.Contains(err.Error(), "in use") {
			return fmt.Errorf("%w (something else listens there: stop it, or take its line out of the environment file and run this again)", err)
		}
		return err
	}
	return nil
}

// ensureImage has the engine pull an image that it does not have.
func (w *Workplace) ensureImage(ctx context.Context, name, variable string) error {
	if has, err := docker.HasImage(ctx, name); err != nil || has {
		return err
	}
	if _, err := docker.Run(ctx, "pull", "--quiet", name); err != nil {
		return fmt.Errorf("%w: set %s to an image that can be had; without a registry, kind/images makes one (kind/README.md)", err, variable)
	}
	return nil
}

// redisConfig is the configuration of a user's Redis: it remembers through a
// crash, and asks for a password. It is copied into the container, where neither
// docker inspect nor ps shows it.
func redisConfig(password string) []byte {
	var config bytes.Buffer
	for _, line := range []string{
		"port 6379",
		"requirepass " + password,
		"protected-mode no", // every client is on another host; there is a password
		"dir /data",
		"appendonly yes",
		"appendfsync everysec",
		`save ""`,
		"maxmemory-policy noeviction", // an evicted event would be a lost one
	} {
		config.WriteString(line + "\n")
	}
	return config.Bytes()
}
