package admin

import (
	"io"
	"math"
	"strings"
	"testing"

	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// TestReplay changes a verdict that was stored, and judges it again.
func TestReplay(t *testing.T) {
	d := rollout.Decision{
		Seq: 1, Unit: "6.1/x86_64", Params: rollout.Defaults(),
		Evidence: rollout.Evidence{
			E: rollout.EValue{3e9, 2e9, 1e9, -1e9}, SourceE: rollout.EValue{3e9, 2e9, 1e9, -1e9}, Alpha: 1e-4, SourceAlpha: 1e-4,
			Trip: rollout.Tally{Failed: 1, Of: 30}, TripControl: rollout.Tally{Of: 20}, Tier: "edge", Machines: 100_000,
			Stage: 1, Share: 300, Wanted: 30, Came: 30, Exposed: 30, Treated: rollout.Tally{Of: 30}, Control: rollout.Tally{Of: 120}, Last: true,
		},
	}
	d.Verdict = d.Judge()
	if v := d.Verdict; v.Action != rollout.Advance || v.LogE == 0 || v.LLR == 0 || v.Upper == 0 {
		t.Fatalf("verdict is %+v, want one with all of its numbers", v)
	}
	tests := map[string]struct {
		change func(*rollout.Verdict)
		wrong  bool
	}{
		"nothing is changed":                    {func(*rollout.Verdict) {}, false},
		"the last digit of each number":         {lastDigits, false},
		"another action":                        {func(v *rollout.Verdict) { v.Action = rollout.Hold }, true},
		"another reason":                        {func(v *rollout.Verdict) { v.Reason = rollout.ByPerson }, true},
		"a share that is larger by a millionth": {func(v *rollout.Verdict) { v.Share++ }, true},
		"evidence that is a millionth more":     {func(v *rollout.Verdict) { v.LogE *= 1 + 1e-6 }, true},
		"a limit that is a millionth less":      {func(v *rollout.Verdict) { v.Upper *= 1 - 1e-6 }, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			stored := d
			tc.change(&stored.Verdict)
			err := replay(io.Discard, []store.StoredVerdict{{Vendor: "debian", Version: "1.1", Decision: stored}})
			if wrong := err != nil; wrong != tc.wrong || wrong && !strings.Contains(err.Error(), "1 of 1") {
				t.Errorf("replayed: %v, want an error: %t", err, tc.wrong)
			}
		})
	}
}

// lastDigits moves every number by as little as it can be moved by.
func lastDigits(v *rollout.Verdict) {
	for _, x := range []*float64{&v.LogE, &v.SourceLogE, &v.LLR, &v.P0, &v.Upper} {
		*x = math.Nextafter(*x, 2)
	}
}
