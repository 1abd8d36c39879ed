package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
	"github.com/ottoscaler/ottoscaler/internal/dev/image"
)

// Binaries of the main pod, in the order of the data's way.
const (
	Consumer = "consumer"
	Scaler   = "scaler"
	LogRelay = "log-relay"
)

// Processes runs the main pod's three programs on this machine, so that one of
// them can be killed at a chosen moment and started again.
type Processes struct {
	lab     *Lab
	bin     string
	dir     string
	env     map[string][]string
	health  map[string]string
	running map[string]*exec.Cmd
}

// ImageTag is that of what LoadImages makes, as values-jinwoo.yaml has it.
const ImageTag = "dev"

// AgentImage is the name of the sample agent's image.
func AgentImage() string { return image.Agent.Name + ":" + ImageTag }

// poolFile is the pool file that the processes' scaler reads.
const poolFile = `pools:
  default:
    overrides:
      env: ["AGENT_*"]
    template:
      spec:
        containers:
          - name: agent
            env:
              - {name: AGENT_LINES, value: "0"}
              - {name: AGENT_RATE, value: "10"}
`

// Processes builds the binaries and prepares their environment; it starts none.
// Their logs go to files in a temporary folder.
func (l *Lab) Processes(ctx context.Context, namespace, logServer string) (*Processes, error) {
	bin, err := l.Build(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ottoscaler-"+namespace+"-")
	if err != nil {
		return nil, fmt.Errorf("preparing the processes: %w", err)
	}
	pools := filepath.Join(dir, "pools.yaml")
	if err := os.WriteFile(pools, []byte(poolFile), 0o644); err != nil {
		return nil, fmt.Errorf("preparing the processes: %w", err)
	}
	var addrs [4]string
	for i := range addrs {
		if addrs[i], err = freeAddr(ctx); err != nil {
			return nil, err
		}
	}
	shared := []string{"QUEUE_ADDR=" + addrs[0], "NAMESPACE=" + namespace, "KUBECONFIG=" + l.Cluster.Kubeconfig, "LOG_FORMAT=json"}
	return &Processes{
		lab: l, bin: bin, dir: dir, running: map[string]*exec.Cmd{},
		health: map[string]string{Consumer: addrs[1], Scaler: addrs[2], LogRelay: addrs[3]},
		env: map[string][]string{
			Consumer: append(shared, "HEALTH_ADDR="+addrs[1], "REDIS_CONSUMER="+namespace,
				"REDIS_HOST="+l.Redis.Host, "REDIS_PORT="+strconv.Itoa(l.Redis.Port), "REDIS_PASSWORD="+l.Redis.Password,
				"REDIS_STREAM="+Streams(namespace).Events, "REDIS_RESULTS_STREAM="+Streams(namespace).Results, "REDIS_DEAD_STREAM="+Streams(namespace).Dead),
			Scaler:   append(shared, "HEALTH_ADDR="+addrs[2], "POD_NAME="+namespace, "POOLS_FILE="+pools, "OTTO_AGENT_IMAGE="+AgentImage()),
			LogRelay: append(shared, "HEALTH_ADDR="+addrs[3], "LOG_SERVER_ADDR="+logServer, "SPOOL_DIR="+filepath.Join(dir, "spool")),
		},
	}, nil
}

// StreamNames are the three streams of an installation.
type StreamNames struct{ Events, Results, Dead string }

// Streams names the streams that the processes of a namespace use, so that
// several can share one Redis.
func Streams(namespace string) StreamNames {
	return StreamNames{Events: "otto:" + namespace + ":events", Results: "otto:" + namespace + ":results", Dead: "otto:" + namespace + ":dead"}
}

// Set gives a program more variables, from its next start on.
func (p *Processes) Set(name string, env ...string) { p.env[name] = append(p.env[name], env...) }

// Start starts programs and returns at once.
func (p *Processes) Start(names ...string) error {
	for _, name := range names {
		log, err := os.OpenFile(p.LogFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
		cmd := exec.Command(filepath.Join(p.bin, name))
		cmd.Env = append(os.Environ(), p.env[name]...)
		cmd.Stdout, cmd.Stderr = log, log
		err = cmd.Start()
		if cerr := log.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
		p.running[name] = cmd
	}
	return nil
}

// Running tells whether a program was started and not ended since.
func (p *Processes) Running(name string) bool { return p.running[name] != nil }

// Memory returns the resident memory of a program that runs, in bytes.
func (p *Processes) Memory(name string) (int64, error) {
	cmd := p.running[name]
	if cmd == nil {
		return 0, fmt.Errorf("reading the memory of %s: it does not run", name)
	}
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of %s: %w", name, err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(content), &size, &resident); err != nil {
		return 0, fmt.Errorf("reading the memory of %s: %w", name, err)
	}
	return resident * int64(os.Getpagesize()), nil
}

// AwaitReady waits until the programs say that they are ready.
func (p *Processes) AwaitReady(ctx context.Context, names ...string) error {
	for _, name := range names {
		ready := func() bool {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.health[name]+"/readyz", nil)
			if err != nil {
				return false
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return false
			}
			return res.Body.Close() == nil && res.StatusCode == http.StatusOK
		}
		for range (backoff.Policy{Initial: 10 * time.Millisecond, Max: 200 * time.Millisecond}).Attempts(ctx) {
			if ready() {
				break
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s is not ready, see %s: %w", name, p.LogFile(name), ctx.Err())
		}
	}
	return nil
}

// Kill ends programs with SIGKILL and waits for their end.
func (p *Processes) Kill(names ...string) error { return p.end(syscall.SIGKILL, names) }

// Stop ends programs with SIGTERM and waits for their end. A program that does
// not exit with 0 is an error.
func (p *Processes) Stop(names ...string) error { return p.end(syscall.SIGTERM, names) }

func (p *Processes) end(signal syscall.Signal, names []string) error {
	var errs []error
	for _, name := range names {
		cmd := p.running[name]
		if cmd == nil {
			continue
		}
		delete(p.running, name)
		if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("ending %s: %w", name, err))
			continue
		}
		if err := cmd.Wait(); err != nil && signal != syscall.SIGKILL {
			errs = append(errs, fmt.Errorf("ending %s, see %s: %w", name, p.LogFile(name), err))
		}
	}
	return errors.Join(errs...)
}

// Close stops what runs, against the data's way, and removes the logs, unless one
// of the programs did not stop cleanly.
func (p *Processes) Close() error {
	if err := p.Stop(LogRelay, Scaler, Consumer); err != nil {
		return err
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("removing the logs of the processes: %w", err)
	}
	return nil
}

// LogFile returns the path of a program's log.
func (p *Processes) LogFile(name string) string { return filepath.Join(p.dir, name+".log") }

func freeAddr(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
