package rollout

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The fleet of these tests: few machines, so that much happens to each.
const propertyMachines = 60

var propertyTiers = []Tier{{Name: "edge", Auto: true}, {Name: "late", Ramp: []int64{400_000}}}

// propertyParams let a stage be over after a few machines.
func propertyParams() Params {
	p := Defaults()
	p.Pace.SmallCell = 15
	p.Pace.Dead = 6
	p.Pace.Dark = 2
	p.Pace.SoftMin = 2
	p.Time.Watch = 2 * time.Hour
	return p
}

func propertyRollout(t *rapid.T) *Rollout {
	r, err := New(propertyParams(), rapid.StringN(0, 4, 8).Draw(t, "salt"), propertyTiers)
	if err != nil {
		t.Fatal(err)
	}
	var fleet []Event
	for i, cell := range []string{"k0", "k1", "tiny"} {
		for _, tier := range []string{"edge", "late"} {
			if cell == "tiny" && tier == "late" {
				fleet = append(fleet, Event{Kind: Population, Cell: cell, Source: "src", Tier: tier, Machines: 4, Accounts: 1, Account: "a7"})
				continue
			}
			fleet = append(fleet, Event{
				Kind: Population, Cell: cell, Source: "src", Tier: tier,
				Machines: []int64{30, 20, 4}[i], Accounts: []int64{30, 2, 4}[i],
			})
		}
	}
	if _, err := r.Step(testStart, fleet); err != nil {
		t.Fatal(err)
	}
	return r
}

// A mood is what a world is like.
type mood string

const (
	chaos  mood = "chaos"  // anything happens, sense or nonsense
	polite mood = "polite" // machines do what they are told, and live
	deadly mood = "deadly" // machines do what they are told, and treated ones go silent
)

// propertyEvents draws what happens at one instant.
func propertyEvents(t *rapid.T, r *Rollout, m mood) (events []Event) {
	if m == chaos {
		events = chaosEvents(t)
	} else {
		events = politeEvents(t, r)
	}
	if rapid.Bool().Draw(t, "signs of life") { // or no stage would ever be over
		for i := range propertyMachines {
			if tr := r.trials[id(i)]; m != deadly || tr == nil || tr.Arm == Control {
				events = append(events, Event{Kind: Alive, Machine: id(i)})
			}
		}
	}
	if rapid.IntRange(0, 9).Draw(t, "people halt it") == 0 {
		events = append(events, Event{Kind: Suspended})
	} else if r.Suspended() && rapid.IntRange(0, 2).Draw(t, "people let it go on") == 0 {
		events = append(events, Event{Kind: Continued})
	}
	for _, u := range r.s.Units {
		if u.Halted != "" && rapid.IntRange(0, 9).Draw(t, "resume") == 0 {
			events = append(events, Event{Kind: Resumed, Unit: u.Name, By: []string{"ann", "bob"}})
		}
	}
	return events
}

// place puts a machine of these tests into the fleet.
func place(kind Kind, i int) Event {
	return Event{
		Kind: kind, Machine: id(i), Cell: []string{"k0", "k1", "k0", "tiny"}[i%4], Tier: []string{"edge", "late"}[i/4%2],
		Account: fmt.Sprint("a", i%23), Newcomer: i%29 == 0,
	}
}

// politeEvents lets some machines check in, and begin if they may.
func politeEvents(t *rapid.T, r *Rollout) (events []Event) {
	skip := rapid.IntRange(1, 5).Draw(t, "every")
	room := map[string]int64{}
	for i := 0; i < propertyMachines; i += skip {
		e := place(Intent, i)
		lane := e.Cell + e.Tier
		if _, ok := room[lane]; !ok {
			room[lane] = min(1, r.Room(e.Cell, e.Tier)) // one at a time: the units share a bound
		}
		switch arm := r.Assignment(e.Cell, e.Tier).Arm(e.Machine); {
		case arm == Treated && room[lane] > 0 && r.trials[e.Machine] == nil:
			room[lane]--
		case arm == Control:
			e.Kind = Sham
		default:
			continue
		}
		events = append(events, e)
	}
	return events
}

// chaosEvents let anything happen, but to no machine the same thing twice.
func chaosEvents(t *rapid.T) (events []Event) {
	kinds := []Kind{Offered, Intent, Intent, Intent, Sham, Sham, Alive, Soft, Left, Failed}
	seen := map[string]bool{}
	for range rapid.IntRange(0, 12).Draw(t, "events") {
		i := rapid.IntRange(0, propertyMachines-1).Draw(t, "machine")
		e := place(rapid.SampledFrom(kinds).Draw(t, "kind"), i)
		key := fmt.Sprint(e.Kind, i)
		if seen[key] {
			continue
		}
		seen[key] = true
		if e.Kind == Failed {
			e.Failure = rapid.SampledFrom([]Failure{UncleanReboot, OpenJournal, Oops}).Draw(t, "failure")
			e.Signature = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "signature")
		}
		events = append(events, e)
	}
	return events
}

// A model follows a rollout and holds it to what must always be so.
type model struct {
	halted map[string]bool
	shares map[string]int64
	seq    int64
}

func (m *model) check(t *rapid.T, r *Rollout, events []Event, made []Decision) {
	checkInvariants(t, r)
	for _, e := range events {
		if e.Kind == Resumed {
			m.halted[e.Unit] = false
		}
	}
	for _, d := range made {
		m.seq++
		if d.Seq != m.seq {
			t.Fatalf("decision %d follows %d", d.Seq, m.seq-1)
		}
		if m.halted[d.Unit] {
			t.Fatalf("a decision about a halted unit: %s", dump(d))
		}
		m.halted[d.Unit] = d.Verdict.Action == Halt
		checkReplay(t, d)
	}
	for _, s := range r.Stages() {
		if m.halted[s.Unit] != (s.Halted != "") {
			t.Fatalf("%s: halted is %q, decisions say %v", s.Unit, s.Halted, m.halted[s.Unit])
		}
		key := s.Unit + " " + s.Tier
		if s.Share < m.shares[key] {
			t.Fatalf("%s: share falls from %d to %d", key, m.shares[key], s.Share)
		}
		m.shares[key] = s.Share
		for _, cell := range s.Cells {
			a := r.Assignment(cell, s.Tier)
			if s.Halted != "" && (a.Share != 0 || a.Sham != 0 || r.Room(cell, s.Tier) != 0 || r.ShamRoom(cell, s.Tier) != 0) {
				t.Fatalf("%s is halted and lets machines in: %+v", key, a)
			}
		}
	}
}

// checkReplay makes a decision again from its stored form.
func checkReplay(t *rapid.T, d Decision) {
	stored := dump(d)
	var again Decision
	if err := json.Unmarshal([]byte(stored[:len(stored)-len(" <nil>")]), &again); err != nil {
		t.Fatal(err)
	}
	again.Verdict = again.Judge()
	if got := dump(again); got != stored {
		t.Fatalf("decision replays as\n%s, was\n%s", got, stored)
	}
}

// One rollout gets every batch as it is, a second one shuffled, and that one is stored
// and restored now and then. Both must agree to the byte, and with the model. It fails
// if anything depends on the order of a batch, on maps, or on what is not stored.
func TestSameEventsSameDecisions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "shuffle")
		rng := rand.New(rand.NewPCG(seed, 0))
		a := propertyRollout(t)
		b, err := Restore(roundTrip(t, a.State()))
		if err != nil {
			t.Fatal(err)
		}
		m := model{halted: map[string]bool{}, shares: map[string]int64{}, seq: a.s.Seq}
		now, world := testStart, rapid.SampledFrom([]mood{chaos, polite, deadly}).Draw(t, "world")
		for range rapid.IntRange(1, 120).Draw(t, "instants") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 1, 60, 100, 100, 900, 3000, 3600}).Draw(t, "wait")) * time.Second)
			events := propertyEvents(t, a, world)
			shuffled := append([]Event(nil), events...)
			rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			madeA, errA := a.Step(now, events)
			madeB, errB := b.Step(now, shuffled)
			if errA != nil || errB != nil {
				t.Fatal(errA, errB)
			}
			m.check(t, a, events, madeA)
			if x, y := dump(madeA), dump(madeB); x != y {
				t.Fatalf("decisions differ:\n%s\n%s", x, y)
			}
			if rapid.IntRange(0, 4).Draw(t, "store") == 0 {
				if b, err = Restore(roundTrip(t, b.State())); err != nil {
					t.Fatal(err)
				}
			}
			if x, y := dump(a.State()), dump(b.State()); x != y {
				t.Fatalf("states differ:\n%s\n%s", x, y)
			}
		}
	})
}

// roundTrip stores a state and reads it again.
func roundTrip(t rapid.TB, s State) (out State) {
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
