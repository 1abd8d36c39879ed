package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/lab"
	"github.com/ottoscaler/ottoscaler/internal/dev/nestjs"
	"github.com/ottoscaler/ottoscaler/internal/dev/report"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// A LogRow is what became of the lines of many workers while something was broken.
type LogRow struct {
	// Name of the fault.
	Name string `json:"name"`
	// Workers and Lines are how many printed, and how many lines each was told to print.
	Workers int `json:"workers"`
	Lines   int `json:"lines"`
	// Kills is how often something was killed.
	Kills int `json:"kills"`
	// Lost are lines that are missing without a word, Marked those that a gap tells of.
	Lost   int `json:"lost"`
	Marked int `json:"marked"`
	// Repeated and Reordered count lines that are there twice, or behind a later one.
	Repeated  int `json:"repeated"`
	Reordered int `json:"reordered"`
	// Seconds is how long all of it took.
	Seconds float64 `json:"seconds"`
}

// logFault breaks something again and again, until its context ends, and counts how often.
type logFault struct {
	name string
	// rotate is the size at which the node rotates logs, if not the kubelet's own.
	rotate string
	// recover says that the relay may read what the node has rotated away.
	recover bool
	// rate is how many lines a worker prints each second; 0 is as fast as it can.
	rate int
	// steady workers take as long to print as the log server is away, instead.
	steady bool
	// workers and lines are how many print how many, if not as many as in the other rows.
	workers, lines int

	wreck func(ctx context.Context, s *logSite, every time.Duration) (kills int, err error)
}

var logMatrix = []logFault{
	{name: "relay, log server, API server and kubelet killed at random", rate: 400, wreck: killAll},
	{name: "the same, with log rotation", rotate: "512Ki", recover: true, rate: 400, wreck: killAll},
	{name: "the same, with log rotation and no access to the nodes", rotate: "512Ki", rate: 400, wreck: killAll},
	{name: "log server away while all is printed, relay killed meanwhile", steady: true, wreck: serverAway},
	{name: "workers print faster than the log server takes, with log rotation", rotate: "64Ki", recover: true, workers: 4, lines: 1_000_000, wreck: nothing},
	{name: "the same, and no access to the nodes", rotate: "64Ki", workers: 4, lines: 1_000_000, wreck: nothing},
}

// logSite is an installation with a real kubelet, as programs on this machine, and
// the NestJS log server.
type logSite struct {
	*lab.Lab
	*lab.Processes
	server *nestjs.Server
	events *lab.Events
	away   time.Duration // for how long the log server is not there
}

// runLogs runs the rows that are selected.
func runLogs(ctx context.Context, quick bool) ([]LogRow, error) {
	workers, lines, every, away := 50, 20_000, 4*time.Second, 10*time.Minute
	if quick {
		workers, lines, every, away = 8, 3_000, 2*time.Second, 30*time.Second
	}
	var rows []LogRow
	for _, f := range logMatrix {
		selected, err := report.Selected(os.Getenv("ONLY"), f.name)
		if err != nil {
			return nil, err
		}
		if !selected {
			continue
		}
		row, err := injectIntoLogs(ctx, f, cmp.Or(f.workers, workers), cmp.Or(f.lines, lines), every, away)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func injectIntoLogs(ctx context.Context, f logFault, workers, lines int, every, away time.Duration) (row LogRow, err error) {
	ctx, cancel := context.WithTimeout(ctx, away+10*time.Minute)
	defer cancel()
	s, err := newLogSite(ctx, f)
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, s.Close(err != nil || row.Lost+row.Repeated+row.Reordered > 0)) }()
	s.away = away
	if f.steady {
		f.rate = int(float64(lines)/away.Seconds()) + 1
	}
	row = LogRow{Name: f.name, Workers: workers, Lines: lines}
	begin := time.Now()
	id, err := s.events.Send(ctx, map[string]string{
		"type": "scale_up", "task_id": "logs", "pod_count": strconv.Itoa(workers),
		"env.AGENT_LINES": strconv.Itoa(lines), "env.AGENT_RATE": strconv.Itoa(f.rate), "env.AGENT_STDERR_EVERY": "0",
	})
	if err != nil {
		return row, err
	}
	result, err := s.events.Await(ctx, id)
	if err != nil {
		return row, err
	}
	if result.Status != scaleevent.StatusDone {
		return row, fmt.Errorf("event %s: %s: %s", id, result.Status, result.Message)
	}

	// A kubelet that is killed while it starts a container takes it for failed when it is
	// back. Whether workers are started is another question: all have to print first.
	if _, err := s.await(ctx, workers, "have begun to print", func(w nestjs.Worker) bool {
		return len(w.Logs) > 0 && w.Logs[0].Lines > 0
	}); err != nil {
		return row, err
	}
	breaking, enough := context.WithCancel(ctx)
	defer enough()
	var group errgroup.Group
	group.Go(func() (err error) {
		row.Kills, err = f.wreck(breaking, s, every)
		return err
	})
	complete, err := s.await(ctx, workers, "are complete", func(w nestjs.Worker) bool { return w.FinishedMS != nil })
	enough()
	if err := errors.Join(err, group.Wait()); err != nil {
		return row, err
	}
	row.Seconds = time.Since(begin).Seconds()
	for _, worker := range complete {
		if err := asTold(worker); err != nil {
			return row, err
		}
		for _, log := range worker.Logs {
			if !log.Matches {
				return row, fmt.Errorf("the log of %s does not match: %s", worker.Name, log.Mismatch)
			}
			if err := s.judge(ctx, &row, worker, log, lines); err != nil {
				return row, err
			}
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %d kills, lost %d, marked %d, repeated %d, reordered %d in %.0f s\n",
		f.name, row.Kills, row.Lost, row.Marked, row.Repeated, row.Reordered, row.Seconds)
	return row, nil
}

func newLogSite(ctx context.Context, f logFault) (s *logSite, err error) {
	name := cmp.Or(os.Getenv("CLUSTER_NAME"), "chaos") + "-logs"
	l, err := lab.Up(ctx, lab.Options{Name: name, Kind: cluster.Source, Nodes: 1, LogMaxSize: f.rotate, Output: os.Stderr})
	if err != nil {
		return nil, err
	}
	s = &logSite{Lab: l}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(true))
		}
	}()
	if err := l.LoadImages(ctx); err != nil {
		return s, err
	}
	if err := nestjs.Build(ctx, l.Root, os.Stderr); err != nil {
		return s, err
	}
	dir, err := os.MkdirTemp("", "ottoscaler-logs-")
	if err != nil {
		return s, fmt.Errorf("making room for the log server: %w", err)
	}
	if s.server, err = nestjs.New(ctx, l.Root, dir); err != nil {
		return s, err
	}
	if err := s.server.Start(ctx); err != nil {
		return s, err
	}
	namespace, err := l.Namespace(ctx, "chaos-logs")
	if err != nil {
		return s, err
	}
	if s.Processes, err = l.Processes(ctx, namespace, s.server.Addr); err != nil {
		return s, err
	}
	if f.recover {
		const account = "node-logs"
		if err := l.NodeLogsAccount(ctx, namespace, account, true); err != nil {
			return s, err
		}
		s.Set(lab.LogRelay, "ROTATED_LOGS_ACCOUNT="+account)
	}
	// A scaler that cannot renew its lease for ten seconds ends, to be started again by a
	// kubelet that is not here. The API server is away for as long on a busy machine.
	s.Set(lab.Scaler, "LEASE_DURATION=2m")
	s.events = l.Events(namespace)
	all := []string{lab.Consumer, lab.Scaler, lab.LogRelay}
	if err := s.Start(all...); err != nil {
		return s, err
	}
	return s, s.AwaitReady(ctx, all...)
}

// Close ends everything. After harm, what was stored and said stays, to be looked at.
func (s *logSite) Close(failed bool) error {
	var errs []error
	if s.Processes != nil {
		if failed {
			fmt.Fprintf(os.Stderr, "the logs of the programs are in %s\n", filepath.Dir(s.LogFile(lab.LogRelay)))
			errs = append(errs, s.Kill(lab.LogRelay, lab.Scaler, lab.Consumer))
		} else {
			errs = append(errs, s.Processes.Close())
		}
	}
	if s.server != nil {
		errs = append(errs, s.server.Kill())
		if dir := filepath.Dir(s.server.Output); failed {
			fmt.Fprintf(os.Stderr, "what the log server has is in %s\n", dir)
		} else {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(append(errs, s.Lab.Close())...)
}

// await waits until as many workers are at the log server as there should be, and all
// are as they should.
func (s *logSite) await(ctx context.Context, workers int, how string, is func(nestjs.Worker) bool) ([]nestjs.Worker, error) {
	looking := time.NewTicker(time.Second)
	defer looking.Stop()
	var last string
	for {
		list, err := s.server.Workers(ctx)
		if err == nil { // else it was killed just now
			n, lines := 0, 0
			for _, worker := range list {
				if is(worker) {
					n++
				}
				for _, log := range worker.Logs {
					lines += log.Lines
				}
			}
			if n == workers && len(list) == workers {
				return list, nil
			}
			last = fmt.Sprintf("%d of %d workers %s, %d lines are stored", n, workers, how, lines)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the logs: %w: %s", ctx.Err(), last)
		case <-looking.C:
		}
	}
}

// asTold returns an error if a worker did not do what it was told: its lines prove nothing.
func asTold(worker nestjs.Worker) error {
	if len(worker.Ends) == 0 {
		return fmt.Errorf("worker %s came to no end that is known: %s %s", worker.Name, worker.Reason, worker.Message)
	}
	for _, end := range worker.Ends {
		if end.ExitCode == nil || *end.ExitCode != 0 {
			return fmt.Errorf("worker %s did not print what it was told: %s ended with %v, %s %s; %s %s",
				worker.Name, end.Container, end.ExitCode, end.Reason, end.Message, worker.Reason, worker.Message)
		}
	}
	return nil
}

// judge compares what is stored of a worker with what it was told to print.
func (s *logSite) judge(ctx context.Context, row *LogRow, worker nestjs.Worker, log nestjs.Log, lines int) error {
	body, err := s.server.Download(ctx, log.ID)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // it is only read
	return judgeLines(row, body, worker.Name, lines)
}

// judgeLines counts in a row what is wrong with a log. Its lines say their numbers; an
// empty one is a gap, behind which numbers may jump. A gap may end within a line, of which
// the node has but the rest: that must be the end of the line before the next one.
func judgeLines(row *LogRow, log io.Reader, name string, want int) error {
	const (
		unseen = iota
		seen
		lost   // jumped over
		marked // jumped over behind a gap
	)
	state := make([]byte, want+1)
	last, gap, torn := 0, false, ""
	jump := func(next int) error {
		if torn != "" && !restOf(torn, name, next-1, last) {
			return fmt.Errorf("the log of %s has a line that it did not print, before line %d: %q", name, next, torn)
		}
		for n := last + 1; n < next; n++ {
			state[n] = lost
			if gap {
				state[n] = marked
			}
		}
		last, gap, torn = next, false, ""
		return nil
	}
	scanner := bufio.NewScanner(log)
	for scanner.Scan() {
		text := scanner.Text()
		if text == "" {
			gap = true
			continue
		}
		number, ok := strings.CutPrefix(text, name+" line ")
		if !ok && gap && torn == "" {
			torn = text
			continue
		}
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 1 || n > want {
			return fmt.Errorf("the log of %s has a line that it did not print: %q", name, text)
		}
		switch {
		case state[n] == seen:
			row.Repeated++
		case n <= last:
			row.Reordered++
		default:
			if err := jump(n); err != nil {
				return err
			}
		}
		state[n] = seen
	}
	if err := jump(want + 1); err != nil {
		return err
	}
	for _, of := range state[1:] {
		switch of {
		case lost:
			row.Lost++
		case marked:
			row.Marked++
		}
	}
	return scanner.Err()
}

// restOf tells whether a text is the rest of the line of that number, behind the last one.
func restOf(text, name string, number, last int) bool {
	line := name + " line " + strconv.Itoa(number)
	return number > last && len(text) < len(line) && strings.HasSuffix(line, text)
}

// A victim is killed and brought back.
type victim struct {
	name string
	kill func(ctx context.Context, s *logSite) error
}

// nothing is not even killed.
func nothing(ctx context.Context, _ *logSite, _ time.Duration) (int, error) {
	<-ctx.Done()
	return 0, nil
}

// killAll kills whatever a line passes on its way.
var killAll = killAtRandom(
	victim{"relay", killRelay}, victim{"log server", killServer},
	victim{"API server", killComponent("kube-apiserver")}, victim{"kubelet", killComponent("n1/kubelet")})

// killAtRandom kills one of the victims after the other, at random moments.
func killAtRandom(victims ...victim) func(context.Context, *logSite, time.Duration) (int, error) {
	return func(ctx context.Context, s *logSite, every time.Duration) (int, error) {
		for kills := 0; ; kills++ {
			pause := time.NewTimer(every/2 + rand.N(every))
			select {
			case <-ctx.Done():
				pause.Stop()
				return kills, nil
			case <-pause.C:
			}
			v := victims[rand.IntN(len(victims))]
			fmt.Fprintf(os.Stderr, "killing the %s\n", v.name)
			// What was begun is brought to its end: all has to run when the kills are over.
			if err := v.kill(context.WithoutCancel(ctx), s); err != nil {
				return kills, fmt.Errorf("killing the %s: %w", v.name, err)
			}
		}
	}
}

func killRelay(_ context.Context, s *logSite) error {
	if err := s.Kill(lab.LogRelay); err != nil {
		return err
	}
	return s.Start(lab.LogRelay)
}

func killServer(ctx context.Context, s *logSite) error {
	if err := s.server.Kill(); err != nil {
		return err
	}
	return s.server.Start(ctx)
}

func killComponent(name string) func(context.Context, *logSite) error {
	return func(ctx context.Context, s *logSite) error {
		if err := s.Cluster.Kill(ctx, name); err != nil {
			return err
		}
		return s.Cluster.Repair(ctx)
	}
}

// serverAway stops the log server for a while, in which every worker prints all that
// it has to, and kills the relay twice meanwhile: what it has read is on its disk.
func serverAway(ctx context.Context, s *logSite, _ time.Duration) (kills int, err error) {
	if err := s.server.Kill(); err != nil {
		return 0, err
	}
	for kills = 1; ; kills++ {
		select {
		case <-ctx.Done():
			return kills, ctx.Err()
		case <-time.After(s.away / 3):
		}
		if kills == 3 {
			return kills, s.server.Start(ctx)
		}
		if err := killRelay(ctx, s); err != nil {
			return kills, err
		}
	}
}
