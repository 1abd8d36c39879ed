// Command chaos runs the kill matrix: it breaks one part of a running
// installation at the worst moment, many times, and counts what was lost,
// duplicated or reordered. It prints a table and writes build/chaos.json.
//
// ONLY=<pattern> selects rows by name, QUICK=1 makes fewer runs, and CLUSTER_NAME
// keeps two that run at once apart.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// Row is one fault of the matrix.
type Row struct {
	// Name of the fault.
	Name string `json:"name"`
	// Runs is how often it was injected; in a storm, how many events there were.
	Runs int `json:"runs"`
	// Events is how many events went through meanwhile.
	Events int `json:"events,omitempty"`
	// Lost, Duplicated and Reordered count effects over all runs.
	Lost       int `json:"lost"`
	Duplicated int `json:"duplicated"`
	Reordered  int `json:"reordered"`
	// RecoveryP50 and RecoveryMax are the times from the fault to the moment at
	// which its event was settled, in milliseconds.
	RecoveryP50 float64 `json:"recovery_ms_p50"`
	RecoveryMax float64 `json:"recovery_ms_max"`
}

// harm is what one run of a fault did.
type harm struct {
	lost, duplicated, reordered int
	recovery                    time.Duration
}

// fault is a row to be run.
type fault struct {
	name string
	run  func(ctx context.Context, s *site, task string) (harm, error)
}

var matrix = []fault{
	{"scaler killed between two creates", killBetweenCreates(lab.Scaler)},
	{"consumer killed between two creates", killBetweenCreates(lab.Consumer)},
	{"consumer and scaler killed between two creates", killBetweenCreates(lab.Consumer, lab.Scaler)},
	{"scaler killed between two deletes", killBetweenDeletes(lab.Scaler)},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	stream.Quiet() // it is us who make connections fail
	quick := os.Getenv("QUICK") != ""
	none, err := runEvents(ctx, quick)
	if err != nil {
		return err
	}
	rows, err := runLogs(ctx, quick)
	if err != nil || len(rows) == 0 && !none {
		return err
	}
	header := []string{"FAULT", "WORKERS × LINES", "KILLS", "LOST", "MARKED", "REPEATED", "REORDERED", "TIME"}
	return report.Write(os.Stdout, filepath.Join("build", "chaos-logs.json"), header, rows, func(r LogRow) []string {
		return []string{
			r.Name, fmt.Sprintf("%d × %d", r.Workers, r.Lines), strconv.Itoa(r.Kills), strconv.Itoa(r.Lost), strconv.Itoa(r.Marked),
			strconv.Itoa(r.Repeated), strconv.Itoa(r.Reordered), fmt.Sprintf("%.0f s", r.Seconds),
		}
	})
}

// runEvents runs the rows about events that are selected, and tells whether there are none.
func runEvents(ctx context.Context, quick bool) (none bool, err error) {
	runs := 20
	if quick {
		runs = 4
	}
	var l *lab.Lab // brought up when a row needs it
	defer func() {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	inLab := func(run func(l *lab.Lab) (Row, error)) func() (Row, error) {
		return func() (row Row, err error) {
			if l == nil {
				if l, err = lab.Up(ctx, lab.Options{Name: cmp.Or(os.Getenv("CLUSTER_NAME"), "chaos"), FakeNodes: 3, Output: os.Stderr}); err != nil {
					return row, err
				}
			}
			return run(l)
		}
	}
	type named struct {
		name string
		run  func() (Row, error)
	}
	var all []named
	for _, f := range intakeFaults {
		all = append(all, named{f.name, func() (Row, error) { return f.run(ctx, f.name, quick) }})
	}
	for _, f := range matrix {
		all = append(all, named{f.name, inLab(func(l *lab.Lab) (Row, error) { return inject(ctx, l, f, runs) })})
	}
	all = append(all,
		named{standbyName, inLab(func(l *lab.Lab) (Row, error) { return standby(ctx, l, quick) })},
		named{stormName, inLab(func(l *lab.Lab) (Row, error) { return storm(ctx, l, quick) })},
	)
	var rows []Row
	for _, f := range all {
		selected, err := report.Selected(os.Getenv("ONLY"), f.name)
		if err != nil {
			return false, err
		}
		if !selected {
			continue
		}
		row, err := f.run()
		if err != nil {
			return false, fmt.Errorf("%s: %w", f.name, err)
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 {
		return true, nil
	}
	header := []string{"FAULT", "RUNS", "LOST", "DUPLICATED", "REORDERED", "RECOVERY P50", "MAX"}
	return false, report.Write(os.Stdout, filepath.Join("build", "chaos.json"), header, rows, func(r Row) []string {
		return []string{
			r.Name, strconv.Itoa(r.Runs), strconv.Itoa(r.Lost), strconv.Itoa(r.Duplicated), strconv.Itoa(r.Reordered),
			fmt.Sprintf("%.0f ms", r.RecoveryP50), fmt.Sprintf("%.0f ms", r.RecoveryMax),
		}
	})
}

// inject runs one fault of the matrix again and again, in a namespace of its own.
func inject(ctx context.Context, l *lab.Lab, f fault, runs int) (row Row, err error) {
	// A fault must never hang the matrix: each run has a minute.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(runs+2)*time.Minute)
	defer cancel()
	s, err := newSite(ctx, l)
	if err != nil {
		return row, err
	}
	defer func() {
		err = errors.Join(err, s.Close())
	}()
	row = Row{Name: f.name, Runs: runs}
	var recoveries []time.Duration
	for run, missed := 0, 0; run < runs; run++ {
		h, err := f.run(ctx, s, fmt.Sprintf("chaos-%d-%d", run, missed))
		if cerr := s.clear(ctx); cerr != nil {
			return row, cerr
		}
		if errors.Is(err, errMissed) && missed < 2*runs {
			fmt.Fprintf(os.Stderr, "%s: run %d: %v; again\n", f.name, run+1, err)
			run--
			missed++
			// The event is done; what was killed has to come back for the next try.
			if err := s.revive(ctx); err != nil {
				return row, err
			}
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
			f.name, run+1, runs, h.lost, h.duplicated, h.reordered, h.recovery.Round(time.Millisecond))
	}
	row.RecoveryP50 = report.Milliseconds(report.Quantile(recoveries, 0.5))
	row.RecoveryMax = report.Milliseconds(report.Quantile(recoveries, 1))
	return row, nil
}
