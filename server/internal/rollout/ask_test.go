package rollout

import (
	"testing"
	"time"
)

// A rollout that is given a Step only when something is overdue learns of silence in the same
// second as one that is given a Step each second.
func TestOverdueIsWhenAStepFindsSilence(t *testing.T) {
	always, lazy := newBed(t, nil), newBed(t, nil)
	for _, b := range []*bed{always, lazy} {
		b.step(population("k", "stable", 10_000))
		ms := b.of(4, Treated, "k", "stable")
		b.step(ms...)
		b.step(b.of(6, Control, "k", "stable")...)
		b.now = b.now.Add(time.Minute)
		b.step(again(Alive, ms[:2])...)
	}
	steps, last := 0, lazy.now
	for range 2 * 3600 {
		always.now, lazy.now = always.now.Add(time.Second), lazy.now.Add(time.Second)
		if always.r.Overdue(always.now) != lazy.r.Overdue(lazy.now) {
			t.Fatalf("overdue in one and not in the other after %v", always.now.Sub(testStart))
		}
		due := lazy.r.Overdue(lazy.now)
		always.step()
		if due || lazy.now.Sub(last) >= time.Minute {
			lazy.step()
			last = lazy.now
			steps++
		}
		if x, y := dump(always.r.s.Units[0]), dump(lazy.r.s.Units[0]); due && x != y {
			t.Fatalf("after %v:\n%s\n%s", lazy.now.Sub(testStart), x, y)
		}
	}
	if f := lazy.r.s.Units[0].Failed; f != (Pair{4, 6}) || steps > 125 {
		t.Errorf("failures %+v after %d steps", f, steps)
	}
}

// Deadlines that were met are not kept for ever by asking.
func TestAskingWhatIsOverdueForgetsThePast(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	ms := b.of(1, Treated, "k", "stable")
	b.step(ms...)
	b.now = b.now.Add(time.Minute)
	b.step(again(Alive, ms)...) // the next is due in five minutes
	for range 119 {
		b.now = b.now.Add(time.Second)
		if b.r.Overdue(b.now) {
			t.Fatal("overdue")
		}
	}
	if n := len(b.r.wheel.slots); n != 1 {
		t.Errorf("%d seconds are kept for one deadline", n)
	}
}

func TestNobodyIsOverdueWhileTheServerIsPatient(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(1, Treated, "k", "stable")...)
	b.now = b.now.Add(time.Hour)
	if b.r.Overdue(b.now) {
		t.Error("overdue, and the server was away")
	}
	b.step()
	if b.r.Overdue(b.now.Add(time.Minute)) {
		t.Error("overdue in the first minute")
	}
	b.wait(15*time.Minute - time.Second)
	if b.now = b.now.Add(time.Second); !b.r.Overdue(b.now) {
		t.Error("not overdue at the end of the patience")
	}
}

func TestARolloutLivesWhileSomethingMayFollow(t *testing.T) {
	b := newBed(t, nil)
	live := func(what string, want bool) {
		t.Helper()
		if b.r.Live() != want {
			t.Errorf("%s: live is %v", what, !want)
		}
	}
	live("nobody is there", false)
	b.step(population("k", "stable", 2))
	live("a tier to go", true)
	ms := b.of(2, Treated, "k", "stable")
	b.step(ms[0])
	b.live(ms[:1])
	b.step(ms[1])
	b.live(ms[1:])
	b.want("small/src", Complete, Healthy)
	live("complete, and machines under watch", true)
	b.wait(30 * time.Minute)
	for range 6 {
		b.step(again(Alive, ms)...)
		b.wait(time.Hour)
	}
	live("complete", false)
	b.now = b.now.Add(1000 * time.Hour)
	b.step(b.of(1, Treated, "k", "stable")...)
	if b.r.s.Patience > b.now.Unix() {
		t.Error("it was not asked for a long time, and takes that for its own silence")
	}
	live("a new machine", true)
	b.wait(3 * time.Minute)
	live("it fell silent", false)
}

func TestWatched(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	ms := b.of(2, Treated, "k", "stable")
	ms[1].Kind = Offered
	controls := b.of(1, Control, "k", "stable")
	b.step(append(ms, controls...)...)
	for name, tc := range map[string]struct {
		m       Machine
		arm     Arm
		watched bool
	}{
		"that began":        {ms[0].Machine, Treated, true},
		"that may begin":    {ms[1].Machine, Outside, false},
		"that is a control": {controls[0].Machine, Control, true},
		"of nobody":         {id(1e6), Outside, false},
	} {
		if arm, ok := b.r.Watched(tc.m); arm != tc.arm || ok != tc.watched {
			t.Errorf("a machine %s is %v, watched: %v", name, arm, ok)
		}
	}
}

func TestAHaltedRolloutDoesNotLive(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(3, Treated, "k", "stable")...)
	b.wait(3 * time.Minute)
	b.want("k", Halt, TestB)
	if b.r.Live() {
		t.Error("it lives")
	}
}
