package rollout

import (
	"slices"
	"testing"
	"time"

	"livepatch/internal/patch"
)

// Each of these holds a line that no larger test would miss.

func TestOnlyDealtControlsAreTaken(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(3, Treated, "k", "stable")...)
	outside := b.of(5, Outside, "k", "stable")
	for i := range outside {
		outside[i].Kind = Sham
	}
	b.step(outside...)
	if l := b.lane("k", "stable"); l.Came.Control != 0 {
		t.Errorf("%d machines that were dealt to no arm are controls", l.Came.Control)
	}
}

func TestResumeForgetsTheEvidenceOfTheTests(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Halt.TripControls = 0 })
	b.step(population("k", "stable", 10_000))
	treated := b.of(20, Treated, "k", "stable")
	b.step(treated...)
	b.step(b.of(80, Control, "k", "stable")...)
	b.now = b.now.Add(time.Second)
	b.step(failures(UncleanReboot, treated)...)
	b.want("k", Halt, TestA)
	if u := b.r.s.Units[0]; b.r.s.Sources["src"].E != u.E {
		t.Errorf("e of the source is %v, of its only unit %v", b.r.s.Sources["src"].E, u.E)
	}
	b.step(Event{Kind: Resumed, Unit: "k", By: []string{"ann", "bob"}})
	if u := b.r.s.Units[0]; u.Halted != "" || u.E != (EValue{}) || b.r.s.Sources["src"].E != (EValue{}) || u.Failed.Treated != 20 {
		t.Errorf("after a resume: halted by %q, e %v, failures %+v", u.Halted, u.E, u.Failed)
	}
}

// The stages differ in their ratio of treated machines to controls.
func TestStagesDoNotShareABatch(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Time.Batch = 100 * time.Hour })
	b.step(population("k", "stable", 10_000))
	b.step(b.of(1, Treated, "k", "stable")...)
	first := b.lane("k", "stable").Batch
	b.stage("k", "stable")
	b.step(b.of(1, Treated, "k", "stable")...)
	if l := b.lane("k", "stable"); l.Stage != 2 || l.Batch == first || first == 0 {
		t.Errorf("stage %d has batch %d, the first had %d", l.Stage, l.Batch, first)
	}
}

// What one unit has shown lets no more of another be in the dark.
func TestEachUnitHasItsOwnDark(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("a", "stable", 20_000), population("b", "stable", 10_000))
	b.stage("a", "stable")
	if got := b.r.Room("b", "stable"); got != 5 {
		t.Errorf("room for %d machines of the second unit in the dark, want 5", got)
	}
}

// And all units together may have no more in the dark than all of them have earned.
func TestUnitsShareTheDark(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("a", "stable", 20_000), population("b", "stable", 10_000), population("c", "stable", 9000))
	b.stage("a", "stable")
	b.step(b.of(51, Treated, "a", "stable")...) // of 53 that thirty healthy machines allow
	if got := b.r.Room("b", "stable"); got > 2 {
		t.Errorf("room for %d machines more in the dark", got)
	}
}

// A stage lets in no more than it was to, and none while as many are pending.
func TestStagesEnd(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	ms := b.of(30, Treated, "k", "stable")
	b.step(ms...)
	b.wait(time.Minute)
	b.step(again(Alive, ms)...)
	if got := b.r.Room("k", "stable"); got != 0 {
		t.Errorf("room for %d machines after the thirty of the stage", got)
	}
	b.live(ms[:29])
	if got := b.r.Room("k", "stable"); got != 0 || b.lane("k", "stable").Stage != 1 {
		t.Errorf("room for %d machines while the last of thirty is pending", got)
	}
	u, l := &unit{}, &lane{Room: 30, Pending: 28, Machines: 1000, Share: patch.Everyone}
	for earned, want := range map[int64]int64{10: 2, 31: 3} {
		if got := u.open(l, Defaults().Pace, earned); got != want {
			t.Errorf("a finished tier lets in %d with 28 pending where %d are earned, want %d", got, earned, want)
		}
		l.Offered = 1
		if got := u.open(l, Defaults().Pace, earned); got != want-1 {
			t.Errorf("lets in %d beside one that was told so, want %d", got, want-1)
		}
		l.Offered = 0
	}
}

// Two machines of one account are missed at one instant, and one of them counts.
// Which, may not depend on who was first to begin.
func TestSilenceHasNoOrder(t *testing.T) {
	run := func(swap bool) string {
		b := newBed(t, nil)
		b.step(population("k", "stable", 10_000))
		ms := slices.Concat(b.of(1, Treated, "k", "stable"), b.of(1, Control, "k", "stable"))
		for i := range ms {
			ms[i].Account = "one"
		}
		if swap {
			slices.Reverse(ms)
		}
		b.r.s.Accounts, b.r.accounts = []string{"one"}, map[string]uint32{"one": 0}
		for _, e := range ms {
			b.step(e)
		}
		b.wait(2 * time.Minute)
		if f := b.r.s.Units[0].Failed; f.Treated+f.Control != 1 {
			t.Errorf("failures %+v, want one of two", f)
		}
		return dump(b.r.State())
	}
	if a, b := run(false), run(true); a != b {
		t.Errorf("states differ:\n%s\n%s", a, b)
	}
}

// A machine that was well and fails afterwards is one machine.
func TestLateFailuresReplaceHealth(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(10, Treated, "k", "stable")
	b.step(treated...)
	b.live(treated)
	b.step(failures(UncleanReboot, treated[:1])...)
	e, _ := b.r.Evidence("k")
	if e.Treated != (Tally{1, 10}) || e.Trip != (Tally{1, 10}) {
		t.Errorf("treated %+v, settled %+v, want 1 of 10", e.Treated, e.Trip)
	}
}

func TestNextSignOfLife(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	ms := b.of(1, Treated, "k", "stable")
	b.step(ms...)
	began := b.now
	for _, want := range []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 2 * time.Hour, 3 * time.Hour, 4 * time.Hour, 5 * time.Hour, 6 * time.Hour} {
		wait, ok := b.r.Next(ms[0].Machine, b.now)
		if got := b.now.Add(time.Duration(wait) * time.Second).Sub(began); !ok || got != want {
			t.Fatalf("next sign of life at %v, want %v", got, want)
		}
		b.wait(began.Add(want).Sub(b.now))
		b.step(again(Alive, ms)...)
	}
	if _, ok := b.r.Next(ms[0].Machine, b.now); ok || len(b.r.trials) != 0 {
		t.Error("still under watch after it")
	}
}

// A control has no module of ours that an oops could name.
func TestControlsCannotBlameTheModule(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(1, Treated, "k", "stable")...)
	controls := b.of(2, Control, "k", "stable")
	b.step(controls...)
	reports := failures(Oops, controls)
	b.step(reports...)
	if u := b.r.s.Units[0]; u.Halted != "" || len(u.Signatures) != 0 {
		t.Errorf("halted by %q on %v", u.Halted, u.Signatures)
	}
}

// Test C is asked of each stage by itself.
func TestEarlierStagesDoNotCountInTestC(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	old := b.of(2, Treated, "k", "stable")
	b.step(old...)
	l := b.lane("k", "stable")
	l.Stage++ // the stage is over
	b.wait(time.Minute)
	b.step(again(Alive, old[:1])...)
	b.wait(2 * time.Minute)
	if l.Seen != (Pair{}) || l.Silent != (Pair{}) || l.Failed.Treated != 1 {
		t.Errorf("seen %+v, silent %+v, failed %+v", l.Seen, l.Silent, l.Failed)
	}
}

// Nor does silence that is not early.
func TestLateSilenceDoesNotCountInTestC(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Halt.TripControls = 0 })
	b.step(population("k", "stable", 10_000))
	ms := b.of(1, Treated, "k", "stable")
	b.step(ms...)
	for _, age := range []time.Duration{time.Minute, 4 * time.Minute, 10 * time.Minute} {
		b.wait(age)
		b.step(again(Alive, ms)...)
	}
	b.wait(time.Hour)
	if l := b.lane("k", "stable"); l.Silent != (Pair{}) || l.Failed.Treated != 1 || l.Seen.Treated != 1 {
		t.Errorf("silent %+v of %+v, failed %+v", l.Silent, l.Seen, l.Failed)
	}
}

// A stage ends with the machines that it wanted, though there was room for more.
func TestAStageTakesNoMoreThanItWanted(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Pace.SmallCell = 0 })
	b.step(population("k", "stable", 60))
	ms := b.of(21, Treated, "k", "stable") // a third of them
	b.step(ms...)
	b.wait(time.Minute)
	b.step(again(Alive, ms)...)
	if l := b.lane("k", "stable"); l.Wanted != 21 || l.Room != 30 || b.r.Room("k", "stable") != 0 {
		t.Errorf("room for %d more than %d of %d", b.r.Room("k", "stable"), l.Wanted, l.Room)
	}
}

// Controls come in step with the treated machines: four for each, and for the next one.
func TestControlsComeInStep(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(1, Treated, "k", "stable")...)
	b.step(b.of(20, Control, "k", "stable")...)
	if l := b.lane("k", "stable"); l.Came.Control != 8 {
		t.Errorf("%d controls of one treated machine, want 8", l.Came.Control)
	}
}

// A machine that comes late to a tier has no controls there: it is no evidence for test A,
// and where there is little else it is for what needs none.
func TestWhoComesToAFinishedTierIsNotDealt(t *testing.T) {
	tests := map[string]struct {
		change func(*unit)
		dealt  int64
	}{
		"of a unit like others": {func(*unit) {}, 0},
		"of a late unit":        {func(u *unit) { u.Late = true }, 1},
		"of a small unit":       {func(u *unit) { u.Small = true }, 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil, Tier{Name: "edge"}, Tier{Name: "stable"})
			b.step(population("k", "edge", 1000), population("k", "stable", 1000))
			tc.change(b.r.s.Units[0])
			late := b.of(1, Treated, "k", "edge")
			b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}})
			b.step(late...)
			if u := b.r.s.Units[0]; u.Tier != 1 || u.Dealt != tc.dealt || u.Lanes[0].Exposed != 1 || b.r.trials[late[0].Machine].Batch != 0 {
				t.Errorf("in tier %d with %d machines as evidence: %+v", u.Tier, u.Dealt, b.r.trials[late[0].Machine])
			}
		})
	}
}

// An hourly sign of life may come with any hourly check-in.
func TestHourlySignsOfLifeAreMissedLate(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	ms := b.of(1, Treated, "k", "stable")
	b.step(ms...)
	b.live(ms)
	b.wait(time.Hour + 44*time.Minute + 59*time.Second)
	if f := b.r.s.Units[0].Failed.Treated; f != 0 {
		t.Errorf("missed before it was two hours and three quarters old")
	}
	b.wait(time.Second)
	if f := b.r.s.Units[0].Failed.Treated; f != 1 {
		t.Errorf("not missed at two hours and three quarters")
	}
}

// While a unit goes on, what earlier tiers have shown has a tenth of its weight; when it is
// through, all that is known has all of it.
func TestWhatEverybodysLaneHasEarned(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "stable", Auto: true})
	b.step(population("k", "edge", 1000), population("k", "stable", 1000))
	u := b.r.s.Units[0]
	u.Lanes[0].Healthy.Treated = 1000
	for tier, want := range map[int]float64{1: 100, 2: 1000} {
		u.Tier = tier
		n, _ := Defaults().Pace.room(Tally{0, want}, Tally{})
		if got := b.r.earned(u, 1); got != n {
			t.Errorf("in tier %d of two %d are earned, want %d", tier, got, n)
		}
	}
}
