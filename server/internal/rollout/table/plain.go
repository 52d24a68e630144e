package main

import (
	"math"
	"math/rand/v2"

	"livepatch/server/internal/rollout"
)

// A row is a fleet in which machines are lost with one probability if they are
// treated and with another if they are controls.
type row struct{ control, treated float64 }

// The rules that are compared. The last two are what people write first.
const (
	ruleA     = iota // as design: ρ from all machines that have matured so far
	ruleBatch        // as built: ρ from the machines that were dealt together
	ruleB            // the tripwire, all the way
	ruleShare        // more than 1 % lost after 50
	ruleZ            // z > 3.09 in a comparison of shares, at each look after 50
	rules
)

const (
	canaries = 10_000 // treated machines of a run
	controls = 4      // of each
	dealt    = 50     // treated machines dealt together
	early    = 50     // treated machines before the naive rules look
	alpha    = 0.001
)

// A result is how often a rule halted, and how many treated machines had
// matured by then.
type result struct {
	halts   int
	matured float64 // sum over the halts
}

func (r result) rate(runs int) float64 { return float64(r.halts) / float64(runs) }

func (r result) mean() float64 { return r.matured / float64(max(1, r.halts)) }

// margin is two standard errors of a rate that was seen in some number of runs.
func margin(rate float64, runs int) float64 {
	n := float64(runs)
	return 2*math.Sqrt(rate*(1-rate)/n) + 2/n
}

// plain runs every rule on the same machines, over and over.
func plain(rng *rand.Rand, r row, runs int) (results [rules]result) {
	for range runs {
		var s sequence
		s.risks = rollout.Defaults().Halt.Risks
		for n := 1; n <= canaries && !s.all(); n++ {
			s.block(rng, r)
			for rule, halted := range s.halts() {
				if halted && s.at[rule] == 0 {
					s.at[rule] = n
				}
			}
		}
		for rule, n := range s.at {
			if n > 0 {
				results[rule].halts++
				results[rule].matured += float64(n)
			}
		}
	}
	return results
}

// A sequence is one canary, machine by machine.
type sequence struct {
	risks   [4]float64
	matured rollout.Pair
	failed  rollout.Pair
	a       rollout.EValue // of ruleA
	batch   rollout.EValue // of ruleBatch
	atRisk  rollout.Pair
	llr     float64
	over    [2]bool    // whether ruleA and ruleBatch have reached their threshold
	at      [rules]int // treated machines when each rule halted
}

func (s *sequence) all() bool {
	for _, n := range s.at {
		if n == 0 {
			return false
		}
	}
	return true
}

// block lets one treated machine and its controls mature, the controls first.
func (s *sequence) block(rng *rand.Rand, r row) {
	if s.matured.Treated%dealt == 0 {
		s.atRisk = rollout.Pair{Treated: dealt, Control: dealt * controls}
	}
	for range controls {
		s.matured.Control++
		if rng.Float64() < r.control {
			s.failed.Control++
			s.fail(false)
		}
	}
	s.matured.Treated++
	lost := rng.Float64() < r.treated
	if lost {
		s.failed.Treated++
		s.fail(true)
	}
	s.trip(lost)
}

func (s *sequence) fail(treated bool) {
	s.a.Fail(s.risks, treated, s.matured)
	s.batch.Fail(s.risks, treated, s.atRisk)
	s.over[ruleA] = s.over[ruleA] || s.a.Exceeds(alpha)
	s.over[ruleBatch] = s.over[ruleBatch] || s.batch.Exceeds(alpha)
	if treated {
		s.atRisk.Treated--
	} else {
		s.atRisk.Control--
	}
}

// trip is the tripwire with p0 = 0.003 and p1 = 0.03, which begins anew at its
// lower boundary.
func (s *sequence) trip(lost bool) {
	const p0, p1 = 0.003, 0.03
	if lost {
		s.llr += math.Log(p1 / p0)
	} else {
		s.llr += math.Log((1 - p1) / (1 - p0))
	}
	s.llr = max(s.llr, math.Log(0.05/0.999))
}

func (s *sequence) halts() (halted [rules]bool) {
	halted[ruleA], halted[ruleBatch] = s.over[ruleA], s.over[ruleBatch]
	halted[ruleB] = s.llr >= math.Log(0.95/alpha)
	if s.matured.Treated >= early {
		halted[ruleShare] = float64(s.failed.Treated) > 0.01*float64(s.matured.Treated)
		halted[ruleZ] = s.z() > 3.09
	}
	return halted
}

// z compares the two shares as if this were the only look.
func (s *sequence) z() float64 {
	nt, nc := float64(s.matured.Treated), float64(s.matured.Control)
	xt, xc := float64(s.failed.Treated), float64(s.failed.Control)
	p := (xt + xc) / (nt + nc)
	if p == 0 || p == 1 {
		return 0
	}
	return (xt/nt - xc/nc) / math.Sqrt(p*(1-p)*(1/nt+1/nc))
}

// ratio runs a healthy patch through two stages, in the first of which each
// treated machine has fifty controls, and in the second one. It returns how often
// test A halts it with ρ from all that matured and with ρ from each stage.
func ratio(rng *rand.Rand, loss float64, runs int) (all, batch float64) {
	halts := [2]int{}
	for range runs {
		var s sequence
		s.risks = rollout.Defaults().Halt.Risks
		for _, stage := range []rollout.Pair{{Treated: 200, Control: 10_000}, {Treated: 5000, Control: 5000}} {
			s.stage(rng, stage, loss)
		}
		for i, over := range s.over {
			if over {
				halts[i]++
			}
		}
	}
	return float64(halts[ruleA]) / float64(runs), float64(halts[ruleBatch]) / float64(runs)
}

// stage lets the machines of a stage mature in any order.
func (s *sequence) stage(rng *rand.Rand, left rollout.Pair, loss float64) {
	s.atRisk = left
	for left.Treated+left.Control > 0 {
		treated := rng.Int64N(left.Treated+left.Control) < left.Treated
		if treated {
			left.Treated--
			s.matured.Treated++
		} else {
			left.Control--
			s.matured.Control++
		}
		if rng.Float64() < loss {
			s.fail(treated)
		}
	}
}
