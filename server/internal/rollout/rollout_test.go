package rollout

import (
	"errors"
	"slices"
	"testing"
	"time"

	"livepatch/internal/patch"
)

func TestHealthyPatchReachesEverybody(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 40_000))
	var exposed []int64
	for range 10 {
		if b.r.s.Units[0].current() == nil {
			break
		}
		exposed = append(exposed, b.lane("k", "stable").Wanted)
		b.stage("k", "stable")
		b.wait(4 * time.Hour)
	}
	b.want("k", Complete, Healthy)
	if !slices.Equal(exposed[:2], []int64{30, 315}) && exposed[1] < 300 {
		t.Errorf("stages let in %v machines", exposed)
	}
	if len(exposed) < 4 {
		t.Errorf("everybody after stages of %v", exposed)
	}
}

func TestThreeEarlyDeathsHalt(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(3, Treated, "k", "stable")...)
	b.wait(119 * time.Second)
	b.want("k", Hold, PendingOutcomes)
	b.wait(time.Second)
	b.want("k", Halt, TestB)
	if b.r.Room("k", "stable") != 0 || b.r.Assignment("k", "stable").Share != 0 {
		t.Error("a halted kernel still lets machines in")
	}
}

// Five of thirty die at the first reboot; controls do not.
func TestMoreFailuresThanControlsHalt(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Halt.TripControls = 0 })
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	b.step(controls...)
	b.wait(time.Minute)
	b.step(again(Alive, slices.Concat(treated, controls))...)
	for i := range 30 {
		b.now = b.now.Add(time.Second)
		b.step(failures(UncleanReboot, treated[i:i+1])...)
		if b.r.s.Units[0].Halted != "" {
			if d := b.last("k"); d.Verdict.Reason != TestA || i+1 > 9 {
				t.Errorf("halted after %d failures: %s", i+1, dump(d))
			}
			return
		}
	}
	t.Error("not halted")
}

// The same failures in both arms are no evidence.
func TestNightIsNoEvidence(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	b.step(controls...)
	b.wait(time.Minute)
	b.step(again(Alive, slices.Concat(treated, controls))...)
	b.wait(4 * time.Minute)
	b.step(again(Alive, slices.Concat(treated[:15], controls[:60]))...) // the others are off
	b.wait(10 * time.Minute)
	b.step(again(Alive, slices.Concat(treated[:15], controls[:60]))...)
	b.wait(20 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != "" || u.Failed != (Pair{15, 60}) {
		t.Errorf("halted: %q with failures %+v", u.Halted, u.Failed)
	}
}

func TestHaltIsAbsorbingUntilTwoPeopleResume(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(3, Treated, "k", "stable")...)
	b.wait(2 * time.Minute)
	b.want("k", Halt, TestB)
	made := len(b.made)
	b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}}, Event{Kind: Released, Unit: "k", By: []string{"ann"}})
	b.wait(30 * time.Hour)
	if len(b.made) != made || b.r.s.Units[0].Halted != TestB {
		t.Fatalf("decisions about a halted unit: %s", dump(b.made[made:]))
	}
	for _, by := range [][]string{nil, {"ann"}, {"ann", "ann"}, {"ann", ""}} {
		if _, err := b.r.Step(b.now, []Event{{Kind: Resumed, Unit: "k", By: by}}); !errors.Is(err, errEvent) {
			t.Errorf("resumed by %q: %v", by, err)
		}
	}
	b.step(Event{Kind: Resumed, Unit: "k", By: []string{"ann", "bob"}})
	if b.r.s.Units[0].Halted != "" || b.r.Assignment("k", "stable").Share == 0 {
		t.Error("not resumed")
	}
	b.want("k", Hold, PendingOutcomes)
}

func TestUnitsWaitForTheFirstStageOfOne(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("big", "stable", 10_000), population("bigger", "stable", 20_000))
	b.want("bigger", Hold, PendingOutcomes)
	b.want("big", Hold, WaitsForLead)
	b.stage("bigger", "stable")
	b.want("big", Hold, PendingOutcomes)
	if b.r.Assignment("big", "stable").Share == 0 {
		t.Error("the second unit has not begun")
	}
}

func TestSmallKernelsComeLastAndTogether(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("big", "stable", 200), population("s1", "stable", 40), population("s2", "stable", 60),
		Event{Kind: Population, Cell: "other", Source: "src2", Tier: "stable", Machines: 20, Accounts: 20})
	b.stage("big", "stable")
	if l := b.lane("other", "stable"); l.Stage == 0 {
		t.Error("small kernels of another source wait for these siblings")
	}
	for range 8 {
		if u := b.r.unit("big"); u.Tier == len(u.Lanes) {
			break
		}
		if d := b.last("small/src"); d.Verdict.Action != Hold {
			t.Fatalf("small kernels did not wait: %s", dump(d))
		}
		b.stage("big", "stable")
		b.wait(4 * time.Hour)
	}
	b.want("big", Complete, Healthy)
	if l := b.lane("s1", "stable"); l.Stage != 1 {
		t.Errorf("small kernels are at stage %d", l.Stage)
	}
	if d := b.last("small/src"); !slices.Equal(d.Cells, []string{"s1", "s2"}) || d.Evidence.Machines != 100 {
		t.Errorf("small unit is %v with %d machines", d.Cells, d.Evidence.Machines)
	}
	if d := b.last("small/src"); d.Evidence.Treated.Of == 0 {
		t.Error("what the siblings have shown does not count")
	}
	if d := b.last("small/src2"); d.Verdict.Reason == WaitsForSiblings {
		t.Error("small kernels of another source wait")
	}
}

func TestSiblingsOfAHaltedUnitWaitForAPerson(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("a", "stable", 30_000), population("b", "stable", 20_000), population("c", "stable", 10_000))
	b.stage("a", "stable")
	halt := func(cell string) {
		b.step(b.of(3, Treated, cell, "stable")...)
		b.wait(2 * time.Minute)
	}
	b.r.s.Sources["src"].Controls = 0 // as if none had matured
	halt("b")
	b.want("b", Halt, TestB)
	b.want("a", Hold, SiblingHalted)
	b.want("c", Hold, SiblingHalted)
	b.step(Event{Kind: Released, Unit: "c", By: []string{"ann"}})
	b.want("c", Hold, PendingOutcomes)
	halt("c")
	b.want("c", Halt, TestB)
	b.want("a", Halt, TestSiblings)
}

func TestTiersAreEnteredInOrder(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "beta"}, Tier{Name: "stable"})
	b.step(population("k", "edge", 100), population("k", "beta", 100), population("k", "stable", 1000))
	for range 6 {
		if b.r.s.Units[0].Tier > 0 {
			break
		}
		b.stage("k", "edge")
		b.wait(4 * time.Hour)
	}
	if b.r.Assignment("k", "beta").Share == 0 || b.r.Assignment("k", "stable").Share != 0 || b.r.Assignment("k", "edge").Share != patch.Everyone {
		t.Fatalf("edge is through and the stages are %s", dump(b.r.Stages()))
	}
	for range 6 {
		if d := b.last("k"); d.Verdict.Reason == NeedsPerson {
			break
		}
		b.stage("k", "beta")
		b.wait(4 * time.Hour)
	}
	b.want("k", Hold, NeedsPerson)
	b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}})
	if b.r.Assignment("k", "stable").Share == 0 {
		t.Error("a person promoted it, and nothing happened")
	}
}

func TestAPersonOverridesThePaceAndNoHalt(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "edge"}, Tier{Name: "stable"})
	b.step(population("k", "edge", 1000), population("k", "stable", 1000))
	b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}})
	if b.r.s.Units[0].Tier != 1 || b.r.Assignment("k", "edge").Share != patch.Everyone {
		t.Fatalf("not promoted: %s", dump(b.r.Stages()))
	}
	b.step(b.of(3, Treated, "k", "stable")...)
	b.wait(2 * time.Minute)
	b.want("k", Halt, TestB)
}

func TestRampsAreObeyed(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "late", Ramp: []int64{50_000, 250_000}})
	b.step(population("k", "late", 10_000))
	var shares []int64
	for range 10 {
		if b.r.s.Units[0].current() == nil {
			break
		}
		shares = append(shares, b.r.Assignment("k", "late").Share)
		b.stage("k", "late")
		b.wait(4 * time.Hour)
	}
	for _, want := range []int64{50_000, 250_000} {
		if !slices.Contains(shares, want) {
			t.Errorf("stages were %v, want one to stop at %d", shares, want)
		}
	}
}

// A fast fleet must not have all of it before the first deadline.
func TestExposureIsBounded(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 100_000))
	for want := int64(5); want > 0; want-- {
		if got := b.r.Room("k", "stable"); got != want {
			t.Fatalf("room for %d machines in the dark, want %d", got, want)
		}
		e := b.of(1, Treated, "k", "stable")
		if want%2 == 0 {
			e[0].Kind = Offered // promised room is taken
		}
		b.step(e...)
	}
	if got := b.r.Room("k", "stable"); got != 0 {
		t.Errorf("room for %d more", got)
	}
	b.wait(10 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != TestB {
		t.Errorf("halted by %q", u.Halted)
	}
}

func TestAnOfferThatIsNotTakenIsNoFailure(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 100_000))
	e := b.of(3, Treated, "k", "stable")
	for i := range e {
		e[i].Kind = Offered
	}
	b.step(e...)
	b.wait(11 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != "" || u.Failed != (Pair{}) || len(b.r.trials) != 0 {
		t.Errorf("halted %q, failures %+v, %d trials", u.Halted, u.Failed, len(b.r.trials))
	}
	if got := b.r.Room("k", "stable"); got != 5 {
		t.Errorf("room for %d, want that of the offers back", got)
	}
}

// While the server is down nobody can report to it.
func TestSilenceOfTheServerIsNobodysFailure(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(5, Treated, "k", "stable")
	b.step(treated...)
	b.now = b.now.Add(3 * time.Hour)
	b.step()
	b.wait(5 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != "" || u.Failed != (Pair{}) {
		t.Fatalf("halted %q, failures %+v", u.Halted, u.Failed)
	}
	b.step(again(Alive, treated)...)
	b.wait(20 * time.Minute)
	if l := b.lane("k", "stable"); l.Healthy.Treated != 2 && l.Healthy.Treated != 5 || l.Failed.Treated != 0 {
		t.Errorf("matured %+v, failed %+v", l.Healthy, l.Failed)
	}
	b.step(again(Left, treated)...)
	// But who stays away longer than the patience lasts has failed.
	more := b.of(3, Treated, "k", "stable")
	b.step(more...)
	b.now = b.now.Add(3 * time.Hour)
	b.step()
	b.wait(16 * time.Minute)
	if u := b.r.s.Units[0]; u.Failed.Treated != 3 {
		t.Errorf("failures %+v, want 3", u.Failed)
	}
}

func TestSoftFailuresHold(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	b.step(again(Soft, treated[:12])...)
	b.want("k", Hold, SoftFailures)
	if s := b.r.Stages()[0]; s.Soft != 12 {
		t.Errorf("%d soft failures are shown, want 12", s.Soft)
	}
	if b.r.s.Units[0].Failed != (Pair{}) {
		t.Error("a soft failure counts as a failure")
	}
}

func TestDelayedDeathsAreSeenUnderWatch(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	b.step(controls...)
	all := slices.Concat(treated, controls)
	b.live(all)
	if l := b.lane("k", "stable"); l.Stage != 2 || l.Healthy != (Pair{30, 120}) {
		t.Fatalf("stage %d with %+v healthy", l.Stage, l.Healthy)
	}
	b.wait(time.Hour)
	b.step(again(Alive, controls)...) // the treated have died
	b.wait(46 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != TestA {
		t.Errorf("halted by %q: %s", u.Halted, dump(b.r.evidence(u, b.r.facts())))
	}
}
