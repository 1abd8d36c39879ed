// Command scaler carries out scale events: it leases them from the pod's queue and
// creates and removes worker pods.
//
// It is configured by environment variables; see [Config]. Called as
//
//	scaler release-workers
//
// it removes all workers of the installation instead, and returns: the chart's
// pre-delete hook. With RELEASE_AFTER it first waits for the main pod to be gone:
// the post-delete hook.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/kubeconfig"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const releaseWorkers = "release-workers"

// partEvents is the subscription to the events. The workers are offered on another
// call, which may work while this one does not.
const partEvents = "events"

// reportTimeout bounds one report of a worker's end. The queue is in the same pod.
const reportTimeout = 10 * time.Second

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == releaseWorkers {
		os.Exit(daemon.Main(os.Stderr, args[1:], release))
	}
	os.Exit(daemon.Main(os.Stderr, args, run))
}

// run builds the route in the order data takes it, then waits. It returns nil when
// told to stop.
func run(ctx context.Context, cfg Config, log *slog.Logger) error {
	core, leases, err := clients(cfg, log)
	if err != nil {
		return daemon.Misconfigured(err)
	}
	registry := daemon.NewRegistry()
	health := daemon.NewHealth(registry)
	health.Require(worker.PartKubernetes, worker.PartQueue, worker.PartPools, partEvents)

	pools, err := worker.LoadPoolFile(cfg.PoolsFile, cfg.OttoAgentImage, func(err error) { health.Report(worker.PartPools, err) }, log)
	if err != nil {
		return daemon.Misconfigured(err)
	}
	client, err := queuerpc.Dial(cfg.QueueAddr)
	if err != nil {
		return daemon.Misconfigured(fmt.Errorf("QUEUE_ADDR: %w", err))
	}
	leadership, err := worker.NewLeadership(worker.LeadershipOptions{
		Leases: leases, Namespace: cfg.Namespace, Instance: cfg.InstanceID, Identity: cfg.identity(), Duration: cfg.LeaseDuration,
		Standby: func(string) {
			// It has nothing to do, and could do it.
			health.Report(worker.PartQueue, nil)
			health.Report(partEvents, nil)
		},
		Registerer: registry, Log: log,
	})
	if err != nil {
		return err
	}
	events := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: core.Events(cfg.Namespace)})
	manager, err := worker.New(worker.Options{
		Pods:            core,
		Namespace:       cfg.Namespace,
		Instance:        cfg.InstanceID,
		LogDrainTimeout: cfg.LogDrainTimeout,
		MaxWrites:       cfg.MaxWrites,
		Pools:           pools,
		Events:          client.Events(),
		Ended:           reportTo(client, cfg.Namespace),
		Workers:         client.Workers(),
		MayWrite:        leadership.Check,
		Recorder:        events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "ottoscaler"}),
		Self:            self(cfg),
		Registerer:      registry,
		Report:          health.Report,
		Log:             log,
	})
	if err != nil {
		return err
	}

	watchCtx, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatch()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return health.Run(ctx, cfg.HealthAddr) })
	group.Go(func() error { return pools.Run(ctx) })
	group.Go(func() error { manager.Watch(watchCtx); return nil })
	group.Go(func() error {
		defer stopWatch()
		if err := worker.ClaimNamespace(ctx, leases, cfg.Namespace, owner(cfg), log); err != nil {
			return daemon.Misconfigured(err)
		}
		return leadership.Run(ctx, manager.Halt, func(ctx context.Context) error {
			log.InfoContext(ctx, "ready to scale", "namespace", cfg.Namespace, "instance", cfg.InstanceID, "pools", pools.Current().Names())
			events := queue.Reporting(client.Events(), func(err error) { health.Report(partEvents, err) })
			return scale(ctx, cfg, manager, events, log)
		})
	})
	err = group.Wait()
	if closeErr := client.Close(); err == nil && closeErr != nil {
		return fmt.Errorf("closing the queue: %w", closeErr)
	}
	return err
}

// scale carries out events until ctx is done, and those it has begun to their end.
func scale(ctx context.Context, cfg Config, manager *worker.Manager, events queue.Queue[*scaleevent.Event], log *slog.Logger) error {
	// The manager outlives the events: the last of them still wait for its cache.
	managerCtx, stopManager := context.WithCancel(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return manager.Run(managerCtx) })
	group.Go(func() error {
		defer stopManager()
		if err := manager.Synced(ctx); err != nil {
			return nil // told to stop before it began
		}
		// It only warns, and a slow webhook would keep the events waiting.
		group.Go(func() error { manager.CheckPools(ctx); return nil })
		return queue.Serve(ctx, events, queue.SubscribeOptions{
			Name:         "scaler",
			Credits:      cfg.EventConcurrency,
			DrainTimeout: cfg.DrainTimeout,
		}, log, manager.Scale)
	})
	err := group.Wait()
	stopManager()
	return err
}

// release is the chart's hook before its objects are deleted, and after.
func release(ctx context.Context, cfg Config, log *slog.Logger) error {
	pods, leases, err := clients(cfg, log)
	if err != nil {
		return daemon.Misconfigured(err)
	}
	if cfg.ReleaseAfter != "" {
		return errors.Join(
			worker.ReleaseRest(ctx, pods, cfg.Namespace, cfg.InstanceID, cfg.ReleaseAfter, cfg.ReleaseTimeout, log),
			worker.ForgetLeader(ctx, leases, cfg.Namespace, cfg.InstanceID),
			worker.ReleaseNamespace(ctx, leases, pods, cfg.Namespace, owner(cfg)),
		)
	}
	return worker.ReleaseAll(ctx, pods, cfg.Namespace, cfg.InstanceID, cfg.ReleaseTimeout, log)
}

// reportTo has the end of each worker brought to the producer of its event.
func reportTo(client *queuerpc.Client, namespace string) func(context.Context, worker.End) error {
	return func(ctx context.Context, end worker.End) error {
		ctx, cancel := context.WithTimeout(ctx, reportTimeout)
		defer cancel()
		e := queue.WorkerEnd{
			ID:     end.ID(),
			Worker: queue.Worker{Namespace: namespace, Name: end.Name, TaskID: end.TaskID, Pool: end.Pool, EventID: end.Event},
			Status: scaleevent.StatusFailed, Reason: string(end.Class), Message: end.Reason, Attempt: end.Attempt,
		}
		switch end.Class {
		case worker.ClassSucceeded:
			e.Status, e.Reason = scaleevent.StatusSucceeded, ""
		case worker.ClassRemoved, worker.ClassDeleted:
			e.Status = scaleevent.StatusRemoved
		}
		if !end.RetryAt.IsZero() {
			e.Message += "; it is tried again at " + end.RetryAt.Format(time.RFC3339)
		}
		if end.ExitCode != nil {
			code := int(*end.ExitCode)
			e.ExitCode = &code
		}
		return client.ReportWorkerEnd(ctx, e)
	}
}

// self returns the pod that this is, or nil.
func self(cfg Config) *corev1.ObjectReference {
	if cfg.PodUID == "" {
		return nil
	}
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: cfg.Namespace, Name: cfg.PodName, UID: types.UID(cfg.PodUID)}
}

func owner(cfg Config) worker.Owner {
	return worker.Owner{User: cfg.InstanceUser, Instance: cfg.InstanceID}
}

// klogOnce guards the logger of client-go, which is one for the process: what a former
// run has left behind, in a test, may still use it.
var klogOnce sync.Once

// clients returns clients of the cluster that KUBECONFIG names, else of the one
// that the pod runs in.
func clients(cfg Config, log *slog.Logger) (corev1client.CoreV1Interface, coordinationv1client.LeasesGetter, error) {
	klogOnce.Do(func() { klog.SetSlogLogger(log) })
	config, err := kubeconfig.Load(cfg.Kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	config.UserAgent = "ottoscaler-scaler/" + daemon.Version()
	// The limit of five calls a second is from before the API server had fairness
	// of its own.
	config.QPS = -1
	if cfg.KubeQPS > 0 {
		config.QPS, config.Burst = cfg.KubeQPS, cfg.KubeBurst
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	leases, err := coordinationv1client.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	return core, leases, nil
}
