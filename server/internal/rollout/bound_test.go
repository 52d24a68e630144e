package rollout

import (
	"math"
	"testing"

	"gonum.org/v1/gonum/mathext"
	"pgregory.net/rapid"
)

func TestExcess(t *testing.T) {
	tests := map[string]struct {
		treated, control Tally
		want             float64
	}{
		"nothing is known":                          {Tally{}, Tally{}, 1},
		"all have failed":                           {Tally{7, 7}, Tally{0, 28}, 1},
		"none of 30 failed: 1 − 0.05^(1/30)":        {Tally{0, 30}, Tally{0, 120}, 1 - math.Pow(0.05, 1./30)},
		"none of 3000 failed, about 3/n":            {Tally{0, 3000}, Tally{0, 0}, 1 - math.Pow(0.05, 1./3000)},
		"2 of 100 and no control: Clopper, Pearson": {Tally{2, 100}, Tally{0, 400}, 0.06162},
		"controls do not make it worse":             {Tally{2, 100}, Tally{1, 4}, 0.0295130},
		"as many controls fail":                     {Tally{30, 10_000}, Tally{120, 40_000}, 0.0011523},
		"controls alone fail: as if none had":       {Tally{0, 300}, Tally{60, 1200}, 1 - math.Pow(0.05, 1./300)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := excess(tc.treated, tc.control, 0.95); math.Abs(got-tc.want) > 1e-5+1e-3*tc.want {
				t.Errorf("U = %.7f, want %.7f", got, tc.want)
			}
		})
	}
}

// The limit is right if x or fewer failures have probability 5 % at it: the sum of
// binomial terms, which does not use the beta function.
func TestUpperLimitIsExact(t *testing.T) {
	for _, n := range []int64{1, 5, 30, 300, 3000} {
		for _, x := range []int64{0, 1, 2, 5, 17, 100} {
			if x >= n {
				continue
			}
			u := Tally{Failed: float64(x), Of: float64(n)}.upper(0.95)
			tail := 0.0
			for k := int64(0); k <= x; k++ {
				tail += math.Exp(choose(n, k) + float64(k)*math.Log(u) + float64(n-k)*math.Log1p(-u))
			}
			if math.Abs(tail-0.05) > 1e-6 {
				t.Errorf("%d of %d: probability of as few at U = %v is %v", x, n, u, tail)
			}
		}
	}
}

// The library's inverse is checked by its own direct function over the whole range that a
// fleet of a million can ask for.
func TestLimitsInvert(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Float64Range(1, 1e6).Draw(t, "n")
		x := rapid.Float64Range(0, 1).Draw(t, "rate") * (n - 0.5)
		tally := Tally{Failed: x, Of: n}
		if got := mathext.RegIncBeta(x+1, n-x, tally.upper(0.95)); math.Abs(got-0.95) > 1e-6 {
			t.Fatalf("upper limit of %+v is off: %v", tally, got)
		}
		if l := tally.lower(0.95); l > 0 {
			if got := mathext.RegIncBeta(x, n-x+1, l); math.Abs(got-0.05) > 1e-6 {
				t.Fatalf("lower limit of %+v is off: %v", tally, got)
			}
		}
	})
}

func TestExcessIsBetweenItsLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) Tally {
			n := rapid.Int64Range(0, 1e6).Draw(t, name)
			return Tally{Failed: float64(rapid.Int64Range(0, n).Draw(t, name+" failed")), Of: float64(n)}
		}
		treated, control := draw("treated"), draw("control")
		u := excess(treated, control, 0.95)
		if least := (Tally{Of: treated.Of}).upper(0.95); !(u >= least-1e-12 && u <= treated.upper(0.95)+1e-12) {
			t.Fatalf("U = %v for %+v and %+v", u, treated, control)
		}
		one := excess(Tally{treated.Failed, treated.Of}, Tally{}, 0.95)
		if one != treated.upper(0.95) {
			t.Fatalf("without controls U = %v, want Clopper and Pearson's %v", one, treated.upper(0.95))
		}
	})
}

func TestFailingIsWhatTheLimitSays(t *testing.T) {
	p := Defaults().Pace
	failed := 0
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) Tally {
			n := rapid.Int64Range(0, 2000).Draw(t, name)
			return Tally{Failed: float64(rapid.Int64Range(0, min(n, 100)).Draw(t, name+" failed")), Of: float64(n)}
		}
		treated, control := draw("treated"), draw("control")
		want := least(treated, control, p.Confidence) > p.Excess
		if got := p.failing(treated, control); got != want {
			t.Fatalf("failing = %t for %+v and %+v, the limit says %t", got, treated, control, want)
		}
		if want {
			failed++
		}
	})
	if failed == 0 {
		t.Error("nothing that was drawn is failing")
	}
}

func TestStagesGrowTenfoldWhileNobodyFails(t *testing.T) {
	p := Defaults().Pace
	for n, want := range map[float64][2]int64{0: {30, 30}, 30: {300, 330}, 300: {3000, 3020}, 3000: {30_000, 30_060}} {
		if got, _ := p.room(Tally{Of: n}, Tally{}); got < want[0] || got > want[1] {
			t.Errorf("N′ after %v healthy machines is %d, want %v", n, got, want)
		}
	}
}
