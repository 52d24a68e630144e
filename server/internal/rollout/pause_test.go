package rollout

import (
	"testing"
	"time"
)

// A rollout that people have halted stays where it is, however long.
func TestASuspendedRolloutDoesNotWiden(t *testing.T) {
	b := newBed(t, nil, allTiers...)
	for _, tier := range allTiers {
		b.step(population("k", tier.Name, 400))
	}
	b.step(Event{Kind: Suspended})
	b.want("k", Hold, Paused)
	made := len(b.made)
	b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}}, Event{Kind: Suspended})
	b.wait(16 * 24 * time.Hour)
	if l := b.lane("k", "edge"); l.Stage != 1 || b.r.s.Units[0].Tier != 0 || len(b.made) != made {
		t.Errorf("stage %d, tier %d, decisions %s", l.Stage, b.r.s.Units[0].Tier, dump(b.made[made:]))
	}
	if v := b.step(Event{Kind: Continued})[0].Verdict; v.Action != Promote || v.Reason != ByPerson {
		t.Errorf("what was asked for meanwhile is not done: %s", dump(v))
	}
}

// The time in which nobody could come is no part of the age of a stage.
func TestAStageIsNoOlderForHavingBeenSuspended(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.wait(time.Hour)
	b.step(Event{Kind: Suspended})
	b.wait(48 * time.Hour)
	if e, _ := b.r.Evidence("k"); e.Age != 3600 {
		t.Errorf("the stage is %d s old", e.Age)
	}
	r, err := Restore(roundTrip(t, b.r.State()))
	if err != nil {
		t.Fatal(err)
	}
	b.r = r
	b.step(Event{Kind: Continued}, Event{Kind: Continued})
	b.want("k", Hold, PendingOutcomes)
	b.wait(119 * time.Minute)
	b.want("k", Hold, PendingOutcomes)
	b.wait(2 * time.Minute)
	b.want("k", Hold, NobodyCame)
	if l := b.lane("k", "stable"); l.Stage != 1 || b.r.Room("k", "stable") == 0 {
		t.Errorf("stage %d with room for %d", l.Stage, b.r.Room("k", "stable"))
	}
}

// Who has the patch is watched, and what is found out counts.
func TestASuspendedRolloutIsStillHaltedByTheTests(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(5, Treated, "k", "stable")...)
	b.step(Event{Kind: Suspended})
	b.wait(3 * time.Minute)
	b.want("k", Halt, TestB)
}

// A rollout that everybody has says nothing when it is suspended.
func TestSuspendingWhatIsThroughChangesNothing(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.pass(70 * time.Minute)
	made := len(h.made)
	h.step(Event{Kind: Suspended})
	h.step(Event{Kind: Continued})
	if len(h.made) != made {
		t.Errorf("decisions %s", dump(h.made[made:]))
	}
}
