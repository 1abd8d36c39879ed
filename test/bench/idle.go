package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuerpc"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const (
	idleWorkers = 1000
	// bareIdleArg makes this program the peer of idleRelay.
	bareIdleArg = "bare-idle"
)

// idleRelay measures the log-relay's own process while it follows 1,000 containers that
// print nothing, beside a process that only holds the same streams open: client-go's
// to the API server and gRPC's to the log server. The API server is one of ours, which
// only lists the pods and keeps their logs open, over HTTP/2 and TLS.
func idleRelay(ctx context.Context, quick bool) (rows []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	watch := 30 * time.Second
	if quick {
		watch = 5 * time.Second
	}
	dir, err := os.MkdirTemp("", "ottoscaler-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "log-relay"), "./cmd/log-relay")
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the relay: %w\n%s", err, output)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding ourselves: %w", err)
	}
	spoolDir := filepath.Join(dir, "spool")
	ours, err := idleProcess(ctx, dir, watch, filepath.Join(dir, "log-relay"), "SPOOL_DIR="+spoolDir)
	if err != nil {
		return nil, err
	}
	raw, err := idleProcess(ctx, dir, watch, self)
	if err != nil {
		return nil, err
	}
	return []Row{
		{Value: ours.megabytes, Raw: raw.megabytes, Unit: "MiB"},
		{Value: ours.percent, Raw: raw.percent, Unit: "%"},
	}, nil
}

// usage is what a process takes.
type usage struct{ megabytes, percent float64 }

// idleProcess runs a process until it has every log open at both ends, and measures it.
func idleProcess(ctx context.Context, dir string, watch time.Duration, program string, env ...string) (u usage, err error) {
	s, err := newSink(ctx)
	if err != nil {
		return u, err
	}
	defer s.close()
	silent := &silentAPI{allOpen: make(chan struct{})}
	api := httptest.NewUnstartedServer(silent)
	api.EnableHTTP2 = true
	api.StartTLS()
	defer api.Close()
	defer api.CloseClientConnections()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := writeKubeconfig(kubeconfig, api); err != nil {
		return u, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var group errgroup.Group
	defer func() {
		cancel()
		if failed := group.Wait(); !errors.Is(failed, context.Canceled) {
			err = errors.Join(err, failed)
		}
	}()
	queueAddr, err := offerIdle(ctx, &group)
	if err != nil {
		return u, err
	}
	args := []string{}
	if len(env) == 0 {
		args = append(args, bareIdleArg)
	}
	process := exec.Command(program, args...) //nolint:gosec // built above, or ourselves
	process.Env = append(os.Environ(), append(env, "KUBECONFIG="+kubeconfig, "NAMESPACE=bench", "QUEUE_ADDR="+queueAddr,
		"LOG_SERVER_ADDR="+s.conn.Target(), "HEALTH_ADDR=127.0.0.1:0", "LOG_LEVEL=warn")...)
	var output bytes.Buffer
	process.Stdout, process.Stderr = &output, &output
	if err := process.Start(); err != nil {
		return u, fmt.Errorf("starting %s: %w", program, err)
	}
	exited := make(chan error, 1)
	go func() { exited <- process.Wait() }()
	defer func() {
		_ = process.Process.Kill() // it may have ended
		<-exited                   //nolint:errcheck // because we killed it
	}()
	open := make(chan error, 1)
	go func() {
		select {
		case <-silent.allOpen:
		case <-ctx.Done():
			open <- ctx.Err()
			return
		}
		open <- s.Wait(ctx, func() bool {
			n := 0
			for _, w := range s.Workers() {
				n += len(w.Logs)
			}
			return n == idleWorkers
		})
	}()
	select {
	case err := <-open:
		if err != nil {
			return u, fmt.Errorf("waiting for the logs to be followed: %w\n%s", err, &output)
		}
	case err := <-exited:
		exited <- err
		return u, fmt.Errorf("%s has ended: %w\n%s", program, err, &output)
	}
	pause := func(d time.Duration) error {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := pause(watch / 5); err != nil { // the beginning is over
		return u, err
	}
	before, _, err := taken(process.Process.Pid)
	if err != nil {
		return u, err
	}
	begin := time.Now()
	if err := pause(watch); err != nil {
		return u, err
	}
	after, megabytes, err := taken(process.Process.Pid)
	u.megabytes = megabytes
	u.percent = 100 * (after - before).Seconds() / time.Since(begin).Seconds()
	return u, err
}

// taken returns the CPU time and the resident memory of a process.
func taken(pid int) (cpu time.Duration, megabytes float64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("measuring a process: %w", err)
	}
	// Behind the name, which ends with a parenthesis, the 12th and 13th fields are
	// the clock ticks, a hundredth of a second each, and the 22nd the pages.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var numbers [3]int64
	for i, field := range []int{11, 12, 21} {
		if numbers[i], err = strconv.ParseInt(fields[field], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("measuring a process: %w", err)
		}
	}
	return time.Duration(numbers[0]+numbers[1]) * 10 * time.Millisecond, float64(numbers[2]*int64(os.Getpagesize())) / (1 << 20), nil
}

// offerIdle serves a queue with all workers on it.
func offerIdle(ctx context.Context, group *errgroup.Group) (addr string, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listening for the queue: %w", err)
	}
	workers := queue.NewMemory[queue.Worker]()
	group.Go(func() error {
		return queuerpc.NewServer(queue.NewMemory[*scaleevent.Event](), workers).Serve(ctx, listener)
	})
	producer, err := workers.Produce(ctx, "bench")
	if err != nil {
		return "", err
	}
	group.Go(func() error {
		defer producer.Close() //nolint:errcheck // it is in memory
		for _, p := range idlePods().Items {
			item := queue.Item[queue.Worker]{ID: string(p.UID), Value: queue.Worker{Namespace: p.Namespace, Name: p.Name}}
			if err := producer.Offer(ctx, item); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return nil
	})
	return listener.Addr().String(), nil
}

func idlePods() *corev1.PodList {
	list := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
	for i := range idleWorkers {
		p := workerPod(fmt.Sprintf("idle-%04d", i))
		p.TypeMeta, p.ResourceVersion = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, "1"
		list.Items = append(list.Items, *p)
	}
	return list
}

// silentAPI is as much of an API server as a relay needs: pods that do not change,
// and logs that say nothing.
type silentAPI struct {
	open    atomic.Int64
	allOpen chan struct{} // closed when as many logs are open as there are workers
}

// ServeHTTP implements [http.Handler].
func (a *silentAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	flush := func() { w.(http.Flusher).Flush() }
	w.Header().Set("Content-Type", "application/json")
	encode := json.NewEncoder(w)
	switch query := r.URL.Query(); {
	case strings.HasSuffix(r.URL.Path, "/log") && query.Has("stream"):
		http.NotFound(w, r) // what the relay asks about telling apart stdout and stderr
	case strings.HasSuffix(r.URL.Path, "/log"):
		w.Header().Set("Content-Type", "text/plain")
		flush()
		if a.open.Add(1) == idleWorkers {
			close(a.allOpen)
		}
		<-r.Context().Done()
	case query.Get("watch") != "":
		if query.Get("sendInitialEvents") == "true" {
			for _, p := range idlePods().Items {
				encode.Encode(map[string]any{"type": "ADDED", "object": p}) //nolint:errcheck // the client notices
			}
			end := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
			end.ResourceVersion = "1"
			end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
			encode.Encode(map[string]any{"type": "BOOKMARK", "object": end}) //nolint:errcheck // as above
		}
		flush()
		<-r.Context().Done()
	default:
		encode.Encode(idlePods()) //nolint:errcheck // as above
	}
}

func writeKubeconfig(path string, api *httptest.Server) error {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	config := clientcmdapi.NewConfig()
	config.Clusters["bench"] = &clientcmdapi.Cluster{Server: api.URL, CertificateAuthorityData: ca}
	config.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench"}
	config.CurrentContext = "bench"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return nil
}

// bareIdle holds the streams of 1,000 idle containers open, and does nothing else.
func bareIdle(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return fmt.Errorf("finding the cluster: %w", err)
	}
	config.QPS = -1
	cluster, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connecting to the cluster: %w", err)
	}
	conn, err := grpc.NewClient(os.Getenv("LOG_SERVER_ADDR"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dialing the log server: %w", err)
	}
	defer conn.Close() //nolint:errcheck // everything is said
	group, ctx := errgroup.WithContext(ctx)
	for i := range idleWorkers {
		name := fmt.Sprintf("idle-%04d", i)
		group.Go(func() error {
			body, err := cluster.Pods("bench").GetLogs(name, &corev1.PodLogOptions{Container: "agent", Follow: true, Timestamps: true}).Stream(ctx)
			if err != nil {
				return fmt.Errorf("opening a log: %w", err)
			}
			defer body.Close() //nolint:errcheck // nothing was written
			_, err = body.Read(make([]byte, 512))
			return err
		})
		group.Go(func() error {
			stream, err := openBare(ctx, conn, name)
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		})
	}
	return group.Wait()
}
