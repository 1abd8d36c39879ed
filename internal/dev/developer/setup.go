package developer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gofrs/flock"
	"github.com/redis/go-redis/v9"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/doctor"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
	"github.com/ottoscaler/ottoscaler/internal/dev/image"
)

// defaultRedisImage is pulled where the user names none and kind/images made none.
const defaultRedisImage = "redis:8"

// SetUp makes the environment of a user, or what is missing of it.
func (w *Workplace) SetUp(ctx context.Context, user string) error {
	if err := doctor.Engine(ctx); err != nil {
		return err
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock() // twice does no harm

	var e *environment.Environment
	err = w.steps.do("environment file", func() (did string, err error) {
		e, did, err = environment.Ensure(w.Root, user, portIsFree(ctx))
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s %s", filepath.Base(e.File()), did), nil
	})
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func(context.Context, *environment.Environment) (string, error)
	}{
		{"network " + e.Network(), w.ensureNetwork},
		{"Redis " + e.RedisContainer(), w.ensureRedis},
		// From here on the port is taken, and others may go on beside us.
		{"log server " + e.LogContainer(), func(ctx context.Context, e *environment.Environment) (string, error) {
			unlock()
			return w.ensureLogServer(ctx, e)
		}},
		{"cluster " + e.Vars[environment.KindCluster], w.ensureCluster},
		{"namespace " + e.Vars[environment.Namespace], w.ensureNamespace},
		{"values", func(context.Context, *environment.Environment) (string, error) {
			did, err := e.EnsureValues()
			return fmt.Sprintf("%s %s", w.relative(e.ValuesFile()), did), err
		}},
	} {
		if err := w.steps.do(step.what, func() (string, error) { return step.do(ctx, e) }); err != nil {
			return err
		}
	}
	w.steps.say("%s's environment is ready after %.1f s. Next:", e.User(), time.Since(w.steps.begin).Seconds())
	w.steps.say("  make deploy USER=%s                              build Ottoscaler and install it", e.Slug)
	w.steps.say("  ENV_FILE=%s make test-event    send an event", filepath.Base(e.File()))
	w.steps.say("  make status USER=%s; make logs USER=%s", e.Slug, e.Slug)
	return nil
}

// lock keeps two set-ups from choosing the same port.
func lock() (unlock func(), err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("finding the cache folder: %w", err)
	}
	dir := filepath.Join(cache, "ottoscaler")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the cache folder: %w", err)
	}
	l := flock.New(filepath.Join(dir, "setup-user.lock"))
	if err := l.Lock(); err != nil {
		return nil, fmt.Errorf("waiting for another make setup-user: %w", err)
	}
	return func() { _ = l.Close() }, nil // its end frees it as well
}

// portIsFree tells whether nothing listens on a port of loopback, nor on all addresses.
func portIsFree(ctx context.Context) func(port int) bool {
	return func(port int) bool {
		for _, host := range []string{"127.0.0.1", ""} {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil || l.Close() != nil {
				return false
			}
		}
		return true
	}
}

func (w *Workplace) ensureRedis(ctx context.Context, e *environment.Environment) (string, error) {
	name := os.Getenv("REDIS_IMAGE")
	forced := name != ""
	if !forced {
		local, err := docker.LocalImage(ctx, environment.LocalRedisImage)
		if err != nil {
			return "", err
		}
		if name = local; name == "" {
			name = defaultRedisImage
		}
	}
	if err := w.ensureImage(ctx, name, "REDIS_IMAGE"); err != nil {
		return "", err
	}
	did, err := w.ensureContainer(ctx, e, container{
		name: e.RedisContainer(), image: name, imageForced: forced,
		publish: e.RedisAddr() + ":6379", // on loopback alone
		volume:  e.RedisContainer() + ":/data",
		files:   map[string][]byte{"/usr/local/etc/redis/redis.conf": redisConfig(e.Vars[environment.RedisPassword])},
		command: []string{"redis-server", "/usr/local/etc/redis/redis.conf"},
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, at %s", did, e.RedisAddr()), w.awaitRedis(ctx, e)
}

// awaitRedis waits until the user's Redis answers to the password.
func (w *Workplace) awaitRedis(ctx context.Context, e *environment.Environment) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	rdb := redisClient(e)
	defer rdb.Close() //nolint:errcheck // nothing was written
	for {
		err := rdb.Ping(ctx).Err()
		if err == nil {
			return nil
		}
		if redis.HasErrorPrefix(err, "WRONGPASS") {
			return fmt.Errorf("Redis at %s has another password than %s says: make clean USER=%s, or put the right one there", e.RedisAddr(), filepath.Base(e.File()), e.Slug) //nolint:staticcheck // Redis is a name
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for Redis at %s: %w (docker logs %s may tell why)", e.RedisAddr(), err, e.RedisContainer())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func redisClient(e *environment.Environment) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: e.RedisAddr(), Password: e.Vars[environment.RedisPassword],
		MaxRetries: -1, DialerRetries: 1, DialTimeout: time.Second, ContextTimeoutEnabled: true,
	})
}

// ensureLogServer runs the reference log server, so that an installation has
// somewhere to send its logs before the user runs a server of their own.
func (w *Workplace) ensureLogServer(ctx context.Context, e *environment.Environment) (string, error) {
	built, err := image.Build(ctx, w.Root, w.imageDir(), imageTag, image.LogServer)
	if err != nil {
		return "", err
	}
	if _, err := docker.Run(ctx, "load", "--quiet", "--input", built[0].Archive); err != nil {
		return "", fmt.Errorf("loading the log server's image: %w", err)
	}
	did, err := w.ensureContainer(ctx, e, container{
		name: e.LogContainer(), image: image.LogServer.Name + ":" + imageTag, command: []string{"-listen", ":50051", "-print"},
	})
	return fmt.Sprintf("%s (docker logs %s shows what arrives)", did, e.LogContainer()), err
}

func (w *Workplace) clusterOptions(e *environment.Environment) cluster.Options {
	return cluster.Options{
		Kind: cluster.InDocker, Name: e.Vars[environment.KindCluster], Nodes: 1, Root: w.Root, Output: w.steps,
		Network: e.Network(), Kubeconfig: e.Vars[environment.Kubeconfig],
	}
}

func (w *Workplace) ensureCluster(ctx context.Context, e *environment.Environment) (string, error) {
	c, err := cluster.Up(ctx, w.clusterOptions(e))
	if err != nil {
		return "", err
	}
	if c.Made {
		return "made, kubeconfig " + w.relative(c.Kubeconfig), nil
	}
	return "kept, kubeconfig " + w.relative(c.Kubeconfig), nil
}

func (w *Workplace) ensureNamespace(ctx context.Context, e *environment.Environment) (string, error) {
	client, err := w.Client(e)
	if err != nil {
		return "", err
	}
	did, name := "kept", e.Vars[environment.Namespace]
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted", labelUser: e.Slug},
	}}
	switch _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); {
	case err == nil:
		did = "made"
	case !apierrors.IsAlreadyExists(err):
		return "", fmt.Errorf("making namespace %s: %w", name, err)
	}
	password := []byte(e.Vars[environment.RedisPassword])
	secrets := client.CoreV1().Secrets(name)
	secret, err := secrets.Get(ctx, environment.RedisSecret, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: environment.RedisSecret}, Data: map[string][]byte{"password": password}}
		_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
	case err == nil && string(secret.Data["password"]) != string(password):
		secret.Data = map[string][]byte{"password": password}
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		return "", fmt.Errorf("storing the password of Redis in namespace %s: %w", name, err)
	}
	return fmt.Sprintf("%s, with secret %s", did, environment.RedisSecret), nil
}

var errNoCluster = errors.New("the cluster is not there")
