//go:build !race

package controller_test

// thin is 1 where tests run at full speed.
const thin = 1
