// Command bench measures the product beside the bare library or peer that does
// the same work in the same run, because these machines are noisy and only the
// ratio of the two means something. It prints a table and writes build/bench.json.
//
// ONLY=<pattern> selects rows by name, QUICK=1 takes fewer samples, and
// CLUSTER_NAME keeps two that run at once apart.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
)

// Row is one figure.
type Row struct {
	// Name of the figure.
	Name string `json:"name"`
	// Value is what the product does, in Unit.
	Value float64 `json:"value"`
	// Unit of Value and Raw.
	Unit string `json:"unit"`
	// Raw is what the bare library or peer does.
	Raw float64 `json:"raw"`
	// Ratio is Value/Raw.
	Ratio float64 `json:"ratio"`
}

// measurement makes the rows of these names, in their order. One of the two runs
// is set: in a lab, which is brought up when the first of them needs it, or by itself.
type measurement struct {
	rows  []string
	inLab func(ctx context.Context, l *lab.Lab, quick bool) ([]Row, error)
	alone func(ctx context.Context, quick bool) ([]Row, error)
}

var measurements = []measurement{
	{rows: []string{"intake: events through consumer, queue and back", "intake: processor time of an event"}, alone: throughput},
	{rows: []string{"intake: XADD to lease with 1000 events a second, p50", "intake: XADD to lease with 1000 events a second, p99"}, alone: latency},
	{rows: []string{
		"intake: Redis calls of an idle consumer in 5 s", "intake: processor time of an idle consumer",
		"intake: memory of an idle consumer", "intake: memory with 100000 events to come",
	}, alone: idle},
	{rows: []string{"log lines of 120 bytes, relay to a Go sink"}, alone: logThroughput},
	{rows: []string{"log lines of 120 bytes, relay to the NestJS log server"}, alone: nestjsThroughput},
	{rows: []string{"line printed to acknowledged, p50", "line printed to acknowledged, p99"}, alone: logLatency},
	{rows: []string{"1,000 followed idle containers, memory", "1,000 followed idle containers, CPU of a core"}, alone: idleRelay},
	{rows: []string{"event to CREATE accepted, p50", "event to CREATE accepted, p99"}, inLab: eventToCreate},
	{rows: []string{"creates, many events of one worker"}, inLab: manyEvents},
	{rows: []string{"creates, one event of many workers"}, inLab: oneEvent},
	{rows: []string{"finished worker to gone, p50"}, inLab: finishToGone},
	{rows: []string{"memory of the scaler with 5,000 workers", "event to CREATE accepted with 5,000 workers, p50", "deletes of 5,000 workers", "deletes of 5,000 workers (raw: nothing holds them)"}, inLab: crowd},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := run
	if len(os.Args) > 1 && os.Args[1] == bareIdleArg {
		run = bareIdle // we are the peer of a measurement
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var l *lab.Lab // up once a measurement needs it
	defer func() {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}()

	var rows []Row
	for _, m := range measurements {
		wanted := map[string]bool{}
		for _, name := range m.rows {
			selected, err := report.Selected(os.Getenv("ONLY"), name)
			if err != nil {
				return err
			}
			if selected {
				wanted[name] = true
			}
		}
		if len(wanted) == 0 {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring: %s\n", strings.Join(m.rows, "; "))
		var measured []Row
		quick := os.Getenv("QUICK") != ""
		if m.alone != nil {
			measured, err = m.alone(ctx, quick)
		} else {
			if l == nil {
				if l, err = lab.Up(ctx, lab.Options{Name: cmp.Or(os.Getenv("CLUSTER_NAME"), "bench"), FakeNodes: 12, Output: os.Stderr}); err != nil {
					return err
				}
			}
			measured, err = m.inLab(ctx, l, quick)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.rows[0], err)
		}
		for i, row := range measured {
			if row.Name = m.rows[i]; wanted[row.Name] {
				if row.Raw > 0 { // next to nothing is measured as nothing
					row.Ratio = row.Value / row.Raw
				}
				rows = append(rows, row)
			}
		}
	}
	header := []string{"NAME", "VALUE", "UNIT", "RAW", "RATIO"}
	return report.Write(os.Stdout, filepath.Join("build", "bench.json"), header, rows, func(r Row) []string {
		return []string{r.Name, fmt.Sprintf("%.1f", r.Value), r.Unit, fmt.Sprintf("%.1f", r.Raw), fmt.Sprintf("%.2f", r.Ratio)}
	})
}
