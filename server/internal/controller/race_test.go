//go:build race

package controller_test

// thin is by how much the longest tests are thinned out under the race detector, which
// makes them ten times slower.
const thin = 4
