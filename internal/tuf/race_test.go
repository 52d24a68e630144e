//go:build race

package tuf_test

// thin is by how much the tests of thousands of repositories are thinned out
// under the race detector, which makes them ten times slower and has nothing to
// find in a package without goroutines.
const thin = 5
