//go:build !race

package tuf_test

// thin is 1: every repository is tried. See race_test.go.
const thin = 1
