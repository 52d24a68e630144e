package rollout

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Of whatever is counted, no account has more than its share, or the least. It fails if
// one more is let in when the share is just reached.
func TestNoAccountHasMoreThanItsShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		accounts := rapid.Int64Range(1, 200).Draw(t, "accounts")
		u := &unit{Lanes: []lane{{Accounts: accounts}}, Accounts: map[uint32]*share{}}
		liar := rapid.Float64Range(0, 1).Draw(t, "share of the first account")
		counted := 0.0
		for range rapid.IntRange(0, 400).Draw(t, "failures") {
			a := uint32(0)
			if rapid.Float64Range(0, 1).Draw(t, "who") > liar {
				a = uint32(rapid.Int64Range(0, accounts-1).Draw(t, "account"))
			}
			if u.countsFailure(a, 0.05) {
				u.account(a).Failed++
				u.Failed.Treated++
				counted++
			}
		}
		most := max(1, max(0.05, 2/float64(accounts))*counted)
		for a, s := range u.Accounts {
			if float64(s.Failed) > most {
				t.Fatalf("account %d has %d of %v counted failures", a, s.Failed, counted)
			}
		}
	})
}

// The share is of what there is with the next one.
func TestAnAccountMayReachItsShare(t *testing.T) {
	u := &unit{Lanes: []lane{{Accounts: 1000}}}
	for all, want := range map[int64]bool{38: false, 39: true} {
		if got := u.fits(1, all, 1, 0.05); got != want {
			t.Errorf("a second one of %d fits: %v", all+1, got)
		}
	}
}

// A private fleet has one account, and all that it says counts.
func TestTheOnlyAccountIsBelieved(t *testing.T) {
	u := &unit{Lanes: []lane{{Accounts: 1}}, Accounts: map[uint32]*share{}}
	for i := range 100 {
		if !u.countsFailure(0, 0.05) || !u.admits(0, 0.05) || !u.countsMature(0, Treated, 0.05) {
			t.Fatalf("number %d does not count", i)
		}
		u.account(0).Failed++
		u.Failed.Treated++
		u.account(0).Dealt++
		u.Dealt++
		u.account(0).Mature.Treated++
		u.Mature.Treated++
	}
}

// What one account can do to e while there is nothing else: one factor.
func TestFakesOfOneAccountCannotHalt(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	for i := range treated[:15] {
		treated[i].Account = "liar"
	}
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	b.step(controls...)
	b.now = b.now.Add(time.Second)
	b.step(failures(UncleanReboot, treated[:15])...)
	u := b.r.s.Units[0]
	if u.Halted != "" || u.Failed != (Pair{1, 0}) {
		t.Fatalf("halted by %q with failures %+v", u.Halted, u.Failed)
	}
	if most := math.Log(150. / 25); u.E.Log() > most { // 1/ρ, with ten of its machines as evidence
		t.Errorf("e is exp %.2f, want at most exp %.2f", u.E.Log(), most)
	}
	b.live(slices.Concat(treated[15:], controls))
	if d := b.last("k"); d.Evidence.Treated.Of > 30 || u.Halted != "" {
		t.Errorf("halted by %q: %s", u.Halted, dump(d.Evidence))
	}
}

// A patch that kills everybody else is not waved through by machines that say that
// they are well, however many.
func TestFakesOfOneAccountCannotWaveThrough(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	for i := range treated[:25] {
		treated[i].Account = "liar"
	}
	b.step(treated...)
	b.live(treated[:25])
	if l := b.lane("k", "stable"); l.Stage != 1 || l.Healthy.Treated > leastMature {
		t.Errorf("stage %d on %d healthy machines of one account", l.Stage, l.Healthy.Treated)
	}
	b.want("k", Halt, TestB)
}

// Nor are the true failures hidden by controls that say that they failed.
func TestFakeControlsCannotHideFailures(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Halt.TripControls = 0 })
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	for i := range controls[:60] {
		controls[i].Account = "liar"
	}
	b.step(controls...)
	b.now = b.now.Add(time.Second)
	b.step(failures(UncleanReboot, controls[:60])...)
	for i := range 15 {
		b.now = b.now.Add(time.Second)
		b.step(failures(UncleanReboot, treated[i:i+1])...)
		if b.r.s.Units[0].Halted == TestA {
			return
		}
	}
	t.Errorf("not halted after 15 of 30: %s", dump(b.r.evidence(b.r.s.Units[0], b.r.facts())))
}

// Machines that enrolled after the salt was drawn could have chosen their arm.
func TestNewcomersAreNoEvidence(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(10, Treated, "k", "stable")
	for i := range treated {
		treated[i].Newcomer = true
	}
	b.step(treated...)
	b.wait(3 * time.Minute)
	u := b.r.s.Units[0]
	if u.Halted != "" || u.Failed != (Pair{}) || u.Dealt != 0 {
		t.Errorf("halted by %q, failures %+v, evidence %d", u.Halted, u.Failed, u.Dealt)
	}
	if l := b.lane("k", "stable"); l.Exposed != 10 {
		t.Errorf("%d exposed: newcomers still count against the limits", l.Exposed)
	}
}

// A machine that took the patch by hand, or that an earlier stage had let in, was not
// dealt beside the controls of this one.
func TestOnlyWhoIsDealtNowIsEvidence(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	outside := b.of(20, Outside, "k", "stable")
	late := b.of(5, Treated, "k", "stable") // let in by the first stage, and away
	b.step(outside...)
	if u := b.r.s.Units[0]; u.Dealt != 0 {
		t.Errorf("%d machines that were not let in are evidence", u.Dealt)
	}
	b.step(again(Left, outside)...)
	b.stage("k", "stable")
	if l := b.lane("k", "stable"); l.Stage != 2 {
		t.Fatalf("stage %d", l.Stage)
	}
	dealt := b.r.s.Units[0].Dealt
	b.step(late...)
	if got := b.r.s.Units[0].Dealt; got != dealt {
		t.Errorf("%d late machines are evidence", got-dealt)
	}
}

// Each stage deals its controls once, and again in the next stage.
func TestControlsHaveOneTrialAStage(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Time.Watch = time.Hour })
	b.step(population("k", "stable", 10_000))
	treated := b.of(10, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(30, Control, "k", "stable")
	b.step(controls...)
	b.step(controls...)
	b.live(slices.Concat(treated, controls))
	if l := b.lane("k", "stable"); l.Came.Control != 30 || l.Stage != 1 {
		t.Fatalf("stage %d has %+v", l.Stage, l.Came)
	}
	b.step(controls...)
	if l := b.lane("k", "stable"); l.Came.Control != 30 {
		t.Errorf("controls had %d trials", l.Came.Control)
	}
	if n := len(b.r.trials); n != 30 {
		t.Errorf("%d trials are kept, want those of the controls", n)
	}
	b.wait(3 * time.Hour) // the stage is over, with a third of its machines
	if l := b.lane("k", "stable"); l.Stage != 2 || len(b.r.trials) != 0 {
		t.Errorf("stage %d, %d trials are kept", l.Stage, len(b.r.trials))
	}
	if n := len(b.r.closed); n != 0 {
		t.Errorf("controls of %d units are kept", n)
	}
}

// A control that the stage reaches leaves its arm, and is not at risk beside it any more.
func TestAControlThatIsReachedIsTreated(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	first := b.of(1, Treated, "k", "stable")
	b.step(first...)
	controls := b.of(4, Control, "k", "stable")
	b.step(controls...)
	u := b.r.s.Units[0]
	risk := func() Pair { return b.r.s.Batches[u.Lanes[0].Batch].AtRisk }
	if risk() != (Pair{1, 4}) {
		t.Fatalf("at risk %+v", risk())
	}
	taken := controls[0]
	taken.Kind = Intent
	b.step(taken)
	if risk() != (Pair{1, 3}) || u.Lanes[0].Exposed != 2 {
		t.Errorf("at risk %+v, exposed %d", risk(), u.Lanes[0].Exposed)
	}
	b.step(taken, taken) // said twice: once
	if u.Lanes[0].Exposed != 2 {
		t.Errorf("exposed %d", u.Lanes[0].Exposed)
	}
}
