// Command log-relay takes what workers print to the log server.
//
// It is configured by environment variables; see [Config].
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	_ "golang.org/x/crypto/x509roots/fallback" // the image has no certificates of its own
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/kubeconfig"
	"github.com/ottoscaler/ottoscaler/internal/logs"
	"github.com/ottoscaler/ottoscaler/internal/logs/link"
	"github.com/ottoscaler/ottoscaler/internal/mask"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/internal/spool"
)

func main() {
	daemon.KeepGarbage(idlePercent)
	os.Exit(daemon.Main(os.Stderr, os.Args[1:], run))
}

// run builds the route in the order data takes it, then waits. It returns nil
// when told to stop, once everything that was read is acknowledged.
func run(ctx context.Context, cfg Config, log *slog.Logger) error {
	klog.SetSlogLogger(log)
	registry := daemon.NewRegistry()
	health := daemon.NewHealth(registry)
	health.Require("kubernetes", "queue")

	// The queue and the API server.
	workers, err := queuerpc.Dial(cfg.QueueAddr)
	if err != nil {
		return fmt.Errorf("dialing the queue at %s: %w", cfg.QueueAddr, err)
	}
	defer workers.Close() //nolint:errcheck // everything is said
	access, err := kubeconfig.Load(cfg.Kubeconfig)
	if err != nil {
		return daemon.Misconfigured(err)
	}
	cluster, err := logs.NewCluster(access, cfg.Namespace, cfg.InstanceID)
	if err != nil {
		return daemon.Misconfigured(fmt.Errorf("connecting to Kubernetes: %w", err))
	}
	kubernetes := &part{name: "kubernetes", health: health, log: log}
	pods, err := logs.NewPods(cluster.Workers(kubernetes.report))
	if err != nil {
		return err
	}

	// What must not be seen in the logs.
	patterns, err := mask.ParsePatterns(cfg.MaskPatterns)
	if err != nil {
		return daemon.Misconfigured(err)
	}
	secrets := cluster.Secrets(patterns, registry, log)

	// The log server. It is no part of our health: without it the logs wait in the
	// cluster, and a restart of this container would help nobody.
	way := cfg.link()
	way.Registry, way.Log = registry, log
	server, err := link.Dial(way)
	if err != nil {
		return daemon.Misconfigured(err)
	}
	defer server.Close() //nolint:errcheck // everything is said

	var splits func(context.Context) bool
	if cfg.LogStreams == auto {
		splits = cluster.Splits
	}
	var kept logs.Keeper
	if cfg.RotatedLogsAccount != "" {
		nodes, err := logs.NewNodes(access, cfg.Namespace, logs.NodeOptions{
			Account: cfg.RotatedLogsAccount, Port: cfg.KubeletPort, CAFile: cfg.KubeletCAFile, Insecure: cfg.KubeletInsecure, Log: log,
		})
		if err != nil {
			return daemon.Misconfigured(fmt.Errorf("preparing the way to the nodes: %w", err))
		}
		kept = nodes
	}
	var store *spool.Store
	if cfg.SpoolDir != "" {
		store, err = spool.Open(cfg.SpoolDir, spool.Options{GroupBytes: cfg.SpoolWorkerBytes, TotalBytes: cfg.SpoolBytes})
		if err != nil {
			return daemon.Misconfigured(fmt.Errorf("SPOOL_DIR: %w", err))
		}
	}

	relay := logs.NewRelay(logs.Options{
		Workers:      queue.Reporting(workers.Workers(), func(err error) { health.Report("queue", err) }),
		Pods:         pods,
		Open:         cluster.Open,
		Splits:       splits,
		Kept:         kept,
		Exists:       cluster.Exists,
		Mask:         secrets.Masker,
		Server:       server,
		Registry:     registry,
		Log:          log,
		MaxWorkers:   cfg.MaxWorkers,
		BatchLines:   cfg.BatchLines,
		BatchBytes:   cfg.BatchBytes,
		BatchLinger:  cfg.BatchLinger,
		DrainTimeout: cfg.DrainTimeout,

		Spool:           store,
		LogDrainTimeout: cfg.LogDrainTimeout,
		StreamAge:       cfg.StreamAge,
	})

	// What the relay needs to drain outlives the signal.
	support, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	group, support := errgroup.WithContext(support)
	group.Go(func() error { return health.Run(support, cfg.HealthAddr) })
	group.Go(func() error { return pods.Run(support) })
	group.Go(func() error { return secrets.Run(support) })
	group.Go(func() error { return server.Run(support) })
	group.Go(func() error { return giveBack(support) })
	group.Go(func() error {
		defer release()
		relaying, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(support, stop)() // when a part of the support fails
		log.InfoContext(ctx, "relaying logs", "namespace", cfg.Namespace, "queue", cfg.QueueAddr, "log_server", cfg.LogServerAddr,
			"tls", way.TLS, "gzip", way.Gzip, "connections", way.Connections)
		return relay.Run(relaying)
	})
	return group.Wait()
}

// A part is something we depend on that may come and go. Each change is logged once.
type part struct {
	name   string
	health *daemon.Health
	log    *slog.Logger

	mu     sync.Mutex
	broken bool
}

func (p *part) report(err error) {
	p.health.Report(p.name, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil && !p.broken:
		p.log.Warn("unreachable, trying again", "service", p.name, "err", err)
	case err == nil && p.broken:
		p.log.Info("reachable again", "service", p.name)
	}
	p.broken = err != nil
}
