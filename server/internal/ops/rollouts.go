package ops

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// A RolloutStage is how far a patch has come in one unit and tier.
type RolloutStage struct {
	Vendor, Version string
	store.Stage
}

// Rollouts adds how far each patch has come, as stages returns it: it is asked when
// somebody looks, and answers from memory.
func (m *Metrics) Rollouts(stages func() []RolloutStage, now func() time.Time) {
	unit := []string{"vendor", "version", "unit"}
	tier := append(unit[:3:3], "tier")
	desc := func(name, help string, labels []string) *prometheus.Desc {
		return prometheus.NewDesc("livepatch_rollout_"+name, help, labels, nil)
	}
	m.registry.MustRegister(rolloutCollector{
		stages: stages, now: now,
		halted:  desc("halted", "1 if the rule has halted the unit, else 0.", unit),
		verdict: desc("verdict_age_seconds", "Seconds since the rule's last verdict about the unit that was a new one.", unit),
		share:   desc("share_ratio", "Share of the tier's machines that may have the patch, from 0 to 1.", tier),
		exposed: desc("exposed_machines", "Machines that began with the patch.", tier),
		pending: desc("pending_machines", "Of the exposed machines, those without an outcome.", tier),
		failed:  desc("failed_machines", "Machines that failed, as the rule counts them, by arm: treated or control.", append(tier[:4:4], "arm")),
		matured: desc("matured_machines", "Machines that failed or were well after the soak, as the rule counts them, by arm.", append(tier[:4:4], "arm")),
	})
}

type rolloutCollector struct {
	stages func() []RolloutStage
	now    func() time.Time

	halted, verdict, share, exposed, pending, failed, matured *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (c rolloutCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.halted, c.verdict, c.share, c.exposed, c.pending, c.failed, c.matured} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c rolloutCollector) Collect(ch chan<- prometheus.Metric) {
	type unit struct{ vendor, version, unit string }
	seen, now := map[unit]bool{}, c.now()
	for _, s := range c.stages() {
		if u := (unit{s.Vendor, s.Version, s.Unit}); !seen[u] {
			seen[u] = true
			c.unit(ch, s, now)
		}
		c.stage(ch, s)
	}
}

func (c rolloutCollector) unit(ch chan<- prometheus.Metric, s RolloutStage, now time.Time) {
	halted := 0.0
	if s.Halted != "" {
		halted = 1
	}
	ch <- gauge(c.halted, halted, s.Vendor, s.Version, s.Unit)
	if !s.VerdictAt.IsZero() {
		ch <- gauge(c.verdict, now.Sub(s.VerdictAt).Seconds(), s.Vendor, s.Version, s.Unit)
	}
}

func (c rolloutCollector) stage(ch chan<- prometheus.Metric, s RolloutStage) {
	labels := []string{s.Vendor, s.Version, s.Unit, s.Tier}
	ch <- gauge(c.share, float64(s.Share)/1e6, labels...)
	ch <- gauge(c.exposed, float64(s.Exposed), labels...)
	ch <- gauge(c.pending, float64(s.Pending), labels...)
	for arm, t := range map[string]rollout.Tally{"treated": s.Treated, "control": s.Control} {
		ch <- gauge(c.failed, t.Failed, append(labels[:4:4], arm)...)
		ch <- gauge(c.matured, t.Of, append(labels[:4:4], arm)...)
	}
}

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

// Leads adds whether this server is the one that runs the rule.
func (m *Metrics) Leads(leads func() bool) {
	m.Gauge("livepatch_controller_leads", "1 if this server runs the rule, else 0.", func() float64 {
		if leads() {
			return 1
		}
		return 0
	})
}

// Verdict counts a verdict of the rule.
func (m *Metrics) Verdict(a rollout.Action) { m.verdicts.WithLabelValues(string(a)).Inc() }

// Decided notes how long it took from a machine's report, as it was received, to the
// commit of what the rule made of it.
func (m *Metrics) Decided(lag time.Duration) { m.lag.Observe(lag.Seconds()) }

// newRuleMetrics makes what counts the rule's work.
func newRuleMetrics() (verdicts *prometheus.CounterVec, lag prometheus.Histogram) {
	verdicts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "livepatch_verdicts_total", Help: "Verdicts of the rule that were stored, by action.",
	}, []string{"action"})
	for _, a := range []rollout.Action{rollout.Hold, rollout.Advance, rollout.Promote, rollout.Complete, rollout.Halt} {
		verdicts.WithLabelValues(string(a)) // 0 is there from the start, so that a rate sees the first
	}
	return verdicts, prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "livepatch_decision_lag_seconds", Help: "Time from a machine's report to the commit of what the rule made of it.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300},
	})
}
