// Package environment knows what belongs to a developer's environment: its names,
// and the two files that describe it.
//
// The environment file, .env.<user>.local, is the record of an environment. It is
// written before anything is made, so that an interrupted set-up can go on, and
// variables that its user changed stay as they are. The values file is for the
// chart, charts/ottoscaler/values-<user>.yaml.
package environment

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/joho/godotenv"
)

// Names of the variables in an environment file. Those of the programs are the
// programs' own.
const (
	// User is whom the environment is for, as they write themselves.
	User = "OTTOSCALER_USER"
	// InstanceUser is the user's slug; see INSTANCE_USER of the programs.
	InstanceUser = "INSTANCE_USER"
	// Namespace of the installation.
	Namespace = "NAMESPACE"
	// RedisHost is where programs on this machine reach Redis.
	RedisHost = "REDIS_HOST"
	// RedisPort is its port there.
	RedisPort = "REDIS_PORT"
	// RedisPassword of the user's Redis.
	RedisPassword = "REDIS_PASSWORD"
	// RedisDB is the number of the database.
	RedisDB = "REDIS_DB"
	// RedisStream is the stream of events.
	RedisStream = "REDIS_STREAM"
	// RedisResults is the stream of results.
	RedisResults = "REDIS_RESULTS_STREAM"
	// RedisGroup is the consumer group.
	RedisGroup = "REDIS_CONSUMER_GROUP"
	// RedisConsumer names a consumer that is run by hand on this machine.
	RedisConsumer = "REDIS_CONSUMER"
	// AgentImage is the image of the workers.
	AgentImage = "OTTO_AGENT_IMAGE"
	// KindCluster is the name of the kind cluster.
	KindCluster = "KIND_CLUSTER_NAME"
	// Kubeconfig is the file that leads to that cluster, and to no other.
	Kubeconfig = "KUBECONFIG"
	// LogServer is the log server's address, as pods of the cluster reach it.
	LogServer = "LOG_SERVER_ADDR"
)

// RedisSecret is the Secret of the namespace with the password of Redis.
const RedisSecret = "ottoscaler-redis"

// LocalRedisImage is the repository of the image that kind/images makes, for those
// who cannot pull any.
const LocalRedisImage = "ottoscaler.local/redis"

// ErrNone says that a checkout has no environment at all.
var ErrNone = errors.New("there is no environment yet: make setup-user USER=<your name> makes one")

// An Environment is what one developer has to themselves.
type Environment struct {
	// Slug is the user's name in other names; see [Slug].
	Slug string
	// Vars are the variables of the environment file.
	Vars map[string]string

	root string
}

// File returns the path of the environment file.
func (e *Environment) File() string { return filepath.Join(e.root, ".env."+e.Slug+".local") }

// ValuesFile returns the path of the chart's values for the user.
func (e *Environment) ValuesFile() string {
	return filepath.Join(e.root, "charts", "ottoscaler", "values-"+e.Slug+".yaml")
}

// Network returns the name of the Docker network.
func (e *Environment) Network() string { return "ottoscaler-" + e.Slug }

// RedisContainer returns the name of the container with the user's Redis, which is
// its host name for the cluster's pods as well.
func (e *Environment) RedisContainer() string { return "redis-" + e.Slug }

// LogContainer returns the name of the container with the user's log server, and
// its host name.
func (e *Environment) LogContainer() string { return "logs-" + e.Slug }

// User returns whom the environment is for, as they write themselves.
func (e *Environment) User() string { return e.Vars[User] }

// RedisAddr returns the address at which this machine reaches the user's Redis.
func (e *Environment) RedisAddr() string { return e.Vars[RedisHost] + ":" + e.Vars[RedisPort] }

// defaults are the variables of a new environment, in the order of the file.
func (e *Environment) defaults(user string) []struct{ name, value, comment string } {
	return []struct{ name, value, comment string }{
		{User, user, "Whose environment this is, and what they are called in other names."},
		{InstanceUser, e.Slug, ""},
		{RedisHost, "127.0.0.1", "Redis as this machine reaches it; pods reach it as " + e.RedisContainer() + ":6379."},
		{RedisPort, "", ""},
		{RedisPassword, "", ""},
		{RedisDB, "0", ""},
		{RedisStream, "otto:scale:events", ""},
		{RedisResults, "otto:scale:results", ""},
		{RedisGroup, "ottoscaler", ""},
		{RedisConsumer, e.Slug, "The name of a consumer that you run on this machine; in the cluster it is the pod's."},
		{Namespace, "ottoscaler-" + e.Slug, "The installation in the user's own cluster. make deploy takes the stream, the group, the image and the log server from here."},
		{AgentImage, "ottoscaler.local/otto-agent:dev", ""},
		{KindCluster, "ottoscaler-" + e.Slug, ""},
		{Kubeconfig, filepath.Join(e.root, ".env."+e.Slug+".kubeconfig"), ""},
		{LogServer, e.LogContainer() + ":50051", "The log server as pods reach it."},
	}
}

// Open reads the environment of a user, whom their name or their slug tells. It
// returns [fs.ErrNotExist] when there is none.
func Open(root, user string) (*Environment, error) {
	s, err := Slug(user)
	if err != nil {
		return nil, err
	}
	return read(root, s)
}

// Named returns the environment of a slug, as its file has it or, without a file,
// as it would be: enough to find what is left of it.
func Named(root, slug string) (*Environment, error) {
	e, err := read(root, slug)
	if errors.Is(err, fs.ErrNotExist) {
		e, err = &Environment{Slug: slug, Vars: map[string]string{}, root: root}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, v := range e.defaults(slug) {
		if e.Vars[v.name] == "" {
			e.Vars[v.name] = v.value
		}
	}
	return e, nil
}

func read(root, slug string) (*Environment, error) {
	e := &Environment{Slug: slug, root: root}
	vars, err := godotenv.Read(e.File())
	if err != nil {
		return nil, fmt.Errorf("reading the environment file: %w", err)
	}
	e.Vars = vars
	return e, nil
}

// Ensure returns the environment of a user and writes its file, if there is none,
// or adds what is missing in it. The port is one that take approves of. It tells
// what it did in a word.
//
// Two users whose names have the same slug would share everything, so the second
// is refused.
func Ensure(root, user string, take func(port int) bool) (e *Environment, did string, err error) {
	s, err := Slug(user)
	if err != nil {
		return nil, "", err
	}
	e, err = read(root, s)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}
	did = "completed"
	if e == nil {
		e = &Environment{Slug: s, Vars: map[string]string{}, root: root}
		did = "made"
	}
	if owner := e.User(); owner != "" && owner != user {
		return nil, "", fmt.Errorf("USER=%s: in names of Docker and Kubernetes that is %s, which is taken by %s (%s): take another name",
			user, s, owner, filepath.Base(e.File()))
	}
	added, err := e.complete(user, take)
	if err != nil {
		return nil, "", err
	}
	if added == "" {
		return e, "kept", nil
	}
	return e, did, e.append(added)
}

// complete fills in variables that are not there, and returns their lines.
func (e *Environment) complete(user string, take func(int) bool) (string, error) {
	var lines strings.Builder
	for _, v := range e.defaults(user) {
		if e.Vars[v.name] != "" {
			continue
		}
		value := v.value
		switch v.name {
		case RedisPort:
			port, err := freePort(e.root, e.Slug, take)
			if err != nil {
				return "", err
			}
			value = strconv.Itoa(port)
		case RedisPassword:
			value = rand.Text()
		}
		line, err := godotenv.Marshal(map[string]string{v.name: value})
		if err != nil {
			return "", fmt.Errorf("writing the environment file: %w", err)
		}
		if v.comment != "" {
			fmt.Fprintf(&lines, "# %s\n", v.comment)
		}
		lines.WriteString(line + "\n")
		e.Vars[v.name] = value
	}
	return lines.String(), nil
}

// append adds lines to the file, which appears whole or not at all.
func (e *Environment) append(lines string) error {
	old, err := os.ReadFile(e.File())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = []byte("# The environment of a developer of Ottoscaler; make setup-user made it, make clean removes it.\n" +
			"# It holds a password: keep it to yourself. What you change here stays.\n")
	case err != nil:
		return fmt.Errorf("reading the environment file: %w", err)
	case len(old) > 0 && old[len(old)-1] != '\n':
		old = append(old, '\n')
	}
	return writeFile(e.File(), append(old, lines...), 0o600)
}

// Ports of Redis containers are looked for here: below what kernels give to
// outgoing connections, which could take a port while its container is stopped.
const firstPort, ports = 16400, 1000

// freePort returns a port that no environment of this tree has and take approves
// of, beginning at one that the slug decides: who loses their file finds the same.
func freePort(root, slug string, take func(int) bool) (int, error) {
	taken := map[string]bool{}
	others, err := List(root)
	if err != nil {
		return 0, err
	}
	for _, other := range others {
		taken[other.Vars[RedisPort]] = true
	}
	begin := 0
	for _, c := range slug {
		begin = (begin*31 + int(c)) % ports
	}
	for i := range ports {
		port := firstPort + (begin+i)%ports
		if !taken[strconv.Itoa(port)] && take(port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("no port from %d to %d is free for Redis", firstPort, firstPort+ports-1)
}

// List returns the environments whose files are in a source tree, by slug.
func List(root string) ([]*Environment, error) {
	files, err := filepath.Glob(filepath.Join(root, ".env.*.local"))
	if err != nil {
		return nil, fmt.Errorf("looking for environment files: %w", err)
	}
	var list []*Environment
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), ".env."), ".local")
		if s, err := Slug(name); err != nil || s != name {
			continue // not one of ours
		}
		e, err := read(root, name)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// Select returns the environment that is meant: the user's, the one of an
// environment file, or the only one there is. Never the login name's.
func Select(root, user, envFile string) (*Environment, error) {
	list, err := List(root)
	if err != nil {
		return nil, err
	}
	names := func() string {
		known := map[string]bool{}
		for _, e := range list {
			known[e.User()] = true
		}
		return strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	}
	switch {
	case user != "":
		e, err := Open(root, user)
		switch {
		case errors.Is(err, fs.ErrNotExist) && len(list) > 0:
			return nil, fmt.Errorf("%s has no environment here: make setup-user USER=%s makes it (there are those of %s)", user, user, names())
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s has no environment here: make setup-user USER=%s makes it", user, user)
		case err == nil && user != e.User() && user != e.Slug:
			return nil, fmt.Errorf("USER=%s: the environment %s is that of %s", user, filepath.Base(e.File()), e.User())
		}
		return e, err
	case envFile != "":
		name, ok := strings.CutSuffix(strings.TrimPrefix(filepath.Base(envFile), ".env."), ".local")
		if !ok {
			return nil, fmt.Errorf("ENV_FILE=%s: want .env.<user>.local", envFile)
		}
		return Open(root, name)
	case len(list) == 1:
		return list[0], nil
	case len(list) == 0:
		return nil, ErrNone
	default:
		return nil, fmt.Errorf("whose environment? say USER=<name>; there are those of %s", names())
	}
}

// writeFile writes beside path and renames, so that nobody reads half a file.
func writeFile(path string, content []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing %s: %w", path, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	_, werr := f.Write(content)
	if err := errors.Join(werr, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
