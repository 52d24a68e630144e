package main

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"livepatch/internal/service"
	"livepatch/server/inprocess"
)

// What an agent does on its own, in seconds.
const (
	hour       = 3600
	insertion  = 5 // from the permission to the end of the transition
	booting    = 60
	firstRetry = 30 // then twice as long each time, up to an hour
	watched    = 8 * hour
)

// beats are the ages in seconds at which a patched machine gives a sign of life; then
// hourly.
var beats = []int64{60, 300, 900, hour}

// An agent is a machine that matters: it may take the patch, or is a control. It
// does what the agent of the product does, as far as the service can see.
type agent struct {
	life
	fate
	timing  *rand.Rand
	down    bool // harmed, for good
	resting bool // does not matter until it is dealt anew
	serial  int32
	boot    int

	events   []service.Event // that were not acknowledged
	said     int             // events so far
	failures int             // check-ins in a row
	watched  int64           // since when the service wants more signs of life than one an hour; -1: it does not

	wants   bool  // may have the patch, and asks to begin
	began   int64 // -1: it has not
	applied bool
	gone    bool // the patch is out again, and not wanted back
	beat    int  // signs of life given
}

// A fate is what the patch does to a machine.
type fate struct {
	dies   bool
	how    how
	after  int64 // seconds from insertion
	resets int64 // how long a hang lasts
	stalls bool
	lie    lie
}

func (f *fleet) newAgent(i int32) *agent {
	return &agent{life: f.newLife(i), fate: f.fate(i), timing: f.dice(i, diceTiming), began: -1, watched: -1}
}

// fate is what the patch would do to a machine. It is the same under every service.
func (f *fleet) fate(i int32) fate {
	rng, m, p := f.dice(i, diceFate), &f.machines[i], f.Patch
	dies, class, wait := rng.Float64() < p.Kills, rng.Float64(), rng.ExpFloat64()
	x := fate{
		dies: dies, how: p.How, after: max(1, seconds(p.After)+int64(wait*p.Within.Seconds())),
		resets: 300 + int64(1200*rng.ExpFloat64()), stalls: rng.Float64() < p.Stalls,
	}
	if p.Hardware > 0 && class >= p.Hardware || p.Kernels > 0 && f.groups[m.group].kernel < f.Kernels-p.Kernels {
		x.dies = false
	}
	if f.Liar.Share > 0 && m.account == 0 {
		x.dies, x.stalls, x.lie = false, false, f.Liar.Says
	}
	return x
}

// patched tells whether the patch is in the kernel, or on its way there.
func (a *agent) patched() bool { return a.began >= 0 && !a.gone }

// wake lets a machine do what is due, and tells whether it has something to say.
func (f *fleet) wake(i int32, a *agent) bool {
	for _, g := range a.pass(f.clock.now) {
		f.booted(a, g)
	}
	if g := a.first(); g.from <= f.clock.now {
		f.plan(i, a, g.to+booting)
		return false
	}
	f.live(a)
	if !f.reachable(i) {
		f.retry(i, a)
		return false
	}
	return true
}

// reachable tells whether a machine can reach a service that runs.
func (f *fleet) reachable(i int32) bool {
	if f.Outage.during(f.clock.now) {
		return false
	}
	return !f.Partition.during(f.clock.now) || f.dice(i, dicePartition).Float64() >= f.Partition.Share
}

// live notes the signs of life that are due, and gives up on a transition that
// does not end.
func (f *fleet) live(a *agent) {
	if !a.patched() {
		return
	}
	age := f.clock.now - a.began
	if a.stalls {
		if age >= hour {
			a.say(f, service.Failed, "STALLED")
			a.gone = true
		}
		return
	}
	if !a.applied && age >= insertion {
		a.applied = true
		a.say(f, service.Applied, "")
	}
	for a.nextBeat() <= age {
		a.beat++
		a.say(f, service.Heartbeat, "")
	}
}

// nextBeat is the age at which the next sign of life is due.
func (a *agent) nextBeat() int64 {
	if a.beat < len(beats) {
		return beats[a.beat]
	}
	return beats[len(beats)-1] + hour*int64(a.beat-len(beats)+1)
}

// booted is what the machine finds after it was off. A patch that was accepted comes
// back with the boot; one on trial after a crash is suspect.
func (f *fleet) booted(a *agent, g gap) {
	a.boot++
	a.drop(service.Intent)
	reason := service.ReasonClean
	if !g.clean {
		reason = service.ReasonUnclean
		if a.patched() && g.from-a.began < hour {
			a.say(f, service.Crashed, service.ReasonOpenJournal)
			a.gone = true
		}
	}
	a.say(f, service.Booted, reason)
}

// say adds an event to what is to be reported.
func (a *agent) say(f *fleet, k service.Kind, reason string) {
	e := service.Event{
		ID: fmt.Sprint("e", a.said), Kind: k, Version: inprocess.Version, Name: moduleName, BootID: a.bootID(),
		At: f.clock.Now(), Reason: reason,
	}
	switch {
	case k == service.Booted:
		e.Version, e.Name = "", ""
	case reason == service.ReasonOops:
		e.Signature = "general protection fault/" + moduleName + "/patched"
	}
	a.said++
	a.events = append(a.events, e)
}

// drop takes events of a kind out of what is to be reported.
func (a *agent) drop(k service.Kind) {
	a.events = slices.DeleteFunc(a.events, func(e service.Event) bool { return e.Kind == k })
}

func (a *agent) bootID() string { return fmt.Sprint("boot-", a.boot) }

// report is what the machine says at a check-in.
func (f *fleet) report(i int32, a *agent) service.CheckIn {
	if a.wants {
		a.drop(service.Intent)
		a.say(f, service.Intent, "")
	}
	c := service.CheckIn{
		Version: "simulated", Generation: f.generation, Events: a.events,
		Facts: service.Facts{Kernel: f.kernels[f.groups[f.machines[i].group].kernel], BootID: a.bootID()},
	}
	if a.applied && !a.gone {
		standing := "trial"
		if f.clock.now-a.began >= hour {
			standing = "accepted"
		}
		c.Patch = &service.Patch{Name: moduleName, Version: inprocess.Version, Sequence: 1, State: "enabled", Standing: standing}
	}
	return c
}
