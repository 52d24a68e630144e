package rollout

import (
	"math"
	"testing"
	"time"
)

func TestNewRefusesImpossibleConstants(t *testing.T) {
	tier := []Tier{{Name: "stable"}}
	tests := map[string]struct {
		tune  func(*Params)
		tiers []Tier
	}{
		"no tiers":                      {nil, nil},
		"a tier twice":                  {nil, []Tier{{Name: "a"}, {Name: "a"}}},
		"a tier without a name":         {nil, []Tier{{}}},
		"a ramp that falls":             {nil, []Tier{{Name: "a", Ramp: []int64{2, 1}}}},
		"a ramp above everybody":        {nil, []Tier{{Name: "a", Ramp: []int64{1_000_001}}}},
		"alpha of nothing":              {func(p *Params) { p.Halt.Alpha = 0 }, tier},
		"alpha of everything":           {func(p *Params) { p.Halt.Alpha = 1 }, tier},
		"a risk that spares":            {func(p *Params) { p.Halt.Risks[2] = 1 }, tier},
		"no units":                      {func(p *Params) { p.Halt.Units = 0 }, tier},
		"heartbeats that fall":          {func(p *Params) { p.Time.Heartbeats = []time.Duration{2e9, 1e9} }, tier},
		"no heartbeats":                 {func(p *Params) { p.Time.Heartbeats = nil }, tier},
		"parts of seconds":              {func(p *Params) { p.Time.Grace = 1500 * time.Millisecond }, tier},
		"a watch shorter than the soak": {func(p *Params) { p.Time.Watch = time.Minute }, tier},
		"an account share of nothing":   {func(p *Params) { p.Pace.AccountShare = 0 }, tier},
		"grace of twice the time":       {func(p *Params) { p.Time.GraceShare = 2 }, tier},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := Defaults()
			if tc.tune != nil {
				tc.tune(&p)
			}
			if _, err := New(p, "salt", tc.tiers); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// What the shares of alpha add up to, however many units come, stays below it.
func TestSharesOfAlphaAddUpToLess(t *testing.T) {
	h := Defaults().Halt
	sum := 0.0
	for i := range 10_000 {
		sum += h.alpha(i)
	}
	if sum > h.Alpha*(1+1e-12) || sum < 0.99*h.Alpha {
		t.Errorf("shares add up to %v of %v", sum, h.Alpha)
	}
}

// Test D by itself halts fewer than one healthy small unit of a thousand, where each machine
// goes down without a shutdown once a year.
func TestCrashesByChanceHaltFewSmallUnits(t *testing.T) {
	p := Defaults()
	last := 0
	for p.Time.fresh(last + 1) {
		last++
	}
	window := float64(p.Time.overdue(last)) // until the sign of life that was missed is overdue
	crash := window / (365.25 * 24 * 3600)
	one := 1 - math.Pow(1-crash, float64(p.Halt.CrashOne))
	n := float64(p.Halt.CrashTwo)
	two := 1 - math.Pow(1-crash, n) - n*crash*math.Pow(1-crash, n-1)
	if sum := one + two; sum > 0.001 || sum < 0.0003 {
		t.Errorf("halts %.5f of healthy units: %.5f by one crash, %.5f by two, in %v seconds", sum, one, two, window)
	}
}
