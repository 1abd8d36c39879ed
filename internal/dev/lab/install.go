package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ottoscaler/ottoscaler/internal/dev/cluster"
	"github.com/ottoscaler/ottoscaler/internal/dev/image"
	"github.com/ottoscaler/ottoscaler/internal/dev/release"
)

// Release is the name under which the chart is installed.
const Release = "ottoscaler"

// redisSecret holds the password of the lab's Redis in an installation's namespace.
const redisSecret = "ottoscaler-redis"

// LoadImages compiles the product and the sample agent, makes images of them
// without a container engine, and loads them into the cluster. Into a cluster that
// is not ours nothing is loaded: OTTOSCALER_IMAGE and OTTO_AGENT_IMAGE name what
// its nodes can pull.
func (l *Lab) LoadImages(ctx context.Context) error {
	if l.Cluster.Kind == cluster.Current {
		if os.Getenv("OTTOSCALER_IMAGE") == "" || os.Getenv("OTTO_AGENT_IMAGE") == "" {
			return errors.New("CLUSTER=current needs OTTOSCALER_IMAGE and OTTO_AGENT_IMAGE, two images that the cluster's nodes can pull (make image builds them)")
		}
		return nil
	}
	built, err := image.Build(ctx, l.Root, filepath.Join(l.Root, "build", "images"), ImageTag, image.Ottoscaler, image.Agent)
	if err != nil {
		return err
	}
	l.imageDigest = built[0].Digest
	if err := l.Cluster.Load(ctx, built[0].Archive, built[1].Archive); err != nil {
		return err
	}
	return errors.Join(
		l.Cluster.Forget(ctx, image.Ottoscaler.Name, image.Ottoscaler.Name+":"+ImageTag, built[0].Pinned),
		l.Cluster.Forget(ctx, image.Agent.Name, AgentImage(), built[1].Pinned),
	)
}

// Installation returns the options that install the chart with values-jinwoo.yaml
// in a namespace, on this lab's Redis and with the given log server.
func (l *Lab) Installation(namespace, logServer string) release.Options {
	host := l.Redis.Host
	if l.Cluster.HostAddr != "" {
		host = l.Cluster.HostAddr
	}
	chart := filepath.Join(l.Root, "charts", "ottoscaler")
	streams := Streams(namespace)
	product, agent := image.Ottoscaler.Name+":"+ImageTag, AgentImage()
	if l.Cluster.Kind == cluster.Current {
		product, agent = os.Getenv("OTTOSCALER_IMAGE"), os.Getenv("OTTO_AGENT_IMAGE")
	}
	colon := strings.LastIndex(product, ":")
	set := []string{"redis.existingSecret.name=" + redisSecret}
	if l.Cluster.Kind == cluster.Source { // its kubelets have certificates of the cluster's authority
		set = append(set, "logRelay.rotatedLogs.enabled=true")
	}
	return release.Options{
		Kubeconfig: l.Cluster.Kubeconfig, Namespace: namespace, Name: Release, Chart: chart,
		ValuesFiles: []string{filepath.Join(chart, "values-jinwoo.yaml")},
		Set:         set,
		SetString: []string{
			"image.repository=" + product[:max(colon, 0)],
			"image.tag=" + product[colon+1:],
			"scaler.env.OTTO_AGENT_IMAGE=" + agent,
			"consumer.env.REDIS_HOST=" + host,
			"consumer.env.REDIS_PORT=" + strconv.Itoa(l.Redis.Port),
			"consumer.env.REDIS_STREAM=" + streams.Events,
			"consumer.env.REDIS_RESULTS_STREAM=" + streams.Results,
			"consumer.env.REDIS_DEAD_STREAM=" + streams.Dead,
			"logRelay.env.LOG_SERVER_ADDR=" + logServer,
		},
		// The tag stays the same when the image changes; this makes a new pod of it.
		PodAnnotations: map[string]string{"ottoscaler.dev/image-digest": l.imageDigest},
		Timeout:        3 * time.Minute,
	}
}

// Install installs the chart as [Lab.Installation] says and waits until the main
// pod is ready.
func (l *Lab) Install(ctx context.Context, namespace, logServer string) error {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: redisSecret},
		StringData: map[string]string{"password": l.Redis.Password},
	}
	_, err := l.Core.Secrets(namespace).Create(ctx, secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = l.Core.Secrets(namespace).Update(ctx, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("storing the password of Redis: %w", err)
	}
	return release.Apply(ctx, l.Installation(namespace, logServer))
}

// WriteEnvFile writes the environment file of a developer whose installation is in
// the namespace, as test-event reads it. It holds the password of Redis.
func (l *Lab) WriteEnvFile(path, namespace string) error {
	streams := Streams(namespace)
	env := fmt.Sprintf("REDIS_HOST=%s\nREDIS_PORT=%d\nREDIS_PASSWORD=%s\nREDIS_STREAM=%s\nREDIS_RESULTS_STREAM=%s\nREDIS_DEAD_STREAM=%s\n",
		l.Redis.Host, l.Redis.Port, l.Redis.Password, streams.Events, streams.Results, streams.Dead)
	if err := os.WriteFile(path, []byte(env), 0o600); err != nil {
		return fmt.Errorf("writing the environment file: %w", err)
	}
	return nil
}

// Uninstall removes what Install made.
func (l *Lab) Uninstall(namespace string) error {
	return release.Remove(l.Installation(namespace, ""))
}
