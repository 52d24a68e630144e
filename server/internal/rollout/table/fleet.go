package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"livepatch/server/internal/rollout"
)

// A fleet is machines that check in, take a patch when they may, and live or not.
// It runs the real rule; server and network are left out.
type fleet struct {
	scenario
	rng      *rand.Rand
	rule     *rollout.Rollout
	machines []machine
	agenda   [][]action // by second
	now      int64
	arrived  int64 // when the later kernels came
	before   int   // machines of the others
	events   []rollout.Event
	outcome  outcome
}

// A scenario is what a fleet is like.
type scenario struct {
	name  string
	tiers []rollout.Tier
	cells []kernel
	later []kernel // come when the others have the patch
	// accounts share the machines; the first of them has some share of its own.
	accounts   int
	firstShare float64
	lies       lie

	newcomers bool // machines enrolled after the patch was published

	loss    float64       // of machines an hour, patch or not; they come back after hours
	kills   float64       // share of the machines of a bad kernel that the patch kills
	after   time.Duration // how long it takes
	reboots bool          // what it kills is up again after some minutes, without the patch, and says so
	night   time.Duration // when half of the fleet is switched off; 0: never
	limit   time.Duration // when to stop looking
	tune    func(*rollout.Params)
	trace   io.Writer // nil: none
	watched string    // unit whose e is noted
}

// A lie is what the treated machines of the first account say.
type lie string

const (
	truth      lie = ""
	saysFailed lie = "says that it failed"
	saysWell   lie = "says that it is well" // whatever the patch does to others
)

// A kernel is a cell of a scenario.
type kernel struct {
	name, source string
	machines     []int // by tier
	good         bool  // does no harm, whatever the scenario says
}

// An outcome is what became of a fleet. Times count from the start; 0 is never.
type outcome struct {
	machines, exposed        int
	harmed                   int // killed by the patch before the simulation ended, which is when nothing more is let in
	doomed                   int // that it would have killed in the end, if it were not taken back
	halted, completed, units int
	halt                     time.Duration // the first
	reason                   rollout.Reason
	first, half, covered     time.Duration // one, half, 95 % of the machines have it
	complete                 time.Duration // the rule has nothing more to decide
	highest, last            float64       // log e of the first unit
}

type machine struct {
	id         rollout.Machine
	cell, tier int
	account    int
	bad, off   bool // killed by the patch; lost for other reasons
	exposed    bool
	trial      int32 // counts, so that heartbeats of an older one are not sent
}

// An action is something that a machine will do.
type action struct {
	machine int32
	trial   int32
	do      verb
}

type verb uint8

const (
	checkIn verb = iota
	heartbeat
	die
	report
	lose
	comeBack
)

const start = 1_800_000_000

// simulate runs one fleet to its end.
func simulate(s scenario, seed uint64) (outcome, error) {
	f, err := newFleet(s, seed)
	if err != nil {
		return outcome{}, err
	}
	for f.now = 1; f.now < int64(len(f.agenda)); f.now++ {
		todo := f.agenda[f.now]
		f.agenda[f.now] = nil
		for _, a := range todo {
			f.act(a)
		}
		if len(f.events) == 0 && f.now%30 != 0 {
			continue
		}
		done, err := f.step()
		if err != nil || done {
			return f.outcome, err
		}
	}
	return f.outcome, nil
}

func newFleet(s scenario, seed uint64) (*fleet, error) {
	params := rollout.Defaults()
	if s.tune != nil {
		s.tune(&params)
	}
	rule, err := rollout.New(params, fmt.Sprint("salt", seed), s.tiers)
	if err != nil {
		return nil, err
	}
	f := &fleet{
		scenario: s, rule: rule, agenda: make([][]action, int(s.limit/time.Second)),
		rng: rand.New(rand.NewPCG(seed, 1)),
	}
	for c, k := range s.cells {
		for t, n := range k.machines {
			f.populate(c, t, n)
		}
	}
	f.outcome.machines = len(f.machines)
	if s.night > 0 {
		f.switchOff()
	}
	decisions, err := rule.Step(time.Unix(start, 0), f.events)
	f.events = nil
	f.note(decisions)
	return f, err
}

// populate adds the machines of a kernel in a tier.
func (f *fleet) populate(cell, tier, n int) {
	k := f.cells[cell]
	f.events = append(f.events, rollout.Event{
		Kind: rollout.Population, Cell: k.name, Source: k.source, Tier: f.tiers[tier].Name,
		Machines: int64(n), Accounts: int64(min(n, f.accounts)),
	})
	for range n {
		m := machine{cell: cell, tier: tier, account: 1 + f.rng.IntN(max(1, f.accounts-1))}
		if f.rng.Float64() < f.firstShare {
			m.account = 0
		}
		binary.BigEndian.PutUint64(m.id[:8], uint64(len(f.machines))+1)
		i := int32(len(f.machines))
		f.machines = append(f.machines, m)
		f.plan(1+f.rng.Int64N(3600), action{machine: i, do: checkIn})
		f.planLoss(i)
	}
}

func (f *fleet) plan(in int64, a action) {
	if at := f.now + in; at < int64(len(f.agenda)) {
		f.agenda[at] = append(f.agenda[at], a)
	}
}

func (f *fleet) planLoss(i int32) {
	if f.loss > 0 {
		f.plan(1+int64(3600*f.rng.ExpFloat64()/f.loss), action{machine: i, do: lose})
	}
}

// switchOff plans a night in which half of the machines are off for ten hours.
func (f *fleet) switchOff() {
	for i := range f.machines {
		if f.rng.IntN(2) == 0 {
			f.plan(int64(f.night/time.Second)+f.rng.Int64N(600), action{machine: int32(i), do: lose})
		}
	}
}

func (f *fleet) act(a action) {
	m := &f.machines[a.machine]
	switch a.do {
	case checkIn:
		f.checkIn(m, a.machine)
	case heartbeat:
		if a.trial == m.trial && !m.bad && !m.off {
			f.say(m, rollout.Alive)
			f.flush()
			f.beat(m, a.machine)
		}
	case die:
		if !m.bad {
			m.bad = true
			f.outcome.harmed++
			if f.reboots {
				f.plan(120+f.rng.Int64N(240), action{machine: a.machine, do: report})
			}
		}
	case report:
		f.say(m, rollout.Failed)
		f.events[len(f.events)-1].Failure = rollout.OpenJournal
	case lose:
		m.off = true
		f.plan(8*3600+f.rng.Int64N(4*3600), action{machine: a.machine, do: comeBack})
	case comeBack:
		m.off = false
		f.planLoss(a.machine)
	}
}

// checkIn is the hourly one; a machine that may have the patch takes it at once.
func (f *fleet) checkIn(m *machine, i int32) {
	if m.bad {
		return
	}
	next := int64(3600)
	if !m.off {
		k, tier := f.cells[m.cell], f.tiers[m.tier].Name
		switch f.rule.Assignment(k.name, tier).Arm(m.id) {
		case rollout.Treated:
			if !m.exposed && f.rule.Room(k.name, tier) > 0 {
				f.expose(m, i)
			} else if !m.exposed {
				next = 120
			}
		case rollout.Control:
			if f.rule.ShamRoom(k.name, tier) > 0 {
				f.say(m, rollout.Sham)
				f.flush() // so that it is known whether it was taken
				f.beat(m, i)
			}
		case rollout.Outside:
		}
	}
	f.plan(next, action{machine: i, do: checkIn})
}

func (f *fleet) expose(m *machine, i int32) {
	m.exposed = true
	f.outcome.exposed++
	f.cover()
	f.say(m, rollout.Intent)
	f.flush() // the next one asks for room that this one has taken
	liar := m.account == 0 && f.lies != truth
	if liar && f.lies == saysFailed {
		f.fail(m)
		return
	}
	f.beat(m, i)
	if !liar && !f.cells[m.cell].good && f.rng.Float64() < f.kills {
		f.outcome.doomed++
		f.plan(1+int64(f.after/time.Second), action{machine: i, do: die})
	}
}

// cover notes when how many machines have the patch.
func (f *fleet) cover() {
	o := &f.outcome
	for share, at := range map[float64]*time.Duration{0: &o.first, 0.5: &o.half, 0.95: &o.covered} {
		if *at == 0 && float64(o.exposed) >= share*float64(len(f.machines)-f.before) {
			*at = f.since()
		}
	}
}

// beat plans the next sign of life of a trial.
func (f *fleet) beat(m *machine, i int32) {
	m.trial++
	if wait, ok := f.rule.Next(m.id, time.Unix(start+f.now, 0)); ok {
		f.plan(wait+f.rng.Int64N(10), action{machine: i, trial: m.trial, do: heartbeat})
	}
}

func (f *fleet) say(m *machine, k rollout.Kind) {
	f.events = append(f.events, rollout.Event{
		Kind: k, Machine: m.id, Cell: f.cells[m.cell].name, Tier: f.tiers[m.tier].Name,
		Account: fmt.Sprint("account", m.account), Newcomer: f.newcomers,
	})
}

func (f *fleet) fail(m *machine) {
	f.say(m, rollout.Failed)
	f.events[len(f.events)-1].Failure = rollout.UncleanReboot
}

func (f *fleet) since() time.Duration { return time.Duration(f.now-f.arrived) * time.Second }

// arrive adds the kernels that come later, and begins to count anew.
func (f *fleet) arrive() {
	n := len(f.cells)
	f.cells, f.later = append(f.cells[:n:n], f.later...), nil
	f.arrived, f.before = f.now, len(f.machines)
	f.outcome.exposed, f.outcome.first, f.outcome.half, f.outcome.covered = 0, 0, 0, 0
	for c, k := range f.cells[n:] {
		for t, machines := range k.machines {
			f.populate(n+c, t, machines)
		}
	}
}

// flush hands the events of this second over.
func (f *fleet) flush() {
	if _, err := f.step(); err != nil {
		panic(err) // the simulator's own events are well formed
	}
}

// step hands over what happened, and tells whether the rollout is at its end.
func (f *fleet) step() (done bool, err error) {
	decisions, err := f.rule.Step(time.Unix(start+f.now, 0), f.events)
	f.events = f.events[:0]
	f.note(decisions)
	if f.watched != "" && f.now%30 == 0 {
		if e, ok := f.rule.Evidence(f.watched); ok {
			f.outcome.last = e.E.Log()
			f.outcome.highest = max(f.outcome.highest, f.outcome.last)
		}
	}
	done = f.outcome.units > 0 && f.outcome.halted+f.outcome.completed == f.outcome.units
	if done && len(f.later) > 0 {
		f.arrive()
		return false, err
	}
	return done, err
}

func (f *fleet) note(decisions []rollout.Decision) {
	for _, d := range decisions {
		if f.trace != nil {
			v := d.Verdict
			fmt.Fprintf(f.trace, "%8s %-12s %-8s %-8s %-18s share %7d wanted %7d e %6.2f exposed %d pending %d treated %v control %v U %.5f came %d\n",
				f.since(), d.Unit, d.Tier, v.Action, v.Reason, v.Share, v.Wanted, v.LogE, d.Evidence.Exposed, d.Evidence.Pending, d.Evidence.Treated, d.Evidence.Control, v.Upper, d.Evidence.Came)
		}
		switch d.Verdict.Action {
		case rollout.Halt:
			f.outcome.halted++
			if f.outcome.halt == 0 {
				f.outcome.halt, f.outcome.reason = f.since(), d.Verdict.Reason
			}
		case rollout.Complete:
			f.outcome.completed++
			f.outcome.complete = f.since()
		case rollout.Hold, rollout.Advance, rollout.Promote:
		}
	}
	if len(decisions) == 0 {
		return
	}
	names := map[string]bool{}
	for _, s := range f.rule.Stages() {
		names[s.Unit] = true
	}
	f.outcome.units = len(names)
}
