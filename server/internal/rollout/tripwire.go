package rollout

import "math"

// tripwire is test B: the log likelihood ratio of p1 against p0 after x of n
// treated machines have failed. It depends on the numbers only, not on their order.
//
// p0 is the greatest of the floor, what earlier rollouts saw, and, as soon as a
// control has failed, the most that the controls allow it to be: when half of the
// fleet is switched off, the treated machines may well be the first to be missed.
func (h HaltParams) tripwire(treated, control Tally) (llr, p0 float64) {
	p0 = max(h.TripFloor, h.Background)
	if control.Failed > 0 {
		p0 = max(p0, control.upper(1-h.TripBeta))
	}
	p0 = min(p0, 0.9)
	p1 := min(h.TripFactor*p0, (1+p0)/2)
	x, n := treated.Failed, treated.Of
	return x*math.Log(p1/p0) + (n-x)*math.Log((1-p1)/(1-p0)), p0
}

// lonely is test B of a tier that is one account's. Its word does not halt what others have, but it is all
// that is known of the tier.
func (h HaltParams) lonely(lone Tally) bool {
	llr, _ := h.tripwire(lone, Tally{})
	return h.tripped(llr)
}

// tripped tells whether llr reaches Wald's upper boundary.
func (h HaltParams) tripped(llr float64) bool {
	return llr >= math.Log((1-h.TripBeta)/h.TripAlpha)
}
