package rollout

import "math"

// chance is the probability that of those who failed so many or more are treated if the
// treatment does nothing: Fisher's exact test, one-sided.
func chance(failed, of Pair) (p float64) {
	bad := failed.Treated + failed.Control
	for x := max(failed.Treated, bad-of.Control); x <= min(bad, of.Treated); x++ {
		p += math.Exp(logChoose(of.Treated, x) + logChoose(of.Control, bad-x) - logChoose(of.Treated+of.Control, bad))
	}
	return min(p, 1)
}

// logChoose is the logarithm of the binomial coefficient.
func logChoose(n, k int64) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return a - b - c
}
