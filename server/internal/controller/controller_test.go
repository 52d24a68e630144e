package controller_test

import (
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

func TestTheFirstMachineGetsItsPatchAtOnce(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	if b.signed == 0 {
		t.Error("nothing was signed")
	}
	if !b.asks(0) {
		t.Errorf("the only machine may not begin: %+v", b.rollout().Spread)
	}
	if a := b.checkIn(0, event(service.Heartbeat, "")); len(a.Go) != 0 {
		t.Errorf("a heartbeat is answered with %+v", a)
	}
}

func TestAPatchSpreadsUntilAllHaveIt(t *testing.T) {
	const machines = 40 / thin
	b := newBed(t)
	b.enrol(machines)
	spread := b.live(machines, 3*24*time.Hour, func(int) bool { return false })
	if spread < machines {
		t.Errorf("%d of %d machines have it after three days; last verdicts: %+v", spread, machines, last(b.verdicts()))
	}
	if r := b.rollout(); r.Spread.Tiers["stable"] != patch.Everyone || len(r.Spread.Kernels) != 0 {
		t.Errorf("of a complete rollout the spread is %+v", r.Spread)
	}
}

// live lets machines check in hourly, and when they are asked to, until a time is over
// or the rollout halts, and returns how many have the patch. Those that the patch kills
// are never heard of again.
func (b *bed) live(machines int, until time.Duration, kills func(int) bool) (have int) {
	b.Helper()
	next := make([]time.Time, machines)
	patched, dead := make([]time.Time, machines), make([]bool, machines)
	for i := range next {
		next[i] = b.now.Add(time.Duration(i) * time.Hour / time.Duration(machines))
	}
	for end := b.now.Add(until); b.now.Before(end); b.round(time.Minute) {
		if len(b.rollout().Spread.States) > 0 {
			return have
		}
		signs := map[int]*store.Sign{}
		for i := range next {
			if !dead[i] && !b.now.Before(next[i]) {
				signs[i] = b.live1(i, patched[i])
			}
		}
		b.round(0)
		for i, s := range signs {
			a := b.Await(b.Context(), s)
			next[i] = b.now.Add(time.Hour)
			if a.Wait > 0 {
				next[i] = b.now.Add(time.Duration(a.Wait) * time.Second)
			}
			if len(a.Go) > 0 && patched[i].IsZero() {
				patched[i], dead[i] = b.now, kills(i)
				have++
			}
			for _, age := range rollout.Defaults().Time.Heartbeats {
				if due := patched[i].Add(age); due.After(b.now) && due.Before(next[i]) {
					next[i] = due
				}
			}
		}
	}
	return have
}

// live1 is one check-in of a machine.
func (b *bed) live1(i int, patched time.Time) *store.Sign {
	b.Helper()
	r := b.rollout().Spread
	stage := patch.Rollout{Spreads: r.Kernels, Tiers: map[string]patch.Stage{"stable": {Share: r.Tiers["stable"], Salt: "salt"}}}
	switch {
	case !patched.IsZero() && b.now.Sub(patched) < 7*time.Hour:
		return b.report(b.Controller, i, event(service.Heartbeat, ""))
	case patched.IsZero() && stage.Admits(kernel, "stable", identity(i).Machine):
		return b.report(b.Controller, i, event(service.Intent, ""))
	}
	return b.report(b.Controller, i)
}

func last(d []rollout.Decision) []rollout.Verdict {
	var v []rollout.Verdict
	for _, d := range d[max(0, len(d)-3):] {
		v = append(v, d.Verdict)
	}
	return v
}

func TestAPatchThatKillsIsHalted(t *testing.T) {
	const machines = 500
	b := newBed(t)
	b.enrol(machines)
	harmed := b.live(machines, 6*time.Hour, func(int) bool { return true })
	if harmed > 10 {
		t.Errorf("%d machines were harmed, want at most 10", harmed)
	}
	if r := b.rollout(); r.Spread.States[kernel.Cell()] != patch.Halted {
		t.Fatalf("not halted after %d machines died: %+v", harmed, r.Spread)
	}
	for i := range machines {
		if b.asks(i) {
			t.Fatalf("machine %d may begin with a halted patch", i)
		}
	}
	for _, d := range b.verdicts() {
		if !reflect.DeepEqual(d.Judge(), d.Verdict) {
			t.Errorf("verdict %d is %+v; judged again: %+v", d.Seq, d.Verdict, d.Judge())
		}
	}
}

func TestACrashOfOneOfFewMachinesHalts(t *testing.T) {
	b := newBed(t)
	b.enrol(2)
	first := 0
	if !b.asks(first) {
		first = 1
		if !b.asks(first) {
			t.Fatal("no machine may begin")
		}
	}
	b.round(40 * time.Second)
	signed := b.signed
	b.checkIn(first, service.Event{Kind: service.Booted, Reason: service.ReasonUnclean}, event(service.Crashed, service.ReasonOpenJournal))
	if r := b.rollout(); r.Spread.States[kernel.Cell()] != patch.Halted || b.signed == signed {
		t.Errorf("after the crash of one of two machines: %+v, signed %d times", r.Spread, b.signed-signed)
	}
	if b.asks(1 - first) {
		t.Error("the other machine may begin")
	}
}

func TestPeopleAreObeyed(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	for _, state := range []patch.RolloutState{patch.Halted, patch.Running} {
		b.try(b.db.Update(t.Context(), func(tx store.Tx) error {
			_, err := tx.SetRollout(t.Context(), store.Decision{Vendor: "debian", Version: "1.1", State: state, At: b.now})
			return err
		}))
		if may := b.asks(0); may != (state == patch.Running) {
			t.Errorf("people made it %s: machine may begin: %v", state, may)
		}
	}
}

func TestARequestIsAnswered(t *testing.T) {
	tests := map[string]struct {
		store.Request
		done bool
	}{
		"a tier that comes later":              {store.Request{Kind: store.RequestPromote, Version: "1.1", Tier: "late"}, true},
		"a tier that it has":                   {store.Request{Kind: store.RequestPromote, Version: "1.1", Tier: "edge"}, false},
		"a version that was never published":   {store.Request{Kind: store.RequestPromote, Version: "9.1", Tier: "stable"}, false},
		"a unit that does not exist":           {store.Request{Kind: store.RequestRelease, Version: "1.1", Unit: "nobody"}, false},
		"to resume what goes on by itself":     {store.Request{Kind: store.RequestResume, Version: "1.1", Proposal: 1}, false},
		"to release, which harms no rollout":   {store.Request{Kind: store.RequestRelease, Version: "1.1"}, true},
		"a unit and a tier that comes later":   {store.Request{Kind: store.RequestPromote, Version: "1.1", Unit: kernel.Cell(), Tier: "late"}, true},
		"a tier that is further than the next": {store.Request{Kind: store.RequestPromote, Version: "1.1", Tier: "nowhere"}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.enrol(400) // too many to go through a tier at once
			tc.Vendor, tc.At, tc.By = "debian", b.now, store.Person{Account: "a", ID: "a"}
			var id int64
			b.try(b.db.Update(t.Context(), func(tx store.Tx) (err error) {
				if tc.Proposal != 0 {
					first := store.Request{At: b.now, Kind: store.RequestProposal, Vendor: "debian", Version: "1.1", By: store.Person{Account: "b", ID: "b"}}
					if tc.Proposal, err = tx.AddRequest(t.Context(), first); err != nil {
						return err
					}
				}
				id, err = tx.AddRequest(t.Context(), tc.Request)
				return err
			}))
			b.round(time.Second)
			b.try(b.db.View(t.Context(), func(tx store.Tx) error {
				r, err := tx.Request(t.Context(), id)
				if err == nil && (r.Taken.IsZero() || r.Done != tc.done || r.Outcome == "") {
					t.Errorf("request is %+v, want done %v", r, tc.done)
				}
				return err
			}))
		})
	}
}

// What a server has decided must not depend on how often it was killed.
func TestARestartChangesNothing(t *testing.T) {
	run := func(restarts bool) []rollout.Decision {
		b := newBed(t)
		b.enrol(160)
		random := rand.New(rand.NewPCG(1, 2))
		kills := func(i int) bool { return i%25 == 0 }
		for range 8 / thin {
			b.live(160, time.Hour, kills)
			if random.IntN(2) == 0 && restarts {
				b.restart()
			}
		}
		return b.verdicts()
	}
	calm, killed := run(false), run(true)
	if len(calm) < 2 || !reflect.DeepEqual(calm, killed) {
		t.Errorf("%d decisions without restarts, %d with: %+v, %+v", len(calm), len(killed), last(calm), last(killed))
	}
}

func TestAReportThatNobodyHasTakenIsTakenOnceAfterARestart(t *testing.T) {
	b := newBed(t)
	b.enrol(2)
	first := 0
	if !b.asks(0) {
		first = 1
		b.asks(1)
	}
	b.round(40 * time.Second)
	b.report(b.Controller, first, event(service.Crashed, service.ReasonOpenJournal)) // acknowledged
	b.restart()
	b.round(time.Second)
	if r := b.rollout(); r.Spread.States[kernel.Cell()] != patch.Halted {
		t.Errorf("the report was lost: %+v", r.Spread)
	}
	b.restart()
	b.round(time.Second)
	if n := b.told(rollout.Failed); n != 1 {
		t.Errorf("the rule was told of one crash %d times", n)
	}
}

func TestOfTwoServersOneDecides(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	other := bed{TB: t, path: b.path, now: b.now}
	other.open()
	t.Cleanup(func() { other.try(other.db.Close()) })
	other.round(time.Second)
	if !b.Leads() || other.Leads() {
		t.Fatalf("first leads: %v, second leads: %v", b.Leads(), other.Leads())
	}
	had := len(b.verdicts())
	other.now = b.now.Add(24 * time.Hour)
	other.round(0)
	if n := len(b.verdicts()); n != had {
		t.Errorf("the second server has decided: %d decisions, had %d", n, had)
	}

	// A machine asks the second server, and is answered by the first.
	s := other.report(other.Controller, 0, event(service.Intent, ""))
	var answer store.Answer
	var wait sync.WaitGroup
	wait.Go(func() { answer = other.Await(t.Context(), s) })
	b.round(0)
	wait.Wait()
	if len(answer.Go) != 1 {
		t.Errorf("answer by way of the database is %+v", answer)
	}

	// The first one dies; the second takes over and knows what the first one knew.
	b.try(b.db.Close())
	b.db = nil
	other.round(time.Minute)
	if !other.Leads() {
		t.Fatal("nobody leads")
	}
	if !other.asks(0) {
		t.Error("the second server does not know who was let in")
	}
	if n := other.told(rollout.Intent); n != 2 || other.exposed() != 1 {
		t.Errorf("the rule was told %d times that %d machines begin, want 2 times of 1", n, other.exposed())
	}
}

func TestAServerThatWasSlowDecidesNothingAnyMore(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	term, err := b.db.Lead(t.Context(), "somebody else")
	b.try(err)
	b.report(b.Controller, 0, event(service.Intent, ""))
	if err := b.Round(t.Context()); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Round = %v, want %v", err, store.ErrConflict)
	}
	b.round(0) // it takes the lead again, and with it the report
	if n := b.told(rollout.Intent); n != 1 {
		t.Errorf("the rule was told %d times that the machine begins", n)
	}
	if newer, err := b.db.Lead(t.Context(), "again"); err != nil || newer != term+2 {
		t.Errorf("term = %d, %v, want %d", newer, err, term+2)
	}
}

func TestAMachineThatLeavesIsNotMissed(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	if !b.asks(0) {
		t.Fatal("machine may not begin")
	}
	b.try(b.db.Leave(t.Context(), identity(0)))
	for range 5 {
		b.round(time.Minute)
	}
	if r := b.rollout(); len(r.Spread.States) != 0 {
		t.Errorf("its leaving has halted the patch: %+v", r.Spread)
	}
	for _, d := range b.verdicts() {
		if d.Evidence.Trip.Failed != 0 {
			t.Errorf("its leaving counts as a failure: %+v", d.Evidence)
		}
	}
}

// Each signature makes every machine fetch three files.
func TestAQuietRoundSignsNothing(t *testing.T) {
	b := newBed(t)
	b.enrol(40)
	b.round(time.Minute)
	signed, decided := b.signed, len(b.verdicts())
	for i := range 40 {
		b.checkIn(i, event(service.Heartbeat, ""))
		b.round(10 * time.Second)
	}
	if n := len(b.verdicts()) - decided; n == 0 && b.signed != signed {
		t.Errorf("signed %d times, and nothing was decided", b.signed-signed)
	}
}

// A machine that goes from one patch to the next ends a trial and begins another with the
// same words.
func TestANewerPatchDoesNotWaitForTheEndOfTheOlderOnesTrial(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	if !b.asks(0) {
		t.Fatal("machine may not begin with the first patch")
	}
	b.publish("1.1", "2.1")
	b.round(time.Minute) // the fleet is counted each minute
	a := b.checkIn(0, service.Event{Kind: service.Intent, Version: "2.1"})
	if !slices.Equal(a.Go, []string{"2.1"}) {
		t.Errorf("answer = %+v", a)
	}
}

// What one machine says of itself must not hold up the others.
func TestStrangeMachinesAreLeftOut(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	for name, who := range map[string]store.Identity{
		"no identity":       {Machine: strings.Repeat("0", 32), Tier: "stable"},
		"a garbled one":     {Machine: "zz", Tier: "stable"},
		"a tier of nowhere": {Machine: strings.Repeat("a", 32), Tier: "gold"},
	} {
		who.AuthToken, who.Token = 1, sha256.Sum256([]byte(name))
		b.try(b.db.EnrolAll(t.Context(), []store.Enrolled{{Token: who.Token, Machine: store.Machine{
			ID: who.Machine, AuthToken: 1, Facts: service.Facts{Kernel: kernel}, LastSeen: b.now,
		}}}))
		r := store.Report{At: b.now, CheckIn: service.CheckIn{Facts: service.Facts{Kernel: kernel}, Events: []service.Event{
			{ID: "1", Kind: service.Intent, Version: "1.1"},
			{ID: "2", Kind: service.Crashed, Version: "1.1", Reason: service.ReasonOops, Signature: strings.Repeat("s", 256)},
			{ID: "3", Kind: service.Crashed, Version: "1.1", Reason: "something else"},
		}}}
		r.Sign = b.Sign(who, r)
		b.try(b.db.CheckIn(t.Context(), who, r))
	}
	b.round(0)
	b.round(2 * time.Minute)
	if !b.asks(0) {
		t.Error("an ordinary machine may not begin any more")
	}
}

// Controls that no stage deals any more have to be heard to the end: else they count as
// silent, and a patch that kills looks no worse than none.
func TestAControlIsHeardUntilItsWatchIsOver(t *testing.T) {
	const machines = 60
	b := newBed(t)
	b.enrol(machines)
	shams := map[int]bool{}
	for i := range machines {
		if a := b.checkIn(i); a.Wait > 0 {
			shams[i] = true
		}
		b.asks(i)
	}
	if len(shams) == 0 {
		t.Fatal("there are no controls")
	}
	b.try(b.db.Update(t.Context(), func(tx store.Tx) error {
		_, err := tx.SetRollout(t.Context(), store.Decision{Vendor: "debian", Version: "1.1", State: patch.Halted, At: b.now})
		return err
	}))
	b.restart()
	for i := range shams {
		b.now = b.now.Add(time.Second)
		if a := b.checkIn(i); a.Wait == 0 {
			t.Errorf("control %d is not asked for its next sign of life", i)
		}
	}
}

// A machine whose transition does not end has nothing to report before it says so. As
// long as it checks in, it lives: a stalled transition is no death.
func TestACheckInWithoutNewsIsASignOfLife(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	if !b.asks(0) {
		t.Fatal("machine may not begin")
	}
	for range 45 {
		b.round(time.Minute)
		b.checkIn(0)
	}
	b.checkIn(0, event(service.Failed, "STALLED"))
	b.round(time.Minute)
	soft := int64(0)
	for _, s := range b.Stages() {
		soft += s.Soft
	}
	if lost := b.lost(); lost != 0 || soft != 1 {
		t.Errorf("%v machines count as lost and %d as soft failures, want 0 and 1", lost, soft)
	}
	// It is not listened to for ever.
	b.round(time.Minute)
	b.checkIn(0)
	b.round(time.Minute)
	if sign := b.report(b.Controller, 0); sign != nil {
		t.Errorf("check-in of a machine that nobody watches was handed on: %+v", sign)
	}
}

// A machine whose answer was lost asks again, and has begun nothing yet.
func TestAskingAgainIsASignOfLife(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	for range 3 {
		if !b.asks(0) {
			t.Fatal("machine may not begin")
		}
		b.round(time.Minute)
	}
	if n := b.exposed(); n != 1 {
		t.Errorf("asked three times in three minutes, it counts as %d machines", n)
	}
}

// What this process waits for is not worth a row.
func TestOnlyAnswersForOtherServersAreWritten(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	s := b.report(b.Controller, 0, event(service.Intent, ""))
	b.round(0)
	if a := b.Await(t.Context(), s); len(a.Go) != 1 {
		t.Errorf("answer = %+v", a)
	}
	if a, err := b.db.Answer(t.Context(), s.ID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("in the database is %+v, %v", a, err)
	}
}
