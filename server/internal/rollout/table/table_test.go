package main

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"livepatch/server/internal/rollout"
)

// The table of the design, made with 20 000 runs a row. A rate has to be within the error of
// both runs, four standard errors, and a mean within five per cent and a half.
func TestReproducesTheTableOfTheDesign(t *testing.T) {
	const runs, designRuns = 400, 20_000
	type cell struct{ rate, mean float64 } // mean 0: not given
	want := []struct {
		row
		a, b, share, z cell
	}{
		{row{.003, .003}, cell{.0005, 0}, cell{.004, 0}, cell{.30, 0}, cell{.028, 0}},
		{row{.010, .010}, cell{.000, 0}, cell{.96, 0}, cell{.96, 0}, cell{.034, 0}},
		{row{.003, .053}, cell{1, 138}, cell{1, 81}, cell{1, 52}, cell{1, 80}},
		{row{.003, .20}, cell{1, 28}, cell{1, 20}, cell{1, 50}, cell{1, 50}},
		{row{.003, 1.0}, cell{1, 5}, cell{1, 3}, cell{1, 50}, cell{1, 50}},
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for _, w := range want {
		got := plain(rng, w.row, runs)
		for rule, c := range map[int]cell{ruleA: w.a, ruleBatch: w.a, ruleB: w.b, ruleShare: w.share, ruleZ: w.z} {
			p := math.Max(c.rate, 0.0005)
			slack := 4*math.Sqrt(p*(1-p)*(1./runs+1./designRuns)) + 1./runs
			if rate := got[rule].rate(runs); math.Abs(rate-c.rate) > slack {
				t.Errorf("%v: rule %d halts %.4f of runs, want %.4f ± %.4f", w.row, rule, rate, c.rate, slack)
			}
			if m := got[rule].mean(); c.mean > 0 && math.Abs(m-c.mean) > 0.05*c.mean+0.5 {
				t.Errorf("%v: rule %d halts after %.1f, want %v", w.row, rule, m, c.mean)
			}
		}
	}
}

// Why ρ is that of a batch and not of all machines that matured so far.
func TestPastRatioHaltsHealthyPatches(t *testing.T) {
	const runs = 100
	all, batch := ratio(rand.New(rand.NewPCG(1, 1)), 0.01, runs)
	if all < 0.9 {
		t.Errorf("ρ of all halts %.2f of healthy rollouts; the reason for batches is gone", all)
	}
	if batch > 0.02 {
		t.Errorf("ρ of batch halts %.2f of healthy rollouts", batch)
	}
}

// 0.1 % for a whole rollout needs α = 5·10⁻⁵ a cell, and not 0.001.
func TestAlphaOfAWholeRollout(t *testing.T) {
	const runs = 2000
	sups := whole{cells: 20, tiers: 4, failures: 200, atRisk: rollout.Pair{Treated: 1000, Control: 4000}}.wholes(rand.New(rand.NewPCG(1, 1)), runs)
	perCell := processes[0]
	if rate := falseHalts(sups, 5e-5, perCell); rate > 0.001+3*math.Sqrt(0.001/runs) {
		t.Errorf("α = 5e-5 halts %v of healthy rollouts", rate)
	}
	if rate := falseHalts(sups, 1e-3, perCell); rate < 0.005 || rate > 20*1e-3 {
		t.Errorf("α = 0.001 halts %v of healthy rollouts, want about 1.5 %%, and at most 20 α by Ville", rate)
	}
}

// small is a fleet that is simulated quickly.
func small(change func(*scenario)) scenario {
	s := scenario{
		tiers: []rollout.Tier{{Name: "stable", Auto: true}}, cells: kernels(2, 1500), accounts: 500, loss: 0.003, limit: 24 * time.Hour,
	}
	change(&s)
	return s
}

func TestFleets(t *testing.T) {
	const fleets = 3
	tests := map[string]struct {
		scenario scenario
		halted   int
		harmed   int // of one fleet at most
	}{
		"a healthy patch":            {small(func(*scenario) {}), 0, 0},
		"a night":                    {small(func(s *scenario) { s.night, s.limit = 4*time.Hour, 10*time.Hour }), 0, 0},
		"all die at once":            {small(func(s *scenario) { s.kills, s.after = 1, 10*time.Second }), fleets, 10},
		"all die after half an hour": {small(func(s *scenario) { s.kills, s.after = 1, 30*time.Minute }), fleets, 30},
		"a fifth dies":               {small(func(s *scenario) { s.kills, s.after = 0.2, 10*time.Second }), fleets, 30},
		"a third of the machines lies that it failed": {small(func(s *scenario) { s.firstShare, s.lies = 0.3, saysFailed }), 0, 0},
		"a third lies that it is well while the rest dies": {small(func(s *scenario) {
			s.firstShare, s.lies, s.kills, s.after = 0.3, saysWell, 1, 10*time.Second
		}), fleets, 15},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := summarize(tc.scenario, fleets, 1)
			if err != nil {
				t.Fatal(err)
			}
			if got.halted != tc.halted || got.mostHarm > tc.harmed {
				t.Errorf("%d of %d fleets halted by %v, at most %d machines harmed; want %d, %d", got.halted, fleets, got.reasons, got.mostHarm, tc.halted, tc.harmed)
			}
			if tc.halted == 0 && tc.scenario.limit >= 24*time.Hour && got.complete != fleets {
				t.Errorf("only %d of %d healthy rollouts are complete", got.complete, fleets)
			}
		})
	}
}

// In a small fleet one crash is enough, and the next machine waits for its report.
func TestACrashInASmallFleetIsOne(t *testing.T) {
	for _, machines := range []int{10, 140} {
		s := small(home(machines, 1))
		s.cells, s.loss = kernels(1, machines), 0
		got, err := summarize(s, 5, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got.halted != 5 || got.harmed != 5 || got.reasons[rollout.TestDCrash] != 5 {
			t.Errorf("%d machines: 5 fleets, %d halted by %v, %d machines harmed; want one each", machines, got.halted, got.reasons, got.harmed)
		}
	}
}

// A few machines are not kept waiting, and a kernel that comes late not for days.
func TestSmallFleetsHaveItSoon(t *testing.T) {
	tests := map[string]struct {
		scenario scenario
		within   time.Duration
	}{
		"three machines":                  {sized(shapes[0], 3, false), 2 * time.Hour},
		"three newcomers":                 {sized(shapes[0], 3, true), 2 * time.Hour},
		"ten machines":                    {sized(shapes[0], 10, false), 3 * time.Hour},
		"ten newcomers":                   {sized(shapes[1], 10, true), 3 * time.Hour},
		"140 newcomers":                   {sized(shapes[1], 140, true), 10 * time.Hour},
		"400 newcomers of one account":    {sized(shapes[0], 400, true), 12 * time.Hour},
		"ten machines of a late kernel":   {late(10, 200), 4 * time.Hour},
		"four hundred of a late kernel":   {late(400, 600), 20 * time.Hour},
		"ten, spread over all five tiers": {sized(shapes[2], 10, false), 8 * time.Hour},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := simulate(tc.scenario, 3)
			if err != nil {
				t.Fatal(err)
			}
			if o.halted != 0 || o.covered == 0 || o.covered > tc.within {
				t.Errorf("95 %% have it after %v, want within %v; %d halts by %s", o.covered, tc.within, o.halted, o.reason)
			}
		})
	}
}

// Ville's inequality for the whole machinery: watch, deadlines, pacing, stages that
// reach controls, and a night in the middle. With deadlines that every sign of life puts
// off, e reached 10⁹ here.
func TestNightIsFairToBothArms(t *testing.T) {
	const runs = 40
	s := small(func(s *scenario) {
		s.cells, s.night, s.limit, s.loss, s.watched = kernels(1, 1500), 4*time.Hour, 8*time.Hour, 0.01, "6.0"
		s.tune = func(p *rollout.Params) { // nothing stops it
			p.Halt.Alpha, p.Halt.SilentMin, p.Halt.TripControls = 1e-12, 1e9, 0
		}
	})
	over := 0
	for i := range runs {
		o, err := simulate(s, uint64(i)+1000)
		if err != nil {
			t.Fatal(err)
		}
		if o.highest >= math.Log(20) {
			over++
		}
	}
	if want := runs * 0.05; float64(over) > want+3*math.Sqrt(want) {
		t.Errorf("e reached 20 in %d of %d healthy fleets, want about %.0f at most", over, runs, want)
	}
}

func TestPrintsEveryPart(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"-runs", "5", "-part", "plain,ratio,whole"}, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.003 → 1.000", "ρ of batch", "one process a cell"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
	if err := run([]string{"-part", "sizes", "-sizes", "1,3", "-fleets", "1"}, &out); err != nil || !strings.Contains(out.String(), "all in stable, one account") {
		t.Errorf("sizes: %v\n%s", err, &out)
	}
	for _, args := range [][]string{{"-part", "nonsense"}, {"-part", "sizes", "-sizes", "0"}, {"-part", "sizes", "-sizes", "many"}} {
		if err := run(args, &out); err == nil {
			t.Errorf("%q was run", args)
		}
	}
}
