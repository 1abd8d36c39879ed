package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/ottoscaler/ottoscaler/internal/dev/developer"
	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/doctor"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
	"github.com/ottoscaler/ottoscaler/internal/dev/logview"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
)

// whose says which environment a command is about. The login name is never
// looked at: make passes USER on only if it stands on its command line.
type whose struct {
	User    string `help:"Whose environment; not needed where there is only one." env:"OTTODEV_USER" placeholder:"NAME"`
	EnvFile string `help:"Environment file of the user, instead of --user." env:"ENV_FILE" placeholder:"FILE"`
}

// find returns the workplace and the environment that is meant.
func (w whose) find(ctx context.Context) (*developer.Workplace, *environment.Environment, error) {
	root, err := source.Root(ctx)
	if err != nil {
		return nil, nil, err
	}
	e, err := environment.Select(root, w.User, w.EnvFile)
	return developer.New(root, os.Stdout), e, err
}

type setupUserCommand struct {
	User string `help:"Whom the environment is for." env:"OTTODEV_USER" placeholder:"NAME"`
}

// Run makes a developer's environment.
func (c *setupUserCommand) Run(ctx context.Context) error {
	if c.User == "" {
		return errors.New("for whom? make setup-user USER=<your name>")
	}
	root, err := source.Root(ctx)
	if err != nil {
		return err
	}
	return developer.New(root, os.Stdout).SetUp(ctx, c.User)
}

type deployCommand struct {
	whose
	Compiled bool    `help:"The programs lie in build/images/bin, compiled."`
	Begin    float64 `help:"When the wait for this began, in Unix seconds." placeholder:"SECONDS"`
}

// Run builds, loads and installs.
func (c *deployCommand) Run(ctx context.Context) error {
	w, e, err := c.find(ctx)
	if err != nil {
		return err
	}
	how := developer.Deployment{Compiled: c.Compiled}
	if c.Begin > 0 {
		how.Begin = time.UnixMicro(int64(c.Begin * 1e6))
	}
	return w.Deploy(ctx, e, how)
}

type statusCommand struct{ whose }

// Run shows how an environment is.
func (c *statusCommand) Run(ctx context.Context) error {
	w, e, err := c.find(ctx)
	if err != nil {
		return err
	}
	return w.Status(ctx, e)
}

type logsCommand struct {
	whose
	Container []string `help:"Only these containers: consumer, scaler, log-relay." short:"c" env:"C"`
	NoFollow  bool     `help:"Print what there is, and end."`
	Tail      int64    `help:"How many of each container's last lines to begin with; -1 for all." default:"-1"`
	Raw       bool     `help:"Print lines as the programs wrote them."`
}

// Run shows what the main pod says.
func (c *logsCommand) Run(ctx context.Context) error {
	w, e, err := c.find(ctx)
	if err != nil {
		return err
	}
	client, err := w.Client(e)
	if err != nil {
		return err
	}
	return logview.Follow(ctx, logview.Options{
		Client: client, Namespace: e.Vars[environment.Namespace], Selector: "app.kubernetes.io/component=main",
		Containers: c.Container, Follow: !c.NoFollow, Tail: c.Tail, Raw: c.Raw, Out: os.Stdout,
		Color: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "",
	})
}

type envFileCommand struct {
	whose
	OrNone bool `help:"Print nothing, instead of a complaint, where nobody has an environment: Redis may be named by variables."`
}

// Run prints the path of the environment file, for make.
func (c *envFileCommand) Run(ctx context.Context) error {
	_, e, err := c.find(ctx)
	if c.OrNone && errors.Is(err, environment.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Println(e.File())
	return nil
}

type listUsersCommand struct{}

// Run lists the environments of this checkout.
func (c *listUsersCommand) Run(ctx context.Context) error {
	root, err := source.Root(ctx)
	if err != nil {
		return err
	}
	return developer.New(root, os.Stdout).List(ctx)
}

type redisCLICommand struct {
	whose
	Args []string `arg:"" optional:"" passthrough:"" help:"What redis-cli is to do; without, it asks."`
}

// Run becomes a redis-cli in the user's Redis container.
func (c *redisCLICommand) Run(ctx context.Context) error {
	_, e, err := c.find(ctx)
	if err != nil {
		return err
	}
	// Without a value, docker takes the variable from its own environment: the
	// password is on no command line.
	args := []string{"exec", "--interactive", "--env", "REDISCLI_AUTH", e.RedisContainer(), "redis-cli", "-n", e.Vars[environment.RedisDB]}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		args = append([]string{"exec", "--tty"}, args[1:]...)
	}
	return become(docker.Program(), append(args, c.Args...), "REDISCLI_AUTH="+e.Vars[environment.RedisPassword])
}

type kubectlCommand struct {
	whose
	Args []string `arg:"" optional:"" passthrough:"" help:"Arguments of kubectl."`
}

// Run becomes a kubectl for the user's cluster and namespace: the one on PATH, or
// the pinned stand-in, which is compiled the first time.
func (c *kubectlCommand) Run(ctx context.Context) error {
	w, e, err := c.find(ctx)
	if err != nil {
		return err
	}
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		kubectl = filepath.Join(w.Root, "bin", "kubectl")
		build := exec.CommandContext(ctx, "go", "-C", filepath.Join(w.Root, "tools", "kubectl"), "build", "-o", kubectl, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("building kubectl: %w", err)
		}
	}
	args := append([]string{"--namespace", e.Vars[environment.Namespace]}, c.Args...)
	return become(kubectl, args, "KUBECONFIG="+e.Vars[environment.Kubeconfig])
}

// become replaces this process by a program.
func become(program string, args []string, env ...string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("finding %s: %w", program, err)
	}
	if err := syscall.Exec(path, append([]string{program}, args...), append(os.Environ(), env...)); err != nil {
		return fmt.Errorf("running %s: %w", program, err)
	}
	return nil
}

type cleanCommand struct {
	User string `help:"Whose environment; without, all of this checkout." env:"OTTODEV_USER" placeholder:"NAME"`
	Yes  bool   `help:"Do not ask before all are removed." env:"YES"`
}

// Run removes one environment, or all.
func (c *cleanCommand) Run(ctx context.Context) error {
	root, err := source.Root(ctx)
	if err != nil {
		return err
	}
	w := developer.New(root, os.Stdout)
	if c.User != "" {
		slug, err := environment.Slug(c.User)
		if err != nil {
			return err
		}
		return w.Clean(ctx, slug)
	}
	users, err := w.Leftovers(ctx)
	if err != nil || len(users) == 0 {
		return err
	}
	if err := c.ask(users); err != nil {
		return err
	}
	var errs []error
	for _, slug := range users {
		if err := w.Clean(ctx, slug); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", slug, err))
		}
	}
	return errors.Join(errs...)
}

func (c *cleanCommand) ask(users []string) error {
	if c.Yes {
		return nil
	}
	all := strings.Join(users, ", ")
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return fmt.Errorf("this removes the environments of %s with all that is in them: say YES=1, or USER=<name> for one", all)
	}
	fmt.Printf("Remove the environments of %s, with Redis, cluster and files? [y/N] ", all)
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil || !strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y") {
		return errors.New("nothing is removed")
	}
	return nil
}

type doctorCommand struct{}

// Run tells what this machine lacks.
func (c *doctorCommand) Run(ctx context.Context) error {
	root, err := source.Root(ctx)
	if err != nil {
		return err
	}
	healthy, err := doctor.Print(os.Stdout, doctor.Here(root).Examine(ctx))
	if err == nil && !healthy {
		err = errors.New("something is missing: see above")
	}
	return err
}
