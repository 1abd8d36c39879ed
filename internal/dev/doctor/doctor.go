// Package doctor looks whether a machine has what developers' environments need,
// and says for each thing that it lacks what to do.
package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/mod/modfile"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
)

// A State says how a thing is.
type State string

// States of a [Finding].
const (
	OK      State = "ok"
	Warning State = "warn"
	Missing State = "MISSING"
)

// A Finding is what was seen of one thing.
type Finding struct {
	// What was looked at, how it is, and what was seen.
	What  string
	State State
	Seen  string
	// Remedy says what to do, unless all is well.
	Remedy string
}

// A Machine answers the doctor's questions. [Here] is the one that we run on.
type Machine struct {
	// Root is the top of the source tree.
	Root string
	// LookPath finds a program, as [exec.LookPath].
	LookPath func(name string) (string, error)
	// ReadFile reads a file, as [os.ReadFile].
	ReadFile func(name string) ([]byte, error)
	// Free returns the bytes that are free where a path lies.
	Free func(path string) (uint64, error)
	// Engine asks the Docker engine; its error is [Engine]'s.
	Engine func(ctx context.Context) (EngineInfo, error)
	// HasImage tells whether the engine has an image of a name or a repository.
	HasImage func(ctx context.Context, name string) (bool, error)
	// PortTaken tells whether something listens on a port of loopback.
	PortTaken func(ctx context.Context, port string) bool
	// Running tells whether a container runs.
	Running func(ctx context.Context, container string) bool
	// Getenv reads a variable, as [os.Getenv].
	Getenv func(name string) string
}

// EngineInfo is what `docker info` tells.
type EngineInfo struct {
	// ServerVersion, Driver (of storage) and CgroupVersion of the engine.
	ServerVersion, Driver, CgroupVersion string
	// DockerRootDir is where its images and containers are.
	DockerRootDir string
	// MemTotal is the memory that containers can have, in bytes.
	MemTotal uint64
	// SecurityOptions tell, among others, whether it is rootless.
	SecurityOptions []string
}

// Here returns this machine.
func Here(root string) Machine {
	return Machine{
		Root: root, LookPath: exec.LookPath, ReadFile: os.ReadFile, Free: free, Engine: engineInfo,
		HasImage: hasImage, PortTaken: portTaken, Running: running, Getenv: os.Getenv,
	}
}

const (
	gib = 1 << 30
	// A kind cluster takes half a GiB of memory and its image half a GiB of disk;
	// the images and the build cache take the rest.
	enoughMemory, leastMemory = 4 * gib, 2 * gib
	enoughDisk, leastDisk     = 10 * gib, 3 * gib
	// Of kind's page of known issues ("too many open files").
	enoughInstances, enoughWatches = 512, 524288
)

// Examine looks at everything that environments need.
func (m Machine) Examine(ctx context.Context) []Finding {
	engine, err := m.Engine(ctx)
	findings := []Finding{m.goVersion()}
	if err != nil {
		findings = append(findings, Finding{"Docker engine", Missing, "none answers", err.Error()})
	} else {
		findings = append(findings, engineFinding(engine), memory(engine), m.images(ctx))
		findings = append(findings, m.disk("disk of Docker", engine.DockerRootDir, "docker system prune frees what no container uses"))
	}
	findings = append(findings, m.disk("disk of the source tree", m.Root, "make clean, go clean -cache"))
	for _, tool := range []struct{ name, otherwise string }{
		{"kind", "the pinned one of tools/kind is used in any case"},
		{"kubectl", "make kubectl USER=<name> ARGS=… compiles the pinned one of tools/kubectl"},
		{"helm", "make deploy has Helm built in; go tool -modfile=tools/helm/go.mod helm is the pinned command"},
	} {
		findings = append(findings, m.tool(tool.name, tool.otherwise))
	}
	findings = append(findings,
		m.limit("inotify instances", "fs.inotify.max_user_instances", enoughInstances),
		m.limit("inotify watches", "fs.inotify.max_user_watches", enoughWatches),
	)
	return append(findings, m.ports(ctx)...)
}

// Print writes findings as a table and tells whether nothing is missing.
func Print(out io.Writer, findings []Finding) (healthy bool, err error) {
	healthy = true
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.State, f.What, f.Seen)
		if f.State != OK {
			fmt.Fprintf(table, "\t\t→ %s\n", f.Remedy)
		}
		healthy = healthy && f.State != Missing
	}
	if err := table.Flush(); err != nil {
		return false, fmt.Errorf("printing the findings: %w", err)
	}
	return healthy, nil
}

// goVersion compares the Go that runs this with what go.mod asks for.
func (m Machine) goVersion() Finding {
	f := Finding{What: "Go", State: OK, Seen: runtime.Version()}
	content, err := m.ReadFile(filepath.Join(m.Root, "go.mod"))
	if err != nil {
		return Finding{"Go", Missing, err.Error(), "run this in the source tree"}
	}
	if mod, err := modfile.ParseLax("go.mod", content, nil); err == nil && mod.Go != nil {
		f.Seen += ", go.mod asks for " + mod.Go.Version
	}
	return f
}

func engineFinding(info EngineInfo) Finding {
	f := Finding{"Docker engine", OK, fmt.Sprintf("%s, storage %s, cgroup %s", info.ServerVersion, info.Driver, info.CgroupVersion), ""}
	for _, option := range info.SecurityOptions {
		if strings.Contains(option, "rootless") {
			f.Seen += ", rootless"
			if info.CgroupVersion != "2" {
				f.State, f.Remedy = Missing, "kind needs cgroup 2 with a rootless engine: use an engine that runs as root"
			}
		}
	}
	return f
}

func memory(info EngineInfo) Finding {
	return graded("memory of Docker", info.MemTotal, leastMemory, enoughMemory, "give the engine more memory, or set up fewer environments at once")
}

func (m Machine) disk(what, path, remedy string) Finding {
	available, err := m.Free(path)
	if err != nil {
		return Finding{what, OK, "not looked at: it is not on this machine", ""} // an engine in a virtual machine
	}
	return graded(what, available, leastDisk, enoughDisk, remedy)
}

// graded judges an amount of bytes.
func graded(what string, have, least, enough uint64, remedy string) Finding {
	f := Finding{What: what, State: OK, Seen: fmt.Sprintf("%.1f GiB", float64(have)/gib)}
	switch {
	case have < least:
		f.State = Missing
	case have < enough:
		f.State = Warning
	default:
		return f
	}
	f.Remedy = fmt.Sprintf("%d GiB are advisable: %s", enough/gib, remedy)
	return f
}

func (m Machine) tool(name, otherwise string) Finding {
	if path, err := m.LookPath(name); err == nil {
		return Finding{name, OK, path, ""}
	}
	return Finding{name, OK, "not on PATH: " + otherwise, ""}
}

// limit judges a kernel setting that kind's nodes share.
func (m Machine) limit(what, setting string, enough int) Finding {
	content, err := m.ReadFile("/proc/sys/" + strings.ReplaceAll(setting, ".", "/"))
	if err != nil {
		return Finding{what, OK, "not looked at: this machine has no such limit", ""}
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || have < enough {
		return Finding{
			what, Warning, fmt.Sprintf("%s = %s", setting, strings.TrimSpace(string(content))),
			fmt.Sprintf("several clusters may end in \"too many open files\": sudo sysctl -w %s=%d", setting, enough),
		}
	}
	return Finding{what, OK, fmt.Sprintf("%s = %d", setting, have), ""}
}

// images looks whether set-up will find its images, or has to pull them.
func (m Machine) images(ctx context.Context) Finding {
	var seen []string
	for _, image := range []struct{ variable, local string }{
		{"KIND_NODE_IMAGE", cluster.LocalNodeImage}, {"REDIS_IMAGE", environment.LocalRedisImage},
	} {
		if name := m.Getenv(image.variable); name != "" {
			has, err := m.HasImage(ctx, name)
			seen = append(seen, fmt.Sprintf("%s=%s (%s)", image.variable, name, map[bool]string{true: "there", false: "will be pulled"}[has && err == nil]))
			continue
		}
		if has, err := m.HasImage(ctx, image.local); err == nil && has {
			seen = append(seen, image.local+" is there")
			continue
		}
		seen = append(seen, image.variable+" is not set: the default will be pulled (kind/images makes one without a registry)")
	}
	return Finding{"images", OK, strings.Join(seen, "; "), ""}
}

// ports looks whether the environments' ports are theirs.
func (m Machine) ports(ctx context.Context) []Finding {
	list, err := environment.List(m.Root)
	if err != nil {
		return []Finding{{"environments", Missing, err.Error(), "mend the file, or remove it and run make setup-user"}}
	}
	var findings []Finding
	for _, e := range list {
		f := Finding{What: "Redis of " + e.User(), State: OK, Seen: e.RedisAddr()}
		taken, running := m.PortTaken(ctx, e.Vars[environment.RedisPort]), m.Running(ctx, e.RedisContainer())
		switch {
		case running:
			f.Seen += " is " + e.RedisContainer()
		case taken:
			f.State, f.Seen = Missing, f.Seen+" is taken by something else"
			f.Remedy = fmt.Sprintf("stop it, or take the line %s out of %s and run make setup-user USER=%s", environment.RedisPort, filepath.Base(e.File()), e.User())
		default:
			f.State, f.Seen = Warning, e.RedisContainer()+" does not run"
			f.Remedy = "make setup-user USER=" + e.User()
		}
		findings = append(findings, f)
	}
	return findings
}

func hasImage(ctx context.Context, name string) (bool, error) {
	out, err := docker.Run(ctx, "image", "ls", "--quiet", "--filter", "reference="+name)
	return out != "", err
}
