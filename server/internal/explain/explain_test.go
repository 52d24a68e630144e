package explain_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"livepatch/server/internal/explain"
	"livepatch/server/internal/rollout"
)

func TestShare(t *testing.T) {
	for ppm, want := range map[int64]string{0: "0 %", 1: "0.0001 %", 3000: "0.3 %", 15_000: "1.5 %", 333_334: "33.3 %", 1_000_000: "100 %"} {
		if got := explain.Share(ppm); got != want {
			t.Errorf("%d is %q, want %q", ppm, got, want)
		}
	}
}

func TestTally(t *testing.T) {
	for want, tally := range map[string]rollout.Tally{
		"0/0": {}, "3/30": {Failed: 3, Of: 30}, "0.4/12.3": {Failed: 0.44, Of: 12.26},
	} {
		if got := explain.Tally(tally); got != want {
			t.Errorf("%+v is %q, want %q", tally, got, want)
		}
	}
}

// TestVerdictInWords reads decisions as the rule makes them, so that the numbers are
// those that it went by.
func TestVerdictInWords(t *testing.T) {
	tests := map[string]struct {
		evidence rollout.Evidence
		want     string
		next     string
	}{
		"an oops": {
			evidence: rollout.Evidence{Hits: 2, Signature: "oops/lkp_1/f"},
			want:     `halted: 2 machines had the same oops that names our module, "oops/lkp_1/f" (test C)`,
			next:     "livepatch-admin rollout show debian 1.1",
		},
		"three early deaths": {
			evidence: rollout.Evidence{Trip: rollout.Tally{Failed: 3, Of: 3}, Alpha: 1e-4, SourceAlpha: 1e-4},
			want:     "halted: 3 of 3 machines with the patch failed early, where 0.3 % would be lost anyway (test B)",
			next:     "livepatch-admin rollout show debian 1.1",
		},
		"silence": {
			evidence: rollout.Evidence{
				Silent: rollout.Pair{Treated: 9, Control: 1}, Seen: rollout.Pair{Treated: 30, Control: 120}, Alpha: 1e-4, SourceAlpha: 1e-4,
			},
			want: "halted: 9 of 30 machines with the patch fell silent within minutes, and 1 of 120 controls (test C)",
			next: "livepatch-admin rollout show debian 1.1",
		},
		"more failures than controls": {
			evidence: rollout.Evidence{E: rollout.EValue{13e9, 13e9, 13e9, 13e9}, Alpha: 1e-4, SourceAlpha: 1e-4, Controls: 100},
			want:     "halted: machines with the patch fail more often than their controls (test A: evidence 4.4e+05, limit 1e+04)",
			next:     "livepatch-admin rollout show debian 1.1",
		},
		"siblings": {
			evidence: rollout.Evidence{Siblings: 2, Alpha: 1e-4, SourceAlpha: 1e-4},
			want:     "halted: 2 other kernels of the same source patch are halted, and 2 are enough",
			next:     "livepatch-admin rollout show debian 1.1",
		},
		"one sibling": {
			evidence: rollout.Evidence{Siblings: 1, Alpha: 1e-4, SourceAlpha: 1e-4, Tier: "edge", Machines: 1},
			want:     "edge stays at 0 %: another kernel of the same source patch is halted; a person has to look at that",
			next:     "livepatch-admin rollout release debian 1.1 6.1/x86_64",
		},
		"the first stage": {
			evidence: rollout.Evidence{Alpha: 1e-4, SourceAlpha: 1e-4, Tier: "edge", Machines: 10_000, Last: true},
			want:     "edge goes from 0 % to 0.3 %, at most 30 machines more: first stage",
		},
		"a stage that went well": {
			evidence: rollout.Evidence{
				Alpha: 1e-4, SourceAlpha: 1e-4, Tier: "edge", Machines: 100_000, Stage: 1, Share: 300, Wanted: 30, Came: 30, Exposed: 30,
				Treated: rollout.Tally{Of: 30}, Control: rollout.Tally{Of: 120}, Last: true,
			},
			want: "edge goes from 0.03 % to 0.345 %, at most 315 machines more: 0/30 failed with the patch, 0/120 without, so it adds at most 9.5 %",
		},
		"a tier that waits for a person": {
			evidence: rollout.Evidence{
				Alpha: 1e-4, SourceAlpha: 1e-4, Tier: "edge", Machines: 100, Stage: 1, Share: 1_000_000, Wanted: 30, Came: 30,
				Exposed: 30, Treated: rollout.Tally{Of: 30},
			},
			want: "edge stays at 100 %: a person has to let it into the next tier",
			next: "livepatch-admin patch promote --vendor debian 1.1 TIER",
		},
		"more failures than it goes on with": {
			evidence: rollout.Evidence{
				Alpha: 1e-4, SourceAlpha: 1e-4, Tier: "edge", Machines: 10_000, Stage: 1, Share: 3000, Wanted: 30, Came: 30, Exposed: 30,
				Treated: rollout.Tally{Failed: 6, Of: 30}, Control: rollout.Tally{Of: 120}, Controls: 120,
			},
			want: "edge stays at 0.3 %: 6/30 failed with the patch, 0/120 without: too often to go on, and not surely enough to halt; a person has to look at that",
			next: "livepatch-admin rollout log --verbose debian 1.1",
		},
		"outcomes that are to come": {
			evidence: rollout.Evidence{
				Alpha: 1e-4, SourceAlpha: 1e-4, Tier: "edge", Machines: 100, Stage: 1, Share: 300_000, Wanted: 30, Came: 12, Exposed: 12, Pending: 9,
			},
			want: "edge stays at 30 %: 9 of 12 machines have no outcome yet, and 12 of 30 have come",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			d := rollout.Decision{Unit: "6.1/x86_64", Tier: tc.evidence.Tier, Params: rollout.Defaults(), Evidence: tc.evidence}
			d.Verdict = d.Judge()
			if got := explain.Verdict(d); got != tc.want {
				t.Errorf("verdict %+v\nis  %q\nwant %q", d.Verdict, got, tc.want)
			}
			if got := explain.Next("debian", "1.1", d); got != tc.next {
				t.Errorf("next step is %q, want %q", got, tc.next)
			}
		})
	}
}

// TestEveryReasonHasWords: no reason of the rule is shown as the word for programs.
func TestEveryReasonHasWords(t *testing.T) {
	check := func(a rollout.Action, r rollout.Reason) {
		got := explain.Verdict(rollout.Decision{Params: rollout.Defaults(), Verdict: rollout.Verdict{Action: a, Reason: r}})
		if strings.HasSuffix(got, ": "+string(r)) || !strings.Contains(got, ": ") {
			t.Errorf("%s (%s) is %q", a, r, got)
		}
	}
	halts, others := rollout.Reasons()
	for _, r := range halts {
		check(rollout.Halt, r)
	}
	for _, r := range others {
		for _, a := range []rollout.Action{rollout.Hold, rollout.Advance, rollout.Promote, rollout.Complete} {
			check(a, r)
		}
	}
	// What a later version of the rule says is shown as it is.
	got := explain.Verdict(rollout.Decision{Verdict: rollout.Verdict{Action: rollout.Halt, Reason: "test-z"}})
	if got != "halted: test-z" {
		t.Errorf("an unknown reason is %q", got)
	}
}

// TestWhatAsksForAPersonIsInTheHowTo: whoever is shown a next step finds the reason in the
// table of what to look at.
func TestWhatAsksForAPersonIsInTheHowTo(t *testing.T) {
	page, err := os.ReadFile("../../../docs/how-to/watch-a-rollout.md")
	if err != nil {
		t.Fatal(err)
	}
	_, others := rollout.Reasons()
	for _, r := range others {
		asks := explain.Next("debian", "1.1", rollout.Decision{Verdict: rollout.Verdict{Action: rollout.Hold, Reason: r}}) != ""
		if cell := fmt.Sprintf("`hold (%s)`", r); strings.Contains(string(page), cell) != asks {
			t.Errorf("%s asks for a person: %t, and is in the table: %t", r, asks, !asks)
		}
	}
}
