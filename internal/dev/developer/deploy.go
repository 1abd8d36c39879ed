package developer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

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
// installs or upgrades the release there.
//
// The old main pod is told to go as soon as the programs compile, and not when the
// new one is ready to come: the chart replaces one by the other in any case, and
// meanwhile events wait in Redis.
func (w *Workplace) Deploy(ctx context.Context, e *environment.Environment) (err error) {
	client, err := w.Client(e)
	if err != nil {
		return err
	}
	main := mainPod{client, e.Vars[environment.Namespace]}
	var built []image.Built
	if err := w.steps.do("build", func() (_ string, err error) {
		if built, err = w.build(ctx, func() { main.stop(ctx) }); err != nil {
			return "", err
		}
		return built[0].Digest, nil
	}); err != nil {
		return errors.Join(err, main.start(ctx))
	}
	if err := w.steps.do("load", func() (string, error) {
		c := cluster.Open(w.clusterOptions(e))
		return "into cluster " + e.Vars[environment.KindCluster], c.Load(ctx, built[0].Archive, built[1].Archive)
	}); err != nil {
		return errors.Join(err, main.start(ctx))
	}
	options := w.release(e)
	// The tag stays the same when the image changes; this makes a new pod of it.
	options.SetString = append(options.SetString, `podAnnotations.ottoscaler\.dev/image-digest=`+built[0].Digest)
	if err := w.steps.do("release", func() (string, error) {
		return fmt.Sprintf("%s in namespace %s is ready", releaseName, options.Namespace), release.Apply(ctx, options)
	}); err != nil {
		return errors.Join(err, main.start(ctx))
	}
	w.steps.say("running %.1f s after the start. Next:", time.Since(w.steps.begin).Seconds())
	w.steps.say("  make logs USER=%s                              what the main pod says", e.Slug)
	w.steps.say("  ENV_FILE=%s make test-event ARGS=--wait", filepath.Base(e.File()))
	w.steps.say("  make status USER=%s                            Redis, cluster, release, workers, backlog", e.Slug)
	return nil
}

// A mainPod is what deploying replaces.
type mainPod struct {
	client    kubernetes.Interface
	namespace string
}

// stop tells the main pod to go, if there is one. That it did not work is no
// error: the upgrade does it then.
func (m mainPod) stop(ctx context.Context) { _ = m.scale(ctx, 0) }

// start undoes stop when deploying came to nothing.
func (m mainPod) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return m.scale(ctx, 1)
}

func (m mainPod) scale(ctx context.Context, replicas int) error {
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	_, err := m.client.AppsV1().Deployments(m.namespace).Patch(ctx, releaseName, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("scaling the main pod to %d: %w", replicas, err)
	}
	return nil
}

func (w *Workplace) imageDir() string { return filepath.Join(w.Root, "build", "images") }

// build makes the images. With BASE_IMAGE or BUILD_IMAGE the engine does it, by
// the Dockerfile; else they are made here, where Go knows what has changed.
func (w *Workplace) build(ctx context.Context, compiled func()) ([]image.Built, error) {
	if os.Getenv("BASE_IMAGE") != "" || os.Getenv("BUILD_IMAGE") != "" {
		return w.buildInDocker(ctx)
	}
	return image.Build(ctx, w.Root, w.imageDir(), imageTag, compiled, image.Ottoscaler, image.Agent)
}

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
		built = append(built, image.Built{Archive: archive, Digest: id})
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
