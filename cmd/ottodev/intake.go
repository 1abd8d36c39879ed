package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/joho/godotenv"
	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
	"github.com/ottoscaler/ottoscaler/internal/stream"
)

// intakeOf says whose Redis a command is about: that of an environment or, where
// there is none, the one that the consumer's variables name. Variables that are
// set win over those of a file.
type intakeOf struct{ whose }

// An intake is the streams of one installation.
type intake struct {
	redis         redis.UniversalClient
	letters       stream.Letters
	stream, group string
}

// intakeVariables are those of the consumer that say where its streams are.
type intakeVariables struct {
	daemon.Settings
	stream.Environment
}

// Validate implements [daemon.Config].
func (v intakeVariables) Validate() error { return v.Environment.Validate() }

func (o intakeOf) open(ctx context.Context) (*intake, error) {
	var file map[string]string
	var err error
	if o.EnvFile != "" {
		if file, err = godotenv.Read(o.EnvFile); err != nil {
			return nil, fmt.Errorf("reading %s: %w", o.EnvFile, err)
		}
	} else {
		_, e, err := o.find(ctx)
		switch {
		case err == nil:
			file = e.Vars
		case !errors.Is(err, environment.ErrNone) || os.Getenv(environment.RedisHost) == "" && os.Getenv("REDIS_ADDRS") == "":
			return nil, err
		}
	}
	for name, value := range file {
		if os.Getenv(name) == "" {
			if err := os.Setenv(name, value); err != nil {
				return nil, fmt.Errorf("taking %s of the environment's file: %w", name, err)
			}
		}
	}
	var v intakeVariables
	if err := daemon.Load(&v); err != nil {
		return nil, err
	}
	server, err := v.Server()
	if err != nil {
		return nil, err
	}
	stream.Quiet()
	rdb := stream.NewClient(server, "ottodev")
	return &intake{
		redis: rdb, stream: v.RedisStream, group: v.RedisConsumerGroup,
		letters: stream.Letters{Redis: rdb, Events: v.RedisStream, Dead: v.RedisDeadStream},
	}, nil
}

func (in *intake) close() { _ = in.redis.Close() } // every write was answered

type deadLettersCommand struct {
	List   listLettersCommand   `cmd:"" default:"withargs" help:"List dead letters, the newest last."`
	Show   showLetterCommand    `cmd:"" help:"Show one, with every field of the event."`
	Replay replayLettersCommand `cmd:"" help:"Send the events of dead letters again, and remove the letters."`
	Drop   dropLettersCommand   `cmd:"" help:"Remove dead letters for good."`
}

type listLettersCommand struct {
	intakeOf
	Reason string `help:"Only those with this reason." placeholder:"R"`
	Last   int    `help:"How many of the newest." default:"50"`
	Output string `help:"text, or json: one object on a line." short:"o" enum:"text,json" default:"text"`
}

// Run lists dead letters.
func (c *listLettersCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	var last []stream.Letter
	total := 0
	err = in.letters.Each(ctx, func(l stream.Letter) error {
		if c.Reason != "" && l.Reason != c.Reason {
			return nil
		}
		total++
		if last = append(last, l); len(last) > max(1, c.Last) {
			last = slices.Delete(last, 0, 1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return printLetters(os.Stdout, last, total, c.Output)
}

func printLetters(out io.Writer, letters []stream.Letter, total int, output string) error {
	if output == "json" {
		for _, l := range letters {
			if err := json.NewEncoder(out).Encode(l); err != nil {
				return fmt.Errorf("printing dead letters: %w", err)
			}
		}
		return nil
	}
	if total == 0 {
		_, err := fmt.Fprintln(out, "there are no dead letters")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "ID\tEVENT\tREASON\tATTEMPTS\tTIME\tMESSAGE")
	for _, l := range letters {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%s\n", l.ID, l.EventID, l.Reason, l.Attempts, l.Time.Local().Format(time.DateTime), l.Message)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("printing dead letters: %w", err)
	}
	if total > len(letters) {
		_, err := fmt.Fprintf(out, "and %d older ones: --last shows more\n", total-len(letters))
		return err
	}
	return nil
}

type showLetterCommand struct {
	intakeOf
	ID string `arg:"" help:"ID of the dead letter, or of its event."`
}

// Run shows a dead letter as JSON.
func (c *showLetterCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	letter, err := in.letters.Find(ctx, c.ID)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(letter)
}

// selection says which dead letters are meant.
type selection struct {
	ID     string `arg:"" optional:"" help:"ID of the dead letter, or of its event."`
	All    bool   `help:"All of them."`
	Reason string `help:"All with this reason." placeholder:"R"`
}

// Validate refuses a command that does not say which.
func (s selection) Validate() error {
	if given := (s.ID != "") != s.All != (s.Reason != ""); !given || s.ID != "" && s.All && s.Reason != "" {
		return errors.New("which dead letters? give one of: an ID, --all, --reason R")
	}
	return nil
}

// each calls f for the dead letters that there were when it began.
func (s selection) each(ctx context.Context, letters stream.Letters, f func(stream.Letter) error) error {
	if s.ID != "" {
		letter, err := letters.Find(ctx, s.ID)
		if err != nil {
			return err
		}
		return f(letter)
	}
	var chosen []stream.Letter // a letter that is rejected again would be found again
	err := letters.Each(ctx, func(l stream.Letter) error {
		if s.All || l.Reason == s.Reason {
			chosen = append(chosen, l)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range chosen {
		if err := f(l); err != nil {
			errs = append(errs, err)
		}
	}
	if len(chosen) == 0 {
		fmt.Println("there are no such dead letters")
	}
	return errors.Join(errs...)
}

type replayLettersCommand struct {
	intakeOf
	selection
}

// Run sends events again.
func (c *replayLettersCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	return c.each(ctx, in.letters, func(l stream.Letter) error {
		id, err := in.letters.Replay(ctx, l)
		if err == nil {
			fmt.Printf("replayed  %s (event %s, %s) as event %s\n", l.ID, l.EventID, l.Reason, id)
		}
		return err
	})
}

type dropLettersCommand struct {
	intakeOf
	selection
}

// Run removes dead letters.
func (c *dropLettersCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	return c.each(ctx, in.letters, func(l stream.Letter) error {
		err := in.letters.Drop(ctx, l)
		if err == nil {
			fmt.Printf("dropped   %s (event %s, %s)\n", l.ID, l.EventID, l.Reason)
		}
		return err
	})
}

type pauseCommand struct {
	intakeOf
	Reason string `help:"Why, for the logs and for the status." default:"no reason given"`
}

// Run has the consumer begin no more events.
func (c *pauseCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	if err := stream.Pause(ctx, in.redis, in.stream, in.group, c.Reason); err != nil {
		return err
	}
	fmt.Printf("paused: events of %s wait in Redis until resume; what is in work goes on\n", in.stream)
	return nil
}

type resumeCommand struct{ intakeOf }

// Run ends a pause.
func (c *resumeCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	was, err := stream.Resume(ctx, in.redis, in.stream, in.group)
	switch {
	case err != nil:
		return err
	case was:
		fmt.Println("resumed")
	default:
		fmt.Println("it was not paused")
	}
	return nil
}
