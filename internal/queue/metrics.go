package queue

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	offers prometheus.Counter
	leases prometheus.Counter
	lost   prometheus.Counter

	redeliveries prometheus.Counter

	settled  prometheus.Counter
	verdicts *prometheus.CounterVec
	wait     prometheus.Histogram
}

// newMetrics makes the metrics of one queue, and registers them if there is a
// registerer. The gauges are read from the queue when they are scraped.
func newMetrics(reg prometheus.Registerer, topic string, stats func() Stats, oldestLease func() time.Duration) *metrics {
	m := &metrics{
		offers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_queue_offers_total",
			Help: "Items that were taken in.",
		}),
		leases: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_queue_leases_total",
			Help: "Leases that were given to subscribers.",
		}),
		redeliveries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_queue_redeliveries_total",
			Help: "Leases that were not the first one of their item: after a retry, or after a lost lease.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_queue_leases_lost_total",
			Help: "Leases that ended without a verdict.",
		}),
		settled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ottoscaler_queue_settled_total",
			Help: "Items that were settled by their producer.",
		}),
		verdicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ottoscaler_queue_verdicts_total",
			Help: "Verdicts of subscribers, by kind.",
		}, []string{"verdict"}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ottoscaler_queue_wait_seconds",
			Help:    "Time from an item's offer to its first lease.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
		}),
	}
	if reg == nil {
		return m
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"topic": topic}, reg)
	reg.MustRegister(m.offers, m.leases, m.redeliveries, m.lost, m.settled, m.verdicts, m.wait, gauges{stats, oldestLease})
	return m
}

func (m *metrics) verdict(v Verdict) {
	kind := "retry"
	if v.Status != 0 {
		kind = v.Status.String()
	}
	m.verdicts.WithLabelValues(kind).Inc()
}

// gauges takes one snapshot for each scrape.
type gauges struct {
	stats       func() Stats
	oldestLease func() time.Duration
}

var (
	itemsDesc = prometheus.NewDesc("ottoscaler_queue_items",
		"Items in the queue, by state.", []string{"state"}, nil)
	creditsDesc = prometheus.NewDesc("ottoscaler_queue_credit_items",
		"How many more items the subscribers would take.", nil, nil)
	oldestDesc = prometheus.NewDesc("ottoscaler_queue_oldest_item_age_seconds",
		"How long the oldest item without an outcome has been here.", nil, nil)
	oldestLeaseDesc = prometheus.NewDesc("ottoscaler_queue_oldest_lease_age_seconds",
		"How long the oldest lease has lasted.", nil, nil)
	connectionsDesc = prometheus.NewDesc("ottoscaler_queue_connections",
		"Open producers and subscriptions.", []string{"side"}, nil)
)

// Describe implements [prometheus.Collector].
func (gauges) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{itemsDesc, creditsDesc, oldestDesc, oldestLeaseDesc, connectionsDesc} {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector].
func (g gauges) Collect(out chan<- prometheus.Metric) {
	s := g.stats()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(itemsDesc, float64(s.Ready), "ready")
	gauge(itemsDesc, float64(s.Blocked), "blocked")
	gauge(itemsDesc, float64(s.Leased), "leased")
	gauge(itemsDesc, float64(s.Unsettled), "unsettled")
	gauge(creditsDesc, float64(s.Credits))
	gauge(oldestDesc, s.OldestAge.Seconds())
	gauge(oldestLeaseDesc, g.oldestLease().Seconds())
	gauge(connectionsDesc, float64(s.Subscribers), "subscriber")
	gauge(connectionsDesc, float64(s.Producers), "producer")
}
