// Command test-event sends a scale event by hand, and shows what becomes of it.
//
// The Redis server is the one that the consumer's environment names (REDIS_HOST
// and so on). ENV_FILE, or --env-file, is a file of such variables, which fill in
// what the environment leaves open.
//
// Exit codes: 0 sent (and done, with --wait), 1 failed, 2 wrong usage, 3 rejected.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/joho/godotenv"
	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// Exit codes.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitRejected = 3
)

// CLI are the flags. Those of Redis have the names of the consumer's variables.
type CLI struct {
	EnvFile string `help:"File of environment variables; those that are set already win." env:"ENV_FILE" type:"existingfile" placeholder:"FILE"`

	Type     string            `help:"Type of the event: scale_up (which it is if nothing is said, but for --raw) or scale_down."`
	Pool     string            `help:"Worker template." short:"p"`
	Count    string            `help:"How many workers to add or to remove." short:"c" placeholder:"N"`
	Target   string            `help:"How many workers there should be in the end, instead of --count." placeholder:"N"`
	Task     string            `help:"Task whose workers are meant." short:"t"`
	Priority string            `help:"Priority, 0 to 1000." placeholder:"N"`
	Field    map[string]string `help:"Any other field, such as env.CI_JOB=7; it wins over the flags above. Repeatable." short:"f" placeholder:"NAME=VALUE" mapsep:"none"`
	Raw      bool              `help:"Send exactly what is given, unchecked: no type is filled in, and malformed events are sent as they are."`
	Events   int               `help:"How many events to send." short:"n" default:"1" placeholder:"N"`

	Wait        bool          `help:"Wait for the outcome of each event." short:"w"`
	Timeout     time.Duration `help:"How long to wait." default:"60s"`
	ShowBacklog bool          `help:"Show what the consumer group has before it, afterwards."`
	Output      string        `help:"text, or json: one object on a line." short:"o" enum:"text,json" default:"text"`

	RedisHost          string `help:"Host of the Redis server." env:"REDIS_HOST" default:"127.0.0.1" group:"Redis"`
	RedisPort          int    `help:"Port of the Redis server." env:"REDIS_PORT" default:"6379" group:"Redis"`
	RedisUsername      string `help:"ACL user." env:"REDIS_USERNAME" group:"Redis"`
	RedisPassword      string `help:"Password; better given by the variable." env:"REDIS_PASSWORD" group:"Redis"`
	RedisDB            int    `help:"Number of the database." env:"REDIS_DB" default:"0" group:"Redis"`
	RedisStream        string `help:"Stream of events." env:"REDIS_STREAM" default:"otto:scale:events" group:"Redis"`
	RedisResultsStream string `help:"Stream of results." env:"REDIS_RESULTS_STREAM" default:"otto:scale:results" group:"Redis"`
	RedisConsumerGroup string `help:"Consumer group." env:"REDIS_CONSUMER_GROUP" default:"ottoscaler" group:"Redis"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without its globals, except the environment.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cli, done, err := parse(args, stdout)
	if done {
		return exitDone
	}
	complain := func(err error) {
		_, _ = fmt.Fprintf(stderr, "test-event: %v\n", err) // nobody is left to tell
	}
	if err != nil {
		complain(err)
		return exitUsage
	}
	var rejected *scaleevent.Error
	switch err := newSender(cli, stdout).send(ctx); {
	case err == nil:
		return exitDone
	case errors.Is(err, errRejected):
		return exitRejected
	case errors.As(err, &rejected):
		complain(fmt.Errorf("not sent (%s): %w; --raw sends it all the same", rejected.Reason, rejected))
		return exitUsage
	default:
		complain(err)
		return exitFailed
	}
}

// parse reads the flags. The environment file has to be read before the flags'
// defaults are, so kong looks at the arguments twice.
func parse(args []string, stdout io.Writer) (cli *CLI, helped bool, err error) {
	if err := forgetEmpty(os.Environ()); err != nil {
		return nil, false, err
	}
	first := &CLI{}
	parser, err := kong.New(first, options(stdout, &helped)...)
	if err != nil {
		return nil, false, err
	}
	if _, err := parser.Parse(args); err != nil || helped {
		// The file may cure what is wrong only if it was found.
		if first.EnvFile == "" || helped {
			return nil, helped, err
		}
	}
	if first.EnvFile != "" {
		if err := load(first.EnvFile); err != nil {
			return nil, false, fmt.Errorf("reading %s: %w", first.EnvFile, err)
		}
	}
	cli = &CLI{}
	if parser, err = kong.New(cli, options(stdout, &helped)...); err != nil {
		return nil, false, err
	}
	if _, err = parser.Parse(args); err != nil {
		return nil, false, err
	}
	switch {
	case cli.Events < 1:
		return nil, false, errors.New("--events: at least one")
	case cli.Timeout <= 0:
		return nil, false, errors.New("--timeout: must be above zero")
	}
	return cli, false, nil
}

// load sets the variables of a file that the environment leaves open.
func load(file string) error {
	variables, err := godotenv.Read(file)
	if err != nil {
		return err
	}
	for name, value := range variables {
		if _, set := os.LookupEnv(name); !set && value != "" {
			if err := os.Setenv(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// forgetEmpty unsets variables of Redis that are set but empty, which is what make
// and charts pass on for a value that nobody gave. The consumer does the same.
func forgetEmpty(environ []string) error {
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		if value == "" && (strings.HasPrefix(name, "REDIS_") || name == "ENV_FILE") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func options(stdout io.Writer, helped *bool) []kong.Option {
	return []kong.Option{
		kong.Name("test-event"),
		kong.Description("Sends a scale event to Ottoscaler's Redis stream. Exit codes: 0 sent (and done, with --wait), 1 failed, 2 wrong usage, 3 rejected."),
		kong.WithHyphenPrefixedParameters(true), // --count -1 is what it is, for --raw
		kong.Writers(stdout, stdout),
		kong.Exit(func(int) { *helped = true }),
	}
}

func (c *CLI) client() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr:                  fmt.Sprintf("%s:%d", c.RedisHost, c.RedisPort),
		Username:              c.RedisUsername,
		Password:              c.RedisPassword,
		DB:                    c.RedisDB,
		ContextTimeoutEnabled: true,
		MaxRetries:            1,
	})
}

// fields are those of the event that the flags describe.
func (c *CLI) fields() map[string]string {
	fields := map[string]string{}
	set := func(name, value string) {
		if value != "" {
			fields[name] = value
		}
	}
	set(scaleevent.FieldType, c.Type)
	if c.Type == "" && !c.Raw {
		set(scaleevent.FieldType, string(scaleevent.ScaleUp))
	}
	set(scaleevent.FieldPool, c.Pool)
	set(scaleevent.FieldPodCount, c.Count)
	set(scaleevent.FieldTargetReplicas, c.Target)
	set(scaleevent.FieldTaskID, c.Task)
	set(scaleevent.FieldPriority, c.Priority)
	for name, value := range c.Field {
		fields[name] = value
	}
	return fields
}
