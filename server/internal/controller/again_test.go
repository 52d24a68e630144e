package controller_test

import (
	"context"
	"testing"
	"time"

	"livepatch/internal/service"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// This file is about what a machine says more than once, or too late.

// A machine whose answer was lost reports the same events again, with what it says
// next. An unclean boot before its trial is none within it.
func TestAReportThatIsSentAgainIsTakenOnce(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	for i := range 2 {
		b.events = 100 // so that the events have the same IDs
		a := b.checkIn(0, service.Event{Kind: service.Booted, Reason: service.ReasonUnclean}, event(service.Intent, ""))
		if len(a.Go) != 1 {
			t.Fatalf("answer %d is %+v", i+1, a)
		}
		b.round(20 * time.Second)
	}
	if n := b.told(rollout.Failed); n != 0 || b.exposed() != 1 {
		t.Errorf("told of %d failures of %d machines, want 0 of 1", n, b.exposed())
	}
}

// What a machine has to say twice is another event, and counts.
func TestAnEventLikeAnotherIsTaken(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	for range 2 {
		b.checkIn(0, event(service.Crashed, service.ReasonOops))
		b.round(time.Minute)
	}
	if n := b.told(rollout.Failed); n != 2 {
		t.Errorf("told of %d oopses, want 2", n)
	}
}

// The answer to the first question may have been lost, and the machine begins with the
// second one.
func TestAskingAgainBeginsAgain(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	for range 2 {
		if !b.asks(0) {
			t.Fatal("machine may not begin")
		}
		b.round(40 * time.Second)
	}
	if n := b.told(rollout.Intent); n != 2 {
		t.Errorf("the rule was told %d times that the machine begins, want 2", n)
	}
}

// A machine reckons its signs of life from the answer that has come, and the rule from the
// question before it.
func TestWhoAskedTwiceIsInTime(t *testing.T) {
	for _, again := range []time.Duration{5 * time.Second, 30 * time.Second, 90 * time.Second} {
		t.Run(again.String(), func(t *testing.T) {
			b := newBed(t)
			b.enrol(1)
			b.asks(0) // and the answer is lost
			b.round(again)
			if !b.asks(0) {
				t.Fatal("machine may not begin")
			}
			b.beats(0)
			if b.lost() != 0 || b.exposed() != 1 {
				t.Errorf("%v of %d machines are lost, want 0 of 1", b.lost(), b.exposed())
			}
		})
	}
}

// The trial of a machine that was not answered in time may have begun: it must not wait
// for its first sign of life to be overdue.
func TestWhoIsNotAnsweredAsksAgainSoon(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	s := b.report(b.Controller, 0, event(service.Intent, ""))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a := b.Await(ctx, s); len(a.Go) != 0 || a.Wait < 1 || a.Wait > 10 {
		t.Errorf("answer without one of the rule is %+v, want to ask again within 10 s", a)
	}
}

// Beginning and leaving may reach the rule together.
func TestAMachineThatLeavesAtOnceIsNotMissed(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	b.report(b.Controller, 0, event(service.Intent, ""))
	b.try(b.db.Leave(t.Context(), identity(0)))
	for range 5 {
		b.round(time.Minute)
	}
	if b.exposed() != 1 || b.lost() != 0 {
		t.Errorf("%d machines have begun and %v are lost, want 1 and 0", b.exposed(), b.lost())
	}
}

// Its questions may wait for a server that is down for a while.
func TestABootBeforeTheAnswerIsNotThePatchs(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	b.report(b.Controller, 0, event(service.Intent, ""))
	b.report(b.Controller, 0, service.Event{Kind: service.Booted, Reason: service.ReasonUnclean})
	b.round(time.Second)
	if !b.asks(0) || b.lost() != 0 {
		t.Errorf("%v machines are lost, want 0, and that the machine may begin", b.lost())
	}
}

// From the revocation of their token on, machines are not listened to.
func TestTheMachinesOfARevokedTokenAreNotMissed(t *testing.T) {
	b := newBed(t)
	b.enrol(400)
	begun := 0
	for i := 0; i < 400 && begun < 4; i++ {
		if b.asks(i) {
			begun++
		}
	}
	b.round(30 * time.Second)
	b.try(b.db.RevokeToken(t.Context(), store.Auth, 1, b.now))
	for range 5 {
		b.round(time.Minute)
	}
	if r := b.rollout(); begun != 4 || b.lost() != 0 || len(r.Spread.States) != 0 {
		t.Errorf("of %d machines %v are lost, spread %+v; want 4, 0, and nothing halted", begun, b.lost(), r.Spread)
	}
}

func TestMachinesThatLeftAreNotCountedAfterARestart(t *testing.T) {
	for name, restarts := range map[string]bool{"without one": false, "with one": true} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.enrol(400)
			b.try(b.db.RevokeToken(t.Context(), store.Auth, 1, b.now))
			if restarts {
				b.restart()
			}
			b.round(2 * time.Minute)
			for _, s := range b.Stages() {
				if s.Machines != 0 {
					t.Errorf("the rule knows of %d machines in %s, and all have left", s.Machines, s.Tier)
				}
			}
		})
	}
}

func TestARestartTellsTheRuleNothingThatItKnows(t *testing.T) {
	b := newBed(t)
	b.enrol(2)
	had := b.told(rollout.Population)
	b.restart()
	b.round(2 * time.Minute)
	if n := b.told(rollout.Population); n != had {
		t.Errorf("the rule was told %d times how large the fleet is, and %d times before the restart", n, had)
	}
}
