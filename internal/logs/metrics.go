package logs

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ottoscaler/ottoscaler/internal/spool"
)

// metrics are what the package counts.
type metrics struct {
	sentLines, sentBytes   prometheus.Counter
	ackedLines, ackedBytes prometheus.Counter
	droppedLines           *prometheus.CounterVec
	cutLines               prometheus.Counter
	spooledLines           prometheus.Counter
	spoolErrors            prometheus.Counter
	pauses                 prometheus.Counter
	stuckReads             prometheus.Counter
	gaps, lostLines        *prometheus.CounterVec
	rotations              prometheus.Counter
	retries                *prometheus.CounterVec
	reconnects             *prometheus.CounterVec
	protocolErrors         prometheus.Counter
	rewinds                prometheus.Counter
	inexactResumes         prometheus.Counter
	recoveredLines         prometheus.Counter
	truncated              prometheus.Counter
	mismatches             prometheus.Counter
	finished               prometheus.Counter
	followers, workers     prometheus.Gauge
	serverUp, sourcesUp    prometheus.Gauge
	lag                    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, unacked *budget, store *spool.Store) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "ottoscaler", Subsystem: "logs", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	counters := func(name, label, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "ottoscaler", Subsystem: "logs", Name: name, Help: help}, []string{label})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "ottoscaler", Subsystem: "logs", Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		sentLines:      counter("sent_lines_total", "Lines sent to the log server, repetitions included."),
		sentBytes:      counter("sent_bytes_total", "Bytes of lines sent to the log server, repetitions included."),
		ackedLines:     counter("acked_lines_total", "Lines that the log server has stored."),
		ackedBytes:     counter("acked_bytes_total", "Bytes of lines that the log server has stored."),
		droppedLines:   counters("dropped_lines_total", "reason", "Lines that the log server refused for good, by its reason."),
		cutLines:       counter("cut_lines_total", "Cuts made in lines that are longer than 3 MiB."),
		spooledLines:   counter("spooled_lines_total", "Lines that were kept on disk because the log server had not taken them at once."),
		spoolErrors:    counter("spool_errors_total", "Errors of the disk that the spool lies on."),
		pauses:         counter("paused_reads_total", "Times that reading a log paused because there was no room for its lines."),
		stuckReads:     counter("stuck_reads_total", "Reads that were given up because they stayed silent although the log went on or had ended."),
		gaps:           counters("gaps_total", "reason", "Places in logs where lines are missing, or where it cannot be proven that none are, by their reason."),
		lostLines:      counters("lost_lines_total", "reason", "Lines that were read and will never arrive, by the reason."),
		rotations:      counter("stream_rotations_total", "Streams that were ended and opened again because of their age."),
		retries:        counters("retries_total", "reason", "Times that the log server asked to send lines again, by its reason."),
		reconnects:     counters("reconnects_total", "kind", "Times that a log was opened again, at the kubelet or at the log server."),
		protocolErrors: counter("protocol_errors_total", "Answers of the log server that broke the protocol."),
		rewinds:        counter("rewinds_total", "Times that the log server had lost lines which it had acknowledged."),
		inexactResumes: counter("inexact_resumes_total", "Reads that went on by time because the last line was not found again, as after a rotation; lines may be missing before them."),
		recoveredLines: counter("recovered_lines_total", "Lines read from the files of nodes, because the log API could not go on behind the last line."),
		truncated:      counter("truncated_logs_total", "Logs that could not be read to their end."),
		mismatches:     counter("mismatched_logs_total", "Complete logs of which the log server holds something else."),
		finished:       counter("finished_workers_total", "Workers whose logs are complete at the log server."),
		followers:      gauge("followers", "Logs that are being followed."),
		workers:        gauge("workers", "Workers that are being followed."),
		serverUp:       gauge("server_up", "Whether the log server answered when it was last asked."),
		sourcesUp:      gauge("sources_up", "Whether the cluster gave a log when it was last asked."),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "ottoscaler", Subsystem: "logs", Name: "follow_lag_seconds",
			Help:    "Age of the oldest line of a batch when it is sent for the first time.",
			Buckets: []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}),
	}
	reg.MustRegister(m.lag, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "ottoscaler", Subsystem: "logs", Name: "unacked_bytes",
		Help: "Memory that holds what is read and not acknowledged by the log server.",
	}, func() float64 { return float64(unacked.used.Load()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "ottoscaler", Subsystem: "logs", Name: "spool_bytes",
		Help: "Disk that holds what is read and not acknowledged by the log server.",
	}, func() float64 {
		if store == nil {
			return 0
		}
		return float64(store.Used())
	}))
	return m
}
