package rollout

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

var risks = Defaults().Halt.Risks

func TestEValueOfOneFailure(t *testing.T) {
	tests := map[string]struct {
		treated bool
		atRisk  Pair
		want    EValue // from θ/ρ and (1−θ)/(1−ρ) by hand
	}{
		"a treated machine beside four controls": {true, Pair{1, 4}, EValue{
			nats(math.Log(10. / 6)), nats(math.Log(25. / 9)), nats(math.Log(100. / 24)), nats(math.Log(500. / 104)),
		}},
		"a control beside one treated machine": {false, Pair{1, 4}, EValue{
			nats(math.Log(5. / 6)), nats(math.Log(5. / 9)), nats(math.Log(5. / 24)), nats(math.Log(5. / 104)),
		}},
		"a treated machine without controls says nothing": {true, Pair{7, 0}, EValue{}},
		"a control without treated machines says nothing": {false, Pair{0, 7}, EValue{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var e EValue
			e.Fail(risks, tc.treated, tc.atRisk)
			for i := range e {
				if d := e[i] - tc.want[i]; d < -1 || d > 1 {
					t.Errorf("e_%v = %v, want %v", risks[i], e[i], tc.want[i])
				}
			}
		})
	}
}

func TestFiveDeadCanariesHaltAtOneInAThousand(t *testing.T) {
	var e EValue
	for n := 1; n <= 5; n++ {
		if e.Exceeds(0.001) {
			t.Fatalf("e = exp %.2f after %d deaths", e.Log(), n-1)
		}
		e.Fail(risks, true, Pair{1000, 4000})
	}
	if !e.Exceeds(0.001) {
		t.Errorf("e = exp %.2f after five deaths, want at least 1000", e.Log())
	}
}

// The expectation of a factor is 1 when the failing machine is any of those at
// risk, and rounding only lowers it: the step of the supermartingale. It fails if a
// factor is turned round, if ρ counts something else, or if nats rounds up.
func TestFactorsHaveExpectationOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Pair{rapid.Int64Range(0, 1e7).Draw(t, "treated"), rapid.Int64Range(0, 1e7).Draw(t, "control")}
		if p == (Pair{}) {
			return
		}
		rho := float64(p.Treated) / float64(p.Treated+p.Control)
		ft, fc := factors(risks, true, p), factors(risks, false, p)
		for i := range risks {
			mean := rho*math.Exp(ft[i].Float()) + (1-rho)*math.Exp(fc[i].Float())
			if mean > 1+1e-12 || mean < 1-1e-8 {
				t.Fatalf("expectation of the factor for R = %v is %v", risks[i], mean)
			}
		}
	})
}

// A patch that spares machines must not be halted for it.
func TestFactorsFallWhenThePatchSparesMachines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Pair{rapid.Int64Range(1, 1e6).Draw(t, "treated"), rapid.Int64Range(1, 1e6).Draw(t, "control")}
		odds := rapid.Float64Range(0, 1).Draw(t, "odds ratio")
		theta := odds * float64(p.Treated) / (odds*float64(p.Treated) + float64(p.Control))
		ft, fc := factors(risks, true, p), factors(risks, false, p)
		for i := range risks {
			if mean := theta*math.Exp(ft[i].Float()) + (1-theta)*math.Exp(fc[i].Float()); mean > 1+1e-12 {
				t.Fatalf("expectation of the factor for R = %v is %v", risks[i], mean)
			}
		}
	})
}

// Several failures of one instant are all compared with the machines at risk before
// it. Enumerated over all ways to draw them without replacement, the product has
// expectation at most 1 (Hoeffding 1963).
func TestSimultaneousFailuresAreOnTheSafeSide(t *testing.T) {
	for a := int64(1); a <= 6; a++ {
		for b := int64(1); b <= 12; b++ {
			p := Pair{a, b}
			ft, fc := factors(risks, true, p), factors(risks, false, p)
			for x := int64(1); x <= a+b; x++ {
				for i := range risks {
					mean := 0.0
					for k := max(0, x-b); k <= min(a, x); k++ {
						prob := math.Exp(choose(a, k) + choose(b, x-k) - choose(a+b, x))
						mean += prob * math.Exp(float64(k)*ft[i].Float()+float64(x-k)*fc[i].Float())
					}
					if mean > 1+1e-9 {
						t.Fatalf("%d failures among %+v: expectation %v for R = %v", x, p, mean, risks[i])
					}
				}
			}
		}
	}
}

// choose is the logarithm of a binomial coefficient.
func choose(n, k int64) float64 {
	lg := func(x int64) float64 { v, _ := math.Lgamma(float64(x) + 1); return v }
	return lg(n) - lg(k) - lg(n-k)
}

// e is a mean of products of positive factors: positive, never NaN, and between
// the least and the greatest of them, however far they are apart.
func TestEValueIsNeverNegative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e EValue
		for range rapid.IntRange(0, 200).Draw(t, "failures") {
			e.Fail(risks, rapid.Bool().Draw(t, "treated"), Pair{
				rapid.Int64Range(0, 1e9).Draw(t, "a"), rapid.Int64Range(0, 1e9).Draw(t, "b"),
			})
		}
		least, most := min(e[0], e[1], e[2], e[3]).Float(), max(e[0], e[1], e[2], e[3]).Float()
		if l := e.Log(); math.IsNaN(l) || l < least-1e-9 || l > most+1e-9 {
			t.Fatalf("log of the mean of %v is %v", e, l)
		}
	})
}

func TestLogOfGreatEValuesIsFinite(t *testing.T) {
	e := EValue{nats(5000), nats(-5000), 0, 0}
	if got, want := e.Log(), 5000-math.Log(4); math.Abs(got-want) > 1e-9 {
		t.Errorf("log e = %v, want %v", got, want)
	}
}

// Ville's inequality, seen: of healthy sequences looked at after every failure, no more
// than α reach 1/α. The same test with R for the controls as well would reach it in
// every run.
func TestHealthySequencesSeldomReachTheThreshold(t *testing.T) {
	const runs, failures, alpha = 4000, 400, 0.05
	rng := rand.New(rand.NewPCG(1, 2))
	reached := 0
	for range runs {
		var e EValue
		risk, over := Pair{200, 800}, false
		for range failures {
			treated := rng.Int64N(risk.Treated+risk.Control) < risk.Treated
			e.Fail(risks, treated, risk)
			if treated {
				risk.Treated--
			} else {
				risk.Control--
			}
			over = over || e.Exceeds(alpha)
		}
		if over {
			reached++
		}
	}
	sd := math.Sqrt(runs * alpha * (1 - alpha))
	if float64(reached) > runs*alpha+3*sd {
		t.Errorf("%d of %d healthy sequences reached 1/%v", reached, runs, alpha)
	}
	if reached == 0 {
		t.Error("none did, so the test saw nothing")
	}
}
