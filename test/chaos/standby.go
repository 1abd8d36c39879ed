package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	standbyName = "main pod killed between two creates, standby takes over"
	// standbyLease is shorter than an installation's, which only makes the runs so.
	standbyLease = "3s"
)

// A pair is two main pods of one installation, of which one leads.
type pair struct {
	pods   [2]*site
	leader int
}

func newPair(ctx context.Context, l *lab.Lab) (*pair, error) {
	ns, err := l.Namespace(ctx, "chaos")
	if err != nil {
		return nil, err
	}
	p := &pair{}
	for i := range p.pods {
		processes, err := l.Processes(ctx, ns, "127.0.0.1:1")
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		processes.Set(lab.Consumer, fmt.Sprint("REDIS_CONSUMER=main-", i))
		processes.Set(lab.Scaler, fmt.Sprint("POD_NAME=main-", i), "LEASE_DURATION="+standbyLease)
		p.pods[i] = &site{Processes: processes, events: l.Events(ns), pods: l.Core.Pods(ns)}
		if err := p.start(ctx, i); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (p *pair) start(ctx context.Context, i int) error {
	if err := p.pods[i].Start(lab.Consumer, lab.Scaler); err != nil {
		return err
	}
	return p.pods[i].AwaitReady(ctx, lab.Consumer, lab.Scaler)
}

func (p *pair) close() error {
	var err error
	for _, s := range p.pods {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	return err
}

// killLeader kills the main pod that leads in the middle of an event, and awaits
// that the other carries it out. The killed one comes back to stand by.
func (p *pair) killLeader(ctx context.Context, task string) (h harm, err error) {
	killed, other := p.pods[p.leader], p.pods[1-p.leader]
	b, err := killed.strike(ctx, watch.Added, scaleUp(task, workers), []string{lab.Consumer, lab.Scaler})
	if err != nil {
		return h, err
	}
	seen, err := other.workers(ctx, b.event)
	if err != nil {
		return h, err
	}
	missed := len(seen) == workers
	p.leader = 1 - p.leader
	h, err = other.recover(ctx, b, nil)
	if err != nil {
		return h, err
	}
	if seen, err = other.workers(ctx, b.event); err != nil {
		return h, err
	}
	h.lost, h.duplicated = missingAndSurplus(seen, workers)
	if err := p.start(ctx, 1-p.leader); err != nil || missed {
		return h, cmp.Or(err, errMissed)
	}
	return h, other.clear(ctx)
}

// standby kills the leader of a pair again and again.
func standby(ctx context.Context, l *lab.Lab, quick bool) (row Row, err error) {
	runs := 20
	if quick {
		runs = 2
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(runs+2)*time.Minute)
	defer cancel()
	p, err := newPair(ctx, l)
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	row = Row{Name: standbyName, Runs: runs}
	var recoveries []time.Duration
	for run, missed := 0, 0; run < runs; run++ {
		h, err := p.killLeader(ctx, fmt.Sprintf("standby-%d-%d", run, missed))
		if errors.Is(err, errMissed) && missed < 2*runs {
			run--
			missed++
			continue
		}
		if err != nil {
			return row, fmt.Errorf("run %d: %w", run+1, err)
		}
		row.Lost += h.lost
		row.Duplicated += h.duplicated
		row.Reordered += h.reordered
		recoveries = append(recoveries, h.recovery)
		fmt.Fprintf(os.Stderr, "%s: run %d of %d: lost %d, duplicated %d, reordered %d, recovered in %v\n",
			standbyName, run+1, runs, h.lost, h.duplicated, h.reordered, h.recovery.Round(time.Millisecond))
	}
	row.RecoveryP50 = report.Milliseconds(report.Quantile(recoveries, 0.5))
	row.RecoveryMax = report.Milliseconds(report.Quantile(recoveries, 1))
	return row, nil
}
