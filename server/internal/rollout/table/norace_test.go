//go:build !race

package main

// thin is 1 where tests run at full speed.
const thin = 1
