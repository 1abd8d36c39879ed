// Package docker speaks to a Docker engine through its command line.
//
// The command, not the API, because that is where a developer has said which
// engine is meant: contexts, DOCKER_HOST, a stand-in such as Podman. kind does
// the same.
package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// ErrNotFound says that the engine has no object of a name.
var ErrNotFound = errors.New("no such object")

// Program returns the docker command: $DOCKER, or docker.
func Program() string {
	if program := os.Getenv("DOCKER"); program != "" {
		return program
	}
	return "docker"
}

// Run runs a docker command and returns what it prints. The error has the last
// line of what it complains about.
func Run(ctx context.Context, args ...string) (string, error) { return RunWith(ctx, nil, args...) }

// RunWith is [Run] with an input.
func RunWith(ctx context.Context, in io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, Program(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		said := strings.TrimSpace(stderr.String())
		if i := strings.LastIndexByte(said, '\n'); i >= 0 {
			said = said[i+1:]
		}
		if said == "" {
			return "", fmt.Errorf("docker %s: %w", args[0], err)
		}
		if missing(said) {
			err = ErrNotFound
		}
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, said)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// missing tells whether docker complains about an object that is not there. Its
// exit code is 1 for everything, so the text is all there is.
func missing(said string) bool {
	said = strings.ToLower(said)
	if strings.Contains(said, "no such file or directory") { // the engine's socket, or a program
		return false
	}
	return strings.Contains(said, "no such") || strings.Contains(said, "not found")
}

// A Container is what [InspectContainer] tells.
type Container struct {
	// ID is the container's full ID.
	ID string
	// State tells whether it runs.
	State struct {
		Running bool
		Status  string
	}
	// Config is what it was made from.
	Config struct {
		Image  string
		Labels map[string]string
	}
	// NetworkSettings are the addresses it has, by network.
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
		Ports    map[string][]struct{ HostIP, HostPort string }
	}
}

// InspectContainer describes a container, or returns [ErrNotFound].
func InspectContainer(ctx context.Context, name string) (Container, error) {
	return inspect[Container](ctx, "container", name)
}

// A Network is what [InspectNetwork] tells.
type Network struct {
	// Name of the network.
	Name string
	// Labels that it was made with.
	Labels map[string]string
	// IPAM has the network's addresses.
	IPAM struct {
		Config []struct{ Subnet, Gateway string }
	}
}

// Gateway returns the IPv4 address at which the network's containers reach this
// machine, or "".
func (n Network) Gateway() string {
	for _, c := range n.IPAM.Config {
		if c.Gateway != "" && !strings.Contains(c.Gateway, ":") {
			return c.Gateway
		}
	}
	return ""
}

// InspectNetwork describes a network, or returns [ErrNotFound].
func InspectNetwork(ctx context.Context, name string) (Network, error) {
	return inspect[Network](ctx, "network", name)
}

func inspect[T any](ctx context.Context, kind, name string) (T, error) {
	var zero T
	out, err := Run(ctx, kind, "inspect", name)
	if err != nil {
		return zero, err
	}
	var found []T
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found) != 1 {
		return zero, fmt.Errorf("reading what docker tells about %s %s: %w", kind, name, err)
	}
	return found[0], nil
}

// HasImage tells whether the engine has an image.
func HasImage(ctx context.Context, name string) (bool, error) {
	_, err := Run(ctx, "image", "inspect", "--format", "{{.Id}}", name)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// LocalImage returns the newest image of a repository that the engine has, or "".
func LocalImage(ctx context.Context, repository string) (string, error) {
	out, err := Run(ctx, "image", "ls", "--filter", "reference="+repository, "--format", "{{.Repository}}:{{.Tag}}")
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(out, "\n")
	return first, nil
}

// List returns the names of the containers, networks or volumes ("container",
// "network", "volume") that have a label.
func List(ctx context.Context, kind, label string) ([]string, error) {
	args := []string{kind, "ls", "--filter", "label=" + label}
	if kind == "container" {
		args = append(args, "--all", "--format", "{{.Names}}")
	} else {
		args = append(args, "--format", "{{.Name}}")
	}
	out, err := Run(ctx, args...)
	if err != nil {
		return nil, err
	}
	names := strings.Fields(out)
	slices.Sort(names)
	return names, nil
}

// CopyTo writes a file into a container, which need not run: a way for secrets
// that leaves no trace in the container's settings or on a command line.
func CopyTo(ctx context.Context, container, path string, content []byte) error {
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	header := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Mode: 0o644, Size: int64(len(content))}
	if err := tw.WriteHeader(header); err != nil {
		return fmt.Errorf("packing %s: %w", path, err)
	}
	if _, err := tw.Write(content); err != nil {
		return fmt.Errorf("packing %s: %w", path, err)
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("packing %s: %w", path, err)
	}
	if _, err := RunWith(ctx, &archive, "cp", "-", container+":/"); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// LabelFormat returns the --format by which inspect prints a label of a container,
// network or volume.
func LabelFormat(kind, label string) string {
	if kind == "container" {
		return fmt.Sprintf("{{index .Config.Labels %q}}", label)
	}
	return fmt.Sprintf("{{index .Labels %q}}", label)
}
