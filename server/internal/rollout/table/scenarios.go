package main

import (
	"fmt"
	"slices"
	"time"

	"livepatch/server/internal/rollout"
)

var twoTiers = []rollout.Tier{{Name: "edge", Auto: true}, {Name: "stable", Auto: true}}

// kernels returns n kernels of one source with so many machines in each tier.
func kernels(n int, machines ...int) (ks []kernel) {
	for i := range n {
		ks = append(ks, kernel{name: fmt.Sprintf("6.%d", i), source: "src", machines: machines})
	}
	return ks
}

// oneBad returns the kernels with all but the last immune.
func oneBad(ks []kernel) []kernel {
	ks = slices.Clone(ks)
	for i := range ks[1:] {
		ks[i].good = true
	}
	return ks
}

// scenarios returns what fleets are tried. Each loses 0.3 % of its machines an
// hour for reasons of their own.
func scenarios() []scenario {
	some := scenario{tiers: twoTiers, cells: kernels(4, 500, 4500), accounts: 2000, loss: 0.003, limit: 72 * time.Hour}
	with := func(name string, change func(*scenario)) scenario {
		s := some
		s.name = name
		change(&s)
		return s
	}
	const atOnce = 10 * time.Second
	kills := func(share float64) func(*scenario) {
		return func(s *scenario) { s.kills, s.after = share, atOnce }
	}
	return []scenario{
		with("healthy", func(*scenario) {}),
		with("healthy, 3 % lost an hour", func(s *scenario) { s.loss = 0.03 }),
		with("healthy, half off for a night", func(s *scenario) { s.night = 9 * time.Hour }),
		with("healthy, 20 small kernels", func(s *scenario) { s.cells = append(kernels(1, 500, 4500), kernels(21, 10, 60)[1:]...) }),
		with("healthy, 30 % are one account that says failed", func(s *scenario) { s.firstShare, s.lies = 0.3, saysFailed }),
		with("all die at once", kills(1)),
		with("all die at once, 1 000 000 machines", func(s *scenario) {
			kills(1)(s)
			s.cells, s.limit = kernels(10, 1000, 99_000), 3*time.Hour
		}),
		with("all die after 15 minutes", func(s *scenario) { s.kills, s.after = 1, 15*time.Minute }),
		with("all die after 2 hours", func(s *scenario) { s.kills, s.after = 1, 2*time.Hour }),
		with("20 % die at once", kills(0.2)),
		with("5 % die at once", kills(0.05)),
		with("1 % die at once", kills(0.01)),
		with("one kernel of four dies", func(s *scenario) {
			kills(1)(s)
			s.cells = oneBad(s.cells)
		}),
		with("20 % die, 30 % are one account that says well", func(s *scenario) {
			kills(0.2)(s)
			s.firstShare, s.lies = 0.3, saysWell
		}),
		with("20 % die, a private fleet of one account", func(s *scenario) {
			kills(0.2)(s)
			s.accounts, s.firstShare = 1, 1
		}),
		with("10 machines crash at once and reboot", home(10, 1)),
		with("30 machines crash at once and reboot", home(30, 1)),
		with("140 machines crash at once and reboot", home(140, 1)),
		with("20 % of 30 machines crash and reboot", home(30, 0.2)),
		with("5 % of 140 machines crash and reboot", home(140, 0.05)),
		with("30 machines hang", func(s *scenario) {
			home(30, 1)(s)
			s.reboots = false
		}),
	}
}

// home makes a fleet of one account of which the patch crashes a share within ten seconds.
func home(machines int, kills float64) func(*scenario) {
	return func(s *scenario) {
		s.cells, s.accounts, s.firstShare = kernels(1, 0, machines), 1, 1
		s.kills, s.after, s.reboots = kills, 10*time.Second, true
	}
}

// A summary is what became of some fleets of one scenario.
type summary struct {
	runs, machines           int
	halted                   int // fleets with a halted unit
	complete                 int // fleets in which every unit has the patch
	harmed, mostHarm, doomed int
	exposed                  int
	halt, covered            time.Duration // sums, over those fleets that halted and that were covered
	coveredRuns              int
	reasons                  map[rollout.Reason]int
}

func summarize(s scenario, runs int, seed uint64) (summary, error) {
	sum := summary{reasons: map[rollout.Reason]int{}, runs: runs}
	for i := range runs {
		o, err := simulate(s, seed+uint64(i))
		if err != nil {
			return summary{}, fmt.Errorf("cannot simulate %q: %w", s.name, err)
		}
		sum.add(o)
	}
	return sum, nil
}

func (s *summary) add(o outcome) {
	s.machines = o.machines
	s.harmed += o.harmed
	s.mostHarm = max(s.mostHarm, o.harmed)
	s.exposed += o.exposed
	s.doomed += o.doomed
	if o.halted > 0 {
		s.halted++
		s.halt += o.halt
		s.reasons[o.reason]++
	}
	if o.completed == o.units {
		s.complete++
	}
	if o.covered > 0 {
		s.coveredRuns++
		s.covered += o.covered
	}
}

// mean is the mean of a sum of times, or "-".
func mean(sum time.Duration, n int) string {
	if n == 0 {
		return "-"
	}
	return (sum / time.Duration(n)).Round(time.Minute).String()
}
