package worker

import (
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

type metrics struct {
	events        *prometheus.CounterVec
	creates       *prometheus.CounterVec
	deletes       *prometheus.CounterVec
	eventToPod    prometheus.Histogram
	eventToRun    prometheus.Histogram
	finished      *prometheus.CounterVec
	lostLines     prometheus.Counter
	logsAbandoned prometheus.Counter
	poolReloads   *prometheus.CounterVec
	poolRefused   prometheus.Gauge
	ungated       prometheus.Counter
	retries       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	// From a few milliseconds, which is what an idle API server takes, to the
	// minutes that pulling an image or waiting for a node may take.
	buckets := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ottoscaler_worker_events_total",
			Help: "Deliveries of scale events by type and result: done, rejected or retried.",
		}, []string{"type", "result"}),
		creates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ottoscaler_worker_creates_total",
			Help: "Attempts to create a worker by result: created, existed or failed.",
		}, []string{"result"}),
		deletes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ottoscaler_worker_deletes_total",
			Help: "Attempts to delete a worker by result: deleted or failed.",
		}, []string{"result"}),
		eventToPod: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ottoscaler_worker_event_to_pod_seconds",
			Help:    "Time from an event's arrival in Redis to the creation of each of its workers.",
			Buckets: buckets,
		}),
		eventToRun: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ottoscaler_worker_event_to_running_seconds",
			Help:    "Time from an event's arrival in Redis until each of its workers is seen to run.",
			Buckets: buckets,
		}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ottoscaler_worker_finished_total",
			Help: "Workers that came to an end, by its class, such as succeeded, exit_code or evicted.",
		}, []string{"class"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ottoscaler_worker_retries_total",
			Help: "Workers that were tried again as a new pod, by the class of the end before.",
		}, []string{"class"}),
		logsAbandoned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_worker_logs_abandoned_total",
			Help: "Workers released at the drain deadline, before the log server had acknowledged their last line.",
		}),
		lostLines: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_worker_lost_log_lines_total",
			Help: "Log lines that were read and will never be at the log server, as far as they are known.",
		}),
		poolRefused: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ottoscaler_worker_pool_file_refused",
			Help: "Whether the pool file as it is now is refused (1), so that an earlier version of it is in force.",
		}),
		ungated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_worker_ungated_total",
			Help: "Workers that had waited for a place in their pool and got it.",
		}),
		poolReloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ottoscaler_worker_pool_reloads_total",
			Help: "Readings of a changed pool file by result: adopted or refused.",
		}, []string{"result"}),
	}
	reg.MustRegister(m.events, m.creates, m.deletes, m.eventToPod, m.eventToRun, m.finished, m.logsAbandoned, m.lostLines, m.poolReloads, m.poolRefused, m.ungated, m.retries)
	// Both are of use from the start: a rate needs a first value.
	m.poolReloads.WithLabelValues("adopted")
	m.poolReloads.WithLabelValues("refused")
	return m
}

// sinceEvent returns how long ago the event came into its stream. An ID that is
// no entry ID has no time.
func sinceEvent(id string, now time.Time) (time.Duration, bool) {
	at, ok := eventTime(id)
	return now.Sub(at), ok
}

// eventTime reads the milliseconds at the beginning of an entry ID.
func eventTime(id string) (time.Time, bool) {
	ms, _, ok := strings.Cut(id, "-")
	if !ok {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil || n <= 0 {
		return time.Time{}, false
	}
	return time.UnixMilli(n), true
}

// phases is a collector of the workers in the cache, counted when it is asked.
type phases struct {
	all  func() []*corev1.Pod
	desc *prometheus.Desc
}

func newPhases(all func() []*corev1.Pod) *phases {
	return &phases{all: all, desc: prometheus.NewDesc("ottoscaler_worker_pods",
		"Worker pods by phase; terminating comes before any other.", []string{"phase"}, nil)}
}

// Describe implements [prometheus.Collector].
func (p *phases) Describe(ch chan<- *prometheus.Desc) { ch <- p.desc }

// Collect implements [prometheus.Collector].
func (p *phases) Collect(ch chan<- prometheus.Metric) {
	counts := map[string]int{"gated": 0, "pending": 0, "running": 0, "succeeded": 0, "failed": 0, "unknown": 0, "terminating": 0}
	for _, worker := range p.all() {
		counts[phase(worker)]++
	}
	for name, n := range counts {
		ch <- prometheus.MustNewConstMetric(p.desc, prometheus.GaugeValue, float64(n), name)
	}
}

func phase(p *corev1.Pod) string {
	switch {
	case p.DeletionTimestamp != nil:
		return "terminating"
	case len(p.Spec.SchedulingGates) > 0:
		return "gated"
	case p.Status.Phase == "":
		return "pending"
	default:
		return strings.ToLower(string(p.Status.Phase))
	}
}

// places is a collector of the places that workers take, counted when it is asked.
type places struct {
	capacity                *capacity
	taken, waiting, maximum *prometheus.Desc
}

func newPlaces(c *capacity) *places {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("ottoscaler_worker_"+name, help, []string{"pool"}, nil)
	}
	return &places{
		capacity: c,
		taken:    desc("pool_taken_pods", "Workers that take a place in their pool, those included whose creation has no answer yet."),
		waiting:  desc("pool_waiting_pods", "Workers that wait for a place, by pool."),
		maximum:  desc("pool_max_pods", "The most workers that a pool may have, where its pool file says so."),
	}
}

// Describe implements [prometheus.Collector].
func (p *places) Describe(ch chan<- *prometheus.Desc) {
	ch <- p.taken
	ch <- p.waiting
	ch <- p.maximum
}

// Collect implements [prometheus.Collector].
func (p *places) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, n int, pool string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), pool)
	}
	pools := p.capacity.limits()
	p.capacity.mu.Lock()
	defer p.capacity.mu.Unlock()
	for _, name := range pools.Names() {
		gauge(p.taken, p.capacity.taken[scope{pool: name}], name)
		gauge(p.waiting, p.capacity.waiting[name], name)
		if most := pools.Get(name).MaxWorkers; most != nil {
			gauge(p.maximum, *most, name)
		}
	}
}
