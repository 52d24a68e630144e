package rollout

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"livepatch/internal/patch"
)

func TestHealthyPatchReachesEverybody(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 40_000))
	var exposed []int64
	for range 10 {
		if b.r.s.Units[0].current() == nil {
			break
		}
		exposed = append(exposed, b.lane("k", "stable").Wanted)
		b.stage("k", "stable")
		b.wait(4 * time.Hour)
	}
	b.want("k", Complete, Healthy)
	if !slices.Equal(exposed[:2], []int64{30, 315}) && exposed[1] < 300 {
		t.Errorf("stages let in %v machines", exposed)
	}
	if len(exposed) < 4 {
		t.Errorf("everybody after stages of %v", exposed)
	}
}

func TestThreeEarlyDeathsHalt(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(3, Treated, "k", "stable")...)
	b.wait(119 * time.Second)
	b.want("k", Hold, PendingOutcomes)
	b.wait(time.Second)
	b.want("k", Halt, TestB)
	if b.r.Room("k", "stable") != 0 || b.r.Assignment("k", "stable").Share != 0 {
		t.Error("a halted kernel still lets machines in")
	}
}

// Five of thirty die at the first reboot; controls do not.
func TestMoreFailuresThanControlsHalt(t *testing.T) {
	b := newBed(t, func(p *Params) { p.Halt.TripControls = 0 })
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	b.step(controls...)
	b.wait(time.Minute)
	b.step(again(Alive, slices.Concat(treated, controls))...)
	for i := range 30 {
		b.now = b.now.Add(time.Second)
		b.step(failures(UncleanReboot, treated[i:i+1])...)
		if b.r.s.Units[0].Halted != "" {
			if d := b.last("k"); d.Verdict.Reason != TestA || i+1 > 9 {
				t.Errorf("halted after %d failures: %s", i+1, dump(d))
			}
			return
		}
	}
	t.Error("not halted")
}

// The same failures in both arms are no evidence.
func TestNightIsNoEvidence(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	b.step(controls...)
	b.wait(time.Minute)
	b.step(again(Alive, slices.Concat(treated, controls))...)
	b.wait(4 * time.Minute)
	b.step(again(Alive, slices.Concat(treated[:15], controls[:60]))...) // the others are off
	b.wait(10 * time.Minute)
	b.step(again(Alive, slices.Concat(treated[:15], controls[:60]))...)
	b.wait(20 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != "" || u.Failed != (Pair{15, 60}) {
		t.Errorf("halted: %q with failures %+v", u.Halted, u.Failed)
	}
}

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
			a, b := Event{Machine: id(900_001), Cell: "k"}, Event{Machine: id(900_002), Cell: "k"}
			return []Event{oops(a, "s", "liar"), oops(b, "s", "liar")}
		}, ""},
		"two machines that are no longer watched": {func([]Event) []Event {
			a, b := Event{Machine: id(900_001), Cell: "k"}, Event{Machine: id(900_002), Cell: "k"}
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
		b.step(Event{Kind: Failed, Failure: Oops, Signature: fmt.Sprint(i), Machine: id(900_000 + i), Cell: "k", Account: "liar"})
	}
	if n := len(b.r.s.Units[0].Signatures); n > maxSignatures {
		t.Errorf("%d signatures of one account are kept", n)
	}
	for _, a := range []string{"x", "y"} {
		b.step(Event{Kind: Failed, Failure: Oops, Signature: "true", Machine: id(len(a) + int(a[0])), Cell: "k", Account: a})
	}
	b.want("k", Halt, TestCOops)
}

func TestHaltIsAbsorbingUntilTwoPeopleResume(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	b.step(b.of(3, Treated, "k", "stable")...)
	b.wait(2 * time.Minute)
	b.want("k", Halt, TestB)
	made := len(b.made)
	b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}}, Event{Kind: Released, Unit: "k", By: []string{"ann"}})
	b.wait(30 * time.Hour)
	if len(b.made) != made || b.r.s.Units[0].Halted != TestB {
		t.Fatalf("decisions about a halted unit: %s", dump(b.made[made:]))
	}
	for _, by := range [][]string{nil, {"ann"}, {"ann", "ann"}, {"ann", ""}} {
		if _, err := b.r.Step(b.now, []Event{{Kind: Resumed, Unit: "k", By: by}}); !errors.Is(err, errEvent) {
			t.Errorf("resumed by %q: %v", by, err)
		}
	}
	b.step(Event{Kind: Resumed, Unit: "k", By: []string{"ann", "bob"}})
	if b.r.s.Units[0].Halted != "" || b.r.Assignment("k", "stable").Share == 0 {
		t.Error("not resumed")
	}
	b.want("k", Hold, PendingOutcomes)
}

func TestUnitsWaitForTheFirstStageOfOne(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("big", "stable", 10_000), population("bigger", "stable", 20_000))
	b.want("bigger", Hold, PendingOutcomes)
	b.want("big", Hold, WaitsForLead)
	b.stage("bigger", "stable")
	b.want("big", Hold, PendingOutcomes)
	if b.r.Assignment("big", "stable").Share == 0 {
		t.Error("the second unit has not begun")
	}
}

func TestSmallKernelsComeLastAndTogether(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("big", "stable", 200), population("s1", "stable", 40), population("s2", "stable", 60),
		Event{Kind: Population, Cell: "other", Source: "src2", Tier: "stable", Machines: 20, Accounts: 20})
	b.stage("big", "stable")
	if l := b.lane("other", "stable"); l.Stage == 0 {
		t.Error("small kernels of another source wait for these siblings")
	}
	for range 8 {
		if u := b.r.unit("big"); u.Tier == len(u.Lanes) {
			break
		}
		if d := b.last("small/src"); d.Verdict.Action != Hold {
			t.Fatalf("small kernels did not wait: %s", dump(d))
		}
		b.stage("big", "stable")
		b.wait(4 * time.Hour)
	}
	b.want("big", Complete, Healthy)
	if l := b.lane("s1", "stable"); l.Stage != 1 {
		t.Errorf("small kernels are at stage %d", l.Stage)
	}
	if d := b.last("small/src"); !slices.Equal(d.Cells, []string{"s1", "s2"}) || d.Evidence.Machines != 100 {
		t.Errorf("small unit is %v with %d machines", d.Cells, d.Evidence.Machines)
	}
	if d := b.last("small/src"); d.Evidence.Treated.Of == 0 {
		t.Error("what the siblings have shown does not count")
	}
	if d := b.last("small/src2"); d.Verdict.Reason == WaitsForSiblings {
		t.Error("small kernels of another source wait")
	}
}

func TestSiblingsOfAHaltedUnitWaitForAPerson(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("a", "stable", 30_000), population("b", "stable", 20_000), population("c", "stable", 10_000))
	b.stage("a", "stable")
	halt := func(cell string) {
		b.step(b.of(3, Treated, cell, "stable")...)
		b.wait(2 * time.Minute)
	}
	b.r.s.Sources["src"].Controls = 0 // as if none had matured
	halt("b")
	b.want("b", Halt, TestB)
	b.want("a", Hold, SiblingHalted)
	b.want("c", Hold, SiblingHalted)
	b.step(Event{Kind: Released, Unit: "c", By: []string{"ann"}})
	b.want("c", Hold, PendingOutcomes)
	halt("c")
	b.want("c", Halt, TestB)
	b.want("a", Halt, TestSiblings)
}

func TestTiersAreEnteredInOrder(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "beta"}, Tier{Name: "stable"})
	b.step(population("k", "edge", 100), population("k", "beta", 100), population("k", "stable", 1000))
	for range 6 {
		if b.r.s.Units[0].Tier > 0 {
			break
		}
		b.stage("k", "edge")
		b.wait(4 * time.Hour)
	}
	if b.r.Assignment("k", "beta").Share == 0 || b.r.Assignment("k", "stable").Share != 0 || b.r.Assignment("k", "edge").Share != patch.Everyone {
		t.Fatalf("edge is through and the stages are %s", dump(b.r.Stages()))
	}
	for range 6 {
		if d := b.last("k"); d.Verdict.Reason == NeedsPerson {
			break
		}
		b.stage("k", "beta")
		b.wait(4 * time.Hour)
	}
	b.want("k", Hold, NeedsPerson)
	b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}})
	if b.r.Assignment("k", "stable").Share == 0 {
		t.Error("a person promoted it, and nothing happened")
	}
}

func TestAPersonOverridesThePaceAndNoHalt(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "edge"}, Tier{Name: "stable"})
	b.step(population("k", "edge", 1000), population("k", "stable", 1000))
	b.step(Event{Kind: Promoted, Unit: "k", By: []string{"ann"}})
	if b.r.s.Units[0].Tier != 1 || b.r.Assignment("k", "edge").Share != patch.Everyone {
		t.Fatalf("not promoted: %s", dump(b.r.Stages()))
	}
	b.step(b.of(3, Treated, "k", "stable")...)
	b.wait(2 * time.Minute)
	b.want("k", Halt, TestB)
}

func TestRampsAreObeyed(t *testing.T) {
	b := newBed(t, nil, Tier{Name: "late", Ramp: []int64{50_000, 250_000}})
	b.step(population("k", "late", 10_000))
	var shares []int64
	for range 10 {
		if b.r.s.Units[0].current() == nil {
			break
		}
		shares = append(shares, b.r.Assignment("k", "late").Share)
		b.stage("k", "late")
		b.wait(4 * time.Hour)
	}
	for _, want := range []int64{50_000, 250_000} {
		if !slices.Contains(shares, want) {
			t.Errorf("stages were %v, want one to stop at %d", shares, want)
		}
	}
}

// A fast fleet must not have all of it before the first deadline.
func TestExposureIsBounded(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 100_000))
	for want := int64(5); want > 0; want-- {
		if got := b.r.Room("k", "stable"); got != want {
			t.Fatalf("room for %d machines in the dark, want %d", got, want)
		}
		e := b.of(1, Treated, "k", "stable")
		if want%2 == 0 {
			e[0].Kind = Offered // promised room is taken
		}
		b.step(e...)
	}
	if got := b.r.Room("k", "stable"); got != 0 {
		t.Errorf("room for %d more", got)
	}
	b.wait(10 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != TestB {
		t.Errorf("halted by %q", u.Halted)
	}
}

func TestAnOfferThatIsNotTakenIsNoFailure(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 100_000))
	e := b.of(3, Treated, "k", "stable")
	for i := range e {
		e[i].Kind = Offered
	}
	b.step(e...)
	b.wait(11 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != "" || u.Failed != (Pair{}) || len(b.r.trials) != 0 {
		t.Errorf("halted %q, failures %+v, %d trials", u.Halted, u.Failed, len(b.r.trials))
	}
	if got := b.r.Room("k", "stable"); got != 5 {
		t.Errorf("room for %d, want that of the offers back", got)
	}
}

// While the server is down nobody can report to it.
func TestSilenceOfTheServerIsNobodysFailure(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(5, Treated, "k", "stable")
	b.step(treated...)
	b.now = b.now.Add(3 * time.Hour)
	b.step()
	b.wait(5 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != "" || u.Failed != (Pair{}) {
		t.Fatalf("halted %q, failures %+v", u.Halted, u.Failed)
	}
	b.step(again(Alive, treated)...)
	b.wait(20 * time.Minute)
	if l := b.lane("k", "stable"); l.Healthy.Treated != 2 && l.Healthy.Treated != 5 || l.Failed.Treated != 0 {
		t.Errorf("matured %+v, failed %+v", l.Healthy, l.Failed)
	}
	b.step(again(Left, treated)...)
	// But who stays away longer than the patience lasts has failed.
	more := b.of(3, Treated, "k", "stable")
	b.step(more...)
	b.now = b.now.Add(3 * time.Hour)
	b.step()
	b.wait(16 * time.Minute)
	if u := b.r.s.Units[0]; u.Failed.Treated != 3 {
		t.Errorf("failures %+v, want 3", u.Failed)
	}
}

func TestSoftFailuresHold(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	b.step(again(Soft, treated[:12])...)
	b.want("k", Hold, SoftFailures)
	if b.r.s.Units[0].Failed != (Pair{}) {
		t.Error("a soft failure counts as a failure")
	}
}

func TestDelayedDeathsAreSeenUnderWatch(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 10_000))
	treated := b.of(30, Treated, "k", "stable")
	b.step(treated...)
	controls := b.of(120, Control, "k", "stable")
	b.step(controls...)
	all := slices.Concat(treated, controls)
	b.live(all)
	if l := b.lane("k", "stable"); l.Stage != 2 || l.Healthy != (Pair{30, 120}) {
		t.Fatalf("stage %d with %+v healthy", l.Stage, l.Healthy)
	}
	b.wait(time.Hour)
	b.step(again(Alive, controls)...) // the treated have died
	b.wait(46 * time.Minute)
	if u := b.r.s.Units[0]; u.Halted != TestA {
		t.Errorf("halted by %q: %s", u.Halted, dump(b.r.evidence(u)))
	}
}

func TestRefusesMalformedEvents(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 1000))
	m := id(1)
	long := string(make([]byte, maxName+1))
	tests := map[string]Event{
		"no kind":                        {},
		"unknown kind":                   {Kind: "exploded"},
		"intent of no machine":           {Kind: Intent, Cell: "k", Tier: "stable"},
		"intent of no cell":              {Kind: Intent, Machine: m, Tier: "stable"},
		"intent of an unknown tier":      {Kind: Intent, Machine: m, Cell: "k", Tier: "gold"},
		"sham of an unknown tier":        {Kind: Sham, Machine: m, Cell: "k"},
		"sign of life of no machine":     {Kind: Alive},
		"failure of an unknown kind":     {Kind: Failed, Machine: m, Failure: "sad"},
		"failure of no machine":          {Kind: Failed, Failure: Oops},
		"signature that is too long":     {Kind: Failed, Machine: m, Failure: Oops, Signature: long},
		"account that is too long":       {Kind: Intent, Machine: m, Cell: "k", Tier: "stable", Account: long},
		"population of no cell":          {Kind: Population, Source: "src", Tier: "stable"},
		"population of no source":        {Kind: Population, Cell: "k", Tier: "stable"},
		"population of another source":   {Kind: Population, Cell: "k", Source: "src2", Tier: "stable"},
		"fewer than no machines":         {Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: -1},
		"more accounts than machines":    {Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 1, Accounts: 2},
		"promotion of an unknown unit":   {Kind: Promoted, Unit: "q", By: []string{"ann"}},
		"promotion by nobody":            {Kind: Promoted, Unit: "k"},
		"release by a very long person":  {Kind: Released, Unit: "k", By: []string{long}},
		"resume by one person":           {Kind: Resumed, Unit: "k", By: []string{"ann"}},
		"population of very many":        {Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: maxMachines + 1},
		"population of a tier we lack":   {Kind: Population, Cell: "k", Source: "src", Tier: "gold"},
		"offer of an unknown tier":       {Kind: Offered, Machine: m, Cell: "k"},
		"departure of no machine":        {Kind: Left},
		"soft failure of no machine":     {Kind: Soft},
		"failure that was only silence":  {Kind: Failed, Machine: m, Failure: "silent"},
		"resume of an unknown unit":      {Kind: Resumed, Unit: "", By: []string{"ann", "bob"}},
		"release of an unknown unit":     {Kind: Released, Unit: "small", By: []string{"ann"}},
		"a tier with a very long name":   {Kind: Intent, Machine: m, Cell: "k", Tier: long},
		"a cell with a very long name":   {Kind: Intent, Machine: m, Cell: long, Tier: "stable"},
		"a source with a very long name": {Kind: Population, Cell: "k", Source: long, Tier: "stable"},
	}
	for name, e := range tests {
		t.Run(name, func(t *testing.T) {
			before := dump(b.r.State())
			good := b.of(1, Treated, "k", "stable")[0]
			if _, err := b.r.Step(b.now.Add(time.Hour), []Event{good, e}); !errors.Is(err, errEvent) {
				t.Errorf("Step = %v, want a refusal", err)
			}
			if after := dump(b.r.State()); after != before {
				t.Errorf("a refused batch had an effect:\n%s\n%s", before, after)
			}
		})
	}
}

func TestRefusesThePast(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 1000))
	if _, err := b.r.Step(b.now.Add(-time.Second), nil); !errors.Is(err, ErrPast) {
		t.Errorf("Step = %v, want ErrPast", err)
	}
}

func TestNewRefusesImpossibleConstants(t *testing.T) {
	tier := []Tier{{Name: "stable"}}
	tests := map[string]struct {
		tune  func(*Params)
		tiers []Tier
	}{
		"no tiers":                      {nil, nil},
		"a tier twice":                  {nil, []Tier{{Name: "a"}, {Name: "a"}}},
		"a tier without a name":         {nil, []Tier{{}}},
		"a ramp that falls":             {nil, []Tier{{Name: "a", Ramp: []int64{2, 1}}}},
		"a ramp above everybody":        {nil, []Tier{{Name: "a", Ramp: []int64{1_000_001}}}},
		"alpha of nothing":              {func(p *Params) { p.Halt.Alpha = 0 }, tier},
		"alpha of everything":           {func(p *Params) { p.Halt.Alpha = 1 }, tier},
		"a risk that spares":            {func(p *Params) { p.Halt.Risks[2] = 1 }, tier},
		"no units":                      {func(p *Params) { p.Halt.Units = 0 }, tier},
		"heartbeats that fall":          {func(p *Params) { p.Time.Heartbeats = []time.Duration{2e9, 1e9} }, tier},
		"no heartbeats":                 {func(p *Params) { p.Time.Heartbeats = nil }, tier},
		"parts of seconds":              {func(p *Params) { p.Time.Grace = 1500 * time.Millisecond }, tier},
		"a watch shorter than the soak": {func(p *Params) { p.Time.Watch = time.Minute }, tier},
		"an account share of nothing":   {func(p *Params) { p.Pace.AccountShare = 0 }, tier},
		"grace of twice the time":       {func(p *Params) { p.Time.GraceShare = 2 }, tier},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := Defaults()
			if tc.tune != nil {
				tc.tune(&p)
			}
			if _, err := New(p, "salt", tc.tiers); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// What the shares of alpha add up to, however many units come, stays below it.
func TestSharesOfAlphaAddUpToLess(t *testing.T) {
	h := Defaults().Halt
	sum := 0.0
	for i := range 10_000 {
		sum += h.alpha(i)
	}
	if sum > h.Alpha*(1+1e-12) || sum < 0.99*h.Alpha {
		t.Errorf("shares add up to %v of %v", sum, h.Alpha)
	}
}
