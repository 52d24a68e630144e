package rollout

import (
	"fmt"
	"testing"
	"time"

	"livepatch/internal/patch"
)

func TestACompleteRolloutIsStillHalted(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.pass(70 * time.Minute)
	h.want("small/src", Complete, NoMachines)
	made := len(h.made)
	h.enrol("stable", 1)
	h.pass(2 * time.Minute)
	if len(h.made) != made {
		t.Errorf("decisions about a complete rollout: %s", dump(h.made[made:]))
	}
	h.step(Event{Kind: Failed, Failure: OpenJournal, Machine: id(1)})
	h.want("small/src", Halt, TestDCrash)
	if h.enrol("stable", 2) || h.r.Assignment("k", "stable").Share != 0 {
		t.Error("a machine has it after the halt")
	}
	h.step(Event{Kind: Resumed, Unit: "small/src", By: []string{"ann", "bob"}})
	if h.r.Assignment("k", "stable").Share != patch.Everyone {
		t.Error("not resumed")
	}
}

func TestACrashHaltsASmallUnit(t *testing.T) {
	const none = Failure("")
	tests := map[string]struct {
		lives   time.Duration // with signs of life
		silence time.Duration // until the report
		failure Failure
		want    Reason
	}{
		"on trial, within a minute":                {0, 90 * time.Second, OpenJournal, TestDCrash},
		"on trial, reported after it was missed":   {0, 20 * time.Minute, OpenJournal, TestDCrash},
		"on trial, reported after the week-end":    {0, 60 * time.Hour, OpenJournal, TestDCrash},
		"on trial, reported after a month":         {0, 31 * 24 * time.Hour, OpenJournal, ""},
		"on trial, in the third minute":            {time.Minute, 2 * time.Minute, OpenJournal, TestDCrash},
		"on trial, after the fifth minute":         {5 * time.Minute, 2 * time.Minute, OpenJournal, ""},
		"unclean, but not on trial":                {0, 90 * time.Second, UncleanReboot, ""},
		"an oops that names the module":            {0, 30 * time.Second, Oops, TestDCrash},
		"an oops after two hours":                  {2 * time.Hour, time.Minute, Oops, TestDCrash},
		"an oops when it is no longer under watch": {6 * time.Hour, 48 * time.Hour, Oops, TestDCrash},
		"silence": {0, 30 * time.Minute, none, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.enrol("stable", 0)
			h.pass(tc.lives)
			h.beats[0] = false
			h.wait(tc.silence)
			e := Event{Kind: Failed, Failure: tc.failure, Machine: id(0), Cell: "k", Tier: "stable", Account: "home", Newcomer: true}
			if tc.failure != none {
				h.step(Event{Kind: Alive, Machine: id(0)}, e) // it checks in, and says so
			}
			if got := h.r.s.Units[0].Halted; got != tc.want {
				t.Errorf("halted by %q, want %q", got, tc.want)
			}
		})
	}
}

// In a unit of several accounts one of them cannot halt by itself.
func TestCrashesOfOneAccountDoNotHaltOthers(t *testing.T) {
	tests := map[string]struct {
		accounts []string // of machines that crash
		want     Reason
	}{
		"one":                 {[]string{"a"}, ""},
		"two of one account":  {[]string{"a", "a"}, ""},
		"two of two accounts": {[]string{"a", "b"}, TestDCrash},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 10, Accounts: 3})
			for i, account := range tc.accounts {
				h.step(Event{Kind: Intent, Machine: id(i), Cell: "k", Tier: "stable", Account: account})
				h.now = h.now.Add(time.Second)
				h.step(Event{Kind: Failed, Failure: OpenJournal, Machine: id(i)})
			}
			if got := h.r.s.Units[0].Halted; got != tc.want {
				t.Errorf("halted by %q, want %q", got, tc.want)
			}
		})
	}
}

// A machine that says twice that it crashed is one.
func TestAMachineCrashesOnce(t *testing.T) {
	h := newHome(t)
	h.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 10, Accounts: 3})
	oops := Event{Kind: Failed, Failure: Oops, Machine: id(0), Cell: "k", Tier: "stable", Account: "a", Signature: "s"}
	for range 3 {
		h.step(Event{Kind: Intent, Machine: id(0), Cell: "k", Tier: "stable", Account: "a"})
		h.now = h.now.Add(time.Second)
		h.step(oops)
		oops.Signature += "s"
	}
	if u := h.r.s.Units[0]; u.Halted != "" || len(u.Crashed) != 1 {
		t.Errorf("halted by %q on %v", u.Halted, u.Crashed)
	}
}

// Large units have enough machines to be judged by the other tests, which bound how often
// they halt a patch that is healthy.
func TestACrashDoesNotHaltALargeUnit(t *testing.T) {
	b := newBed(t, nil)
	b.step(Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 150, Accounts: 1})
	ms := b.of(2, Treated, "k", "stable")
	b.step(ms...)
	b.step(failures(OpenJournal, ms)...)
	if u := b.r.s.Units[0]; u.Halted != "" || kept(b.r, missed) != 0 {
		t.Errorf("halted by %q, %d trials are kept", u.Halted, kept(b.r, missed))
	}
}

// A machine that was missed, and is let in once more, has a trial like any other.
func TestWhoWasMissedMayBeginAgain(t *testing.T) {
	for _, kind := range []Kind{Offered, Intent} {
		t.Run(string(kind), func(t *testing.T) {
			h := newHome(t)
			h.enrol("stable", 0)
			h.beats[0] = false
			h.wait(3 * time.Minute)
			l := h.lane("k", "stable")
			if l.Failed.Treated != 1 || len(h.r.trials) != 1 || h.r.Live() {
				t.Fatalf("failures %+v, %d trials, live: %v", l.Failed, len(h.r.trials), h.r.Live())
			}
			h.step(Event{Kind: kind, Machine: id(0), Cell: "k", Tier: "stable", Account: "home"})
			if l.Pending+l.Offered != 1 || !h.r.Live() {
				t.Errorf("pending %d, offered %d", l.Pending, l.Offered)
			}
		})
	}
}

// A machine that was missed has had its outcome, whatever it says, apart from a crash.
func TestWhoWasMissedCountsOnce(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.beats[0] = false
	h.wait(20 * time.Minute)
	counts := func() string {
		u, l := h.r.s.Units[0], h.lane("k", "stable")
		return fmt.Sprint(u.Failed, u.Dead, u.Lived, l.Exposed, l.Pending, l.Dark, l.Young, l.Failed, l.Healthy, l.Left, l.Soft)
	}
	before := counts()
	for _, e := range []Event{
		{Kind: Alive, Machine: id(0)}, {Kind: Failed, Failure: UncleanReboot, Machine: id(0)}, {Kind: Left, Machine: id(0)}, {Kind: Soft, Machine: id(0)},
	} {
		h.now = h.now.Add(time.Minute)
		if h.step(e); counts() != before {
			t.Errorf("%s of it: %s, was %s", e.Kind, counts(), before)
		}
		if _, watched := h.r.Watched(id(0)); watched || h.r.Live() {
			t.Errorf("it is watched after %s", e.Kind)
		}
		before = counts()
	}
}

func TestAWeekAfterItWasMissedAMachineIsForgotten(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.beats[0] = false
	h.wait(15 * time.Minute)
	h.wait(7*24*time.Hour - time.Minute)
	if len(h.r.trials) != 1 {
		t.Errorf("%d trials before a week has passed", len(h.r.trials))
	}
	h.wait(2 * time.Minute)
	if len(h.r.trials) != 0 {
		t.Errorf("%d trials after a week", len(h.r.trials))
	}
}

// Nobody is under watch, and so the rule was given no Step for a month.
func TestACrashOfAMonthAgoIsForgottenInADormantRollout(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.beats[0] = false
	h.wait(20 * time.Minute)
	h.now = h.now.Add(31 * 24 * time.Hour)
	h.step(Event{Kind: Failed, Failure: OpenJournal, Machine: id(0)})
	if u := h.r.s.Units[0]; u.Halted != "" || len(h.r.trials) != 0 {
		t.Errorf("halted by %q, %d trials", u.Halted, len(h.r.trials))
	}
}

// The report may come long after others that were no report of a crash.
func TestACrashIsUnderstoodLate(t *testing.T) {
	tests := map[string][]Event{ // minute by minute from the fourth on
		"a sign of life, and silence":       {{Kind: Alive}, {}, {}, {}, {}},
		"an unclean boot, and no more":      {{}, {Kind: Failed, Failure: UncleanReboot}, {}, {}},
		"an unclean boot and signs of life": {{Kind: Failed, Failure: UncleanReboot}, {Kind: Alive}},
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.enrol("stable", 0)
			h.beats[0] = false
			h.wait(3 * time.Minute)
			for _, e := range before {
				h.wait(time.Minute)
				if e.Machine = id(0); e.Kind != "" {
					h.step(e)
				}
			}
			h.wait(48 * time.Hour)
			h.want("small/src", Complete, NoMachines)
			h.step(Event{Kind: Failed, Failure: OpenJournal, Machine: id(0)})
			h.want("small/src", Halt, TestDCrash)
		})
	}
}

// An unclean boot of a machine that was not missed yet.
func TestABootIsUnderstoodLate(t *testing.T) {
	h := newHome(t)
	h.enrol("stable", 0)
	h.wait(time.Minute)
	h.step(Event{Kind: Failed, Failure: UncleanReboot, Machine: id(0)})
	h.wait(time.Minute)
	if u := h.r.s.Units[0]; u.Halted != "" {
		t.Fatalf("halted by %q", u.Halted)
	}
	h.step(Event{Kind: Failed, Failure: OpenJournal, Machine: id(0)})
	h.want("small/src", Halt, TestDCrash)
}

// kept counts the trials with a flag.
func kept(r *Rollout, f flags) (n int) {
	for _, t := range r.trials {
		if t.is(f) {
			n++
		}
	}
	return n
}

// What is kept of machines that were missed is what test D may ask.
func TestOnlyTreatedMachinesOfSmallUnitsAreRemembered(t *testing.T) {
	for machines, want := range map[int64]int{149: 1, 150: 0} {
		b := newBed(t, nil)
		b.step(population("k", "stable", machines))
		b.step(b.of(1, Treated, "k", "stable")...)
		b.step(b.of(1, Control, "k", "stable")...)
		b.wait(3 * time.Minute)
		if n := kept(b.r, missed); n != want || b.r.s.Units[0].Failed != (Pair{1, 1}) {
			t.Errorf("of %d machines %d trials are kept, want %d", machines, n, want)
		}
	}
}

// While nobody knows why the first machine is silent, no other follows it at once.
func TestASilentMachineHoldsTheNextBack(t *testing.T) {
	tests := map[string]struct {
		event Event // two minutes after it was missed
		want  int   // minutes after which the next may begin
	}{
		"until a quarter of an hour has passed": {Event{Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 2, Accounts: 1}, 15},
		"until it is back":                      {Event{Kind: Alive, Machine: id(0)}, 4},
		"until it says that it left":            {Event{Kind: Left, Machine: id(0)}, 4},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.enrol("stable", 0)
			h.beats[0] = false
			for minute := range 20 {
				if minute == 4 {
					h.step(tc.event)
				}
				if h.enrol("stable", 1) {
					if minute != tc.want {
						t.Errorf("the next began after %d minutes, want %d", minute, tc.want)
					}
					return
				}
				h.wait(time.Minute)
			}
			t.Error("the next never began")
		})
	}
}
