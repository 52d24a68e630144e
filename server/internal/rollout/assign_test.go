package rollout_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"livepatch/internal/patch"
	"livepatch/server/internal/rollout"
)

// machine returns the i-th machine of a test.
func machine(i int) (m rollout.Machine) {
	binary.BigEndian.PutUint64(m[8:], uint64(i)+1)
	return m
}

// The agent and the loader decide by [patch.Rollout.Admits]; the server has to
// know the same of every machine.
func TestArmAgreesWithWhatMachinesDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		share := rapid.Int64Range(-1, patch.Everyone+1).Draw(t, "share")
		salt := rapid.String().Draw(t, "salt")
		m := machine(rapid.IntRange(0, 1<<40).Draw(t, "machine"))
		r := patch.Rollout{State: patch.Running, Tiers: map[string]patch.Stage{"edge": {Share: share, Salt: salt}}}
		arm := rollout.Assignment{Salt: salt, Share: share, Sham: patch.Everyone}.Arm(m)
		if admitted := r.Admits(patch.Kernel{}, "edge", m.String()); admitted != (arm == rollout.Treated) {
			t.Fatalf("share %d: machine admits itself: %v; server says %v", share, admitted, arm)
		}
	})
}

func TestTreatedStayTreatedWhileTheShareGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.Int64Range(0, patch.Everyone).Draw(t, "share")
		b := rapid.Int64Range(a, patch.Everyone).Draw(t, "later share")
		m := machine(rapid.Int().Draw(t, "machine"))
		early := rollout.Assignment{Salt: "s", Stage: 1, Share: a, Sham: 300_000}
		late := rollout.Assignment{Salt: "s", Stage: 2, Share: b, Sham: 500_000}
		if early.Arm(m) == rollout.Treated && late.Arm(m) != rollout.Treated {
			t.Fatalf("%v is out again", m)
		}
	})
}

// near fails unless a count of independent draws is within five standard deviations
// of what is expected.
func near(t *testing.T, what string, got, n int, p float64) {
	t.Helper()
	want, sd := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	if math.Abs(float64(got)-want) > 5*sd {
		t.Errorf("%s: %d of %d, want %.0f ± %.0f", what, got, n, want, 5*sd)
	}
}

func TestArmsHaveTheirShares(t *testing.T) {
	const n = 50_000
	for _, a := range []rollout.Assignment{
		{Salt: "a", Stage: 1, Share: 10_000, Sham: 40_000}, {Salt: "b", Stage: 3, Share: 333_334, Sham: 500_000}, {Salt: "c", Share: 950_000, Sham: 1_000_000},
	} {
		var arms [3]int
		for i := range n {
			arms[a.Arm(machine(i))]++
		}
		share, sham := float64(a.Share)/patch.Everyone, float64(a.Sham)/patch.Everyone
		near(t, fmt.Sprint("treated of ", a), arms[rollout.Treated], n, share)
		near(t, fmt.Sprint("controls of ", a), arms[rollout.Control], n, (1-share)*sham)
	}
}

// With the same draw for controls in each stage, a control of the second stage
// would be one that has survived the first.
func TestControlsAreDrawnAnewInEachStage(t *testing.T) {
	const n = 50_000
	both, first := 0, 0
	for i := range n {
		a := rollout.Assignment{Salt: "a", Stage: 1, Sham: 100_000}.Arm(machine(i)) == rollout.Control
		b := rollout.Assignment{Salt: "a", Stage: 2, Sham: 100_000}.Arm(machine(i)) == rollout.Control
		if a {
			first++
		}
		if a && b {
			both++
		}
	}
	near(t, "controls of stage 1 that are controls of stage 2", both, first, 0.1)
}

func TestParseMachine(t *testing.T) {
	const good = "00112233445566778899aabbccddeeff"
	m, err := rollout.ParseMachine(good)
	if err != nil || m.String() != good {
		t.Errorf("ParseMachine(%q) = %v, %v", good, m, err)
	}
	for name, in := range map[string]string{
		"empty": "", "short": good[2:], "long": good + "00", "upper case": "00112233445566778899AABBCCDDEEFF", "no digit": "g" + good[1:],
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := rollout.ParseMachine(in); err == nil {
				t.Errorf("ParseMachine(%q) = %v, want an error", in, m)
			}
		})
	}
}

func FuzzParseMachine(f *testing.F) {
	f.Add("00112233445566778899aabbccddeeff")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := rollout.ParseMachine(s); err == nil && m.String() != s {
			t.Errorf("ParseMachine(%q) = %v", s, m)
		}
	})
}
