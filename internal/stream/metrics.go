package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

type metrics struct {
	read, redelivered, reclaimed, faults, trimmed, unreplicated prometheus.Counter
	rejected, settled, ends                                     *prometheus.CounterVec
	duration, latency                                           prometheus.Histogram
	up, backlog, pending, oldest, paused                        prometheus.Gauge
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
		read:         counter("entries_read_total", "Entries that were read for the first time."),
		redelivered:  counter("entries_redelivered_total", "Entries that were read again, because their outcome had not been stored."),
		reclaimed:    counter("entries_reclaimed_total", "Entries that were taken over from another consumer, or from an abandoned read."),
		trimmed:      counter("entries_trimmed_total", "Entries that were removed from the stream because of its retention."),
		unreplicated: counter("unreplicated_total", "Times that something was stored, and not enough replicas of Redis had it in time."),
		faults:       counter("faults_total", "Failed attempts to do something with Redis."),
		rejected:     vector("events_rejected_total", "Events that were rejected, by reason.", "reason"),
		settled:      vector("events_settled_total", "Events whose outcome was stored, by status.", "status"),
		ends:         vector("workers_ended_total", "Workers whose end was written to the results, by status.", "status"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ottoscaler_stream_event_duration_seconds", Help: "Time from an event's acceptance to its stored outcome.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ottoscaler_stream_read_latency_seconds", Help: "Age of an entry, by the clock of Redis, when it was read for the first time.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
		up:      gauge("redis_up", "1 while Redis does what we ask of it."),
		backlog: gauge("backlog_entries", "Entries that the group has not read. When Redis does not know (after XDEL or XTRIM), they are counted, up to 10000."),
		pending: gauge("pending_entries", "Entries that the group has read and not acknowledged, of all consumers."),
		oldest:  gauge("oldest_unacknowledged_seconds", "Age of the oldest entry that is not acknowledged, read or not, since it was added; 0 if there is none."),
		paused:  gauge("paused", "1 while the group is paused."),
	}
	reg.MustRegister(m.read, m.redelivered, m.reclaimed, m.trimmed, m.unreplicated, m.faults, m.rejected, m.settled, m.ends, m.duration, m.latency, m.up, m.backlog, m.pending, m.oldest, m.paused)
	return m
}

// sample sets the gauges that only Redis knows.
func (c *Consumer) sample(ctx context.Context) (redis.XInfoGroup, error) {
	group, err := c.group(ctx, c.rdb)
	if err != nil {
		return group, err
	}
	if _, err := c.checkPause(ctx); err != nil {
		return group, err
	}
	if group.Lag < 0 { // Redis does not know, after XDEL or XTRIM
		if group.Lag, err = c.countUnread(ctx, group.LastDeliveredID); err != nil {
			return group, err
		}
	}
	c.metrics.backlog.Set(float64(group.Lag))
	c.metrics.pending.Set(float64(group.Pending))
	oldest, err := c.oldest(ctx, group)
	if err != nil {
		return group, err
	}
	c.metrics.oldest.Set(oldest.Seconds())
	return group, nil
}

// maxCount bounds how many unread entries are counted one by one.
const maxCount = 10_000

// countUnread counts the entries behind an ID, page by page and up to a bound.
func (c *Consumer) countUnread(ctx context.Context, last string) (int64, error) {
	n := 0
	for n < maxCount {
		entries, err := c.rdb.XRangeN(ctx, c.cfg.Stream, "("+last, "+", 1000).Result()
		if err != nil {
			return 0, fmt.Errorf("counting unread entries: %w", err)
		}
		n += len(entries)
		if len(entries) < 1000 {
			break
		}
		last = entries[len(entries)-1].ID
	}
	return int64(n), nil
}

// oldest returns the age of the oldest entry that is not acknowledged, read or not.
func (c *Consumer) oldest(ctx context.Context, group redis.XInfoGroup) (time.Duration, error) {
	if group.Pending > 0 {
		entries, err := c.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: c.cfg.Stream, Group: c.cfg.Group, Start: "-", End: "+", Count: 1,
		}).Result()
		if err != nil {
			return 0, fmt.Errorf("reading the oldest pending entry: %w", err)
		}
		if len(entries) > 0 {
			return age(entries[0].ID, time.Now()), nil
		}
	}
	if group.Lag == 0 {
		return 0, nil
	}
	entries, err := c.rdb.XRangeN(ctx, c.cfg.Stream, "("+group.LastDeliveredID, "+", 1).Result()
	if err != nil {
		return 0, fmt.Errorf("reading the oldest unread entry: %w", err)
	}
	if len(entries) == 0 {
		return 0, nil
	}
	return age(entries[0].ID, time.Now()), nil
}
