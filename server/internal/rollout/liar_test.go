package rollout

import (
	"fmt"
	"testing"
	"time"
)

// owns is a population that is known to be one account's.
func owns(cell, tier string, machines int64, account string) Event {
	return Event{Kind: Population, Cell: cell, Source: "src", Tier: tier, Machines: machines, Accounts: 1, Account: account}
}

// oopses are reports of machines that need not be there.
func oopses(n int, cell, tier, account string) (events []Event) {
	for i := range n {
		events = append(events, Event{
			Kind: Failed, Failure: Oops, Signature: "s", Machine: id(5_000_000 + 100*len(account) + 10*int(cell[len(cell)-1]) + i),
			Cell: cell, Tier: tier, Account: account, Newcomer: true,
		})
	}
	return events
}

// ofAccount is [bed.of] for machines of one account.
func (b *bed) ofAccount(n int, arm Arm, cell, account string) []Event {
	b.t.Helper()
	ms := b.of(n, arm, cell, "stable")
	for i := range ms {
		ms[i].Account = account
	}
	return ms
}

// A patch is halted for the kernel of who says that it crashes, and for no other.
func TestOneAccountHaltsOnlyTheKernelsThatNobodyElseRuns(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000), owns("x1", "stable", 150, "liar"), owns("x2", "stable", 150, "liar"), owns("y", "stable", 10, "liar"))
	b.stage("k", "stable")
	b.wait(time.Minute)
	b.step(append(oopses(2, "x1", "stable", "liar"), oopses(2, "x2", "stable", "liar")...)...)
	for _, x := range []string{"x1", "x2"} {
		b.want(x, Halt, TestCOops)
	}
	b.wait(4 * time.Hour) // the rest of the stage is not waited for any more
	b.stage("k", "stable")
	if u := b.r.unit("k"); u.Halted != "" || u.Lanes[0].Stage < 3 || u.Last.Reason == SiblingHalted {
		t.Errorf("halted by %q in stage %d, %s", u.Halted, u.Lanes[0].Stage, u.Last.Reason)
	}
	if u := b.r.unit("small/src"); u.Halted != "" || u.Last.Reason == SiblingHalted {
		t.Errorf("small kernels: halted by %q, %s", u.Halted, u.Last.Reason)
	}
}

// Where two accounts share a kernel each has half of its evidence, and may halt it.
func TestAKernelOfTwoAccountsStopsNoOther(t *testing.T) {
	for accounts, want := range map[int64]Reason{2: PendingOutcomes, 3: SiblingHalted} {
		b := newBed(t, nil)
		b.step(population("k", "stable", 10_000), Event{Kind: Population, Cell: "x", Source: "src", Tier: "stable", Machines: 150, Accounts: accounts})
		b.stage("k", "stable")
		b.wait(time.Minute)
		reports := append(oopses(1, "x", "stable", "liar"), oopses(1, "x", "stable", "puppet")...)
		for i := range reports {
			reports[i].Newcomer = false
		}
		b.step(reports...)
		b.want("x", Halt, TestCOops)
		if got := b.r.unit("k").Last.Reason; got != want {
			t.Errorf("a kernel of %d accounts is halted, and another one holds for %s, want %s", accounts, got, want)
		}
	}
}

// Where there is one account in all, its kernels are siblings like any other.
func TestTheKernelsOfTheOnlyAccountStopEachOther(t *testing.T) {
	b := newBed(t, nil)
	b.step(owns("x1", "stable", 200, "home"), owns("x2", "stable", 150, "home"), owns("x3", "stable", 150, "home"))
	b.stage("x1", "stable")
	b.wait(time.Minute)
	b.step(oopses(2, "x1", "stable", "home")...)
	b.want("x3", Hold, SiblingHalted)
	b.step(oopses(2, "x2", "stable", "home")...)
	b.want("x3", Halt, TestSiblings)
}

// Failures on a kernel of its own are one account's share of what all kernels show.
func TestOneAccountDoesNotHaltAllKernelsByTestA(t *testing.T) {
	b := newBed(t, nil)
	b.step(owns("x", "stable", 20_000, "liar"), population("k", "stable", 10_000))
	b.stage("k", "stable")
	b.wait(time.Minute)
	treated := b.ofAccount(30, Treated, "x", "liar")
	b.step(treated...)
	b.step(b.ofAccount(120, Control, "x", "liar")...)
	for i := range treated {
		b.now = b.now.Add(time.Second)
		b.step(failures(UncleanReboot, treated[i:i+1])...)
	}
	if u := b.r.unit("x"); u.Halted == "" {
		t.Error("its own kernel is not halted")
	}
	if u := b.r.unit("k"); u.Halted != "" || u.Last.Reason == SiblingHalted {
		t.Errorf("the kernel of others: halted by %q, %s", u.Halted, u.Last.Reason)
	}
	if src := b.r.s.Sources["src"]; src.Failed != 1 {
		t.Errorf("%d of its failures count for the source, want 1", src.Failed)
	}
}

// Test B is asked until the source has controls, and they are not one account's.
func TestControlsOfOneAccountDoNotEndTestB(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Halt.TripControls = 150 })
	b.step(population("k", "stable", 10_000), owns("x", "stable", 20_000, "liar"))
	b.stage("k", "stable") // with 120 controls
	b.wait(time.Minute)
	treated := b.ofAccount(15, Treated, "x", "liar")
	b.step(treated...)
	controls := b.ofAccount(60, Control, "x", "liar")
	b.step(controls...)
	b.live(append(treated, controls...))
	if got := b.r.s.Sources["src"].Controls; got < 120 || got > 130 {
		t.Errorf("%d controls", got)
	}
	b.step(b.of(6, Treated, "k", "stable")...)
	b.wait(3 * time.Minute)
	b.want("k", Halt, TestB)
}

// Small kernels that are each one account's are not one account's together.
func TestTwoAccountsThatAreAloneOnTheirKernelsAreTwo(t *testing.T) {
	tests := map[string]struct {
		second string
		want   Reason
	}{
		"two accounts": {"neighbour", ""},
		"the same one": {"liar", TestDCrash},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			b.step(owns("x1", "stable", 5, "liar"), owns("x2", "stable", 5, tc.second))
			b.step(oopses(1, "x1", "stable", "liar")...)
			if u := b.r.s.Units[0]; u.Halted != tc.want {
				t.Errorf("halted by %q, want %q", u.Halted, tc.want)
			}
			r, err := Restore(roundTrip(t, b.r.State()))
			if err != nil {
				t.Fatal(err)
			}
			if r.s.Units[0].accounts() != b.r.s.Units[0].accounts() || fmt.Sprint(r.owners) != fmt.Sprint(b.r.owners) {
				t.Errorf("after a restart %v, before %v", r.owners, b.r.owners)
			}
		})
	}
}

// Who has a token for each tier is alone, and needs no second account to be believed. With the
// sum over tiers one failure of its first tier would count, and nothing would halt it there.
func TestAFleetWithATokenForEachTierIsHaltedInTheFirst(t *testing.T) {
	for _, machines := range []int64{30, 1000} {
		b := newBed(t, nil, allTiers...)
		for _, tier := range allTiers {
			b.step(owns("k", tier.Name, machines, "token of "+tier.Name))
		}
		harmed := 0
		for range 200 {
			for range b.r.Room("k", "edge") {
				ms := b.of(1, Treated, "k", "edge")
				ms[0].Account = "token of edge"
				b.step(ms...)
				harmed++
			}
			b.wait(time.Minute)
		}
		if u := b.r.s.Units[0]; u.Halted == "" || harmed > 5 {
			t.Errorf("of %d machines %d are harmed, halted by %q", machines, harmed, u.Halted)
		}
	}
}

// A machine of a tier that the patch has not come to cannot have it.
func TestNoBlameFromATierWithoutThePatch(t *testing.T) {
	for tier, want := range map[string]Reason{"edge": TestCOops, "stable": ""} {
		b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "stable", Auto: true})
		b.step(owns("k", "edge", 500, "a"), owns("k", "stable", 5000, "b"))
		b.step(oopses(2, "k", tier, "b")...)
		if got := b.r.s.Units[0].Halted; got != want {
			t.Errorf("oopses from %s: halted by %q, want %q", tier, got, want)
		}
	}
}

// The fleet of one account does not go first, however large: others would wait for it, or
// follow it.
func TestTheLeadIsNoFleetOfOneAccount(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 5000), owns("x", "stable", 100_000, "liar"), population("tiny", "stable", 20))
	if l := b.lane("k", "stable"); l.Stage != 1 {
		t.Errorf("the kernel of others is in stage %d", l.Stage)
	}
	b.want("x", Hold, WaitsForLead)
	if got := b.r.unit("small/src").Last.Reason; got != WaitsForLead {
		t.Errorf("small kernels: %s", got)
	}
	for range 6 {
		if b.r.unit("k").current() != nil {
			b.stage("k", "stable")
			b.wait(4 * time.Hour)
		}
	}
	if b.r.Room("tiny", "stable") != 1 {
		t.Errorf("small kernels wait for those of one account: %s", b.r.unit("small/src").Last.Reason)
	}
}

// The first tier of a server may be who runs it, and the others thousands. Nothing that its one
// account says halts the patch, but when its machines die they are no reason to go on.
func TestAPatchThatKillsATierOfOneAccountGoesNoFurther(t *testing.T) {
	for _, machines := range []int64{30, 300, 1000} {
		b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "stable", Auto: true})
		b.step(owns("k", "edge", machines, "own"), population("k", "stable", 10_000))
		harmed := 0
		for range 5 * 60 {
			for range b.r.Room("k", "edge") {
				ms := b.of(1, Treated, "k", "edge")
				ms[0].Account = "own"
				b.step(ms...)
				harmed++
			}
			b.wait(time.Minute)
		}
		if u := b.r.s.Units[0]; u.Halted != "" || u.Tier != 0 || u.Last.Reason != Failing || harmed > 10 {
			t.Errorf("of %d machines %d are harmed, halted by %q, tier %d, %s", machines, harmed, u.Halted, u.Tier, u.Last.Reason)
		}
	}
}

// The healthy machines of a lone account take a patch on as before.
func TestATierOfOneAccountIsPassedWhenItIsWell(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "stable", Auto: true})
	b.step(owns("k", "edge", 30, "own"), population("k", "stable", 10_000))
	for range 6 {
		if b.r.s.Units[0].Tier > 0 {
			return
		}
		l := b.lane("k", "edge")
		treated := b.of(int(min(l.Wanted, 10)), Treated, "k", "edge")
		for i := range treated {
			treated[i].Account = "own"
		}
		b.step(treated...)
		b.live(treated)
		b.wait(4 * time.Hour)
	}
	t.Errorf("it stays in the first tier: %s", dump(b.r.s.Units[0].Last))
}

// What one account's machines show of their kernel widens that kernel, and no other.
func TestHealthyMachinesOfOneAccountLetNoOthersIn(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 5000), population("tiny", "stable", 20), owns("x", "stable", 20_000, "liar"))
	k, x, small := b.r.unit("k"), b.r.unit("x"), b.r.unit("small/src")
	all := b.r.unlit(k)
	x.Lanes[0].Healthy = Pair{10_000, 10_000}
	if got, own := b.r.unlit(k), b.r.unlit(x); got != all || own <= all {
		t.Errorf("%d others may go into the dark, before %d; of its own %d", got, all, own)
	}
	if treated, _ := b.r.known(small, 0); treated.Of != 0 {
		t.Errorf("small kernels borrow %v healthy machines", treated.Of)
	}
	k.Lanes[0].Healthy = Pair{1000, 1000}
	if treated, _ := b.r.known(small, 0); treated.Of != 100 {
		t.Errorf("small kernels borrow %v healthy machines of many accounts", treated.Of)
	}
}
