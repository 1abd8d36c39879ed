// Command ottodev is what the Makefile runs where a target wants more than a line
// of shell: the environments of developers, the demo, and images without a
// container engine.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

type commands struct {
	SetupUser setupUserCommand `cmd:"" help:"Make a developer's environment: network, Redis, log server, cluster, files."`
	Deploy    deployCommand    `cmd:"" help:"Build what changed, load it into the user's cluster, install or upgrade the release."`
	Status    statusCommand    `cmd:"" help:"Show Redis, cluster, release, pods, backlog and the last events."`
	Logs      logsCommand      `cmd:"" help:"Follow what the main pod says."`
	RedisCLI  redisCLICommand  `cmd:"" name:"redis-cli" help:"Run redis-cli in the user's Redis."`
	Kubectl   kubectlCommand   `cmd:"" help:"Run kubectl on the user's cluster."`
	ListUsers listUsersCommand `cmd:"" help:"List the environments of this checkout."`
	EnvFile   envFileCommand   `cmd:"" help:"Print the path of the user's environment file."`
	Clean     cleanCommand     `cmd:"" help:"Remove one environment, or all."`
	Doctor    doctorCommand    `cmd:"" help:"Look whether this machine has what environments need."`

	DeadLetters deadLettersCommand `cmd:"" help:"List, show, replay or drop events that were rejected."`
	Pause       pauseCommand       `cmd:"" help:"Have the consumer begin no more events; none is lost."`
	Resume      resumeCommand      `cmd:"" help:"End a pause."`

	Demo     demoCommand     `cmd:"" help:"Run the main job live: Redis, a cluster, the chart, workers that print, a summary."`
	DemoDown demoDownCommand `cmd:"" help:"Remove everything that demo made."`
	Image    imageCommand    `cmd:"" help:"Make the images as OCI archives, without a container engine."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	cli := kong.Parse(new(commands), kong.Name("ottodev"), kong.UsageOnError(),
		kong.BindTo(ctx, (*context.Context)(nil)))
	err := cli.Run()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ottodev:", err)
		os.Exit(1)
	}
}
