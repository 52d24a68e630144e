// Package ops is what operators see: metrics, liveness, readiness. It is served
// on a listener of its own, which does not leave the machine by default.
package ops

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"livepatch/internal/version"
)

// Metrics counts what the service does. It is safe for concurrent use.
type Metrics struct {
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	enrolments *prometheus.CounterVec
	checkIns   prometheus.Counter
	events     prometheus.Counter
}

// NewMetrics returns metrics that are all zero.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "livepatch_requests_total", Help: "Requests answered, by route, method and status.",
		}, []string{"route", "method", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "livepatch_request_duration_seconds", Help: "Time to answer a request, by route.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .1, .5, 2.5, 10, 60},
		}, []string{"route"}),
		enrolments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "livepatch_enrolments_total", Help: "Enrolments asked for, by result.",
		}, []string{"result"}),
		checkIns: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "livepatch_check_ins_total", Help: "Check-ins taken.",
		}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "livepatch_events_total", Help: "Events received with check-ins, repeated ones included.",
		}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "livepatch_build_info", Help: "1, labelled with the version of this server.",
		ConstLabels: prometheus.Labels{"version": version.String()},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.latency, m.enrolments, m.checkIns, m.events, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Request counts an answered request.
func (m *Metrics) Request(route, method string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, known(method), strconv.Itoa(status)).Inc()
	m.latency.WithLabelValues(route).Observe(took.Seconds())
}

// known keeps clients from making up labels.
func known(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "DELETE":
		return method
	}
	return "other"
}

// Enrolment counts an enrolment that was granted or refused.
func (m *Metrics) Enrolment(granted bool) {
	result := "refused"
	if granted {
		result = "granted"
	}
	m.enrolments.WithLabelValues(result).Inc()
}

// CheckIn counts a check-in with a number of events.
func (m *Metrics) CheckIn(events int) {
	m.checkIns.Inc()
	m.events.Add(float64(events))
}

// Gauge adds a gauge whose value is asked for when somebody looks.
func (m *Metrics) Gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Counter adds a counter whose value is asked for when somebody looks.
func (m *Metrics) Counter(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
}

// Expiries adds the gauge of how many seconds each role has left.
func (m *Metrics) Expiries(expiries func() map[string]time.Time) {
	m.registry.MustRegister(expiryCollector{
		desc:     prometheus.NewDesc("livepatch_role_expiry_seconds", "Seconds until a signed role expires.", []string{"role"}, nil),
		expiries: expiries,
	})
}

type expiryCollector struct {
	desc     *prometheus.Desc
	expiries func() map[string]time.Time
}

func (c expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c expiryCollector) Collect(ch chan<- prometheus.Metric) {
	for role, at := range c.expiries() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, time.Until(at).Seconds(), role)
	}
}

// readyTimeout bounds a look at readiness.
const readyTimeout = 5 * time.Second

// Handler serves /healthz (the process answers), /readyz (ready returns nil)
// and /metrics.
func Handler(m *Metrics, ready func(context.Context) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
	return mux
}
