package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ottoscaler/ottoscaler/test/cluster/lab"
	"github.com/ottoscaler/ottoscaler/test/cluster/podimages"
	"github.com/ottoscaler/ottoscaler/test/cluster/process"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
	"github.com/ottoscaler/ottoscaler/test/cluster/toolchain"
)

// modulePath is how the source folder is recognised.
const modulePath = "module github.com/ottoscaler/ottoscaler/test/cluster"

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "Real Kubernetes clusters from source, on this machine",
		SilenceUsage:  true,
		SilenceErrors: true, // main prints it
		Args:          cobra.NoArgs,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	name := root.PersistentFlags().String("name", "ottoscaler", "name of the cluster")
	root.AddCommand(newUp(name), newDown(name), newLoad(name), newKubeconfig(name), newStatus(name), newLogs(name), newPrograms(), newPodImages())
	return root
}

func newUp(name *string) *cobra.Command {
	var nodes, kwok, slot, port int
	var gates, logSize, cidr string
	var images []string
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster, or what is missing of it",
		Args:  cobra.NoArgs,
	}
	flags := c.Flags()
	flags.IntVar(&nodes, "nodes", 1, "nodes with a kubelet; 0: control plane alone")
	flags.IntVar(&kwok, "kwok", 0, "nodes that are only pretended; without --nodes, there are no others")
	flags.StringVar(&gates, "feature-gates", "", "Name=true,... for every component")
	flags.StringVar(&logSize, "container-log-max-size", "", "size at which a container's log is rotated, such as 64Ki")
	flags.StringArrayVar(&images, "load", nil, "image archive to load; may be repeated")
	flags.IntVar(&slot, "slot", 0, "the machine's share to take, 0 to 31 (default: the first that is free)")
	flags.StringVar(&cidr, "cidr", "", "the /16 for nodes, pods and Services (default: 10.<192+slot>.0.0/16)")
	flags.IntVar(&port, "port", 0, "the first of ten ports (default: 24000+10*slot)")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		l, err := newLab()
		if err != nil {
			return err
		}
		wish := state.Wish{
			Nodes: said(cmd, "nodes", &nodes), Kwok: said(cmd, "kwok", &kwok),
			FeatureGates: said(cmd, "feature-gates", &gates), ContainerLogMaxSize: said(cmd, "container-log-max-size", &logSize),
		}
		place := lab.Place{Slot: said(cmd, "slot", &slot), CIDR: said(cmd, "cidr", &cidr), Port: said(cmd, "port", &port)}
		for i := range images {
			images[i] = fromCaller(images[i])
		}
		status, err := l.Up(cmd.Context(), *name, wish, place, images)
		if err != nil {
			return err
		}
		return describe(cmd.OutOrStdout(), status)
	}
	return c
}

func newDown(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a cluster and every trace of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := newLab()
			if err != nil {
				return err
			}
			return l.Down(cmd.Context(), *name)
		},
	}
}

func newLoad(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "load IMAGE.tar...",
		Short: "Import image archives (OCI or docker save) into every node",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, archives []string) error {
			l, err := newLab()
			if err != nil {
				return err
			}
			for i := range archives {
				archives[i] = fromCaller(archives[i])
			}
			return l.Load(cmd.Context(), *name, archives)
		},
	}
}

func newKubeconfig(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the path of the cluster's kubeconfig",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := newLab()
			if err != nil {
				return err
			}
			path, err := l.Kubeconfig(*name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
			return err
		},
	}
}

func newStatus(name *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Say how a cluster is; exit code 1 when it is not ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := newLab()
			if err != nil {
				return err
			}
			status, err := l.Status(cmd.Context(), *name)
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(status)
			} else {
				err = describe(cmd.OutOrStdout(), status)
			}
			if err == nil && !status.Ready {
				err = fmt.Errorf("cluster %s is not ready: %s", status.Name, status.Problem)
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func newLogs(name *string) *cobra.Command {
	var lines int
	c := &cobra.Command{
		Use:   "logs [COMPONENT...]",
		Short: "Print the ends of the components' logs",
		RunE: func(cmd *cobra.Command, components []string) error {
			l, err := newLab()
			if err != nil {
				return err
			}
			logs, err := l.Logs(*name)
			if err != nil {
				return err
			}
			known := slices.Sorted(maps.Keys(logs))
			if len(components) == 0 {
				components = known
			}
			for _, component := range components {
				path, ok := logs[strings.ReplaceAll(component, "/", "-")]
				if !ok {
					return fmt.Errorf("no component %q; there are %s", component, strings.Join(known, ", "))
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "==> %s\n%s\n", path, process.Tail(path, lines)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().IntVarP(&lines, "lines", "n", 20, "how many lines of each")
	return c
}

// newPrograms is for kind/images, whose nodes are made of the same programs.
func newPrograms() *cobra.Command {
	return &cobra.Command{
		Use:   "programs",
		Short: "Build the programs of a kind node and print the folder of each",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := newLab()
			if err != nil {
				return err
			}
			for _, artifact := range []toolchain.Artifact{toolchain.Kubernetes, toolchain.Containerd, toolchain.CoreDNS, toolchain.Crictl, toolchain.Pause} {
				dir, err := l.Toolchain.Ensure(cmd.Context(), artifact)
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", artifact.Name, dir); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// newPodImages is for kind/images, too.
func newPodImages() *cobra.Command {
	var root string
	c := &cobra.Command{
		Use:   "pod-images OUT.tar",
		Short: "Write the images of a kind node's system pods, named as kubeadm asks for them",
		Args:  cobra.ExactArgs(1),
	}
	c.Flags().StringVar(&root, "root", "", "root file system of the node, from which kube-proxy takes iptables (required)")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if root == "" {
			return errors.New("--root is required: the node's root file system")
		}
		l, err := newLab()
		if err != nil {
			return err
		}
		var programs podimages.Programs
		for artifact, dir := range map[*toolchain.Artifact]*string{
			&toolchain.Kubernetes: &programs.Kubernetes, &toolchain.CoreDNS: &programs.CoreDNS, &toolchain.Pause: &programs.Pause,
		} {
			if *dir, err = l.Toolchain.Ensure(cmd.Context(), *artifact); err != nil {
				return err
			}
		}
		return podimages.Write(cmd.Context(), fromCaller(args[0]), programs, fromCaller(root))
	}
	return c
}

// said returns the flag's value if the user gave it.
func said[T any](cmd *cobra.Command, flag string, value *T) *T {
	if cmd.Flags().Changed(flag) {
		return value
	}
	return nil
}

// newLab finds the source and the cache.
func newLab() (lab.Lab, error) {
	source, err := findSource()
	if err != nil {
		return lab.Lab{}, err
	}
	cache, err := findCache()
	if err != nil {
		return lab.Lab{}, err
	}
	start := time.Now()
	return lab.Lab{
		Root:      state.Root{Dir: filepath.Join(cache, "clusters")},
		Toolchain: toolchain.Toolchain{Source: source, Cache: filepath.Join(cache, "bin"), Progress: os.Stderr},
		Say: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%6.1fs %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
		},
	}, nil
}

// findCache returns the folder for programs and clusters: $OTTOSCALER_CACHE, or
// ottoscaler in the user's cache folder (which $XDG_CACHE_HOME may move).
func findCache() (string, error) {
	cache := os.Getenv("OTTOSCALER_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding the cache folder (OTTOSCALER_CACHE sets it): %w", err)
		}
		cache = filepath.Join(user, "ottoscaler")
	}
	return filepath.Abs(filepath.Join(fromCaller(cache), "cluster"))
}

// findSource returns this module's folder: the working folder, which it is under
// `go -C test/cluster run .`, or test/cluster of a folder above it.
func findSource() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		for _, candidate := range []string{dir, filepath.Join(dir, "test", "cluster")} {
			b, err := os.ReadFile(filepath.Join(candidate, "go.mod"))
			if err == nil && bytes.HasPrefix(b, []byte(modulePath+"\n")) {
				return candidate, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("run me within the repository: I build clusters from test/cluster/go.mod")
		}
	}
}

// fromCaller resolves a path against the folder that the user is in. `go -C`
// changes the working folder, but leaves PWD as it was.
func fromCaller(path string) string {
	if pwd := os.Getenv("PWD"); !filepath.IsAbs(path) && filepath.IsAbs(pwd) {
		return filepath.Join(pwd, path)
	}
	return path
}

// describe prints what a user wants to know next.
func describe(w io.Writer, s lab.Status) error {
	condition := "ready"
	if !s.Ready {
		condition = "not ready"
	}
	_, err := fmt.Fprintf(w, "cluster %s is %s: Kubernetes %s, %d nodes, %d kwok nodes\n  KUBECONFIG=%s\n  kubectl is %s\n  pods reach this machine at %s\n",
		s.Name, condition, s.Version, len(s.Nodes), s.KwokNodes, s.Kubeconfig, s.Kubectl, s.HostIP)
	return err
}
