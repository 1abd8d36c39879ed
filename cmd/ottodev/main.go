// Command ottodev is what the Makefile runs where a target wants more than a line
// of shell: the demo, and images without a container engine.
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
