package rollout

import (
	"math"

	"gonum.org/v1/gonum/mathext"
)

// A Tally is how many of a number of machines failed. Both may be fractions, where
// older evidence has less weight.
type Tally struct {
	Failed float64 `json:"failed"`
	Of     float64 `json:"of"` // matured: failed or healthy after the soak
}

func (t Tally) rate() float64 {
	if t.Of <= 0 {
		return 0
	}
	return t.Failed / t.Of
}

func (t Tally) plus(o Tally, weight float64) Tally {
	return Tally{Failed: t.Failed + weight*o.Failed, Of: t.Of + weight*o.Of}
}

// upper is the exact upper confidence limit of Clopper and Pearson for the rate
// of failure, one-sided: BetaInv(confidence; x+1, n−x). It is 1 without evidence.
func (t Tally) upper(confidence float64) float64 {
	x, n := t.Failed, t.Of
	if n <= 0 || x >= n {
		return 1
	}
	return mathext.InvRegIncBeta(x+1, n-x, confidence)
}

// lower is the exact lower confidence limit, BetaInv(1−confidence; x, n−x+1).
func (t Tally) lower(confidence float64) float64 {
	x, n := t.Failed, t.Of
	if n <= 0 || x <= 0 {
		return 0
	}
	return mathext.InvRegIncBeta(min(x, n), max(n-x, 0)+1, 1-confidence)
}

// excess returns an upper confidence limit of what the treatment adds to the rate of
// failure: MOVER on the exact limits of both rates. It is never above the limit of
// the treated rate alone, and never below what the same number of machines without any
// failure would show.
func excess(treated, control Tally, confidence float64) float64 {
	pt, pc := treated.rate(), control.rate()
	ut, lc := treated.upper(confidence), control.lower(confidence)
	if control.Failed <= 0 {
		return ut
	}
	u := pt - pc + math.Hypot(ut-pt, pc-lc)
	return max(Tally{Of: treated.Of}.upper(confidence), u)
}

// least is a lower confidence limit of what the treatment adds to the rate of failure. It is
// negative without controls.
func least(treated, control Tally, confidence float64) float64 {
	pt, pc := treated.rate(), control.rate()
	return pt - pc - math.Hypot(pt-treated.lower(confidence), control.upper(confidence)-pc)
}

// failing tells whether the patch surely adds more to the rate of failure than may be. The
// limit is never above the difference itself, which most looks are done with.
func (p PaceParams) failing(treated, control Tally) bool {
	return treated.rate()-control.rate() > p.Excess && least(treated, control, p.Confidence) > p.Excess
}

// room returns N′ = H/U, how many more machines may be let in.
func (p PaceParams) room(treated, control Tally) (next int64, u float64) {
	u = excess(treated, control, p.Confidence)
	return int64(min(p.Dead/u, math.MaxInt32)), u
}
