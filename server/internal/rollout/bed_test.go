package rollout

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livepatch/internal/patch"
)

// testStart is when rollouts of tests begin.
var testStart = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// id returns the i-th machine of a test.
func id(i int) (m Machine) {
	binary.BigEndian.PutUint64(m[8:], uint64(i)+1)
	return m
}

// A bed is a rollout with a clock and a fleet that does what the test says.
type bed struct {
	t    testing.TB
	r    *Rollout
	now  time.Time
	made []Decision
	next int // machine that has not been used
}

func newBed(t testing.TB, tune func(*Params), tiers ...Tier) *bed {
	t.Helper()
	p := Defaults()
	if tune != nil {
		tune(&p)
	}
	if len(tiers) == 0 {
		tiers = []Tier{{Name: "stable", Auto: true}}
	}
	r, err := New(p, "salt", tiers)
	if err != nil {
		t.Fatal(err)
	}
	return &bed{t: t, r: r, now: testStart}
}

// step takes events now and returns the decisions.
func (b *bed) step(events ...Event) []Decision {
	b.t.Helper()
	made, err := b.r.Step(b.now, events)
	if err != nil {
		b.t.Fatal(err)
	}
	b.made = append(b.made, made...)
	checkInvariants(b.t, b.r)
	return made
}

// wait lets time pass, looking every minute as a server would.
func (b *bed) wait(d time.Duration) {
	b.t.Helper()
	for end := b.now.Add(d); b.now.Before(end); {
		b.now = b.now.Add(min(time.Minute, end.Sub(b.now)))
		b.step()
	}
}

func population(cell, tier string, machines int64) Event {
	return Event{Kind: Population, Cell: cell, Source: "src", Tier: tier, Machines: machines, Accounts: min(machines, 1000)}
}

// of returns n machines that are dealt to an arm now and have not been used, each
// with an account of its own.
func (b *bed) of(n int, arm Arm, cell, tier string) (events []Event) {
	b.t.Helper()
	a := b.r.Assignment(cell, tier)
	before := a
	before.Share = b.lane(cell, tier).Before
	if arm == Control && a.Sham == 0 {
		return nil
	}
	for ; len(events) < n; b.next++ {
		if b.next > 1e7 {
			b.t.Fatalf("no %v machines in %+v", arm, a)
		}
		if m := id(b.next); a.Arm(m) == arm && before.Arm(m) != Treated {
			kind := Intent
			if arm == Control {
				kind = Sham
			}
			events = append(events, Event{Kind: kind, Machine: m, Cell: cell, Tier: tier, Account: fmt.Sprint("a", b.next)})
		}
	}
	return events
}

func (b *bed) lane(cell, tier string) *lane {
	u, _ := b.r.where(cell)
	return &u.Lanes[b.r.tier(tier)]
}

// again returns events of a kind for the machines of others.
func again(k Kind, of []Event) (events []Event) {
	for _, e := range of {
		events = append(events, Event{Kind: k, Machine: e.Machine})
	}
	return events
}

func failures(f Failure, of []Event) []Event {
	events := again(Failed, of)
	for i := range events {
		events[i].Failure = f
	}
	return events
}

// live lets machines that begin now give their signs of life until after the soak, and
// looks in between. Others go silent unless the test says something of them.
func (b *bed) live(ms []Event) {
	b.t.Helper()
	began := b.now
	for _, age := range b.r.s.Params.Time.Heartbeats {
		b.wait(began.Add(age).Sub(b.now))
		b.step(again(Alive, ms)...)
	}
}

// stage lets the whole stage of a unit begin and live.
func (b *bed) stage(cell, tier string) {
	b.t.Helper()
	n := int(b.lane(cell, tier).Wanted)
	treated := b.of(n, Treated, cell, tier)
	b.step(treated...)
	controls := b.of(min(4*n, 400), Control, cell, tier)
	b.step(controls...)
	b.live(slices.Concat(treated, controls))
}

// last returns the last decision about a unit.
func (b *bed) last(unit string) Decision {
	b.t.Helper()
	for _, d := range slices.Backward(b.made) {
		if d.Unit == unit {
			return d
		}
	}
	b.t.Fatalf("there is no decision about %q", unit)
	return Decision{}
}

func (b *bed) want(unit string, a Action, r Reason) {
	b.t.Helper()
	if d := b.last(unit); d.Verdict.Action != a || d.Verdict.Reason != r {
		b.t.Errorf("%s: last decision is %s, %s; want %s, %s\n%s", unit, d.Verdict.Action, d.Verdict.Reason, a, r, dump(d))
	}
}

func dump(v any) string {
	out, err := json.Marshal(v)
	return fmt.Sprintf("%s %v", out, err)
}

// checkInvariants holds the aggregates against the trials that they are made of.
func checkInvariants(t rapid.TB, r *Rollout) {
	t.Helper()
	type key struct{ unit, tier int }
	pending, dark, told, young, risk := map[key]int64{}, map[key]int64{}, map[key]int64{}, map[key]int64{}, map[uint32]Pair{}
	watched := 0
	for _, tr := range r.trials {
		k := key{int(tr.Unit), int(tr.Tier)}
		if !tr.is(closed | missed) {
			watched++
		}
		if tr.is(held) {
			young[k]++
		}
		if tr.is(missed | closed) {
			continue
		}
		if tr.Arm == Treated && !r.s.Params.Time.lived(int(tr.Passed)) {
			young[k]++
		}
		switch {
		case tr.is(offered):
			told[k]++
		case tr.Arm == Treated && !tr.is(matured):
			pending[k]++
		}
		if tr.Arm == Treated && !tr.is(offered) && tr.Passed == 0 {
			dark[k]++
		}
		if tr.dealt() {
			p := risk[tr.Batch]
			p.add(tr.Arm, 1)
			risk[tr.Batch] = p
		}
	}
	if r.watched != watched {
		t.Fatalf("%d trials are under watch, counted %d", watched, r.watched)
	}
	for i, u := range r.s.Units {
		for j := range u.Lanes {
			k, l := key{i, j}, &u.Lanes[j]
			if l.Pending != pending[k] || l.Dark != dark[k] || l.Offered != told[k] || l.Young != young[k] {
				t.Fatalf("%s tier %d: pending %d, dark %d, offered %d, young %d; trials say %d, %d, %d, %d",
					u.Name, j, l.Pending, l.Dark, l.Offered, l.Young, pending[k], dark[k], told[k], young[k])
			}
			for _, n := range []int64{l.Healthy.Treated, l.Healthy.Control, l.Soft, l.Came.Control, l.Share, l.Sham} {
				if n < 0 || l.Share > patch.Everyone || l.Sham > patch.Everyone {
					t.Fatalf("%s tier %d: %s", u.Name, j, dump(l))
				}
			}
		}
		if u.Lived.Treated < 0 || u.Lived.Control < 0 {
			t.Fatalf("%s: %s", u.Name, dump(u))
		}
	}
	for b, p := range risk {
		if r.s.Batches[b] == nil {
			t.Fatalf("batch %d has trials and is gone", b)
		}
		if r.s.Batches[b].AtRisk != p {
			t.Fatalf("batch %d: at risk %+v, trials say %+v", b, r.s.Batches[b].AtRisk, p)
		}
	}
	for b, have := range r.s.Batches {
		if !have.Current && have.AtRisk == (Pair{}) {
			t.Fatalf("batch %d is over and kept", b)
		}
	}
}
