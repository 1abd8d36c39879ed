package developer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
	"github.com/ottoscaler/ottoscaler/internal/dev/environment"
	"github.com/ottoscaler/ottoscaler/internal/dev/image"
	"github.com/ottoscaler/ottoscaler/internal/dev/release"
)

const (
	releaseName = "ottoscaler"
	imageTag    = "dev"
	// deployTimeout is for a first start: an upgrade takes seconds.
	deployTimeout = 3 * time.Minute
)

// Deploy builds Ottoscaler, loads what changed into the user's cluster and
// installs or upgrades the release there. Where nothing but programs has changed,
// only their containers are replaced, and the main pod stays.
func (w *Workplace) Deploy(ctx context.Context, e *environment.Environment, how Deployment) error {
	if !how.Begin.IsZero() {
		w.steps.begin = how.Begin
	}
	if _, err := w.Client(e); err != nil {
		return err
	}
	c := cluster.Open(w.clusterOptions(e))
	options := w.release(e)
	server, err := w.buildLogServer(ctx, options)
	if err != nil {
		return err
	}
	if server != nil {
		_, tag, _ := strings.Cut(server.Pinned, ":")
		options.SetJSON = append(options.SetJSON, fmt.Sprintf("logServer.image.tag=%q", tag))
	}
	// What the cluster has is asked while the images are made.
	var (
		asking    errgroup.Group
		inventory *cluster.Inventory
		current   bool
	)
	asking.Go(func() (err error) { inventory, err = c.Inventory(ctx); return err })
	asking.Go(func() (err error) { current, err = release.Current(options); return err })
	built, err := w.build(ctx, how.Compiled)
	if err := errors.Join(err, asking.Wait()); err != nil {
		return err
	}
	product, agent := built[0], built[1]
	if err := w.steps.do("load", func() (string, error) {
		return "into cluster " + e.Vars[environment.KindCluster], c.LoadBeside(ctx, inventory, product.Archive, agent.Archive)
	}); err != nil {
		return err
	}
	if server != nil && !inventory.Has(server.Pinned) {
		if err := w.steps.do("load the log server", func() (string, error) { return "done", w.loadLogServer(ctx, c, *server) }); err != nil {
			return err
		}
	}
	if err := w.steps.do("release", func() (string, error) { return roll(ctx, options, current, product) }); err != nil {
		return err
	}
	w.steps.say("running %.1f s after the start. Next:", time.Since(w.steps.begin).Seconds())
	w.steps.say("  make logs USER=%s                              what the main pod says", e.Slug)
	w.steps.say("  ENV_FILE=%s make test-event ARGS=--wait", filepath.Base(e.File()))
	w.steps.say("  make status USER=%s                            Redis, cluster, release, workers, backlog", e.Slug)
	if server != nil {
		w.steps.say("  make kubectl USER=%s ARGS=\"port-forward statefulset/%s-logs 8080\"   the workers' logs, at http://localhost:8080", e.Slug, releaseName)
		built = append(built, *server)
	}
	return w.forget(ctx, e, c, built...)
}

// A Deployment says how to deploy.
type Deployment struct {
	// Begin is when the developer's wait began; zero means now.
	Begin time.Time
	// Compiled tells that the programs have been compiled already, by the caller.
	Compiled bool
}

// build makes the images. With BASE_IMAGE or BUILD_IMAGE the engine does it, by
// the Dockerfile; else they are made here, where Go knows what has changed.
func (w *Workplace) build(ctx context.Context, compiled bool) (built []image.Built, err error) {
	make := func() ([]image.Built, error) {
		return image.Build(ctx, w.Root, w.imageDir(), imageTag, image.Ottoscaler, image.Agent)
	}
	if compiled {
		w.steps.say("[%5.1f s] compile", time.Since(w.steps.begin).Seconds())
		make = func() ([]image.Built, error) {
			return image.Pack(ctx, w.imageDir(), imageTag, image.Ottoscaler, image.Agent)
		}
	}
	if os.Getenv("BASE_IMAGE") != "" || os.Getenv("BUILD_IMAGE") != "" {
		make = func() ([]image.Built, error) { return w.buildInDocker(ctx) }
	}
	return built, w.steps.do("image", func() (string, error) {
		built, err = make()
		if err != nil {
			return "", err
		}
		return built[0].Digest, nil
	})
}

// buildLogServer makes the image of the log server that the values want beside the main
// pod, if they do and it is the one of this tree. The engine builds it, as it takes
// Node to do so.
func (w *Workplace) buildLogServer(ctx context.Context, options release.Options) (*image.Built, error) {
	wanted, err := logServerWanted(options)
	if err != nil || !wanted {
		return nil, err
	}
	name := image.NestJSLogServer + ":" + imageTag
	built := &image.Built{Archive: filepath.Join(w.imageDir(), path.Base(image.NestJSLogServer)+".tar"), Repository: image.NestJSLogServer}
	return built, w.steps.do("log server image", func() (string, error) {
		script := exec.CommandContext(ctx, filepath.Join(w.Root, "scripts", "image-log-server"), imageTag)
		script.Stderr = w.steps
		if err := script.Run(); err != nil {
			return "", fmt.Errorf("building the image of the log server: %w", err)
		}
		built.Digest, err = docker.Run(ctx, "image", "inspect", "--format", "{{.Id}}", name)
		built.Pinned = image.Pinned(name, built.Digest)
		return built.Digest, err
	})
}

// logServerWanted tells whether the values put the log server of this tree beside the
// main pod.
func logServerWanted(options release.Options) (bool, error) {
	for path, want := range map[string]any{"logServer.enabled": true, "logServer.image.repository": image.NestJSLogServer, "logServer.image.digest": ""} {
		value, err := release.Value(options, path)
		if err != nil || value != want {
			return false, err
		}
	}
	return true, nil
}

// loadLogServer takes the image out of the engine into the cluster, under its tag and
// under a name that means this very one, so that another one is another value.
func (w *Workplace) loadLogServer(ctx context.Context, c *cluster.Cluster, server image.Built) (err error) {
	name := server.Repository + ":" + imageTag
	if err := os.MkdirAll(w.imageDir(), 0o755); err != nil {
		return fmt.Errorf("making room for the image of the log server: %w", err)
	}
	if _, err := docker.Run(ctx, "tag", name, server.Pinned); err != nil {
		return err
	}
	defer func() {
		_, rerr := docker.Run(context.WithoutCancel(ctx), "image", "rm", server.Pinned) // the name, not the image
		err = errors.Join(err, rerr, os.Remove(server.Archive))
	}()
	if _, err := docker.Run(ctx, "save", "--output", server.Archive, name, server.Pinned); err != nil {
		return err
	}
	return c.Load(ctx, server.Archive)
}

// roll makes the release run the image. One that is current as for its chart and
// values needs no more than other containers.
func roll(ctx context.Context, options release.Options, current bool, product image.Built) (did string, err error) {
	if current && product.Programs != nil {
		replaced, err := release.Replace(ctx, options, product.Pinned, product.Programs)
		if !errors.Is(err, release.ErrNoPod) {
			return replacedText(replaced), err
		}
	}
	// The tag stays the same when the image changes; the annotations make a new pod of it.
	options.PodAnnotations = map[string]string{"ottoscaler.dev/image-digest": product.Digest}
	for program, word := range product.Programs {
		options.PodAnnotations[release.ProgramAnnotation(program)] = word
	}
	return fmt.Sprintf("%s in namespace %s is ready", releaseName, options.Namespace), release.Apply(ctx, options)
}

func replacedText(containers []string) string {
	if len(containers) == 0 {
		return "nothing has changed, the main pod is ready"
	}
	return strings.Join(containers, " and ") + " replaced in the main pod, which is ready"
}

// forget has the cluster let go of the images that nothing runs any more.
func (w *Workplace) forget(ctx context.Context, e *environment.Environment, c *cluster.Cluster, built ...image.Built) error {
	client, err := w.Client(e)
	if err != nil {
		return err
	}
	pods, err := client.CoreV1().Pods(e.Vars[environment.Namespace]).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("looking which images are in use: %w", err)
	}
	var used []string
	for _, p := range pods.Items {
		for _, container := range p.Spec.Containers {
			used = append(used, container.Image)
		}
	}
	for _, b := range built {
		if err := c.Forget(ctx, b.Repository, append(used, b.Repository+":"+imageTag, b.Pinned)...); err != nil {
			return err
		}
	}
	return nil
}

func (w *Workplace) imageDir() string { return filepath.Join(w.Root, "build", "images") }

// buildInDocker has the engine build the images and takes them out of it.
func (w *Workplace) buildInDocker(ctx context.Context) ([]image.Built, error) {
	script := exec.CommandContext(ctx, filepath.Join(w.Root, "scripts", "image"), imageTag)
	script.Stdout, script.Stderr = w.steps, w.steps
	if err := script.Run(); err != nil {
		return nil, fmt.Errorf("building the images in Docker: %w", err)
	}
	if err := os.MkdirAll(w.imageDir(), 0o755); err != nil {
		return nil, fmt.Errorf("making room for the images: %w", err)
	}
	var built []image.Built
	for _, r := range []image.Recipe{image.Ottoscaler, image.Agent} {
		name, archive := r.Name+":"+imageTag, filepath.Join(w.imageDir(), "docker-"+path.Base(r.Name)+".tar")
		if _, err := docker.Run(ctx, "save", "--output", archive, name); err != nil {
			return nil, err
		}
		id, err := docker.Run(ctx, "image", "inspect", "--format", "{{.Id}}", name)
		if err != nil {
			return nil, err
		}
		built = append(built, image.Built{Archive: archive, Repository: r.Name, Digest: id})
	}
	return built, nil
}

// release says what to install: the user's values, and what the environment file
// says otherwise.
func (w *Workplace) release(e *environment.Environment) release.Options {
	options := release.Options{
		Kubeconfig: e.Vars[environment.Kubeconfig], Namespace: e.Vars[environment.Namespace], Name: releaseName,
		Chart: filepath.Join(w.Root, "charts", "ottoscaler"), ValuesFiles: []string{e.ValuesFile()},
		Timeout: deployTimeout,
	}
	for key, variable := range map[string]string{
		"consumer.env." + environment.RedisStream:  environment.RedisStream,
		"consumer.env." + environment.RedisResults: environment.RedisResults,
		"consumer.env." + environment.RedisGroup:   environment.RedisGroup,
		"consumer.env." + environment.RedisDB:      environment.RedisDB,
		"scaler.env." + environment.AgentImage:     environment.AgentImage,
		"logRelay.env." + environment.LogServer:    environment.LogServer,
	} {
		if value := e.Vars[variable]; value != "" {
			options.SetJSON = append(options.SetJSON, fmt.Sprintf("%s=%q", key, value))
		}
	}
	return options
}
