package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

type metrics struct {
	read, redelivered, reclaimed, faults prometheus.Counter
	rejected, settled                    *prometheus.CounterVec
	duration                             prometheus.Histogram
	up, backlog, pending, oldest         prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "ottoscaler_stream_" + name, Help: help})
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ottoscaler_stream_" + name, Help: help}, []string{label})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "ottoscaler_stream_" + name, Help: help})
	}
	m := &metrics{
		read:        counter("entries_read_total", "Entries that were read for the first time."),
		redelivered: counter("entries_redelivered_total", "Entries that were read again, because their outcome had not been stored."),
		reclaimed:   counter("entries_reclaimed_total", "Entries that were taken over from another consumer, or from an abandoned read."),
		faults:      counter("faults_total", "Failed attempts to do something with Redis."),
		rejected:    vector("events_rejected_total", "Events that were rejected, by reason.", "reason"),
		settled:     vector("events_settled_total", "Events whose outcome was stored, by status.", "status"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ottoscaler_stream_event_duration_seconds", Help: "Time from an event's acceptance to its stored outcome.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
		up:      gauge("redis_up", "1 while Redis does what we ask of it."),
		backlog: gauge("backlog_entries", "Entries that the group has not read. When Redis does not know (after XDEL or XTRIM), they are counted up to 100."),
		pending: gauge("pending_entries", "Entries that the group has read and not acknowledged, of all consumers."),
		oldest:  gauge("oldest_pending_seconds", "Age of the oldest entry that is not acknowledged, since it was added; 0 if there is none."),
	}
	reg.MustRegister(m.read, m.redelivered, m.reclaimed, m.faults, m.rejected, m.settled, m.duration, m.up, m.backlog, m.pending, m.oldest)
	return m
}

// sampling is how often the gauges are set that only Redis knows.
const sampling = 10 * time.Second

// runSampler looks at the group until ctx ends. The reader reports what fails.
func (c *Consumer) runSampler(ctx context.Context) error {
	every(ctx, sampling, func() {
		if err := c.sample(ctx); err != nil && ctx.Err() == nil {
			c.log.DebugContext(ctx, "sampling the consumer group", "err", err)
		}
	})
	return nil
}

func (c *Consumer) sample(ctx context.Context) error {
	group, err := c.group(ctx)
	if err != nil {
		return err
	}
	backlog := group.Lag
	if backlog < 0 { // Redis does not know
		unread, err := c.rdb.XRangeN(ctx, c.cfg.Stream, "("+group.LastDeliveredID, "+", 100).Result()
		if err != nil {
			return fmt.Errorf("counting unread entries: %w", err)
		}
		backlog = int64(len(unread))
	}
	oldest, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: c.cfg.Stream, Group: c.cfg.Group, Start: "-", End: "+", Count: 1,
	}).Result()
	if err != nil {
		return fmt.Errorf("reading the oldest pending entry: %w", err)
	}
	c.metrics.backlog.Set(float64(backlog))
	c.metrics.pending.Set(float64(group.Pending))
	c.metrics.oldest.Set(0)
	if len(oldest) > 0 {
		c.metrics.oldest.Set(age(oldest[0].ID, time.Now()).Seconds())
	}
	return nil
}
