// Package explain says in words what the rule has decided, and what a person can
// do about it: for the log, the table, and the webhook. Programs go by the reasons of
// package rollout, which stay the same when a wording changes.
package explain

import (
	"fmt"
	"math"
	"strconv"

	"livepatch/internal/patch"
	"livepatch/server/internal/rollout"
)

// Share writes a share in parts per million as a percentage.
func Share(ppm int64) string {
	return strconv.FormatFloat(float64(ppm)/(patch.Everyone/100), 'g', 3, 64) + " %"
}

// Tally writes how many of how many machines failed. Evidence of earlier tiers counts
// in part, so the numbers need not be whole.
func Tally(t rollout.Tally) string { return number(t.Failed) + "/" + number(t.Of) }

func number(x float64) string { return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64) }

// Verdict says in one sentence what was decided about a unit, and why.
func Verdict(d rollout.Decision) string {
	e, v := d.Evidence, d.Verdict
	switch {
	case v.Reason != rollout.NoMachines:
	case v.Action == rollout.Complete:
		return e.Tier + " has no machines, and it is the last tier: done"
	default:
		return e.Tier + " has no machines: on to the next tier"
	}
	switch v.Action {
	case rollout.Halt:
		return "halted: " + harm(d)
	case rollout.Advance:
		return fmt.Sprintf("%s goes from %s to %s, at most %d machines more: %s", e.Tier, Share(e.Share), Share(v.Share), v.Wanted, why(d))
	case rollout.Promote:
		return e.Tier + " has it, the next tier begins: " + why(d)
	case rollout.Complete:
		return e.Tier + " has it, and it is the last tier: " + why(d)
	case rollout.Hold:
		return fmt.Sprintf("%s stays at %s: %s", e.Tier, Share(e.Share), why(d))
	}
	return string(v.Action) + ": " + string(v.Reason)
}

// harm says what a test that halts has seen.
func harm(d rollout.Decision) string {
	e, h := d.Evidence, d.Params.Halt
	switch d.Verdict.Reason {
	case rollout.TestA:
		return fmt.Sprintf("machines with the patch fail more often than their controls (test A: evidence %s, limit %s)",
			power(d.Verdict.LogE), power(-math.Log(e.Alpha)))
	case rollout.TestASource:
		return fmt.Sprintf("on all kernels together, machines with the patch fail more often than their controls (test A: evidence %s, limit %s)",
			power(d.Verdict.SourceLogE), power(-math.Log(e.SourceAlpha)))
	case rollout.TestB:
		return fmt.Sprintf("%s of %s machines with the patch failed early, where %s would be lost anyway (test B)",
			number(e.Trip.Failed), number(e.Trip.Of), percent(d.Verdict.P0))
	case rollout.TestCOops:
		return fmt.Sprintf("%d machines had the same oops that names our module, %q (test C)", e.Hits, e.Signature)
	case rollout.TestCSilence:
		return fmt.Sprintf("%d of %d machines with the patch fell silent within minutes, and %d of %d controls (test C)",
			e.Silent.Treated, e.Seen.Treated, e.Silent.Control, e.Seen.Control)
	case rollout.TestDCrash:
		return fmt.Sprintf("it crashed %d of the %d machines that have tried it (test D)", e.Crashes, e.Tried)
	case rollout.TestSiblings:
		return fmt.Sprintf("%d other kernels of the same source patch are halted, and %d are enough", e.Siblings, h.Siblings)
	default:
		return string(d.Verdict.Reason)
	}
}

// why says why a unit stays or goes on.
func why(d rollout.Decision) string {
	e := d.Evidence
	switch d.Verdict.Reason {
	case rollout.WaitsForLead:
		return "the kernel with most machines goes first"
	case rollout.WaitsForSiblings:
		return "kernels with few machines come after the others of the same source patch"
	case rollout.Paused:
		return "people have halted it, and it begins with nothing new"
	case rollout.SiblingHalted:
		return "another kernel of the same source patch is halted; a person has to look at that"
	case rollout.SoftFailures:
		return fmt.Sprintf("on %d of %d machines the patch did not go in, or was taken out", e.Soft, e.Exposed-e.Pending)
	case rollout.Failing:
		return fmt.Sprintf("%s failed with the patch, %s without: too often to go on, and not surely enough to halt; a person has to look at that",
			Tally(e.Treated), Tally(e.Control))
	case rollout.PendingOutcomes:
		return fmt.Sprintf("%d of %d machines have no outcome yet, and %d of %d have come", e.Pending, e.Exposed, e.Came, e.Wanted)
	case rollout.NobodyCame:
		return "no machine has come for it"
	case rollout.NoEvidence:
		return "none of the machines that have it counts as evidence"
	case rollout.NeedsPerson:
		return "a person has to let it into the next tier"
	case rollout.FirstStage:
		return "first stage"
	case rollout.Healthy:
		return fmt.Sprintf("%s failed with the patch, %s without%s", Tally(e.Treated), Tally(e.Control), limit(d.Verdict))
	case rollout.ByPerson:
		return "a person said so"
	case rollout.AtOnce:
		return "this server lets every machine have every patch at once"
	case rollout.Through:
		return "all tiers have it, and it stays under watch"
	default:
		return string(d.Verdict.Reason)
	}
}

func limit(v rollout.Verdict) string {
	if v.Upper <= 0 {
		return ""
	}
	return fmt.Sprintf(", so it adds at most %s", percent(v.Upper))
}

func percent(p float64) string { return strconv.FormatFloat(100*p, 'g', 2, 64) + " %" }

// power writes e to the power of x.
func power(x float64) string {
	if x > 700 {
		return "above 1e+300"
	}
	return strconv.FormatFloat(math.Exp(x), 'g', 2, 64)
}

// Next returns the command with which a person answers a decision of the rule, or ""
// if it does not ask for a person.
func Next(vendor, version string, d rollout.Decision) string {
	switch {
	case d.Verdict.Action == rollout.Halt:
		return fmt.Sprintf("livepatch-admin rollout show %s %s", vendor, version)
	case d.Verdict.Action != rollout.Hold:
		return ""
	}
	switch d.Verdict.Reason {
	case rollout.SiblingHalted:
		return fmt.Sprintf("livepatch-admin rollout release %s %s %s", vendor, version, d.Unit)
	case rollout.NeedsPerson:
		return fmt.Sprintf("livepatch-admin patch promote --vendor %s %s TIER", vendor, version)
	case rollout.Failing, rollout.SoftFailures, rollout.NobodyCame, rollout.NoEvidence:
		return fmt.Sprintf("livepatch-admin rollout log --verbose %s %s", vendor, version)
	default:
		return ""
	}
}
