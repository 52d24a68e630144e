package controller_test

import (
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// A rollout that people have halted does not widen behind their backs: nobody can come to a
// stage, and one to which nobody comes is passed over after a day.
func TestARolloutThatPeopleHaltedStaysWhereItIs(t *testing.T) {
	b := newBed(t)
	b.enrol(200)
	state := func(s patch.RolloutState) {
		b.try(b.db.Update(t.Context(), func(tx store.Tx) error {
			_, err := tx.SetRollout(t.Context(), store.Decision{Vendor: "debian", Version: "1.1", State: s, At: b.now})
			return err
		}))
		b.round(time.Second)
	}
	state(patch.Halted)
	before := len(b.verdicts())
	for hour := range 5 * 24 {
		b.report(b.Controller, hour%200) // or the fleet would be taken for gone
		b.round(time.Hour)
	}
	b.restart()
	if made := b.verdicts(); len(made) != before || made[before-1].Verdict.Reason != rollout.Paused {
		t.Errorf("%d verdicts while it is halted, the last is %+v", len(made)-before, made[len(made)-1].Verdict)
	}
	state(patch.Running)
	b.round(time.Hour)
	for _, s := range b.Stages() {
		if s.Share == patch.Everyone && s.Machines > 0 {
			t.Errorf("it has come to everybody: %+v", s)
		}
	}
	if last := b.verdicts(); last[len(last)-1].Verdict.Reason != rollout.PendingOutcomes {
		t.Errorf("after it goes on: %+v", last[len(last)-1].Verdict)
	}
}
