// Command logserver runs the reference log server: it receives what workers print
// and writes it to files, or to its standard output, or both.
//
//	logserver -listen :50051 -dir build/logs -print
//
// SIGTERM ends its streams; relays go on with the next server.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ottoscaler/ottoscaler/test/logserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintf(os.Stderr, "logserver: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("logserver", flag.ContinueOnError)
	flags.SetOutput(stderr)
	listen := flags.String("listen", "127.0.0.1:50051", "address to listen on")
	dir := flags.String("dir", "", "folder for the files; empty keeps the logs in memory")
	show := flags.Bool("print", false, "print each line with the name of its worker and container")
	if err := flags.Parse(args); err != nil {
		return err
	}
	options := logserver.Options{Dir: *dir}
	if *show {
		options.Print = stdout
	}
	server, err := logserver.New(options)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", *listen, err)
	}
	grpcServer := logserver.NewGRPCServer(server)
	grpc_health_v1.RegisterHealthServer(grpcServer, health.NewServer())
	defer context.AfterFunc(ctx, grpcServer.Stop)()
	if _, err := fmt.Fprintf(stderr, "log server listens on %s\n", listener.Addr()); err != nil {
		return err
	}
	if err := grpcServer.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	summarize(server, stderr)
	return nil
}

// summarize tells what the server holds.
func summarize(server *logserver.Server, out io.Writer) {
	var workers, finished, logs, complete int
	var lines, bytes uint64
	for _, w := range server.Workers() {
		workers++
		if w.End != nil {
			finished++
		}
		for _, l := range w.Logs {
			logs++
			lines += l.LineCount
			bytes += l.ByteCount
			if l.Complete && l.Matches {
				complete++
			}
		}
	}
	fmt.Fprintf(out, "workers: %d (%d finished), logs: %d (%d complete), lines: %d, bytes: %d\n",
		workers, finished, logs, complete, lines, bytes)
	for _, problem := range server.Problems() {
		fmt.Fprintf(out, "protocol error: %s\n", problem)
	}
}
