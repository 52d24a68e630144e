//go:build attack

// Package attack attacks the real programs: a hostile agent, a hostile server or
// mirror, somebody who has stolen keys, a hostile user of the machine. Each test is
// one attack. It fails if the attack gets through, and says in a row of
// [livepatch/tests/attack/report] what was seen to stop it.
//
// The victims run as shipped, each a process under a user of its own, on the kernel
// made of files of package lab; what needs a real kernel is in tests/vm.
package attack

import (
	"os"
	"testing"

	"livepatch/tests/lab"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if name := os.Getenv("LIVEPATCH_ATTACK"); name != "" {
		return asStranger(name, os.Args[1:])
	}
	return lab.Main(m)
}
