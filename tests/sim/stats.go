package main

import "gonum.org/v1/gonum/mathext"

// upperLimit is the exact one-sided upper confidence limit, of 95 %, of the rate of
// something that happened x times in n (C. J. Clopper, E. S. Pearson, 1934).
func upperLimit(x, n int) float64 {
	if x >= n {
		return 1
	}
	return mathext.InvRegIncBeta(float64(x+1), float64(n-x), 0.95)
}

// lowerLimit is the lower one.
func lowerLimit(x, n int) float64 {
	if x == 0 {
		return 0
	}
	return mathext.InvRegIncBeta(float64(x), float64(n-x+1), 0.05)
}
