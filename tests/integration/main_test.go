//go:build integration

// Package integration runs the real programs, each in its own process and under
// its own user, on a kernel that is made of files.
package integration

import (
	"os"
	"testing"

	"livepatch/tests/lab"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if socket := os.Getenv("LIVEPATCH_TEST_STRANGER"); socket != "" {
		return stranger(socket)
	}
	return lab.Main(m)
}
