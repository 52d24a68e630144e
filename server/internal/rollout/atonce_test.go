package rollout

import (
	"testing"
	"time"

	"livepatch/internal/patch"
)

func atOnce(p *Params) { p.Pace.AtOnce = true }

func TestAtOnceEverybodyHasIt(t *testing.T) {
	b := newBed(t, atOnce, Tier{Name: "edge"}, Tier{Name: "late", Ramp: []int64{50_000}})
	b.step(population("big", "edge", 1000), population("big", "late", 1000), population("tiny", "late", 2))
	for _, unit := range []string{"big", "small/src"} {
		b.want(unit, Complete, AtOnce)
	}
	for _, cell := range []string{"big", "tiny"} {
		for _, tier := range []string{"edge", "late"} {
			if a := b.r.Assignment(cell, tier); a.Share != patch.Everyone || a.Sham != 0 || b.r.Room(cell, tier) < 1e6 {
				t.Errorf("%s, %s: %+v with room for %d", cell, tier, a, b.r.Room(cell, tier))
			}
		}
	}
	ms := b.of(100, Treated, "big", "edge")
	b.step(ms...)
	b.step(again(Soft, ms[:90])...)
	if b.r.Room("big", "edge") < 1e6 {
		t.Error("soft failures hold others back")
	}
	for _, d := range b.made {
		if again := d.Judge(); again != d.Verdict {
			t.Errorf("decision replays as %+v, was %+v", again, d.Verdict)
		}
	}
}

func TestAtOnceIsHaltedAllTheSame(t *testing.T) {
	tests := map[string]struct {
		machines int64
		harm     func(*bed, []Event)
		want     Reason
	}{
		"three early deaths": {1000, func(b *bed, _ []Event) { b.wait(3 * time.Minute) }, TestB},
		"the same oops on two": {1000, func(b *bed, ms []Event) {
			b.step(failures(Oops, ms[:2])...)
		}, TestCOops},
		"two crashes of a small unit": {20, func(b *bed, ms []Event) {
			b.step(failures(OpenJournal, ms[:2])...)
		}, TestDCrash},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, atOnce)
			b.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: tc.machines, Accounts: 20})
			ms := b.of(3, Treated, "k", "stable")
			for i := range ms {
				ms[i].Newcomer = true
			}
			b.step(ms...)
			b.now = b.now.Add(time.Second)
			tc.harm(b, ms)
			if u := b.r.s.Units[0]; u.Halted != tc.want || b.r.Room("k", "stable") != 0 {
				t.Errorf("halted by %q with room for %d, want %q", u.Halted, b.r.Room("k", "stable"), tc.want)
			}
		})
	}
}
