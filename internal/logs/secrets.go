package logs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/ottoscaler/ottoscaler/internal/mask"
	"github.com/ottoscaler/ottoscaler/internal/pod"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// Secrets knows what must not be seen in the logs: what matches some patterns and,
// for each worker whose pool asks for it, the values of the Secrets that the
// worker uses.
//
// Only Secrets that a worker names are read, each by a watch of its own. A value
// is hidden from when it is seen until the relay ends: a worker may go on to print
// the value that its variable had when it began, after the Secret has changed. No
// line of a worker is read before its Secrets are.
type Secrets struct {
	lister   func(name string) cache.ListerWatcher
	patterns []*regexp.Regexp
	outage   *outage
	log      *slog.Logger
	wake     chan struct{} // when pending has grown

	mu      sync.Mutex
	pending []*watchedSecret // of watched, those that are not watched yet
	watched map[string]*watchedSecret
	sets    map[string]*maskSet // by the annotation that asks for them
	warned  map[string]bool     // of values that are too short
}

// A watchedSecret is one Secret, as it is and as it was.
type watchedSecret struct {
	name     string
	informer cache.SharedIndexInformer
	synced   cache.InformerSynced
	values   map[string][][]byte // by key, the newest last; guarded by Secrets.mu
}

// mostVersions is how many values of one key are hidden.
const mostVersions = 8

// A maskSet is what is hidden from the logs of some workers.
type maskSet struct {
	refs    []pod.SecretRef
	current atomic.Pointer[mask.Masker]
}

// Secrets makes the view of the cluster's Secrets. It shows nothing before its Run.
func (c *Cluster) Secrets(patterns []*regexp.Regexp, registry prometheus.Registerer, log *slog.Logger) *Secrets {
	up := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "ottoscaler", Subsystem: "logs", Name: "secrets_up",
		Help: "Whether the cluster gave a Secret that is to be hidden when it was last asked; 0 if none is to be.",
	})
	registry.MustRegister(up)
	s := newSecrets(patterns, log, up)
	s.lister = func(name string) cache.ListerWatcher {
		only := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		report := func(err error) {
			use := s.outage.use()
			if err != nil {
				use.explains(context.Background(), fmt.Errorf(
					"reading Secret %s, which is to be hidden; until then its workers' logs wait (may the service account get, list and watch it?): %w", name, err))
				return
			}
			use.succeeds(context.Background())
		}
		return c.listWatch("secrets", func() runtime.Object { return &corev1.SecretList{} }, func(options *metav1.ListOptions) {
			options.FieldSelector = only
		}, report)
	}
	return s
}

func newSecrets(patterns []*regexp.Regexp, log *slog.Logger, up prometheus.Gauge) *Secrets {
	always := func(error) bool { return true }
	return &Secrets{
		patterns: patterns,
		outage:   &outage{name: "secrets", about: always, log: log, up: up},
		log:      log,
		wake:     make(chan struct{}, 1),
		watched:  map[string]*watchedSecret{},
		sets:     map[string]*maskSet{},
		warned:   map[string]bool{},
	}
}

// Run watches the Secrets that workers name until ctx ends.
func (s *Secrets) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		s.mu.Lock()
		begin := s.pending
		s.pending = nil
		s.mu.Unlock()
		for _, w := range begin {
			group.Go(func() { w.informer.RunWithContext(ctx) })
		}
	}
}

// Masker returns what hides a worker's secrets, by what its pod asks for. It blocks
// until all of them are read. What it returns says what is to be hidden now.
func (s *Secrets) Masker(ctx context.Context, worker *corev1.Pod) (func() *mask.Masker, error) {
	annotation := worker.Annotations[pod.AnnotationMaskSecrets]
	refs := pod.ParseSecrets(annotation)
	s.mu.Lock()
	set, ok := s.sets[annotation]
	if !ok {
		set = &maskSet{refs: refs}
		s.sets[annotation] = set
	}
	var synced []cache.InformerSynced
	for _, ref := range refs {
		w, ok := s.watched[ref.Name]
		if !ok {
			var err error
			if w, err = s.watch(ref.Name); err != nil {
				s.mu.Unlock()
				return nil, err
			}
			s.pending = append(s.pending, w)
			wake(s.wake)
		}
		synced = append(synced, w.synced)
	}
	s.rebuild(ctx, set)
	s.mu.Unlock()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil, ctx.Err()
	}
	return set.current.Load, nil
}

// watch prepares the watch of a Secret. The lock is held.
func (s *Secrets) watch(name string) (*watchedSecret, error) {
	w := &watchedSecret{name: name, values: map[string][][]byte{}}
	w.informer = cache.NewSharedIndexInformer(s.lister(name), &corev1.Secret{}, 0, cache.Indexers{})
	// The informer tries again by itself, and the lister reports.
	if err := w.informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}); err != nil {
		return nil, fmt.Errorf("preparing to watch Secret %s: %w", name, err)
	}
	registration, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { s.changed(w, object) },
		UpdateFunc: func(_, object any) { s.changed(w, object) },
		// A Secret that is gone is still in the variables of those who run.
	})
	if err != nil {
		return nil, fmt.Errorf("preparing to watch Secret %s: %w", name, err)
	}
	w.synced = registration.HasSynced
	s.watched[name] = w
	return w, nil
}

// changed takes a new version of a Secret.
func (s *Secrets) changed(w *watchedSecret, object any) {
	secret, ok := object.(*corev1.Secret)
	if !ok || secret.Name != w.name {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range secret.Data {
		versions := w.values[key]
		if slices.ContainsFunc(versions, func(v []byte) bool { return bytes.Equal(v, value) }) {
			continue
		}
		if len(versions) == mostVersions {
			versions = slices.Delete(versions, 0, 1)
		}
		w.values[key] = append(versions, bytes.Clone(value))
	}
	for _, set := range s.sets {
		if slices.ContainsFunc(set.refs, func(r pod.SecretRef) bool { return r.Name == w.name }) {
			s.rebuild(context.Background(), set)
		}
	}
}

// rebuild makes a set's masker anew. The lock is held.
func (s *Secrets) rebuild(ctx context.Context, set *maskSet) {
	var values []mask.Secret
	for _, ref := range set.refs {
		for key, versions := range s.watched[ref.Name].values {
			if ref.Key != "" && ref.Key != key {
				continue
			}
			for _, value := range versions {
				values = append(values, mask.Secret{Name: ref.Name + "/" + key, Value: value})
			}
		}
	}
	if len(values) == 0 && len(s.patterns) == 0 {
		return
	}
	masker, short := mask.New(values, s.patterns)
	set.current.Store(masker)
	for _, name := range short {
		if !s.warned[name] {
			s.warned[name] = true
			s.log.WarnContext(ctx, "a secret, or a line of it, is too short to be hidden in logs", "secret", name, "shortest", mask.MinLength)
		}
	}
}

// learnSecrets waits for what is to be hidden in a worker's logs. If the pod goes before
// that is known, it is as if it had gone before it was seen: nothing of it is shown,
// which is nil.
func (w *worker) learnSecrets(ctx context.Context, seen *corev1.Pod) (*corev1.Pod, error) {
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for {
			seen, changed := w.look()
			if seen == nil {
				stop()
				return
			}
			select {
			case <-changed:
			case <-waiting.Done():
				return
			}
		}
	}()
	masker, err := w.options.Mask(waiting, seen)
	switch {
	case err == nil:
		w.mask = masker
		return seen, nil
	case ctx.Err() == nil && waiting.Err() != nil:
		w.log.ErrorContext(ctx, "the worker was gone before the secrets that its logs may hold could be read: its logs are lost")
		return nil, nil
	default:
		return nil, err
	}
}

// hideEnds hides secrets in what is said about a worker's end: the kubelet may put
// the last lines of a log there.
func hideEnds(m *mask.Masker, request *logsv1.FinishWorkerRequest) {
	request.Message = m.Text(request.GetMessage())
	for _, c := range request.GetContainers() {
		c.Message = m.Text(c.GetMessage())
	}
}
