package daemon

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	partReady *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		partReady: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ottoscaler_daemon_part_ready",
			Help: "Whether a part of the binary is ready: 1 or 0.",
		}, []string{"part"}),
	}
	reg.MustRegister(m.partReady)
	return m
}

func (m *metrics) setReady(part string, ready bool) {
	value := 0.0
	if ready {
		value = 1
	}
	m.partReady.WithLabelValues(part).Set(value)
}
