// Package daemon is the shell of the binaries: configuration from the
// environment, logger, signals, exit code, health and metrics.
//
// A binary's main is one line, and everything it does is in a run function that
// tests can call:
//
//	func main() { os.Exit(daemon.Main(os.Stderr, os.Args[1:], run)) }
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/term"
)

// Exit codes of the binaries.
const (
	exitStopped       = 0 // told to stop, and did
	exitFailed        = 1
	exitMisconfigured = 2
)

// Config is a binary's configuration: a struct that envconfig can fill, with
// [Settings] embedded. Both methods have value receivers.
type Config interface {
	// Validate returns every problem at once, joined by [errors.Join]. Each
	// message begins with the name of the variable that it is about.
	Validate() error
	// LogSettings is provided by the embedded [Settings].
	LogSettings() Settings
}

// Main is the shell of a binary: it reads C from the environment, makes the
// logger, and calls run with a context that ends with the first SIGTERM or
// SIGINT. A second signal ends the process at once. Main returns the exit code:
// 0 when run returned nil or was told to stop, 1 when it failed, 2 when the
// binary is misconfigured (see [Misconfigured]).
//
// The only arguments are -h and --help, which print the table of variables.
func Main[C Config](stderr io.Writer, args []string, run func(ctx context.Context, cfg C, log *slog.Logger) error) int {
	return mainTo(os.Stdout, stderr, args, run)
}

func mainTo[C Config](stdout, stderr io.Writer, args []string, run func(context.Context, C, *slog.Logger) error) int {
	var cfg C
	for _, arg := range args {
		switch arg {
		case "-h", "-help", "--help":
			if err := printUsage(stdout, &cfg); err != nil {
				printLine(stderr, err.Error())
				return exitFailed
			}
			return exitStopped
		default:
			printLine(stderr, fmt.Sprintf("unknown argument %q: this program is configured by environment variables; --help lists them", arg))
			return exitMisconfigured
		}
	}
	if problems := load(&cfg); len(problems) > 0 {
		for _, problem := range problems {
			printLine(stderr, "misconfigured: "+problem.Error())
		}
		return exitMisconfigured
	}

	log := newLogger(stderr, cfg.LogSettings())
	ctx, stop := stopBySignal(log)
	defer stop()
	if err := limitMemory(); err != nil {
		log.DebugContext(ctx, "the memory limit is unknown, and the runtime heeds none; GOMEMLIMIT sets one", "err", err)
	}
	log.DebugContext(ctx, "starting", "program", filepath.Base(os.Args[0]), "version", Version())
	err := run(ctx, cfg, log)
	var misconfigured *misconfiguredError
	switch {
	case err == nil, ctx.Err() != nil && errors.Is(err, context.Canceled):
		log.InfoContext(ctx, "stopped")
		return exitStopped
	case errors.As(err, &misconfigured):
		log.ErrorContext(ctx, "misconfigured", "err", err)
		return exitMisconfigured
	default:
		log.ErrorContext(ctx, "stopped", "err", err)
		return exitFailed
	}
}

// stopBySignal returns a context that the first SIGTERM or SIGINT cancels. The
// second one ends the process: whoever sends it does not want to wait.
func stopBySignal(log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		select {
		case s, ok := <-signals:
			if !ok {
				return
			}
			log.Info("stopping", "signal", s.String())
			cancel()
		case <-ctx.Done():
			return
		}
		if s, ok := <-signals; ok {
			log.Error("stopped before all work was done", "signal", s.String())
			os.Exit(exitFailed)
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel()
		close(signals)
	}
}

// Settings say how a binary logs. Each [Config] embeds them.
type Settings struct {
	// LogLevel is the least severe level that is written.
	LogLevel slog.Level `split_words:"true" default:"info" desc:"least severe level that is logged: debug, info, warn or error"`
	// LogFormat is how lines look. JSON is for machines, text for people.
	LogFormat string `split_words:"true" default:"auto" desc:"json, text, or auto: text on a terminal, else json"`
}

// LogSettings returns s, so that a struct which embeds Settings is a [Config].
func (s Settings) LogSettings() Settings { return s }

func (s Settings) validate() error {
	switch s.LogFormat {
	case "json", "text", "auto":
		return nil
	default:
		return fmt.Errorf("LOG_FORMAT: %q is not one of json, text and auto", s.LogFormat)
	}
}

func newLogger(w io.Writer, s Settings) *slog.Logger {
	opts := &slog.HandlerOptions{Level: s.LogLevel, ReplaceAttr: readableDuration}
	if s.LogFormat == "text" || s.LogFormat == "auto" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// readableDuration writes durations as "1.5s" in JSON too, instead of as nanoseconds
// that do not say what they are.
func readableDuration(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Microsecond).String())
	}
	return a
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printLine writes to a terminal or a container's log. There is nobody to tell
// when that fails.
func printLine(w io.Writer, line string) {
	_, _ = fmt.Fprintln(w, line)
}

// Misconfigured marks err as something that only a change of the configuration
// can repair, found while running: a file that is missing or malformed, an
// address that cannot be. [Main] then returns 2. It returns nil for nil.
func Misconfigured(err error) error {
	if err == nil {
		return nil
	}
	return &misconfiguredError{err}
}

type misconfiguredError struct{ err error }

func (e *misconfiguredError) Error() string { return e.err.Error() }
func (e *misconfiguredError) Unwrap() error { return e.err }

// Drain returns a context for saying goodbye: it keeps the values of ctx,
// outlives its end, and lasts for the timeout.
func Drain(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}

// Version is the version of the binary's main module, or its commit when it was
// built from a checkout.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "devel"
}
