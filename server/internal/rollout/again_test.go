package rollout

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// loop lets a machine begin and give up again and again, a second for each.
func (b *bed) loop(times int, m Event, kind Kind) {
	b.t.Helper()
	for range times {
		b.now = b.now.Add(time.Second)
		b.step(m)
		b.now = b.now.Add(time.Second)
		b.step(Event{Kind: kind, Machine: m.Machine})
	}
}

// An agent that was out of memory tries again by itself. It must not use up the places of others.
func TestAMachineThatTriesAgainCountsOnceInAStage(t *testing.T) {
	for kind, want := range map[Kind]struct {
		soft int64
		left Pair
	}{Soft: {1, Pair{}}, Left: {0, Pair{1, 0}}} {
		t.Run(string(kind), func(t *testing.T) {
			b := newBed(t, nil)
			b.step(population("k", "stable", 10_000))
			room := b.r.Room("k", "stable")
			b.loop(100, b.of(1, Treated, "k", "stable")[0], kind)
			l := b.lane("k", "stable")
			if l.Came.Treated != 1 || l.Exposed != 1 || l.Soft != want.soft || l.Left != want.left || b.r.Room("k", "stable") != room {
				t.Errorf("came %+v, exposed %d, soft %d, left %+v, room %d", l.Came, l.Exposed, l.Soft, l.Left, b.r.Room("k", "stable"))
			}
			if n := len(b.r.closed[b.r.s.Units[0]]); n != 1 {
				t.Errorf("%d are remembered", n)
			}
			b.stage("k", "stable")
			if l.Stage != 2 || len(b.r.trials) > 200 {
				t.Errorf("stage %d, %d trials are kept: %s", l.Stage, len(b.r.trials), b.last("k").Verdict.Reason)
			}
		})
	}
}

// Of those who failed to get it in, one account has its share, as of the rest.
func TestOneAccountCannotHoldBySoftFailures(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	for i := range treated[:20] {
		treated[i].Account = "liar"
	}
	b.step(treated...)
	b.step(again(Soft, treated[:20])...)
	if l := b.lane("k", "stable"); l.Soft != 1 || l.Left.Treated != 19 {
		t.Errorf("soft %d, left %+v", l.Soft, l.Left)
	}
	b.live(slices.Concat(treated[20:], b.of(40, Control, "k", "stable")))
	if got := b.last("k").Verdict.Reason; got == SoftFailures {
		t.Error("one account holds the rollout")
	}
}

// A control that goes and comes again would take the place of others.
func TestAControlThatLeavesHasHadItsTrial(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(5, Treated, "k", "stable")...)
	b.loop(10, b.of(1, Control, "k", "stable")[0], Left)
	if l := b.lane("k", "stable"); l.Came.Control != 1 || l.Left.Control != 1 {
		t.Errorf("controls came %d times, left %d times", l.Came.Control, l.Left.Control)
	}
}

// However often one machine has tried, the next that crashes halts a small unit.
func TestTryingAgainDoesNotEndTestD(t *testing.T) {
	for _, kind := range []Kind{Soft, Left} {
		b := newBed(t, nil)
		b.step(owns("k", "stable", 10, "own"))
		b.loop(60, b.ofAccount(1, Treated, "k", "own")[0], kind)
		m := b.ofAccount(1, Treated, "k", "own")
		b.step(m...)
		b.now = b.now.Add(time.Minute)
		b.step(failures(OpenJournal, m)...)
		b.want("small/src", Halt, TestDCrash)
	}
}

// Nor does it where everybody has it, and no stage remembers who came.
func TestTryingAgainInACompleteRolloutDoesNotEndTestD(t *testing.T) {
	for _, kind := range []Kind{Soft, Left} {
		h := newHome(t)
		h.enrol("stable", 0)
		h.pass(70 * time.Minute)
		h.want("small/src", Complete, NoMachines)
		h.loop(60, Event{Kind: Intent, Machine: id(1), Cell: "k", Tier: "stable", Account: "home"}, kind)
		h.now = h.now.Add(time.Minute)
		h.step(Event{Kind: Intent, Machine: id(2), Cell: "k", Tier: "stable", Account: "home"})
		h.now = h.now.Add(time.Minute)
		h.step(Event{Kind: Failed, Failure: OpenJournal, Machine: id(2)})
		h.want("small/src", Halt, TestDCrash)
	}
}

// What one machine does must not fill the record of decisions.
func TestOneMachineMakesFewDecisions(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "stable"}, Tier{Name: "late"})
	b.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 12, Accounts: 3})
	m := b.of(1, Treated, "k", "stable")[0]
	made, began := len(b.made), b.now
	for i := range 1000 {
		b.loop(1, m, []Kind{Soft, Left}[i%2])
	}
	most := 6 * (1 + int(b.now.Sub(began)/quiet)) // each reason once in a while
	if n := len(b.made) - made; n > most {
		t.Errorf("%d decisions in %v, want at most %d", n, b.now.Sub(began), most)
	}
}

// What was not said because it was said lately is said when it is still so.
func TestAReasonThatStaysIsSaidInTheEnd(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.want("k", Hold, PendingOutcomes)
	treated := b.of(12, Treated, "k", "stable")
	b.step(treated...)
	b.step(again(Soft, treated[:11])...)
	b.want("k", Hold, SoftFailures)
	b.step(treated[:11]...) // under way again
	b.want("k", Hold, SoftFailures)
	for range 11 {
		b.now = b.now.Add(time.Minute)
		b.step(again(Alive, treated)...)
	}
	b.want("k", Hold, PendingOutcomes)
}

// The answer to the first ask was lost. The agent counts from the second, and gives all its
// signs of life in time.
func TestAMachineThatAsksAgainBeginsAnew(t *testing.T) {
	for _, wait := range []time.Duration{30 * time.Second, 90 * time.Second, 110 * time.Second} {
		t.Run(fmt.Sprint(wait), func(t *testing.T) {
			b := newBed(t, nil)
			b.step(population("k", "stable", 10_000))
			ms := b.of(1, Treated, "k", "stable")
			b.step(ms...)
			b.now = b.now.Add(wait)
			b.step(append(again(Alive, ms), ms[0], ms[0])...)
			if next, watched := b.r.Next(ms[0].Machine, b.now); !watched || next != 60 {
				t.Errorf("the next sign of life is due in %d s", next)
			}
			b.live(ms)
			u, l := b.r.s.Units[0], b.lane("k", "stable")
			if u.Failed != (Pair{}) || u.Mature.Treated != 1 || l.Exposed != 1 || l.Came.Treated != 1 || u.Dealt != 1 {
				t.Errorf("failed %+v, matured %+v, exposed %d, came %+v", u.Failed, u.Mature, l.Exposed, l.Came)
			}
		})
	}
}

// Who has begun has begun: asking puts no deadline off. Nor does asking for ever.
func TestAskingAgainIsNoWayNotToBeMissed(t *testing.T) {
	tests := map[string]struct {
		beats bool
		asks  time.Duration
	}{
		"after a sign of life": {true, 4 * time.Minute},
		"for ever":             {false, time.Hour},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			b.step(population("k", "stable", 10_000))
			ms := b.of(1, Treated, "k", "stable")
			b.step(ms...)
			for age := time.Minute; age <= tc.asks; age += time.Minute {
				b.now = b.now.Add(time.Minute)
				if tc.beats && age == time.Minute {
					b.step(again(Alive, ms)...)
				} else if _, watched := b.r.Watched(ms[0].Machine); watched {
					b.step(ms...)
				} else {
					b.step()
				}
			}
			if next, watched := b.r.Next(ms[0].Machine, b.now); watched != tc.beats || watched && next != 60 {
				t.Errorf("watched is %v, and the next sign of life is due in %d s", watched, next)
			}
			b.wait(3 * time.Minute)
			if u := b.r.s.Units[0]; u.Failed != (Pair{1, 0}) {
				t.Errorf("failures %+v", u.Failed)
			}
		})
	}
}

// Machines that begin anew are at risk beside those that begin now.
func TestWhoBeginsAnewIsInTheBatchOfNow(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Time.Batch = time.Minute })
	b.step(population("k", "stable", 10_000))
	ms := b.of(3, Treated, "k", "stable")
	b.step(ms[0])
	first := b.r.trials[ms[0].Machine].Batch
	b.now = b.now.Add(90 * time.Second)
	b.step(ms...)
	if got := b.r.trials[ms[0].Machine].Batch; got == first || b.r.s.Batches[got].AtRisk != (Pair{3, 0}) || b.r.s.Batches[first] != nil {
		t.Errorf("batch %d, before %d: %s", got, first, dump(b.r.s.Batches))
	}
}

// A trial that is over is not what a journal that is found open is about.
func TestWhoLeftDoesNotAccuse(t *testing.T) {
	for _, kind := range []Kind{Soft, Left} {
		h := newHome(t)
		h.enrol("stable", 0)
		h.step(Event{Kind: kind, Machine: id(0)})
		h.now = h.now.Add(time.Minute)
		h.step(Event{Kind: Failed, Failure: OpenJournal, Machine: id(0)})
		if u := h.r.s.Units[0]; u.Halted != "" || len(u.Crashed) != 0 {
			t.Errorf("after %s: halted by %q", kind, u.Halted)
		}
	}
}
