package main

import (
	"math"
	"math/rand/v2"
	"slices"

	"livepatch/server/internal/rollout"
)

// A whole is a rollout over many cells and tiers of a healthy patch. Only failures
// move test A, so only they are simulated: each is treated with probability ρ.
type whole struct {
	cells, tiers int
	failures     int // of a cell in all tiers, treated and controls, on average
	atRisk       rollout.Pair
}

// suprema are the greatest log e that one rollout saw.
type suprema struct {
	perCell   float64 // of one process a cell, through all tiers
	perTier   float64 // of one process a cell and tier
	perSource float64 // of one process over all cells
}

// wholes runs many rollouts and returns what each saw.
func (w whole) wholes(rng *rand.Rand, runs int) []suprema {
	risks := rollout.Defaults().Halt.Risks
	var f [2]rollout.EValue // factors of a control's failure and of a treated machine's
	f[0].Fail(risks, false, w.atRisk)
	f[1].Fail(risks, true, w.atRisk)
	rho := float64(w.atRisk.Treated) / float64(w.atRisk.Treated+w.atRisk.Control)
	all := make([]suprema, runs)
	for i := range all {
		all[i] = w.one(rng, f, rho)
	}
	return all
}

func (w whole) one(rng *rand.Rand, f [2]rollout.EValue, rho float64) suprema {
	cell := make([]rollout.EValue, w.cells)
	tier := make([]rollout.EValue, w.cells)
	var source rollout.EValue
	sup := suprema{}
	for range w.tiers {
		clear(tier)
		for range w.cells * w.failures / w.tiers {
			c, factor := rng.IntN(w.cells), f[0]
			treated := rng.Float64() < rho
			if treated {
				factor = f[1]
			}
			raise(&cell[c], factor, &sup.perCell, treated)
			raise(&tier[c], factor, &sup.perTier, treated)
			raise(&source, factor, &sup.perSource, treated)
		}
	}
	return sup
}

// raise multiplies e by a factor and notes a new height. A control's failure
// makes no height, and e is never above the greatest e_R.
func raise(e *rollout.EValue, factor rollout.EValue, height *float64, treated bool) {
	top := rollout.Nats(math.MinInt64)
	for i := range e {
		e[i] += factor[i]
		top = max(top, e[i])
	}
	if treated && top.Float() > *height {
		*height = max(*height, e.Log())
	}
}

// falseHalts returns the share of rollouts in which a process reached 1/α.
func falseHalts(sups []suprema, alpha float64, of func(suprema) float64) float64 {
	n := 0
	for _, s := range sups {
		if of(s) >= -math.Log(alpha) {
			n++
		}
	}
	return float64(n) / float64(len(sups))
}

// needed returns the α of one process with which the share of rollouts with a false
// halt is just below a wanted one.
func needed(sups []suprema, want float64, of func(suprema) float64) float64 {
	heights := make([]float64, len(sups))
	for i, s := range sups {
		heights[i] = of(s)
	}
	slices.Sort(heights)
	return math.Exp(-heights[len(heights)-1-int(want*float64(len(heights)))])
}

// processes are the ways to spend α that are compared.
var processes = []func(suprema) float64{
	func(s suprema) float64 { return s.perCell },
	func(s suprema) float64 { return s.perTier },
	func(s suprema) float64 { return s.perSource },
}
