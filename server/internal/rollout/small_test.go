package rollout

import (
	"fmt"
	"testing"
	"time"
)

// The tiers of a server as it comes.
var allTiers = []Tier{
	{Name: "edge", Auto: true}, {Name: "beta", Auto: true}, {Name: "candidate", Auto: true}, {Name: "stable", Auto: true},
	{Name: "late", Ramp: []int64{50_000, 250_000}},
}

// A home is a fleet of one account whose machines enrol after the patch was published.
type home struct {
	*bed
	machines int64
	has      map[int]time.Time // when each began
	beats    map[int]bool      // those that give signs of life
}

func newHome(t *testing.T) *home {
	return &home{bed: newBed(t, nil, allTiers...), has: map[int]time.Time{}, beats: map[int]bool{}}
}

// enrol adds a machine to a tier and lets it begin if it may.
func (h *home) enrol(tier string, i int) bool {
	h.t.Helper()
	h.machines++
	h.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: tier, Machines: h.machines, Accounts: 1})
	return h.ask(tier, i)
}

// ask lets a machine begin if it may.
func (h *home) ask(tier string, i int) bool {
	h.t.Helper()
	if h.r.Assignment("k", tier).Arm(id(i)) != Treated || h.r.Room("k", tier) < 1 {
		return false
	}
	h.step(Event{Kind: Intent, Machine: id(i), Cell: "k", Tier: tier, Account: "home", Newcomer: true})
	h.has[i], h.beats[i] = h.now, true
	return true
}

// pass lets minutes pass in which machines give the signs of life that are due.
func (h *home) pass(d time.Duration) {
	h.t.Helper()
	for end := h.now.Add(d); h.now.Before(end); {
		h.now = h.now.Add(time.Minute)
		var events []Event
		for i, began := range h.has {
			for _, age := range []int{1, 5, 15, 60, 120, 180, 240, 300, 360} {
				if h.beats[i] && h.now.Sub(began) == time.Duration(age)*time.Minute {
					events = append(events, Event{Kind: Alive, Machine: id(i)})
				}
			}
		}
		h.step(events...)
	}
}

func TestTheFirstMachineOfAServerHasThePatchAtOnce(t *testing.T) {
	for _, tier := range allTiers {
		t.Run(tier.Name, func(t *testing.T) {
			h := newHome(t)
			h.step() // the patch is published, and nobody is there
			h.now = h.now.Add(30 * 24 * time.Hour)
			if !h.enrol(tier.Name, 0) {
				t.Fatalf("it has to wait: %s", dump(h.r.Stages()))
			}
			h.pass(time.Hour)
			if u := h.r.s.Units[0]; u.current() != nil {
				t.Errorf("the rollout goes on after its machine has matured: %s", dump(u.Last))
			}
		})
	}
}

// The second begins when the first has lived for a quarter of an hour, then two at a
// time, then four.
func TestAFleetWithoutControlsDoubles(t *testing.T) {
	h := newHome(t)
	var began []int
	for i := range 10 {
		h.enrol("stable", i)
	}
	for minute := range 61 {
		if minute > 0 {
			h.pass(time.Minute)
		}
		for i := range 10 {
			if _, has := h.has[i]; !has && h.ask("stable", i) {
				began = append(began, minute)
			}
		}
		if minute == 0 {
			began = append(began, 0)
		}
	}
	want := []int{0, 15, 30, 30, 45, 45, 45, 45, 60, 60}
	if fmt.Sprint(began) != fmt.Sprint(want) {
		t.Errorf("machines began at minutes %v, want %v", began, want)
	}
}

func TestMachinesThatTrickleInHaveItAtOnce(t *testing.T) {
	h := newHome(t)
	for i := range 40 {
		if !h.enrol("stable", i) {
			t.Fatalf("machine %d has to wait: %s", i, dump(h.r.Stages()))
		}
		h.pass(20 * time.Minute)
	}
	if h.r.s.Units[0].Halted != "" || h.lane("k", "stable").Exposed != 40 {
		t.Errorf("stages are %s", dump(h.r.Stages()))
	}
}

func TestACompleteRolloutTakesNewMachinesInAnyTier(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.pass(70 * time.Minute)
	h.want("small/src", Complete, NoMachines)
	for i, tier := range allTiers {
		if !h.enrol(tier.Name, 10+i) {
			t.Errorf("a machine of %s has to wait", tier.Name)
		}
		h.pass(20 * time.Minute)
	}
}

// One at a time is one of the unit, whatever their tiers.
func TestTiersOfASmallUnitTakeTurns(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.pass(70 * time.Minute)
	if !h.enrol("edge", 1) || h.enrol("beta", 2) {
		t.Error("two machines of a unit in which one has lived begin at once")
	}
	h.pass(15 * time.Minute)
	if !h.ask("beta", 2) {
		t.Error("the second still waits")
	}
}

// A thousand machines that come to a complete rollout of one machine do not all have it
// in the same minute.
func TestACompleteRolloutOfOneIsNoEvidenceForAThousand(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.pass(70 * time.Minute)
	h.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 1000, Accounts: 1})
	with := func() (n int) {
		for i := range 1000 {
			if _, has := h.has[i]; !has && !h.ask("stable", i) {
				break
			}
			n++
		}
		return n - 1
	}
	var have []int
	for range 10 {
		have = append(have, with())
		h.pass(15 * time.Minute)
	}
	if have[0] != 1 || have[1] != 3 || have[2] != 7 {
		t.Errorf("%v machines came each quarter of an hour", have)
	}
	if have[9] < 150 {
		t.Errorf("only %v machines have it after two hours and a half", have)
	}
}

// Newcomers are all that a young server has.
func TestNewcomersAreEvidenceWhereThereAreNoOthers(t *testing.T) {
	tests := map[string]struct {
		machines, accounts int64
		want               bool
	}{
		"a small unit":                  {149, 100, true},
		"the fleet of one account":      {5000, 1, true},
		"a large unit of many accounts": {5000, 100, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			b.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: tc.machines, Accounts: tc.accounts})
			treated, controls := b.of(3, Treated, "k", "stable"), b.of(4, Control, "k", "stable")
			for _, ms := range [][]Event{treated, controls} {
				for i := range ms {
					ms[i].Newcomer = true
				}
				b.step(ms...)
			}
			l := b.lane("k", "stable")
			if got := l.Came.Control == 4; got != tc.want || got != (b.r.s.Units[0].Dealt == 7) || got != b.r.Newcomers("k") {
				t.Errorf("%d of 7 are evidence, %d controls came", b.r.s.Units[0].Dealt, l.Came.Control)
			}
			b.wait(3 * time.Minute)
			if got := b.r.s.Units[0].Failed == (Pair{3, 4}); got != tc.want {
				t.Errorf("failures %+v", b.r.s.Units[0].Failed)
			}
		})
	}
}

// A large unit of newcomers waits for a day whether others come.
func TestAfterADayOfNewcomersTheyAreEvidence(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	stage := func() {
		treated := b.of(30, Treated, "k", "stable")
		for i := range treated {
			treated[i].Newcomer = true
		}
		b.step(treated...)
		b.live(treated)
	}
	stage()
	b.want("k", Hold, NoEvidence)
	b.wait(24 * time.Hour)
	if l := b.lane("k", "stable"); l.Stage != 2 || l.Room != 30 || !b.r.Newcomers("k") {
		t.Fatalf("stage %d with room for %d", l.Stage, l.Room)
	}
	stage()
	b.want("k", Hold, PendingOutcomes)
	if l := b.lane("k", "stable"); l.Stage != 3 || l.Healthy.Treated != 30 {
		t.Errorf("stage %d with %+v healthy", l.Stage, l.Healthy)
	}
}

// A tier of two machines in a kernel of many has no controls.
func TestAFewMachinesOfALargeUnitBeginOneByOne(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "stable", Auto: true})
	b.step(population("k", "edge", 3), population("k", "stable", 5000))
	for i := range 3 {
		if got := b.r.Room("k", "edge"); got != 1 {
			t.Fatalf("room for %d machines after %d", got, i)
		}
		ms := b.of(1, Treated, "k", "edge")
		b.step(ms...)
		if got := b.r.Room("k", "edge"); got != 0 {
			t.Fatalf("room for %d machines beside the one that began", got)
		}
		for range 3 {
			b.wait(5 * time.Minute)
			b.step(again(Alive, ms)...)
		}
	}
}

// A kernel that comes when its siblings have the patch.
func TestALateKernelIsJudgedWithItsSiblings(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("old", "stable", 1000))
	for range 10 {
		if b.r.unit("old").current() == nil {
			break
		}
		b.stage("old", "stable")
		b.wait(4 * time.Hour)
	}
	b.want("old", Complete, Healthy)
	b.step(population("new", "stable", 1000))
	l := b.lane("new", "stable")
	if l.Wanted < 900 {
		t.Fatalf("the first stage lets in %d machines, %d ppm", l.Wanted, l.Share)
	}
	if got := b.r.Room("new", "stable"); got != 1 {
		t.Errorf("room for %d machines at first", got)
	}
	b.step(b.of(3, Treated, "new", "stable")...)
	b.wait(3 * time.Minute)
	if b.r.unit("new").Halted != "" || b.r.unit("new").Failed.Treated != 3 {
		t.Errorf("halted by %q", b.r.unit("new").Halted) // the source has many controls: test B is not asked
	}
}

func TestLateIsWhoComesWhenAllOthersAreThrough(t *testing.T) {
	through := func(b *bed, name string) { b.r.unit(name).Tier = 1 }
	tests := map[string]struct {
		before func(*bed)
		want   bool
	}{
		"the first":               {func(*bed) {}, false},
		"beside one that goes on": {func(b *bed) { b.step(population("a", "stable", 200)) }, false},
		"after all others": {func(b *bed) {
			b.step(population("a", "stable", 200), population("b", "stable", 200))
			through(b, "a")
			through(b, "b")
		}, true},
		"after one that was halted": {func(b *bed) {
			b.step(population("a", "stable", 200), population("b", "stable", 200))
			through(b, "a")
			through(b, "b")
			b.r.unit("b").Halted = TestA
		}, false},
		"after small ones": {func(b *bed) {
			b.step(population("a", "stable", 20))
			through(b, "small/src")
		}, false},
		"after another source": {func(b *bed) {
			b.step(Event{Kind: Population, Cell: "a", Source: "other", Tier: "stable", Machines: 200, Accounts: 100})
			through(b, "a")
		}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			tc.before(b)
			b.step(population("new", "stable", 300))
			if got := b.r.unit("new").Late; got != tc.want {
				t.Errorf("late is %v", got)
			}
		})
	}
}

func TestSmallKernelsOfAHaltedSiblingGoOnWhenReleased(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("big", "stable", 10_000), population("tiny", "stable", 10))
	b.step(b.of(3, Treated, "big", "stable")...)
	b.wait(2 * time.Minute)
	b.want("big", Halt, TestB)
	b.want("small/src", Hold, SiblingHalted)
	b.step(Event{Kind: Released, Unit: "small/src", By: []string{"ann"}})
	if b.r.Room("tiny", "stable") != 1 {
		t.Errorf("still waits: %s", dump(b.last("small/src").Verdict))
	}
}

// Three machines that are switched off after a while are no reason to halt where there are no
// controls; three that are silent at once are.
func TestWhoLivedForAWhileMayGoSilent(t *testing.T) {
	tests := map[string]struct {
		lives time.Duration
		want  Reason
		trip  Tally
	}{
		"silent at once":               {0, TestB, Tally{3, 3}},
		"silent before the 15 minutes": {6 * time.Minute, TestB, Tally{3, 3}},
		"silent after 20 minutes":      {20 * time.Minute, "", Tally{0, 3}},
		"silent after three hours":     {3 * time.Hour, "", Tally{0, 3}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			for i := range 3 {
				for !h.enrol("stable", i) {
					h.pass(time.Minute)
				}
				h.pass(tc.lives)
				h.beats[i] = false
			}
			h.wait(4 * time.Hour)
			u := h.r.s.Units[0]
			if e, _ := h.r.Evidence("small/src"); u.Halted != tc.want || e.Trip != tc.trip || u.Failed.Treated != 3 {
				t.Errorf("halted by %q on %+v, failures %+v", u.Halted, e.Trip, u.Failed)
			}
		})
	}
}

// Where the patch did not go in, the machine may try again: it is the only one.
func TestTheOnlyMachineMayTryAgain(t *testing.T) {
	for _, kind := range []Kind{Soft, Left} {
		t.Run(string(kind), func(t *testing.T) {
			h := newHome(t)
			h.enrol("stable", 0)
			for range 12 {
				h.now = h.now.Add(10 * time.Second)
				h.step(Event{Kind: kind, Machine: id(0)})
				h.now = h.now.Add(time.Second)
				if !h.ask("stable", 0) {
					t.Fatalf("it has to wait: %s", dump(h.r.Stages()[3]))
				}
			}
		})
	}
}

// A person promotes a rollout that is complete: there is nothing to do, and nothing is
// remembered for later.
func TestACompleteRolloutIsNotPromoted(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.pass(70 * time.Minute)
	made := len(h.made)
	h.step(Event{Kind: Promoted, Unit: "small/src", By: []string{"ann"}})
	if u := h.r.s.Units[0]; len(h.made) != made || u.Told || u.Tier != len(allTiers) {
		t.Errorf("decisions %s, told %v, tier %d", dump(h.made[made:]), u.Told, u.Tier)
	}
}
