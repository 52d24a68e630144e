package main

import (
	"testing"
	"time"
)

func TestBaseline(t *testing.T) {
	calm := func(change func(*scenario)) scenario {
		return small(func(s *scenario) { s.Loss = 0; change(s) })
	}
	kill := harm{Kills: 1, After: 10 * time.Second, How: silent}
	tests := map[string]struct {
		scenario         scenario
		exposed, harmed  float64 // shares of the fleet
		covered, atLeast time.Duration
	}{
		// 10 % and 20 % have polled, and half of those between 20 and 40 %.
		"a person stops it after 90 minutes": {calm(func(s *scenario) { s.Patch = kill }), 0.3, 0.3, 0, 0},
		"one in five dies":                   {calm(func(s *scenario) { s.Patch = kill; s.Patch.Kills = 0.2 }), 0.3, 0.06, 0, 0},
		"everybody has it in the end":        {calm(func(*scenario) {}), 1, 0, 3 * time.Hour, 2 * time.Hour},
		"nobody polls in an outage": {calm(func(s *scenario) {
			s.Patch, s.Outage = kill, absence{At: 0, For: 2 * time.Hour}
		}), 0, 0, 0, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFleet(tc.scenario, 1, start)
			o := usual.run(f)
			near := func(n int, share float64) bool {
				got := float64(n) / float64(len(f.machines))
				return got >= share-0.03 && got <= share+0.03
			}
			if !near(o.exposed, tc.exposed) || !near(o.harmed, tc.harmed) {
				t.Errorf("%d exposed, %d harmed of %d", o.exposed, o.harmed, len(f.machines))
			}
			if at := time.Duration(o.covered) * time.Second; at > tc.covered || at < tc.atLeast {
				t.Errorf("covered after %v, want %v to %v", at, tc.atLeast, tc.covered)
			}
		})
	}
}
