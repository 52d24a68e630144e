package patch_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"

	"livepatch/internal/patch"
)

func TestParseRollout(t *testing.T) {
	tests := map[string]struct {
		in string
		ok bool
	}{
		"running":                 {`{"state":"running","tiers":{"stable":{"share":1000000,"salt":"x"}},"soak_seconds":3600}`, true},
		"halted":                  {`{"state":"halted"}`, true},
		"revoked":                 {`{"state":"revoked"}`, true},
		"a kernel by itself":      {`{"state":"running","kernels":{"6.1.0-53-amd64/x86_64":"halted"}}`, true},
		"what a newer one says":   {`{"state":"running","weather":"fine"}`, true},
		"no state":                {`{}`, false},
		"an empty state":          {`{"state":""}`, false},
		"an unknown state":        {`{"state":"paused"}`, false},
		"a state in capitals":     {`{"state":"Running"}`, false},
		"null":                    {`null`, false},
		"an unknown kernel state": {`{"state":"running","kernels":{"a/b":"maybe"}}`, false},
		"a kernel without state":  {`{"state":"running","kernels":{"a/b":null}}`, false},
		"a share with a fraction": {`{"state":"running","tiers":{"stable":{"share":0.5}}}`, false},
		"a share in quotes":       {`{"state":"running","tiers":{"stable":{"share":"1"}}}`, false},
		"tiers are a list":        {`{"state":"running","tiers":[]}`, false},
		"a list":                  {`[]`, false},
		"nothing":                 {``, false},
		"two of them":             {`{"state":"running"}{"state":"halted"}`, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := patch.ParseRollout([]byte(tc.in))
			if (err == nil) != tc.ok || err != nil && !errors.Is(err, patch.ErrMalformed) {
				t.Errorf("ParseRollout = %v, want ok %v", err, tc.ok)
			}
		})
	}
}

// states are in order of strictness; the last ones are nothing that a server
// writes.
var states = []patch.RolloutState{patch.Running, patch.Halted, patch.Revoked, "", "paused"}

// strictness orders the answers of For.
func strictness(t *testing.T, err error) int {
	t.Helper()
	for i, want := range []error{nil, patch.ErrHalted, patch.ErrRevoked} {
		if errors.Is(err, want) {
			return i
		}
	}
	t.Fatalf("For = %v", err)
	return 0
}

func TestRolloutFor(t *testing.T) {
	const key = "6.1.0-53-amd64/x86_64"
	halted, revoked := patch.ErrHalted, patch.ErrRevoked
	tests := []struct {
		general, own patch.RolloutState
		want         error
	}{
		{patch.Running, patch.Running, nil},
		{patch.Running, patch.Halted, halted},
		{patch.Running, patch.Revoked, revoked},
		{patch.Halted, patch.Running, halted},
		{patch.Halted, patch.Halted, halted},
		{patch.Halted, patch.Revoked, revoked},
		{patch.Revoked, patch.Running, revoked},
		{patch.Revoked, patch.Halted, revoked},
		{patch.Revoked, patch.Revoked, revoked},
		{"", patch.Running, revoked}, // unknown means no
		{"paused", patch.Running, revoked},
		{patch.Running, "paused", revoked},
		{patch.Running, "", revoked},
	}
	for _, tc := range tests {
		t.Run(fmt.Sprintf("%s, but %s here", tc.general, tc.own), func(t *testing.T) {
			r := patch.Rollout{State: tc.general, Kernels: map[string]patch.RolloutState{key: tc.own}}
			if err := r.For(running); !errors.Is(err, tc.want) {
				t.Errorf("For = %v, want %v", err, tc.want)
			}
		})
	}
}

// An exception is never more lenient than the rule, and says nothing about other
// kernels.
func TestRolloutExceptionsAreStricter(t *testing.T) {
	others := []patch.Kernel{
		{Arch: "aarch64", Release: "6.1.0-53-amd64"}, {Arch: "x86_64", Release: "6.1.0-54-amd64"}, {Arch: "x86_64", Release: "6.1.0-53"}, {},
	}
	for _, general := range states {
		rule := strictness(t, patch.Rollout{State: general}.For(running))
		for _, own := range states {
			r := patch.Rollout{State: general, Kernels: map[string]patch.RolloutState{"6.1.0-53-amd64/x86_64": own}}
			if got := strictness(t, r.For(running)); got < rule {
				t.Errorf("%q with the exception %q: %v is more lenient than the rule", general, own, r.For(running))
			}
			for _, k := range others {
				if got := strictness(t, r.For(k)); got != rule {
					t.Errorf("%q with an exception %q for another kernel: %v", general, own, r.For(k))
				}
			}
		}
	}
}

// rollout returns one that a share of the tier gets.
func rollout(share int64, salt string) patch.Rollout {
	return patch.Rollout{State: patch.Running, Tiers: map[string]patch.Stage{"stable": {Share: share, Salt: salt}}}
}

func machine(i int) string { return fmt.Sprintf("%032x", i) }

func TestAdmits(t *testing.T) {
	const machines = 20_000
	count := func(r patch.Rollout) (n int) {
		for i := range machines {
			if r.Admits(running, "stable", machine(i)) {
				n++
			}
		}
		return n
	}
	for share, want := range map[int64]int{
		0: 0, -1: 0, math.MinInt64: 0, patch.Everyone: machines, patch.Everyone + 1: machines, math.MaxInt64: machines,
	} {
		if got := count(rollout(share, "salt")); got != want {
			t.Errorf("share %d admits %d machines, want %d", share, got, want)
		}
	}
	// Five standard deviations of the binomial distribution.
	for _, share := range []int64{1_000, 10_000, 50_000, 250_000, 500_000, 999_000} {
		p := float64(share) / patch.Everyone
		want, slack := p*machines, 5*math.Sqrt(machines*p*(1-p))
		if got := float64(count(rollout(share, "salt"))); math.Abs(got-want) > slack {
			t.Errorf("share %d admits %v machines, want %v ± %v", share, got, want, slack)
		}
	}
}

func TestAdmitsOnlyTiersThatAreListed(t *testing.T) {
	r := rollout(patch.Everyone, "")
	for _, tier := range []string{"", "edge", "Stable", "stable ", "stab"} {
		if r.Admits(running, tier, machine(1)) {
			t.Errorf("tier %q is admitted", tier)
		}
	}
	if (patch.Rollout{State: patch.Running}).Admits(running, "stable", machine(1)) {
		t.Error("a rollout without tiers admits a machine")
	}
	if !r.Admits(running, "stable", machine(1)) {
		t.Error("everyone does not include a machine")
	}
}

// A machine that got in stays in while the share grows.
func TestAdmitsIsMonotone(t *testing.T) {
	shares := []int64{0, 1, 1_000, 10_000, 100_000, 333_333, 500_000, 900_000, 999_999, patch.Everyone}
	for i := range 2_000 {
		in := false
		for _, share := range shares {
			now := rollout(share, "salt").Admits(running, "stable", machine(i))
			if in && !now {
				t.Fatalf("machine %d is out again at share %d", i, share)
			}
			in = now
		}
		if !in {
			t.Fatalf("machine %d is not part of everyone", i)
		}
	}
}

// Another salt lets other machines go first.
func TestAdmitsDependsOnTheSalt(t *testing.T) {
	const machines = 20_000
	a, b := rollout(500_000, "113.1"), rollout(500_000, "113.2")
	same := 0
	for i := range machines {
		if a.Admits(running, "stable", machine(i)) == b.Admits(running, "stable", machine(i)) {
			same++
		}
	}
	if math.Abs(float64(same)-machines/2) > 5*math.Sqrt(machines)/2 {
		t.Errorf("%d of %d machines fare the same under another salt, want about half", same, machines)
	}
}

// The server counts on the same choice, so it cannot change: these values were
// computed with another program.
func TestAdmitsVectors(t *testing.T) {
	tests := []struct {
		salt, machine string
		share         int64 // the smallest that lets it in
	}{
		{"", "", 889_416},
		{"salt", "5f2c1d", 266_895},
		{"113.1", "00000000000000000000000000000001", 994_773},
		{"113.2", "00112233445566778899aabbccddeeff", 909_230},
	}
	for _, tc := range tests {
		if rollout(tc.share-1, tc.salt).Admits(running, "stable", tc.machine) || !rollout(tc.share, tc.salt).Admits(running, "stable", tc.machine) {
			t.Errorf("salt %q, machine %q: does not get in at exactly %d", tc.salt, tc.machine, tc.share)
		}
	}
}

// FuzzRollout: no rollout gives more than its parts allow.
func FuzzRollout(f *testing.F) {
	f.Add([]byte(`{"state":"running","tiers":{"stable":{"share":500000,"salt":"x"}},"kernels":{"6.1.0-53-amd64/x86_64":"halted"}}`), "stable", "id")
	f.Add([]byte(`{"state":"revoked","kernels":{"6.1.0-53-amd64/x86_64":"running"}}`), "", "")
	f.Add([]byte(`{"state":"running","State":"halted","tiers":null}`), "edge", "id")
	f.Fuzz(func(t *testing.T, b []byte, tier, id string) {
		r, err := patch.ParseRollout(b)
		if err != nil {
			if !errors.Is(err, patch.ErrMalformed) {
				t.Errorf("%v does not match %v", err, patch.ErrMalformed)
			}
			return
		}
		rule := strictness(t, patch.Rollout{State: r.State}.For(running))
		if strictness(t, r.For(running)) < rule {
			t.Errorf("%+v is more lenient here than everywhere", r)
		}
		stage, ok := r.Tiers[tier]
		if r.Admits(running, tier, id) && (!ok || stage.Share <= 0) {
			t.Errorf("%+v admits a machine of tier %q", r, tier)
		}
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := patch.ParseRollout(text)
		if err != nil || again.State != r.State || !errors.Is(again.For(running), r.For(running)) || again.Admits(running, tier, id) != r.Admits(running, tier, id) {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

func TestSpreadsStandForTheKernelsThatTheyName(t *testing.T) {
	r := patch.Rollout{
		State: patch.Running,
		Tiers: map[string]patch.Stage{"edge": {Share: patch.Everyone, Salt: "salt"}, "stable": {Salt: "salt"}},
		Spreads: []patch.Spread{
			{Kernels: []string{"6.1.0-52-amd64/x86_64"}, Shares: map[string]int64{"edge": patch.Everyone, "stable": patch.Everyone}},
			{Kernels: []string{"6.1.0-51-amd64/x86_64", running.Cell()}, Shares: map[string]int64{"stable": 1000, "gone": patch.Everyone}},
		},
	}
	other := patch.Kernel{Arch: "aarch64", Release: running.Release}
	tests := map[string]struct {
		kernel patch.Kernel
		tier   string
		share  int64
	}{
		"a kernel that is named":                 {running, "stable", 1000},
		"a tier that its spread leaves out":      {running, "edge", 0},
		"a tier that the rollout does not have":  {running, "gone", 0},
		"a kernel that is not named":             {other, "edge", patch.Everyone},
		"a kernel and tier that are not reached": {other, "stable", 0},
		"another spread":                         {patch.Kernel{Arch: "x86_64", Release: "6.1.0-52-amd64"}, "stable", patch.Everyone},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			stage, ok := r.Stage(tc.kernel, tc.tier)
			if ok != (tc.share > 0) || ok && (stage.Share != tc.share || stage.Salt != "salt") {
				t.Errorf("Stage = %+v, %v, want share %d", stage, ok, tc.share)
			}
			if want := tc.share == patch.Everyone; tc.share != 1000 && r.Admits(tc.kernel, tc.tier, machine(1)) != want {
				t.Errorf("Admits = %v, want %v", !want, want)
			}
		})
	}
}

func TestAHaltedPatchIsRevokedForSomeLoadersFirst(t *testing.T) {
	third := &patch.Stage{Share: 333_333, Salt: "x"}
	count := func(r patch.Rollout) (n int) {
		for i := range 3000 {
			if r.ForLoader(running, machine(i)) == patch.Revoked {
				n++
			}
		}
		return n
	}
	for state, want := range map[patch.RolloutState][2]int{patch.Halted: {900, 1100}, patch.Running: {0, 0}, patch.Revoked: {3000, 3000}} {
		if n := count(patch.Rollout{State: state, Withdraw: third}); n < want[0] || n > want[1] {
			t.Errorf("%s: %d of 3000 loaders give it up, want %v", state, n, want)
		}
	}
	if n := count(patch.Rollout{State: patch.Halted}); n != 0 {
		t.Errorf("no withdrawal: %d loaders give it up", n)
	}
	cell := patch.Rollout{State: patch.Running, Withdraw: third, Kernels: map[string]patch.RolloutState{running.Cell(): patch.Halted}}
	if n := count(cell); n < 900 || n > 1100 {
		t.Errorf("halted on one kernel: %d of 3000 loaders give it up", n)
	}
}
