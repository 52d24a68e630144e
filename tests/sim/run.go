package main

import (
	"context"
	"fmt"

	"livepatch/internal/service"
	"livepatch/server/inprocess"
)

// A request is a check-in of one machine.
type request struct {
	machine int32
	from    inprocess.Machine
	say     service.CheckIn
}

// run lets the fleet live until the rollout is over on every kernel, or the scenario
// is.
func (f *fleet) run(ctx context.Context) (outcome, error) {
	if f.everyone {
		for i := range f.machines {
			f.matter(int32(i))
		}
	}
	if err := f.round(ctx); err != nil {
		return outcome{}, err
	}
	for f.clock.now = 1; f.clock.now < int64(len(f.agenda)); f.clock.now++ {
		todo := f.agenda[f.clock.now]
		f.agenda[f.clock.now] = nil
		if f.record.over() {
			f.strikes(todo)
			continue
		}
		if err := f.recover(ctx); err != nil {
			return outcome{}, err
		}
		said, err := f.second(ctx, todo)
		if err != nil {
			return outcome{}, err
		}
		if said || f.clock.now%f.look == 0 && !f.Outage.during(f.clock.now) {
			if err := f.round(ctx); err != nil {
				return outcome{}, err
			}
		}
	}
	return f.outcome(), nil
}

// A restarter is a world that can be ended and started again.
type restarter interface {
	Restart(ctx context.Context) error
}

// recover starts the service again when an outage is over.
func (f *fleet) recover(ctx context.Context) error {
	r, ok := f.world.(restarter)
	if !ok || f.Outage.For == 0 || f.clock.now != seconds(f.Outage.At+f.Outage.For) {
		return nil
	}
	return r.Restart(ctx)
}

// strikes is what still happens when the rollout is over: a machine that has the
// patch has it.
func (f *fleet) strikes(todo []action) {
	for _, x := range todo {
		if x.strike {
			f.strike(x.machine, f.active[x.machine])
		}
	}
}

// second lets all machines do what is due, and tells whether one checked in.
func (f *fleet) second(ctx context.Context, todo []action) (said bool, err error) {
	var requests []request
	for _, x := range todo {
		a := f.active[x.machine]
		switch {
		case x.strike:
			f.strike(x.machine, a)
		case x.serial == a.serial && !a.down && f.wake(x.machine, a):
			requests = append(requests, request{x.machine, f.identity(x.machine), f.report(x.machine, a)})
		}
	}
	if len(requests) == 0 {
		return false, nil
	}
	answers, err := f.send(ctx, requests)
	if err != nil {
		return false, err
	}
	f.record.requests += len(requests)
	for n, r := range requests {
		f.answered(r.machine, f.active[r.machine], answers[n])
	}
	return true, nil
}

// send checks all of them in, and reads the signed files if the answers say that there
// are new ones.
func (f *fleet) send(ctx context.Context, requests []request) ([]service.CheckInAnswer, error) {
	from, say := make([]inprocess.Machine, len(requests)), make([]service.CheckIn, len(requests))
	for i, r := range requests {
		from[i], say[i] = r.from, r.say
	}
	answers, err := f.world.CheckIn(ctx, from, say)
	if err != nil {
		return nil, fmt.Errorf("cannot check in at %v: %w", f.clock.Now(), err)
	}
	newest := f.generation
	for _, a := range answers {
		newest = max(newest, a.Generation)
	}
	if newest == f.generation {
		return answers, nil
	}
	f.generation = newest
	f.signed, err = f.world.Signed(ctx)
	return answers, err
}

// round lets the service do what is due, and deals machines anew where something
// was decided.
func (f *fleet) round(ctx context.Context) error {
	decisions, err := f.world.Round(ctx)
	if err != nil {
		return fmt.Errorf("cannot run the service at %v: %w", f.clock.Now(), err)
	}
	changed := false
	for _, d := range decisions {
		f.record.decided(d, f.clock.now)
		changed = changed || d.Verdict.Action != inprocess.Hold
	}
	if !changed {
		return nil
	}
	return f.deal(ctx)
}

// deal wakes the machines to which the decisions of a round matter.
func (f *fleet) deal(ctx context.Context) error {
	for n := range f.groups {
		g := &f.groups[n]
		a, err := f.world.Assignment(ctx, f.kernels[g.kernel], g.tier.Name)
		if err != nil {
			return err
		}
		if a == g.assigned {
			continue
		}
		g.assigned = a
		for i := g.from; i < g.to; i++ {
			if a.Arm(f.machines[i].id) != inprocess.Outside {
				f.matter(i)
			}
		}
	}
	return nil
}

// matter makes a machine check in from now on, if it does not.
func (f *fleet) matter(i int32) {
	now := f.clock.now
	a := f.active[i]
	if a == nil {
		a = f.newAgent(i)
		f.active[i], a.resting = a, true
	}
	if a.watched >= 0 {
		a.watched = now
	}
	if !a.resting || a.down || a.began >= 0 {
		return
	}
	at := f.slot(i, now)
	for _, g := range a.pass(now) { // nobody asked meanwhile
		a.boot++
		if g.to+booting > now {
			at = min(at, g.to+booting)
		}
	}
	f.plan(i, a, at)
}
