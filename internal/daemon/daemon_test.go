package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

type testConfig struct {
	Settings
	RedisHost     string        `split_words:"true" required:"true" desc:"host of the Redis server"`
	RedisPort     int           `split_words:"true" default:"6379" desc:"its port"`
	RedisPassword string        `split_words:"true" secret:"true" desc:"its password"`
	ReclaimAfter  time.Duration `split_words:"true" default:"1m" desc:"when an entry is taken from another consumer"`
	Verbose       bool          `desc:"say more"`
	Names         []string      `desc:"some names"`
	PoolsFile     string        `split_words:"true" required:"true"`
}

func (c testConfig) Validate() error {
	var problems []error
	if c.RedisPort < 1 || c.RedisPort > 65535 {
		problems = append(problems, fmt.Errorf("REDIS_PORT: %d is not a port", c.RedisPort))
	}
	if c.ReclaimAfter < time.Second {
		problems = append(problems, fmt.Errorf("RECLAIM_AFTER: %s is less than a second", c.ReclaimAfter))
	}
	return errors.Join(problems...)
}

// runMain runs Main with an environment and returns what it wrote.
func runMain(t *testing.T, env map[string]string, args []string, run func(context.Context, testConfig, *slog.Logger) error) (code int, stdout, stderr string) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	var out, errs bytes.Buffer
	code = mainTo(&out, &errs, args, run)
	return code, out.String(), errs.String()
}

func enough() map[string]string {
	return map[string]string{"REDIS_HOST": "redis", "POOLS_FILE": "/pools.yaml"}
}

func mustNotRun(t *testing.T) func(context.Context, testConfig, *slog.Logger) error {
	return func(context.Context, testConfig, *slog.Logger) error {
		t.Error("run was called")
		return nil
	}
}

func TestConfigurationComesFromTheEnvironment(t *testing.T) {
	env := enough()
	env["REDIS_PORT"] = "7000"
	env["RECLAIM_AFTER"] = "90s"
	env["VERBOSE"] = "true"
	env["NAMES"] = "a,b"
	env["LOG_LEVEL"] = "warn"
	env["REDIS_PASSWORD"] = "secret"
	var got testConfig
	code, _, stderr := runMain(t, env, nil, func(_ context.Context, cfg testConfig, _ *slog.Logger) error {
		got = cfg
		return nil
	})
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q; want 0 and silence", code, stderr)
	}
	want := testConfig{
		Settings:  Settings{LogLevel: slog.LevelWarn, LogFormat: "auto"},
		RedisHost: "redis", RedisPort: 7000, RedisPassword: "secret", ReclaimAfter: 90 * time.Second,
		Verbose: true, Names: []string{"a", "b"}, PoolsFile: "/pools.yaml",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("configuration = %+v, want %+v", got, want)
	}
}

func TestEveryProblemOfTheConfigurationIsTold(t *testing.T) {
	code, _, stderr := runMain(t, map[string]string{
		"REDIS_HOST":          "", // as Helm renders a value that nobody gave
		"REDIS_PORT":          "many",
		"REDIS_PASSWORD":      "hunter2",
		"RECLAIM_AFTER":       "10ms",
		"VERBOSE":             "maybe",
		"LOG_LEVEL":           "loud",
		"LOG_FORMAT":          "xml",
		"REDIS_PASSWORD_FILE": "/somewhere",
	}, nil, mustNotRun(t))
	if code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	want := `misconfigured: LOG_LEVEL: "loud" is not one of debug, info, warn and error
misconfigured: REDIS_HOST is required: host of the Redis server
misconfigured: REDIS_PORT: "many" is not a whole number in range (invalid syntax)
misconfigured: REDIS_PASSWORD and REDIS_PASSWORD_FILE are both set: set one of them
misconfigured: VERBOSE: "maybe" is neither true nor false
misconfigured: POOLS_FILE is required: it has no default
misconfigured: LOG_FORMAT: "xml" is not one of json, text and auto
misconfigured: RECLAIM_AFTER: 10ms is less than a second
`
	if stderr != want {
		t.Errorf("stderr:\n%s\nwant:\n%s", stderr, want)
	}
}

func TestAnEmptyVariableMeansItsDefault(t *testing.T) {
	env := enough()
	for _, name := range []string{"REDIS_PORT", "RECLAIM_AFTER", "LOG_LEVEL", "LOG_FORMAT", "VERBOSE", "REDIS_PASSWORD"} {
		env[name] = ""
	}
	code, _, stderr := runMain(t, env, nil, func(_ context.Context, cfg testConfig, _ *slog.Logger) error {
		if cfg.RedisPort != 6379 || cfg.ReclaimAfter != time.Minute || cfg.LogFormat != "auto" {
			t.Errorf("configuration = %+v, want the defaults", cfg)
		}
		return nil
	})
	if code != 0 {
		t.Errorf("exit code %d, stderr %s; want 0", code, stderr)
	}
}

func TestASecretMayBeAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := enough()
	env["REDIS_PASSWORD_FILE"] = file
	code, _, stderr := runMain(t, env, nil, func(_ context.Context, cfg testConfig, _ *slog.Logger) error {
		if cfg.RedisPassword != "hunter2" {
			t.Errorf("password = %q, want that of the file", cfg.RedisPassword)
		}
		return nil
	})
	if code != 0 {
		t.Errorf("exit code %d, stderr %s; want 0", code, stderr)
	}

	env["REDIS_PASSWORD_FILE"] = file + "-of-another"
	code, _, stderr = runMain(t, env, nil, mustNotRun(t))
	if code != 2 || !strings.Contains(stderr, "REDIS_PASSWORD_FILE: open "+file+"-of-another: no such file") {
		t.Errorf("exit code %d, stderr %s; want 2 and the missing file", code, stderr)
	}
}

func TestHelpPrintsTheTableOfVariables(t *testing.T) {
	for _, arg := range []string{"-h", "--help"} {
		code, stdout, stderr := runMain(t, nil, []string{arg}, mustNotRun(t))
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, stderr %q; want 0 and silence", arg, code, stderr)
		}
		want := `This program is configured by environment variables. It takes no arguments.
A variable that is set but empty counts as not set.

VARIABLE             TYPE                            DEFAULT  REQUIRED  DESCRIPTION
LOG_LEVEL            Level                           info               least severe level that is logged: debug, info, warn or error
LOG_FORMAT           String                          auto               json, text, or auto: text on a terminal, else json
REDIS_HOST           String                                   yes       host of the Redis server
REDIS_PORT           Integer                         6379               its port
REDIS_PASSWORD       String                                             its password
REDIS_PASSWORD_FILE  Path                                               a file that holds REDIS_PASSWORD, instead of the variable
RECLAIM_AFTER        Duration                        1m                 when an entry is taken from another consumer
VERBOSE              True or False                                      say more
NAMES                Comma-separated list of String                     some names
POOLS_FILE           String                                   yes       
`
		if got, _, _ := strings.Cut(stdout, "\nExit codes"); got != want {
			t.Errorf("%s printed:\n%s\nwant:\n%s", arg, got, want)
		}
	}
}

func TestAnArgumentIsAMisconfiguration(t *testing.T) {
	code, _, stderr := runMain(t, enough(), []string{"--redis-host=x"}, mustNotRun(t))
	if code != 2 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, `"--redis-host=x"`) {
		t.Errorf("exit code %d, stderr %q; want 2 and one line about the argument", code, stderr)
	}
}

func TestTheExitCodeTellsHowItEnded(t *testing.T) {
	broken := errors.New("creating pod w-1: forbidden")
	for name, test := range map[string]struct {
		err      error
		code     int
		wantLog  string // message and error of the last line
		levelLog string
	}{
		"nothing left to do":        {nil, 0, "stopped ", "INFO"},
		"failed":                    {broken, 1, "stopped creating pod w-1: forbidden", "ERROR"},
		"misconfigured":             {fmt.Errorf("reading pools: %w", Misconfigured(errors.New("no pools"))), 2, "misconfigured reading pools: no pools", "ERROR"},
		"a cancel that was no stop": {context.Canceled, 1, "stopped context canceled", "ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := runMain(t, enough(), nil, func(context.Context, testConfig, *slog.Logger) error { return test.err })
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			var last struct{ Msg, Err, Level string }
			if err := json.Unmarshal([]byte(stderr), &last); err != nil {
				t.Fatalf("stderr %q is not one line of JSON: %v", stderr, err)
			}
			if got := last.Msg + " " + last.Err; got != test.wantLog || last.Level != test.levelLog {
				t.Errorf("log says %s %q, want %s %q", last.Level, got, test.levelLog, test.wantLog)
			}
		})
	}
}

func TestMisconfiguredOfNothingIsNothing(t *testing.T) {
	if err := Misconfigured(nil); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

func TestTextLogIsForPeople(t *testing.T) {
	env := enough()
	env["LOG_FORMAT"] = "text"
	_, _, stderr := runMain(t, env, nil, func(_ context.Context, _ testConfig, log *slog.Logger) error {
		log.Debug("hidden")
		log.Info("worker created", "pod", "w-1")
		return nil
	})
	if !strings.Contains(stderr, `level=INFO msg="worker created" pod=w-1`) || strings.Contains(stderr, "hidden") {
		t.Errorf("stderr %q, want one line of text at info", stderr)
	}
}

func TestDrainOutlivesItsContextForATime(t *testing.T) {
	parent, cancel := context.WithCancel(t.Context())
	cancel()
	ctx, done := Drain(parent, time.Minute)
	defer done()
	deadline, ok := ctx.Deadline()
	if ctx.Err() != nil || !ok || time.Until(deadline) < 50*time.Second {
		t.Errorf("err %v, deadline %v; want a minute left", ctx.Err(), deadline)
	}
}

// helperMode is set in the child processes of the tests below.
const helperMode = "DAEMON_TEST_MODE"

func TestMain(m *testing.M) {
	mode := os.Getenv(helperMode)
	if mode == "" {
		os.Exit(m.Run())
	}
	os.Exit(Main(os.Stderr, nil, func(ctx context.Context, _ testConfig, log *slog.Logger) error {
		log.Info("running")
		<-ctx.Done()
		log.Info("draining")
		switch mode {
		case "drains forever":
			select {}
		case "returns the cancel":
			return fmt.Errorf("reading: %w", ctx.Err())
		default:
			return nil
		}
	}))
}

func TestSignalsStopTheProcess(t *testing.T) {
	for name, test := range map[string]struct {
		mode    string
		signals []os.Signal
		code    int
	}{
		"one SIGTERM, drained":      {"drains", []os.Signal{syscall.SIGTERM}, 0},
		"one SIGINT, drained":       {"drains", []os.Signal{os.Interrupt}, 0},
		"run returns the cancel":    {"returns the cancel", []os.Signal{syscall.SIGTERM}, 0},
		"a second SIGTERM ends it":  {"drains forever", []os.Signal{syscall.SIGTERM, syscall.SIGTERM}, 1},
		"SIGINT after SIGTERM, too": {"drains forever", []os.Signal{syscall.SIGTERM, os.Interrupt}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), helperMode+"="+test.mode, "REDIS_HOST=redis", "POOLS_FILE=/pools.yaml")
			stderr, err := child.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			lines := json.NewDecoder(stderr)
			for i, message := range []string{"running", "draining"} {
				for {
					var line struct{ Msg string }
					if err := lines.Decode(&line); err != nil {
						t.Fatalf("waiting for %q: %v", message, err)
					}
					if line.Msg == message {
						break
					}
				}
				if i < len(test.signals) {
					if err := child.Process.Signal(test.signals[i]); err != nil {
						t.Fatal(err)
					}
				}
			}
			// Not yet Wait: it would close the pipe under the last line.
			for {
				var line struct{ Msg string }
				if lines.Decode(&line) != nil {
					break
				}
			}
			_ = child.Wait() // the exit code says it
			if got := child.ProcessState.ExitCode(); got != test.code {
				t.Errorf("exit code %d, want %d", got, test.code)
			}
		})
	}
}
