package toolchain

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// pluginDirs are where distributions put CNI plugins.
var pluginDirs = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// packages are what a node needs of the system, and the file that shows it.
var packages = []struct{ name, program string }{
	{"runc", "runc"},
	{"containernetworking-plugins", "bridge"},
	{"iptables", "iptables"}, // for the CNI plugin portmap
	{"nftables", "nft"},      // for kube-proxy
}

// System is where to find what no Go module provides.
type System struct{ Runc, Plugins string }

// EnsureSystem installs the Debian packages that a node needs, if any is missing
// and we may; else it says which.
func (t Toolchain) EnsureSystem(ctx context.Context) (System, error) {
	missing := missingPackages()
	if len(missing) > 0 {
		if err := t.install(ctx, missing); err != nil {
			return System{}, err
		}
		if missing = missingPackages(); len(missing) > 0 {
			return System{}, fmt.Errorf("apt-get installed %s, but its programs are not on PATH", strings.Join(missing, " "))
		}
	}
	runc, _ := find("runc")
	bridge, _ := find("bridge")
	return System{Runc: runc, Plugins: filepath.Dir(bridge)}, nil
}

func missingPackages() []string {
	var missing []string
	for _, p := range packages {
		if _, ok := find(p.program); !ok {
			missing = append(missing, p.name)
		}
	}
	return missing
}

// find looks for a program on PATH and where administrators' programs and CNI
// plugins are.
func find(program string) (string, bool) {
	if program != "bridge" { // iproute2 has a program of that name, too
		if path, err := exec.LookPath(program); err == nil {
			return path, true
		}
	}
	dirs := []string{"/usr/sbin", "/sbin", "/usr/local/sbin"}
	if program == "bridge" {
		dirs = pluginDirs
	}
	for _, dir := range dirs {
		if info, err := os.Stat(filepath.Join(dir, program)); err == nil && !info.IsDir() {
			return filepath.Join(dir, program), true
		}
	}
	return "", false
}

func (t Toolchain) install(ctx context.Context, missing []string) error {
	command := "apt-get install -y --no-install-recommends " + strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("a node needs programs that are not installed; as root: %s", command)
	}
	if _, err := fmt.Fprintln(t.Progress, "installing Debian packages:", strings.Join(missing, " ")); err != nil {
		return err
	}
	for _, args := range [][]string{{"update", "-q"}, append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = io.Discard, &said
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
		}
	}
	return nil
}
