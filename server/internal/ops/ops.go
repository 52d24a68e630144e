// Package ops is what operators see: metrics, liveness, readiness. It is served
// on a listener of its own, which does not leave the machine by default.
package ops

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"livepatch/internal/version"
	"livepatch/server/internal/expiry"
)

// Metrics counts what the service does. It is safe for concurrent use.
type Metrics struct {
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	enrolments *prometheus.CounterVec
	checkIns   prometheus.Counter
	events     prometheus.Counter
	verdicts   *prometheus.CounterVec
	lag        prometheus.Histogram
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
	for _, result := range []string{"granted", "refused"} {
		m.enrolments.WithLabelValues(result) // 0 is there from the start, so that a rate sees the first
	}
	m.verdicts, m.lag = newRuleMetrics()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "livepatch_build_info", Help: "1, labelled with the version of this server.",
		ConstLabels: prometheus.Labels{"version": version.String()},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.latency, m.enrolments, m.checkIns, m.events, m.verdicts, m.lag, build,
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

// Expiring adds when each role expires, and how much of its life is left.
func (m *Metrics) Expiring(roles func() []expiry.Role) {
	labels := []string{"role"}
	m.registry.MustRegister(expiryCollector{
		expires: prometheus.NewDesc("livepatch_role_expires_timestamp_seconds",
			"When a signed role expires; of a vendor's bins, when the first does.", labels, nil),
		left: prometheus.NewDesc("livepatch_role_remaining_life_ratio",
			"How much of a signed role's life is left, from 1 to 0.", labels, nil),
		roles: roles,
	})
}

type expiryCollector struct {
	expires, left *prometheus.Desc
	roles         func() []expiry.Role
}

func (c expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.expires; ch <- c.left }

func (c expiryCollector) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for _, r := range c.roles() {
		ch <- prometheus.MustNewConstMetric(c.expires, prometheus.GaugeValue, float64(r.Expires.Unix()), r.Name)
		ch <- prometheus.MustNewConstMetric(c.left, prometheus.GaugeValue, r.Share(now), r.Name)
	}
}

// readyTimeout bounds a look at readiness.
const readyTimeout = 5 * time.Second

// Handler serves /healthz (the process answers), /readyz (ready returns nil)
// and /metrics. A page that says ready lists what runs out below: that is the
// same on every replica, so none of them is taken out of service for it.
func Handler(m *Metrics, ready func(context.Context) error, roles func() []expiry.Role) http.Handler {
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
		warn(w, roles(), time.Now())
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
	return mux
}

// warn lists the roles that run out, and what to do about them.
func warn(w io.Writer, roles []expiry.Role, now time.Time) {
	for _, r := range roles {
		if level := r.Level(now); level != expiry.Fine {
			fmt.Fprintf(w, "%s: role %s expires %s\n", level, r.Name, r.Expires.Format(time.RFC3339))
		}
	}
	for _, line := range expiry.Advice(roles, now) {
		fmt.Fprintln(w, "hint:", line)
	}
}
