package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/worker"
	"github.com/ottoscaler/ottoscaler/internal/worker/workertest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const leaseDuration = 4 * time.Second

// A peer is one of two scalers of an installation.
type peer struct {
	manager *worker.Manager
	log     *logs
	begun   chan struct{} // closed when it leads
	ended   chan error
	stop    context.CancelFunc
}

// newPeer starts a scaler of its own connection, which the faults of space break.
func newPeer(t *testing.T, space *workertest.Space, identity, pools string) *peer {
	t.Helper()
	p := &peer{log: &logs{}, begun: make(chan struct{}), ended: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	file, err := worker.LoadPoolFile(pools, "agent:test", func(error) {}, log)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	leadership, err := worker.NewLeadership(worker.LeadershipOptions{
		Leases: space.FaultyLeases(), Namespace: space.Namespace, Instance: instance, Identity: identity, Duration: leaseDuration,
		Standby: func(string) {}, Registerer: registry, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.manager, err = worker.New(worker.Options{
		Pods: space.Faulty, Namespace: space.Namespace, Instance: instance, LogDrainTimeout: time.Hour, Pools: file,
		Events: &settlements{open: map[string]bool{}, changed: make(chan struct{})}, Workers: queue.NewMemory[queue.Worker](),
		MayWrite: leadership.Check, Registerer: registry, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	watchCtx, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { p.manager.Watch(watchCtx) })
	running.Go(func() {
		p.ended <- leadership.Run(ctx, p.manager.Halt, func(ctx context.Context) error {
			go func() {
				if p.manager.Synced(ctx) == nil {
					close(p.begun)
				}
			}()
			return p.manager.Run(ctx)
		})
	})
	p.stop = sync.OnceFunc(func() { stop(); stopWatch(); running.Wait() })
	t.Cleanup(p.stop)
	return p
}

func (p *peer) deliver(t *testing.T, e scaleevent.Event) queue.Verdict {
	t.Helper()
	return p.manager.Scale(t.Context(), queue.Delivery[*scaleevent.Event]{
		Item: queue.Item[*scaleevent.Event]{ID: e.ID, Key: e.OrderingKey(), Value: &e}, Attempt: 1,
	})
}

func (p *peer) awaitLead(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case <-p.begun:
	case <-time.After(within):
		t.Fatalf("it does not lead after %v", within)
	}
}

func TestOneOfTwoScalersLeadsAndTheOtherTakesOver(t *testing.T) {
	dir := t.TempDir()
	pools := filepath.Join(dir, "pools.yaml")
	write(t, pools, crashPools)
	space := workertest.ControlPlane(t, nil)
	other := space.Again() // the same namespace, and faults of its own

	first := newPeer(t, space, "first", pools)
	first.awaitLead(t, 20*time.Second)
	second := newPeer(t, other, "second", pools)
	workertest.Eventually(t, "the second stands by", func() bool { return second.log.lines("standing by", "leader=first") == 1 })
	if v := first.deliver(t, up("task", 2)); v.Status != queue.Done {
		t.Fatalf("the leader: %+v", v)
	}

	// The leader loses the API server in the middle of an event.
	interrupted := up("another", 4)
	space.Faults.Break("POST", workertest.ReplyLost, 1, 1)
	first.deliver(t, interrupted)
	release := space.Faults.Hang("PUT") // its Lease cannot be renewed
	defer release()
	select {
	case err := <-first.ended:
		if !errors.Is(err, worker.ErrLeadershipLost) {
			t.Errorf("the first returned %v", err)
		}
	case <-time.After(6 * leaseDuration):
		t.Fatal("the first still leads")
	}
	writes := space.Faults.Calls()
	if v := first.deliver(t, up("too late", 1)); v.Status != 0 || !strings.Contains(v.Message, "not sent") {
		t.Errorf("who does not lead any more: %+v", v)
	}
	if n := space.Faults.Calls(); n != writes {
		t.Errorf("who does not lead any more made %d calls", n-writes)
	}

	second.awaitLead(t, 6*leaseDuration)
	for attempt := 1; second.deliver(t, interrupted).Status != queue.Done; attempt++ {
		if attempt == 10 {
			t.Fatal("the second does not carry out what the first began")
		}
	}
	list := space.Workers()
	if len(list) != 6 {
		t.Errorf("%d workers, want 6", len(list))
	}
	placed := 0
	for _, p := range list {
		if len(p.Spec.SchedulingGates) == 0 {
			placed++
		}
	}
	if placed != 3 {
		t.Errorf("%d workers have a place, of at most 3", placed)
	}

	// Told to stop, it hands over at once.
	release()
	third := newPeer(t, space.Again(), "third", pools)
	workertest.Eventually(t, "the third stands by", func() bool { return third.log.lines("standing by", "leader=second") == 1 })
	second.stop()
	if err := <-second.ended; err != nil {
		t.Errorf("told to stop, the second returned %v", err)
	}
	third.awaitLead(t, leaseDuration)
	lease, err := space.Leases().Leases(space.Namespace).Get(t.Context(), pod.LeaderLease(instance), metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "third" {
		t.Errorf("the lease: %+v, %v", lease, err)
	}
}
