package main

import (
	"os"
	"reflect"
	"testing"
	"time"
)

// small is a fleet that is simulated in seconds.
func small(change func(*scenario)) scenario {
	s := scenario{
		Name: "small", About: "A small fleet.", Machines: 1500, Kernels: 2, Loss: 0.003, Limit: 8 * time.Hour,
		Tiers: []tier{{"edge", 0.1, 50}, {"stable", 0.9, 300}},
	}
	change(&s)
	return s
}

func onService(t *testing.T) maker {
	t.Helper()
	return (&workshop{dir: t.TempDir(), log: &quietLog{t}}).service
}

// A quietLog shows the log of services with a test that fails.
type quietLog struct{ t *testing.T }

func (l *quietLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

func TestRolloutsOnTheRealService(t *testing.T) {
	tests := map[string]struct {
		scenario scenario
		halted   bool
		harmed   int // at most
	}{
		"a patch that is well comes to all": {small(func(s *scenario) {
			s.Machines, s.Kernels, s.Limit = 160, 1, 24*time.Hour
			s.Tiers = []tier{{"stable", 1, 100}}
		}), false, 0},
		"a patch that kills all stops at once": {small(func(s *scenario) {
			s.Machines, s.Limit = 2000, 3*time.Hour
			s.Patch = harm{Kills: 1, After: 10 * time.Second, How: silent}
		}), true, 10},
		"the service is down when they die": {small(func(s *scenario) {
			s.Machines, s.Limit = 2000, 4*time.Hour
			s.Patch = harm{Kills: 1, After: 10 * time.Second, How: reboot}
			s.Outage = absence{At: 50 * time.Minute, For: time.Hour}
		}), true, 10},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := simulate(t.Context(), tc.scenario, 1, onService(t))
			if err != nil {
				t.Fatal(err)
			}
			if (r.ours.halted > 0) != tc.halted || r.ours.harmed > tc.harmed {
				t.Errorf("%d kernels halted by %q, %d machines harmed; want halted %v, at most %d", r.ours.halted, r.ours.reason, r.ours.harmed, tc.halted, tc.harmed)
			}
			if !tc.halted && r.ours.covered == 0 {
				t.Errorf("only %d of %d machines have the patch", r.ours.exposed, r.ours.machines)
			}
			if v := r.verdict(); v != asMeant {
				t.Errorf("verdict is %q", v)
			}
		})
	}
}

// The machines that are not simulated change nothing: a run in which everybody checks in
// every hour goes the same way. It is not the very same only where a decision falls into
// the second in which a machine checks in.
func TestElidedMachinesChangeNothing(t *testing.T) {
	tests := map[string]scenario{
		"a healthy patch": small(func(s *scenario) { s.Limit = 6 * time.Hour }),
		"a twentieth dies": small(func(s *scenario) {
			s.Machines, s.Limit, s.Patch = 4000, 6*time.Hour, harm{Kills: 0.05, After: time.Minute, How: reboot}
		}),
	}
	for name, s := range tests {
		t.Run(name, func(t *testing.T) {
			got, all := underRule(t, s, false), underRule(t, s, true)
			if all.requests < got.requests*5/4 {
				t.Errorf("%d requests with everybody, %d without: nobody was left out", all.requests, got.requests)
			}
			for q := range quantities {
				if minute, ok := alike(got.series[q], all.series[q]); !ok {
					t.Errorf("quantity %d: another number in minute %d", q, minute)
				}
			}
			if got.exposed == 0 || got.halted != all.halted || max(got.halt, all.halt)-min(got.halt, all.halt) > 60 {
				t.Errorf("%d kernels halted at %d; with everybody %d at %d", got.halted, got.halt, all.halted, all.halt)
			}
		})
	}
}

// alike tells whether two counts are within two per cent, and five, of each other at every
// time.
func alike(a, b []int32) (minute int, ok bool) {
	sumA, sumB := 0., 0.
	for i := range a {
		sumA, sumB = sumA+float64(a[i]), sumB+float64(b[i])
		if d := sumA - sumB; max(d, -d) > 5+0.02*max(sumA, sumB) {
			return i, false
		}
	}
	return 0, true
}

func underRule(t *testing.T, s scenario, everyone bool) outcome {
	t.Helper()
	f := newFleet(s, 3, start)
	f.everyone, f.look = everyone, 1
	var err error
	if f.world, err = ruleOnly(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	o, err := f.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestServiceDoesWhatTheRuleSays(t *testing.T) {
	s := small(func(s *scenario) {
		s.Limit, s.Patch = 3*time.Hour, harm{Kills: 0.3, After: time.Minute, How: silent}
	})
	on, err := simulate(t.Context(), s, 5, onService(t))
	if err != nil {
		t.Fatal(err)
	}
	under, err := simulate(t.Context(), s, 5, ruleOnly)
	if err != nil {
		t.Fatal(err)
	}
	if on.ours.exposed == 0 || !reflect.DeepEqual(on.ours.series, under.ours.series) || on.ours.halt != under.ours.halt {
		t.Errorf("service: %d exposed, %d harmed, halt at %d; rule alone: %d, %d, %d", on.ours.exposed, on.ours.harmed, on.ours.halt,
			under.ours.exposed, under.ours.harmed, under.ours.halt)
	}
}

func TestHarms(t *testing.T) {
	tests := map[string]struct {
		change func(*scenario)
		halted bool
		harmed int
	}{
		"machines fall silent":          {func(s *scenario) { s.Patch = harm{Kills: 1, After: time.Second, How: silent} }, true, 10},
		"machines reboot":               {func(s *scenario) { s.Patch = harm{Kills: 1, After: time.Minute, How: reboot} }, true, 10},
		"kernels complain":              {func(s *scenario) { s.Patch = harm{Kills: 1, After: time.Minute, How: oops} }, true, 10},
		"work hangs until a reset":      {func(s *scenario) { s.Patch = harm{Kills: 1, After: time.Minute, How: hang} }, true, 30},
		"one class of machines reboots": {func(s *scenario) { s.Patch = harm{Kills: 1, After: time.Minute, How: reboot, Hardware: 0.2} }, true, 40},
		"one kernel reboots":            {func(s *scenario) { s.Patch = harm{Kills: 1, After: time.Minute, How: reboot, Kernels: 1} }, true, 20},
		"a night":                       {func(s *scenario) { s.Night = absence{At: 4 * time.Hour, For: 5 * time.Hour, Share: 0.5} }, false, 0},
		"a partition":                   {func(s *scenario) { s.Partition = absence{At: 3 * time.Hour, For: 4 * time.Hour, Share: 0.3} }, false, 0},
		"an outage":                     {func(s *scenario) { s.Outage = absence{At: 3 * time.Hour, For: 2 * time.Hour} }, false, 0},
		"an account says that it dies":  {func(s *scenario) { s.Liar = liar{0.3, saysFailed} }, false, 0},
		"transitions stall":             {func(s *scenario) { s.Patch = harm{Stalls: 0.5} }, false, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := simulate(t.Context(), small(tc.change), 2, ruleOnly)
			if err != nil {
				t.Fatal(err)
			}
			if (r.ours.halted > 0) != tc.halted || r.ours.harmed > tc.harmed || r.ours.exposed == 0 {
				t.Errorf("%d exposed, %d kernels halted by %q, %d machines harmed; want halted %v, at most %d",
					r.ours.exposed, r.ours.halted, r.ours.reason, r.ours.harmed, tc.halted, tc.harmed)
			}
			if tc.halted && r.base.harmed < 10*r.ours.harmed {
				t.Errorf("%d machines harmed, %d under the baseline", r.ours.harmed, r.base.harmed)
			}
		})
	}
}

func TestStallsAreHeld(t *testing.T) {
	r, err := simulate(t.Context(), small(func(s *scenario) { s.Patch = harm{Stalls: 0.5} }), 1, ruleOnly)
	if err != nil {
		t.Fatal(err)
	}
	if r.ours.exposed > r.ours.machines/10 || r.verdict() != held {
		t.Errorf("%d of %d machines tried the patch, verdict %q", r.ours.exposed, r.ours.machines, r.verdict())
	}
}

func TestSameSeedSameRun(t *testing.T) {
	s := small(func(s *scenario) { s.Limit = 3 * time.Hour })
	first, again := underRule(t, s, false), underRule(t, s, false)
	if !reflect.DeepEqual(first, again) {
		t.Error("two runs of one seed differ")
	}
}

func TestScenariosOfTheTree(t *testing.T) {
	all, err := loadScenarios(os.DirFS("."), "scenarios")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 13 || all[0].Name != "healthy" {
		t.Errorf("%d scenarios, the first is %q", len(all), all[0].Name)
	}
	for _, s := range all {
		if s.Name == "all-die" && (s.Machines != 1_000_000 || s.Expect.Harmed != 10) {
			t.Errorf("all-die has %d machines, of which %d may die", s.Machines, s.Expect.Harmed)
		}
	}
}
