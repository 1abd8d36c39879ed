package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
)

// healthy returns a machine that lacks nothing, with one environment in its tree.
func healthy(t *testing.T) Machine {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "go.mod"), []byte("module x\n\ngo 1.26\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := environment.Ensure(root, "jinwoo", func(int) bool { return true }); err != nil {
		t.Fatal(err)
	}
	return Machine{
		Root:     root,
		LookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil },
		ReadFile: func(name string) ([]byte, error) {
			if strings.HasPrefix(name, "/proc/sys/fs/inotify/") {
				return []byte("1048576\n"), nil
			}
			return os.ReadFile(name)
		},
		Free: func(string) (uint64, error) { return 50 * gib, nil },
		Engine: func(context.Context) (EngineInfo, error) {
			return EngineInfo{ServerVersion: "28.0.0", Driver: "overlay2", CgroupVersion: "2", DockerRootDir: "/var/lib/docker", MemTotal: 16 * gib}, nil
		},
		HasImage:  func(context.Context, string) (bool, error) { return true, nil },
		PortTaken: func(context.Context, string) bool { return true },
		Running:   func(context.Context, string) bool { return true },
		Getenv:    func(string) string { return "" },
	}
}

func TestAHealthyMachineLacksNothing(t *testing.T) {
	for _, f := range healthy(t).Examine(t.Context()) {
		if f.State != OK || f.Remedy != "" {
			t.Errorf("%s: %s, %s (%s)", f.What, f.State, f.Seen, f.Remedy)
		}
	}
}

func TestEveryLackIsFoundWithItsRemedy(t *testing.T) {
	for name, row := range map[string]struct {
		spoil        func(*Machine)
		what, remedy string
		state        State
	}{
		"no engine": {
			func(m *Machine) {
				m.Engine = func(context.Context) (EngineInfo, error) {
					return EngineInfo{}, errors.New("no Docker engine answers: start it")
				}
			}, "Docker engine", "start it", Missing,
		},
		"rootless on cgroup 1": {
			func(m *Machine) {
				m.Engine = func(context.Context) (EngineInfo, error) {
					return EngineInfo{CgroupVersion: "1", MemTotal: 16 * gib, SecurityOptions: []string{"name=rootless"}}, nil
				}
			}, "Docker engine", "engine that runs as root", Missing,
		},
		"little memory": {
			func(m *Machine) {
				m.Engine = func(context.Context) (EngineInfo, error) { return EngineInfo{MemTotal: 3 * gib}, nil }
			}, "memory of Docker", "more memory", Warning,
		},
		"a full disk":        {func(m *Machine) { m.Free = func(string) (uint64, error) { return gib, nil } }, "disk of Docker", "docker system prune", Missing},
		"a nearly full disk": {func(m *Machine) { m.Free = func(string) (uint64, error) { return 5 * gib, nil } }, "disk of the source tree", "go clean -cache", Warning},
		"few inotify instances": {
			func(m *Machine) {
				read := m.ReadFile
				m.ReadFile = func(name string) ([]byte, error) {
					if strings.HasSuffix(name, "max_user_instances") {
						return []byte("128\n"), nil
					}
					return read(name)
				}
			}, "inotify instances", "sudo sysctl -w fs.inotify.max_user_instances=512", Warning,
		},
		"a port that is taken": {
			func(m *Machine) { m.Running = func(context.Context, string) bool { return false } }, "Redis of jinwoo", "REDIS_PORT", Missing,
		},
		"a Redis that does not run": {
			func(m *Machine) {
				m.Running = func(context.Context, string) bool { return false }
				m.PortTaken = func(context.Context, string) bool { return false }
			}, "Redis of jinwoo", "make setup-user USER=jinwoo", Warning,
		},
		"not a source tree": {func(m *Machine) { m.Root = "/nowhere" }, "Go", "source tree", Missing},
	} {
		t.Run(name, func(t *testing.T) {
			m := healthy(t)
			row.spoil(&m)
			for _, f := range m.Examine(t.Context()) {
				if f.What != row.what {
					continue
				}
				if f.State != row.state || !strings.Contains(f.Remedy, row.remedy) {
					t.Errorf("got %s, %q, remedy %q; want %s and %q", f.State, f.Seen, f.Remedy, row.state, row.remedy)
				}
				return
			}
			t.Errorf("nothing is said of %s", row.what)
		})
	}
}

func TestWhatIsNotOnThisMachineIsNotJudged(t *testing.T) {
	m := healthy(t)
	m.ReadFile = func(name string) ([]byte, error) { // as on macOS
		if strings.HasPrefix(name, "/proc/") {
			return nil, os.ErrNotExist
		}
		return os.ReadFile(name)
	}
	m.Free = func(string) (uint64, error) { return 0, os.ErrNotExist }
	m.LookPath = func(string) (string, error) { return "", errors.New("not found") }
	m.HasImage = func(context.Context, string) (bool, error) { return false, nil }
	for _, f := range m.Examine(t.Context()) {
		if f.State != OK {
			t.Errorf("%s: %s, %s", f.What, f.State, f.Seen)
		}
	}
}

func TestPrintTellsWhetherSomethingIsMissing(t *testing.T) {
	for _, row := range []struct {
		state State
		want  bool
	}{{OK, true}, {Warning, true}, {Missing, false}} {
		var out strings.Builder
		healthy, err := Print(&out, []Finding{{"x", OK, "fine", ""}, {"y", row.state, "odd", "mend it"}})
		if err != nil || healthy != row.want {
			t.Errorf("%s: got %t, %v", row.state, healthy, err)
		}
		if strings.Contains(out.String(), "mend it") != (row.state != OK) {
			t.Errorf("%s: the remedy:\n%s", row.state, out.String())
		}
	}
}

// What docker says decides what is advised; these are its own words.
func TestWhatDockerSaysBecomesARemedyOfOneLine(t *testing.T) {
	for said, want := range map[string]string{
		"Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?":    "kind/engine up",
		"permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock": "group docker",
		"error during connect: dial tcp 127.0.0.1:2375: connect: connection refused":                           "start Docker",
		// Docker 29
		"failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct and if the daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory": "start Docker",
		"something nobody has seen before": "something nobody has seen before",
	} {
		err := explain(errors.New("docker version: exit status 1: " + said))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want one line with %q", said, err, want)
		}
	}
	if err := explain(nil); err != nil {
		t.Errorf("an engine that answers: %v", err)
	}
}

func TestWithoutTheCommandEngineSaysWhatToInstall(t *testing.T) {
	t.Setenv("DOCKER", "/no/such/docker")
	if docker.Program() != "/no/such/docker" {
		t.Fatal("DOCKER does not choose the command")
	}
	if err := Engine(t.Context()); err == nil || !strings.Contains(err.Error(), "kind/engine up") {
		t.Errorf("got %v, want the remedy", err)
	}
}
