package rollout

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestManySilentAtOnceHalt(t *testing.T) {
	noTrip := func(p *Params) { p.Halt.TripControls = 0 }
	tests := map[string]struct {
		silent, silentControls int
		want                   Reason
	}{
		"five of twenty":                       {5, 0, TestCSilence},
		"five of twenty, and controls as well": {5, 10, ""},
		"four of twenty":                       {4, 0, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, noTrip)
			b.step(population("k", "stable", 10_000))
			treated := b.of(20, Treated, "k", "stable")
			b.step(treated...)
			controls := b.of(80, Control, "k", "stable")
			b.step(controls...)
			b.wait(time.Minute)
			b.step(again(Alive, slices.Concat(treated[tc.silent:], controls[tc.silentControls:]))...)
			b.wait(time.Minute)
			if got := b.r.s.Units[0].Halted; got != tc.want {
				t.Errorf("halted by %q, want %q: %s", got, tc.want, dump(b.made))
			}
		})
	}
}

func TestSameOopsHalts(t *testing.T) {
	oops := func(e Event, signature, account string) Event {
		return Event{Kind: Failed, Failure: Oops, Signature: signature, Machine: e.Machine, Cell: e.Cell, Tier: e.Tier, Account: account}
	}
	tests := map[string]struct {
		report func([]Event) []Event
		want   Reason
	}{
		"two machines": {func(ms []Event) []Event {
			return []Event{oops(ms[0], "s", "x"), oops(ms[1], "s", "y")}
		}, TestCOops},
		"one machine twice": {func(ms []Event) []Event {
			return []Event{oops(ms[0], "s", "x"), oops(ms[0], "s", "x")}
		}, ""},
		"two machines, two signatures": {func(ms []Event) []Event {
			return []Event{oops(ms[0], "s", "x"), oops(ms[1], "r", "y")}
		}, ""},
		"two machines of one account that is not alone": {func([]Event) []Event {
			a, b := Event{Machine: id(900_001), Cell: "k", Tier: "stable"}, Event{Machine: id(900_002), Cell: "k", Tier: "stable"}
			return []Event{oops(a, "s", "liar"), oops(b, "s", "liar")}
		}, ""},
		"two machines that are no longer watched": {func([]Event) []Event {
			a, b := Event{Machine: id(900_001), Cell: "k", Tier: "stable"}, Event{Machine: id(900_002), Cell: "k", Tier: "stable"}
			return []Event{oops(a, "s", "x"), oops(b, "s", "y")}
		}, TestCOops},
		"two newcomers": {func(ms []Event) []Event {
			a, b := oops(ms[0], "s", "x"), oops(ms[1], "s", "y")
			a.Newcomer, b.Newcomer = true, true
			return []Event{a, b}
		}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			b.step(population("k", "stable", 10_000))
			treated := b.of(2, Treated, "k", "stable")
			b.step(treated...)
			b.now = b.now.Add(time.Second)
			b.step(tc.report(treated)...)
			if got := b.r.s.Units[0].Halted; got != tc.want {
				t.Errorf("halted by %q, want %q", got, tc.want)
			}
		})
	}
}

// Where all machines are one account's, its two machines are enough.
func TestSameOopsHaltsInAPrivateFleet(t *testing.T) {
	b := newBed(t, nil)
	b.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 10_000, Accounts: 1})
	treated := b.of(2, Treated, "k", "stable")
	for i := range treated {
		treated[i].Account = "the only one"
	}
	b.step(treated...)
	reports := failures(Oops, treated)
	b.now = b.now.Add(time.Second)
	b.step(reports...)
	b.want("k", Halt, TestCOops)
}

// A liar sends oopses that no other machine confirms; a true one is still found.
func TestManySignaturesOfOneAccountHideNone(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	for i := range 100 {
		b.step(Event{Kind: Failed, Failure: Oops, Signature: fmt.Sprint(i), Machine: id(900_000 + i), Cell: "k", Tier: "stable", Account: "liar"})
	}
	if n := len(b.r.s.Units[0].Signatures); n > maxSignatures {
		t.Errorf("%d signatures of one account are kept", n)
	}
	for _, a := range []string{"x", "y"} {
		b.step(Event{Kind: Failed, Failure: Oops, Signature: "true", Machine: id(len(a) + int(a[0])), Cell: "k", Tier: "stable", Account: a})
	}
	b.want("k", Halt, TestCOops)
}
