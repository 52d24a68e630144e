package rollout

import (
	"testing"
	"time"
)

// A machine that is shut down, or goes on to another kernel, has no outcome.
func TestWhoLeavesIsNotJudged(t *testing.T) {
	tests := map[string]struct {
		kind  Kind
		age   time.Duration // of the trial, with signs of life
		left  Pair
		soft  int64
		lived int64
	}{
		"at once":                       {Left, 0, Pair{1, 1}, 0, 0},
		"after some minutes":            {Left, 6 * time.Minute, Pair{1, 1}, 0, 0},
		"after half an hour":            {Left, 30 * time.Minute, Pair{1, 1}, 0, 2},
		"when it has matured":           {Left, 70 * time.Minute, Pair{}, 0, 2},
		"because the patch did not fit": {Soft, 6 * time.Minute, Pair{0, 1}, 1, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			b.step(population("k", "stable", 10_000))
			ms := append(b.of(2, Treated, "k", "stable"), b.of(2, Control, "k", "stable")...)
			b.step(ms...)
			for age := time.Minute; age <= tc.age; age += time.Minute {
				b.wait(time.Minute)
				b.step(again(Alive, ms)...)
			}
			gone := []Event{ms[0], ms[2]}
			b.step(again(tc.kind, gone)...)
			l, u := b.lane("k", "stable"), b.r.s.Units[0]
			if l.Left != tc.left || l.Soft != tc.soft || u.Failed != (Pair{}) || u.Lived.Treated != tc.lived {
				t.Errorf("left %+v, soft %d, failed %+v, lived %+v", l.Left, l.Soft, u.Failed, u.Lived)
			}
			if at := b.r.s.Batches[l.Batch]; at != nil && at.AtRisk != (Pair{1, 1}) {
				t.Errorf("at risk %+v, want those that stay", at.AtRisk)
			}
			b.wait(10 * time.Hour) // nobody misses it
			if got := u.Failed; got.Treated > 1 || got.Control > 1 {
				t.Errorf("failures %+v of those who left", got)
			}
		})
	}
}

func TestWhoLeftMayBeginAgain(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	ms := b.of(1, Treated, "k", "stable")
	b.step(ms...)
	b.step(again(Left, ms)...)
	b.step(again(Left, ms)...) // and again: it is gone
	b.now = b.now.Add(time.Minute)
	b.step(again(Alive, ms)...)
	b.step(ms...)
	if l := b.lane("k", "stable"); l.Exposed != 1 || l.Came.Treated != 1 || l.Pending != 1 || l.Left != (Pair{}) {
		t.Errorf("exposed %d, pending %d, left %+v", l.Exposed, l.Pending, l.Left)
	}
}
