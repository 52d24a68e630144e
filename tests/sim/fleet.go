package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/inprocess"
)

// A world is a service as the machines of a fleet see it, and a view behind its back
// that spares the simulator requests that change nothing.
type world interface {
	// CheckIn reports for some machines, and returns the answers in their order.
	CheckIn(ctx context.Context, from []inprocess.Machine, say []service.CheckIn) ([]service.CheckInAnswer, error)
	// Signed returns the signed decision about the patch, as of now.
	Signed(ctx context.Context) (patch.Rollout, error)
	// Round lets the service do what is due, and returns what was decided.
	Round(ctx context.Context) ([]inprocess.Decision, error)
	// Assignment returns how the machines of a kernel and tier are dealt.
	Assignment(ctx context.Context, k patch.Kernel, tier string) (inprocess.Assignment, error)
	Close() error
}

// A fleet is the machines of a scenario and the clock that they live by.
type fleet struct {
	scenario
	seed     uint64
	world    world
	clock    *clock
	everyone bool // every machine checks in every hour, also those that matter to nobody
	// look is how often, in seconds, the service does what is due although no machine
	// has checked in. The rule wants it at least every two minutes.
	look int64

	kernels  []patch.Kernel
	machines []machine
	groups   []group
	active   map[int32]*agent
	agenda   agenda

	signed     patch.Rollout
	generation int64 // of signed
	record     record
}

// A machine is what is kept of each of a million.
type machine struct {
	id      inprocess.ID
	account uint32
	phase   uint16 // second of the hour at which it checks in
	group   uint16
}

// A group is the machines of one kernel and tier, which are neighbours.
type group struct {
	kernel   int
	tier     tier
	from, to int32
	assigned inprocess.Assignment
}

// A clock is the time of the simulation, for machines and service alike.
type clock struct {
	start time.Time
	now   int64 // seconds since start
}

// Now returns the time of the simulation.
func (c *clock) Now() time.Time { return c.start.Add(time.Duration(c.now) * time.Second) }

// dices are independent random numbers of one machine.
type dices uint64

const (
	diceLife dices = iota + 1
	diceFate
	diceBaseline
	dicePlace
	diceTiming
	dicePartition
)

// moduleName is what the kernel calls the patch.
const moduleName = "lkp_sim_1"

func (f *fleet) dice(i int32, what dices) *rand.Rand {
	return rand.New(rand.NewPCG(f.seed, uint64(i)<<8|uint64(what)))
}

// newFleet makes the machines of a scenario. They have no world yet.
func newFleet(s scenario, seed uint64, start time.Time) *fleet {
	f := &fleet{scenario: s, seed: seed, clock: &clock{start: start}, look: 15, active: map[int32]*agent{}}
	f.agenda = make(agenda, seconds(s.Limit)+1)
	for k := range s.Kernels {
		f.kernels = append(f.kernels, inprocess.Kernel(k+1))
		for _, t := range s.Tiers {
			f.populate(k, t)
		}
	}
	f.record = newRecord(s.Limit, f.honest())
	return f
}

// populate adds the machines of a kernel in a tier.
func (f *fleet) populate(k int, t tier) {
	from := int32(len(f.machines))
	n := int(float64(f.Machines)*t.Share/float64(f.Kernels) + 0.5)
	for range n {
		i := int32(len(f.machines))
		rng := f.dice(i, dicePlace)
		m := machine{phase: uint16(rng.IntN(3600)), group: uint16(len(f.groups))}
		binary.BigEndian.PutUint64(m.id[:8], rng.Uint64())
		binary.BigEndian.PutUint64(m.id[8:], rng.Uint64())
		m.account = uint32(1 + rng.IntN(max(1, t.Accounts-1)))
		if rng.Float64() < f.Liar.Share {
			m.account = 0
		}
		f.machines = append(f.machines, m)
	}
	f.groups = append(f.groups, group{kernel: k, tier: t, from: from, to: int32(len(f.machines))})
}

// honest is how many machines take a patch that they may have.
func (f *fleet) honest() (n int) {
	for i := range f.machines {
		if f.Liar.Says != saysFailed || f.machines[i].account != 0 {
			n++
		}
	}
	return n
}

// population is how many machines and accounts each group has.
func (f *fleet) population() (all []inprocess.Population) {
	for _, g := range f.groups {
		n := int64(g.to - g.from)
		all = append(all, inprocess.Population{
			Kernel: f.kernels[g.kernel], Tier: g.tier.Name, Machines: n, Accounts: min(n, int64(g.tier.Accounts)),
		})
	}
	return all
}

// identity is how the service knows a machine.
func (f *fleet) identity(i int32) inprocess.Machine {
	m := &f.machines[i]
	g := &f.groups[m.group]
	return inprocess.Machine{
		ID: m.id, Kernel: f.kernels[g.kernel], Tier: g.tier.Name,
		Account: fmt.Sprint(g.tier.Name, m.account), Token: f.token(i),
	}
}

// identities are those of all machines.
func (f *fleet) identities(yield func(inprocess.Machine) bool) {
	for i := range f.machines {
		if !yield(f.identity(int32(i))) {
			return
		}
	}
}

// token is the machine token of a machine.
func (f *fleet) token(i int32) string {
	rng := f.dice(i, dicePlace)
	return fmt.Sprintf("%016x%016x", rng.Uint64()^0x5eed, rng.Uint64())
}

// slot is the next second at which a machine checks in by itself.
func (f *fleet) slot(i int32, after int64) int64 {
	phase := int64(f.machines[i].phase)
	at := after/3600*3600 + phase
	if at <= after {
		at += 3600
	}
	return at
}

// An action is something that is due for a machine. The agent's own number of it tells
// whether it still is.
type action struct {
	machine int32
	serial  int32
	strike  bool // the patch does its harm; else the agent does what is due
}

// An agenda holds what is due in each second.
type agenda [][]action

func (a agenda) add(at int64, x action) {
	if at < int64(len(a)) {
		a[at] = append(a[at], x)
	}
}
