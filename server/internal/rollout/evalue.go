package rollout

import "math"

// Nats is a logarithm in units of 10⁻⁹, rounded down. As an integer it sums to the
// same in any order and on any machine; rounded down, it errs against halting.
type Nats int64

const perNat = 1e9

func nats(x float64) Nats { return Nats(math.Floor(x * perNat)) }

// Float returns the logarithm as a floating point number.
func (n Nats) Float() float64 { return float64(n) / perNat }

// An EValue is the evidence of test A against a patch: the logarithms of e_R
// for each R of [HaltParams.Risks]. The zero EValue is e = 1, no evidence.
type EValue [4]Nats

// Fail multiplies by the factor of a failure, where treated and control machines
// are those, this one included, that were dealt together and could have failed instead.
func (e *EValue) Fail(risks [4]float64, treated bool, atRisk Pair) {
	e.times(factors(risks, treated, atRisk))
}

// times multiplies each e_R by its factor.
func (e *EValue) times(factors EValue) {
	for i := range e {
		e[i] += factors[i]
	}
}

// factors returns log(θ/ρ) for a treated failure and log((1−θ)/(1−ρ)) for a control.
// With a treated and b control machines these are log(R(a+b)/(Ra+b)) and
// log((a+b)/(Ra+b)).
func factors(risks [4]float64, treated bool, atRisk Pair) (f EValue) {
	a, b := float64(atRisk.Treated), float64(atRisk.Control)
	if a <= 0 || b <= 0 {
		return f // nobody to compare with: θ = ρ
	}
	for i, r := range risks {
		x := math.Log((a + b) / (r*a + b))
		if treated {
			x += math.Log(r)
		}
		f[i] = nats(x)
	}
	return f
}

// Log returns the natural logarithm of e, the mean of the e_R.
func (e EValue) Log() float64 {
	top := max(e[0], e[1], e[2], e[3])
	sum := 0.0
	for _, x := range e {
		sum += math.Exp((x - top).Float())
	}
	return top.Float() + math.Log(sum/float64(len(e)))
}

// Exceeds tells whether e ≥ 1/alpha.
func (e EValue) Exceeds(alpha float64) bool { return e.Log() >= -math.Log(alpha) }
