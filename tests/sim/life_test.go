package main

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// However a life is looked at, its gaps are the same, in their order.
func TestLifeDoesNotDependOnWhoLooks(t *testing.T) {
	f := newFleet(small(func(s *scenario) {
		s.Loss, s.Night = 0.1, absence{At: 2 * time.Hour, For: 3 * time.Hour, Share: 0.5}
	}), 1, start)
	rapid.Check(t, func(t *rapid.T) {
		i := int32(rapid.IntRange(0, len(f.machines)-1).Draw(t, "machine"))
		often, once := f.newLife(i), f.newLife(i)
		end := int64(100 * hour)
		var seen []gap
		for now := int64(0); now < end; now += rapid.Int64Range(1, 10*hour).Draw(t, "step") {
			seen = append(seen, often.pass(now)...)
		}
		seen = append(seen, often.pass(end)...)
		all := once.pass(end)
		if len(seen) != len(all) {
			t.Fatalf("%d gaps when looked at often, %d when once", len(seen), len(all))
		}
		for n, g := range all {
			if g != seen[n] || g.to <= g.from || n > 0 && g.from < all[n-1].from {
				t.Fatalf("gap %d is %+v and %+v", n, g, seen[n])
			}
		}
	})
}

func TestLossIsAsMuchAsSaid(t *testing.T) {
	f := newFleet(small(func(s *scenario) { s.Machines, s.Loss = 20_000, 0.01 }), 1, start)
	gone := 0
	for i := range f.machines {
		if l := f.newLife(int32(i)); l.first().from < hour {
			gone++
		}
	}
	if share := float64(gone) / float64(len(f.machines)); share < 0.007 || share > 0.013 {
		t.Errorf("%.4f of the machines go in the first hour, want 0.01", share)
	}
}
