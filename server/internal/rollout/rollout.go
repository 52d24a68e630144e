package rollout

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// ErrPast means that a batch of events is older than one that was taken.
var ErrPast = errors.New("events from the past")

// A Tier is one of the rings of machines that a patch goes through.
type Tier struct {
	Name string `json:"name"`
	// Ramp lists the shares, in parts per million and ascending, at which the
	// stages of this tier stop, whatever more the evidence would allow. A tier of
	// machines that do not want to be canaries has one.
	Ramp []int64 `json:"ramp,omitempty"`
	// Auto: the rule lets the patch into the next tier without a person.
	Auto bool `json:"auto,omitempty"`
}

// A Rollout is the state of one version of a patch. Its methods must not be
// called at the same time.
type Rollout struct {
	s        State
	trials   map[Machine]*Trial
	watched  int // of trials: those that end by themselves as time passes
	wheel    wheel
	base     map[uint32]Pair            // risk sets before the failures of this instant
	accounts map[string]uint32          // index of each in s.Accounts
	cells    [][]string                 // of each unit, in order
	owners   map[string]int64           // accounts of each source
	closed   map[*unit]map[Machine]bool // some may be forgotten already
}

// A source is a source patch; its units are kernels built from it.
type source struct {
	Index int    `json:"index"` // of its test A among all processes
	E     EValue `json:"e"`
	// Controls that have matured, in all its units.
	Controls int64 `json:"controls"`
	Failed   int64 `json:"failed,omitempty"` // in E
	// Accounts are the parts of accounts in both.
	Accounts map[uint32]*share `json:"accounts,omitempty"`
}

// A cell is a kernel.
type cell struct {
	Source   string   `json:"source"`
	Unit     int      `json:"unit"` // index, or -1 while it has no machines
	Machines []int64  `json:"machines"`
	Accounts []int64  `json:"accounts"`
	Owners   []string `json:"owners,omitempty"` // the account in a tier, if it is the only one there and known
}

// fits tells whether the cell says something of each of a number of tiers.
func (c *cell) fits(tiers int) bool {
	return len(c.Machines) == tiers && len(c.Accounts) == tiers && (c.Owners == nil || len(c.Owners) == tiers)
}

// New returns a rollout that nobody has yet. The salt has to be drawn after the
// machines that are to be evidence have enrolled.
func New(p Params, salt string, tiers []Tier) (*Rollout, error) {
	s := State{
		Version: Version, Params: p, Salt: salt, Tiers: tiers,
		Sources: map[string]*source{}, Cells: map[string]*cell{}, Batches: map[uint32]*batch{},
	}
	return Restore(s)
}

func checkTiers(tiers []Tier) error {
	if len(tiers) == 0 || len(tiers) > 100 {
		return fmt.Errorf("want 1 to 100 tiers, have %d", len(tiers))
	}
	seen := map[string]bool{}
	for _, t := range tiers {
		if t.Name == "" || len(t.Name) > maxName || seen[t.Name] {
			return fmt.Errorf("tier %.40q is empty, long, or there twice", t.Name)
		}
		seen[t.Name] = true
		for i, share := range t.Ramp {
			if share <= 0 || share > 1_000_000 || i > 0 && share <= t.Ramp[i-1] {
				return fmt.Errorf("ramp of tier %q does not ascend to 1000000", t.Name)
			}
		}
	}
	return nil
}

// Step takes everything that happened at one instant and returns what follows. The
// order of the events does not matter. It must be called at least once in
// [TimeParams.Gap] even if nothing happened, because silence is an event too. If one event
// is malformed or the instant lies before the last one, there is no effect.
func (r *Rollout) Step(at time.Time, events []Event) ([]Decision, error) {
	now := at.Unix()
	if now < r.s.Now {
		return nil, fmt.Errorf("cannot take events of %v: %w", at, ErrPast)
	}
	for i := range events {
		if err := r.Check(events[i]); err != nil {
			return nil, fmt.Errorf("cannot take event: %w", err)
		}
	}
	r.pass(now)
	clear(r.base)
	silent := r.apply(sorted(events))
	for _, t := range silent {
		r.fail(t, silence)
	}
	return r.decide(), nil
}

// pass lets the time pass until now. Silence while this program was not running is
// nobody's but its own.
func (r *Rollout) pass(now int64) {
	if r.gap(now) {
		r.s.Patience = now + seconds(r.s.Params.Time.Patience)
	}
	r.s.Now = now
}

// gap tells whether this program was not running before an instant. While nobody is under
// watch it need not have been.
func (r *Rollout) gap(now int64) bool {
	return r.watched > 0 && now-r.s.Now > seconds(r.s.Params.Time.Gap)
}

// apply takes events in their order and returns the trials that are overdue, in
// the order of their machines.
func (r *Rollout) apply(events []Event) (silent []*Trial) {
	n := slices.IndexFunc(events, func(e Event) bool { return e.Kind != Population })
	if n < 0 {
		n = len(events)
	}
	for _, e := range events[:n] {
		r.populate(e)
	}
	if n > 0 {
		r.regroup()
	}
	dead := failing(events)
	for _, e := range events[n:] {
		// Who says that it failed says nothing of how well it is.
		if e.Kind != Alive || !dead[e.Machine] {
			r.one(e)
		}
	}
	if r.s.Now < r.s.Patience {
		return nil
	}
	silent = r.wheel.take(r.s.Now)
	slices.SortFunc(silent, func(a, b *Trial) int { return slices.Compare(a.Machine[:], b.Machine[:]) })
	return silent
}

// failing returns the machines that report a failure.
func failing(events []Event) map[Machine]bool {
	ms := map[Machine]bool{}
	for _, e := range events {
		if e.Kind == Failed {
			ms[e.Machine] = true
		}
	}
	return ms
}

func (r *Rollout) one(e Event) {
	switch e.Kind {
	case Suspended:
		r.suspend()
	case Continued:
		r.proceed()
	case Promoted, Resumed, Released:
		r.person(e)
	case Offered:
		r.offer(e)
	case Intent:
		r.expose(e)
	case Sham:
		r.sham(e)
	case Alive:
		r.alive(r.trials[e.Machine])
	case Soft, Left:
		r.leave(r.trials[e.Machine], e.Kind == Soft)
	case Failed:
		r.failed(e)
	case Population:
	}
}

// populate notes how many machines a cell has in a tier.
func (r *Rollout) populate(e Event) {
	c := r.s.Cells[e.Cell]
	if c == nil {
		c = &cell{Source: e.Source, Unit: -1, Machines: make([]int64, len(r.s.Tiers)), Accounts: make([]int64, len(r.s.Tiers))}
		r.s.Cells[e.Cell] = c
	}
	tier := r.tier(e.Tier)
	c.Machines[tier], c.Accounts[tier] = e.Machines, e.Accounts
	if c.Owners == nil && e.Account != "" {
		c.Owners = make([]string, len(r.s.Tiers))
	}
	if c.Owners != nil {
		c.Owners[tier] = e.Account
	}
}

// regroup puts cells that have none into units, and counts the units' machines.
// A cell stays in its unit, whatever becomes of its size: evidence does not move.
func (r *Rollout) regroup() {
	for _, u := range r.s.Units {
		for i := range u.Lanes {
			u.Lanes[i].Machines = 0
		}
	}
	names := slices.Sorted(maps.Keys(r.s.Cells))
	for _, name := range names {
		r.place(name, r.s.Cells[name])
	}
	r.list()
	for _, name := range names {
		c := r.s.Cells[name]
		if c.Unit < 0 {
			continue
		}
		lanes := r.s.Units[c.Unit].Lanes
		for i := range lanes {
			lanes[i].Machines += c.Machines[i]
		}
	}
	r.own()
}

// list lists the cells of each unit.
func (r *Rollout) list() {
	r.cells = make([][]string, len(r.s.Units))
	for _, name := range slices.Sorted(maps.Keys(r.s.Cells)) {
		if i := r.s.Cells[name].Unit; i >= 0 {
			r.cells[i] = append(r.cells[i], name)
		}
	}
}

// place finds or makes the unit of a cell.
func (r *Rollout) place(name string, c *cell) {
	total := int64(0)
	for _, n := range c.Machines {
		total += n
	}
	if c.Unit >= 0 || total == 0 {
		return
	}
	small := total < r.s.Params.Pace.SmallCell
	if small {
		name = "small/" + c.Source
	}
	c.Unit = slices.IndexFunc(r.s.Units, func(u *unit) bool { return u.Name == name && u.Small == small })
	if c.Unit >= 0 {
		return
	}
	c.Unit = len(r.s.Units)
	if r.s.Sources[c.Source] == nil {
		r.s.Sources[c.Source] = &source{Index: r.process()}
	}
	r.s.Units = append(r.s.Units, &unit{
		Name: name, Source: c.Source, Small: small, Late: r.late(c.Source), Index: r.process(),
		Lanes: make([]lane, len(r.s.Tiers)), Accounts: map[uint32]*share{}, Signatures: map[string][]reporter{},
	})
}

// late tells whether a source is through: it has units of kernels of their own, and all have
// the patch.
func (r *Rollout) late(source string) bool {
	through := false
	for _, u := range r.s.Units {
		if u.Source != source || u.Small {
			continue
		}
		if u.current() != nil || u.Halted != "" {
			return false
		}
		through = true
	}
	return through
}

// process numbers the processes that share alpha.
func (r *Rollout) process() int {
	r.s.Processes++
	return r.s.Processes - 1
}

// person does what people decided.
func (r *Rollout) person(e Event) {
	u := r.unit(e.Unit)
	if u.Halted != "" && e.Kind != Resumed {
		return // a promise about a unit that is halted now would come true when it is resumed
	}
	if e.Kind == Promoted {
		u.Told = u.current() != nil
		return
	}
	if e.Kind == Resumed {
		r.resume(u)
	}
	u.Released, u.Held = r.haltedSiblings(u, nil), nil
}

// resume begins the tests of a unit anew. What was counted of it stays counted,
// and so it widens with care.
func (r *Rollout) resume(u *unit) {
	u.Halted, u.TripOff, u.E = "", true, EValue{}
	u.Signatures, u.Crashed = map[string][]reporter{}, nil
	for _, s := range u.Accounts {
		s.Signatures = 0
	}
	if l := u.current(); l != nil {
		l.Seen, l.Silent = Pair{}, Pair{}
	}
	r.s.Sources[u.Source].E = EValue{}
	for _, sibling := range r.s.Units {
		sibling.Released = slices.DeleteFunc(sibling.Released, func(name string) bool { return name == u.Name })
	}
}

// haltedSiblings returns the names of the halted units of the same source,
// without those that are known.
func (r *Rollout) haltedSiblings(u *unit, known []string) (names []string) {
	for _, o := range r.s.Units {
		if o != u && o.Source == u.Source && o.Halted != "" && !slices.Contains(known, o.Name) {
			names = append(names, o.Name)
		}
	}
	return names
}

func (r *Rollout) tier(name string) int {
	return slices.IndexFunc(r.s.Tiers, func(t Tier) bool { return t.Name == name })
}

func (r *Rollout) unit(name string) *unit {
	i := slices.IndexFunc(r.s.Units, func(u *unit) bool { return u.Name == name })
	if i < 0 {
		return nil
	}
	return r.s.Units[i]
}

// where returns the unit of a cell and its index, or nil if the cell is not known.
func (r *Rollout) where(cellName string) (*unit, int) {
	c := r.s.Cells[cellName]
	if c == nil || c.Unit < 0 {
		return nil, -1
	}
	return r.s.Units[c.Unit], c.Unit
}
