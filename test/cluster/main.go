// Command cluster runs real Kubernetes clusters on this machine, built from
// source, for tests and demonstrations. Run it from anywhere in the repository:
//
//	go -C test/cluster run . up              # one node; a second time: under a second
//	go -C test/cluster run . load image.tar  # into every node
//	export KUBECONFIG=$(go -C test/cluster run . kubeconfig)
//	go -C test/cluster run . down            # nothing is left
//
// `up --kwok 3` is the quick variant for scale tests: nodes that are only
// pretended, and no need for root. Several clusters may run side by side, each
// with a --name. See docs/cluster.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}
