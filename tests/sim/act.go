package main

import (
	"slices"

	"livepatch/internal/service"
	"livepatch/server/inprocess"
)

// answered does what the service has answered to a check-in.
func (f *fleet) answered(i int32, a *agent, answer service.CheckInAnswer) {
	asked := a.wants
	a.failures, a.events = 0, a.events[:0]
	if asked && slices.Contains(answer.Go, inprocess.Version) {
		f.insert(i, a)
		return
	}
	a.wants = f.mayHave(i, a)
	if a.wants && !asked {
		f.plan(i, a, f.clock.now+1) // it asks as soon as it knows
		return
	}
	f.next(i, a, answer.IntervalSeconds)
}

// mayHave reads the signed files as the machine would.
func (f *fleet) mayHave(i int32, a *agent) bool {
	m := &f.machines[i]
	k := f.kernels[f.groups[m.group].kernel]
	return a.began < 0 && !a.gone && f.signed.For(k) == nil && f.signed.Admits(k, f.groups[m.group].tier.Name, m.id.String())
}

// insert puts the patch into the kernel.
func (f *fleet) insert(i int32, a *agent) {
	now := f.clock.now
	a.wants, a.began = false, now
	if a.lie == saysFailed {
		a.gone = true
		a.say(f, service.Crashed, service.ReasonOpenJournal)
		a.say(f, service.Booted, service.ReasonUnclean)
		f.plan(i, a, now+booting)
		return
	}
	f.record.add(exposed, now)
	switch {
	case a.dies:
		f.agenda.add(now+a.after, action{machine: i, strike: true})
	case !a.stalls:
		f.record.add(matured, now+hour)
	}
	f.plan(i, a, now+insertion)
}

// strike does to a machine what the patch does.
func (f *fleet) strike(i int32, a *agent) {
	now := f.clock.now
	if !a.patched() {
		return
	}
	f.record.add(failed, now)
	switch a.how {
	case silent:
		a.down = true
	case oops:
		a.say(f, service.Crashed, service.ReasonOops)
		a.gone = true
		f.plan(i, a, now+1)
	case reboot:
		f.crash(i, a, now)
	case hang:
		f.crash(i, a, now+a.resets)
	}
}

// crash takes a machine down uncleanly at a time, for some minutes.
func (f *fleet) crash(i int32, a *agent, at int64) {
	a.known = append(a.known, gap{from: at, to: at + 3*60})
	f.plan(i, a, at+3*60+booting)
}

// next plans the next check-in: when the machine does it by itself, when the service
// wants it, or when a sign of life is due.
func (f *fleet) next(i int32, a *agent, interval int64) {
	now := f.clock.now
	at := f.slot(i, now)
	if interval < hour {
		if a.watched < 0 {
			a.watched = now
		}
		at = now + max(1, interval) + a.timing.Int64N(1+min(5, interval/10))
	}
	if a.patched() {
		at = min(at, max(now+1, a.began+a.nextBeat()))
	}
	if !f.everyone && f.rests(a, interval) {
		a.resting = true
		return
	}
	f.plan(i, a, at)
}

// rests tells whether nothing that the machine will say matters to the rule: it is
// under no watch, and will not be until it is dealt anew.
func (f *fleet) rests(a *agent, interval int64) bool {
	switch {
	case interval < hour || a.wants || len(a.events) > 0:
		return false
	case a.began >= 0:
		return f.clock.now-a.began > watched
	default:
		return a.watched >= 0 && f.clock.now-a.watched > watched
	}
}

// retry plans the next try to reach the service.
func (f *fleet) retry(i int32, a *agent) {
	wait := int64(firstRetry) << min(a.failures, 7)
	a.failures++
	f.plan(i, a, f.clock.now+min(wait, hour))
}

// plan makes a machine wake at a time; if it is off before, when it has booted.
func (f *fleet) plan(i int32, a *agent, at int64) {
	if g := a.first(); g.from < at {
		at = g.to + booting
	}
	a.serial++
	a.resting = false
	f.agenda.add(at, action{machine: i, serial: a.serial})
}
