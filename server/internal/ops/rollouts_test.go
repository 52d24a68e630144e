package ops_test

import (
	"strings"
	"testing"
	"time"

	"livepatch/server/internal/ops"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

func TestRolloutMetrics(t *testing.T) {
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	m := ops.NewMetrics()
	m.Leads(func() bool { return true })
	m.Verdict(rollout.Halt)
	m.Decided(30 * time.Millisecond)
	m.Rollouts(func() []ops.RolloutStage {
		stage := func(unit, tier string, halted rollout.Reason, verdict time.Time) ops.RolloutStage {
			return ops.RolloutStage{Vendor: "debian", Version: "1.1", Stage: store.Stage{
				Unit: unit, Tier: tier, Halted: halted, Share: 15_000, Exposed: 30, Pending: 2,
				Treated: rollout.Tally{Failed: 3, Of: 20}, Control: rollout.Tally{Failed: 1, Of: 80}, VerdictAt: verdict,
			}}
		}
		return []ops.RolloutStage{
			stage("6.1/x86_64", "edge", rollout.TestB, now.Add(-time.Minute)),
			stage("6.1/x86_64", "beta", rollout.TestB, now.Add(-time.Minute)), // the same unit in another tier
			stage("6.12/x86_64", "edge", "", time.Time{}),                     // no verdict yet
		}
	}, func() time.Time { return now })

	code, body := get(t, ops.Handler(m, nil, nil), "/metrics")
	if code != 200 {
		t.Fatalf("%d: %s", code, body)
	}
	for _, want := range []string{
		`livepatch_rollout_halted{unit="6.1/x86_64",vendor="debian",version="1.1"} 1`,
		`livepatch_rollout_halted{unit="6.12/x86_64",vendor="debian",version="1.1"} 0`,
		`livepatch_rollout_verdict_age_seconds{unit="6.1/x86_64",vendor="debian",version="1.1"} 60`,
		`livepatch_rollout_share_ratio{tier="beta",unit="6.1/x86_64",vendor="debian",version="1.1"} 0.015`,
		`livepatch_rollout_exposed_machines{tier="edge",unit="6.1/x86_64",vendor="debian",version="1.1"} 30`,
		`livepatch_rollout_pending_machines{tier="edge",unit="6.1/x86_64",vendor="debian",version="1.1"} 2`,
		`livepatch_rollout_failed_machines{arm="treated",tier="edge",unit="6.1/x86_64",vendor="debian",version="1.1"} 3`,
		`livepatch_rollout_failed_machines{arm="control",tier="edge",unit="6.1/x86_64",vendor="debian",version="1.1"} 1`,
		`livepatch_rollout_matured_machines{arm="control",tier="edge",unit="6.1/x86_64",vendor="debian",version="1.1"} 80`,
		`livepatch_controller_leads 1`,
		`livepatch_verdicts_total{action="halt"} 1`, `livepatch_verdicts_total{action="promote"} 0`,
		`livepatch_decision_lag_seconds_bucket{le="0.05"} 1`, `livepatch_decision_lag_seconds_bucket{le="0.025"} 0`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(body, `livepatch_rollout_verdict_age_seconds{unit="6.12/x86_64"`) {
		t.Error("a unit without a verdict has an age of it")
	}
}
