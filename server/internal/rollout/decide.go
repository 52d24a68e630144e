package rollout

import (
	"maps"
	"slices"

	"livepatch/internal/patch"
)

// A Decision is what was decided about a unit, with everything it was decided from.
type Decision struct {
	Seq      int64    `json:"seq"` // grows by one with each decision of a rollout
	At       int64    `json:"at"`  // Unix seconds
	Unit     string   `json:"unit"`
	Source   string   `json:"source"`
	Cells    []string `json:"cells"` // kernels of the unit
	Tier     string   `json:"tier"`
	Params   Params   `json:"params"`
	Evidence Evidence `json:"evidence"`
	Verdict  Verdict  `json:"verdict"`
}

// Judge makes the decision again. A decision that was stored and not tampered with
// gives its own verdict.
func (d Decision) Judge() Verdict { return d.Params.Judge(d.Evidence) }

// decide judges every unit, until nothing follows any more: what is decided about one
// may be what another has waited for.
func (r *Rollout) decide() (made []Decision) {
	for again := true; again; {
		again = false
		for _, u := range r.s.Units {
			if u.Halted != "" || u.current() == nil {
				continue
			}
			if d, isNew := r.judge(u); isNew {
				made = append(made, d)
				again = true
			}
		}
	}
	return made
}

// judge decides about a unit. A verdict that says the same as the last one is not new.
func (r *Rollout) judge(u *unit) (Decision, bool) {
	e := r.evidence(u)
	v := r.s.Params.Judge(e)
	if v.Action == Hold && v.Action == u.Last.Action && v.Reason == u.Last.Reason {
		return Decision{}, false
	}
	u.Last = v
	r.s.Seq++
	d := Decision{
		Seq: r.s.Seq, At: r.s.Now, Unit: u.Name, Source: u.Source, Cells: r.cells(u), Tier: e.Tier,
		Params: r.s.Params, Evidence: e, Verdict: v,
	}
	r.enact(u, v)
	return d, true
}

// enact makes a verdict so.
func (r *Rollout) enact(u *unit, v Verdict) {
	l := u.current()
	switch v.Action {
	case Halt:
		u.Halted = v.Reason
		r.endBatch(l)
	case Advance:
		r.endBatch(l)
		l.begin(v, r.s.Now)
		r.sweep(u)
	case Promote, Complete:
		r.endBatch(l)
		l.finish(r.s.Params.Pace)
		u.Tier++
		u.Told = false
		r.sweep(u)
	case Hold:
	}
}

// sweep forgets the controls that had their trial in an earlier stage.
func (r *Rollout) sweep(u *unit) {
	for _, t := range r.trials {
		if t.is(closed) && r.s.Units[t.Unit] == u {
			r.forget(t)
		}
	}
}

func (r *Rollout) cells(u *unit) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(r.s.Cells)) {
		if c := r.s.Cells[name]; c.Unit >= 0 && r.s.Units[c.Unit] == u {
			names = append(names, name)
		}
	}
	return names
}

// evidence gathers what is known about a unit that has a tier to go.
func (r *Rollout) evidence(u *unit) Evidence {
	p, src, l, tier := r.s.Params, r.s.Sources[u.Source], u.current(), r.s.Tiers[u.Tier]
	e := Evidence{
		E: u.E, Alpha: p.Halt.alpha(u.Index), SourceE: src.E, SourceAlpha: p.Halt.alpha(src.Index),
		Trip:        Tally{Failed: float64(u.Failed.Treated), Of: float64(u.Failed.Treated + u.Lived.Treated)},
		TripControl: Tally{Failed: float64(u.Failed.Control), Of: float64(u.Failed.Control + u.Lived.Control)},
		Controls:    src.Controls, TripOff: u.TripOff,
		Seen: l.Seen, Silent: l.Silent, Siblings: int64(len(r.haltedSiblings(u, u.Released))),
		Waits: string(r.waits(u)), Machines: l.Machines, Tier: tier.Name, Last: u.Tier == len(u.Lanes)-1,
		Auto: tier.Auto, Told: u.Told, Ramp: tier.Ramp,
		Stage: int64(l.Stage), Age: r.s.Now - l.Began, Share: l.Share, Wanted: l.Wanted, Came: l.Came.Treated,
		Exposed: l.Exposed, Pending: l.Pending + l.Offered, Soft: l.Soft, Left: l.Left,
	}
	e.Signature, e.Hits = u.commonest()
	e.Treated, e.Control = u.tallies(u.Tier, p.Pace.Carry)
	if u.Small {
		r.borrow(u, &e)
	}
	return e
}

// borrow adds what the siblings of a small unit have shown, with little weight.
func (r *Rollout) borrow(u *unit, e *Evidence) {
	for _, o := range r.s.Units {
		if o != u && o.Source == u.Source {
			treated, control := o.all()
			e.Treated = e.Treated.plus(treated, r.s.Params.Pace.Carry)
			e.Control = e.Control.plus(control, r.s.Params.Pace.Carry)
		}
	}
}

// commonest returns the oops that most machines had.
func (u *unit) commonest() (signature string, hits int64) {
	for _, s := range slices.Sorted(maps.Keys(u.Signatures)) {
		if n := int64(len(u.Signatures[s])); n > hits {
			signature, hits = s, n
		}
	}
	return signature, hits
}

// waits returns why a unit may not begin with its tier, or "". One unit goes
// through its first stage before all others begin, so that a patch that kills
// at once kills one stage and not one of each kernel. Small units come after their siblings.
func (r *Rollout) waits(u *unit) Reason {
	if lead := r.lead(); lead != u && !slices.ContainsFunc(r.s.Units, (*unit).begun) {
		return WaitsForLead
	}
	for _, o := range r.s.Units {
		if u.Small && !o.Small && o.Source == u.Source && o.Tier <= u.Tier {
			return WaitsForSiblings
		}
	}
	return ""
}

// begun tells whether a unit is past its first stage.
func (u *unit) begun() bool {
	l := u.current()
	return l == nil || l.Stage > 1 || slices.ContainsFunc(u.Lanes[:u.Tier], func(l lane) bool { return l.Stage > 0 })
}

// lead returns the unit that goes first: the largest in the lowest tier that has
// machines, small units last, halted ones not at all.
func (r *Rollout) lead() (lead *unit) {
	better := func(a, b *unit) bool {
		if a.Small != b.Small {
			return !a.Small
		}
		for i := range a.Lanes {
			if x, y := a.Lanes[i].Machines, b.Lanes[i].Machines; x != y {
				return x > y
			}
		}
		return a.Name < b.Name
	}
	for _, u := range r.s.Units {
		if u.Halted == "" && (lead == nil || better(u, lead)) {
			lead = u
		}
	}
	return lead
}

func (r *Rollout) assignment(l *lane) Assignment {
	return Assignment{Salt: r.s.Salt, Stage: int64(l.Stage), Share: l.Share, Sham: l.Sham}
}

// Assignment returns how the machines of a cell are dealt in a tier. It leaves
// everybody outside where the patch has not come to or is halted: a state, and no share.
func (r *Rollout) Assignment(cell, tier string) Assignment {
	u, _ := r.where(cell)
	i := r.tier(tier)
	if u == nil || i < 0 || u.Halted != "" {
		return Assignment{Salt: r.s.Salt}
	}
	a := r.assignment(&u.Lanes[i])
	if i != u.Tier {
		a.Sham = 0
	}
	return a
}

// Room returns how many more machines of a cell and tier may be offered the patch
// now, of those that are treated by [Rollout.Assignment].
func (r *Rollout) Room(cell, tier string) int64 {
	u, _ := r.where(cell)
	i := r.tier(tier)
	if u == nil || i < 0 || u.Halted != "" || u.Lanes[i].Share == 0 {
		return 0
	}
	var dark int64
	var treated, control Tally
	for _, o := range r.s.Units {
		for j := range o.Lanes {
			dark += o.Lanes[j].Dark + o.Lanes[j].Offered
		}
		t, c := o.all()
		treated, control = treated.plus(t, 1), control.plus(c, 1)
	}
	room, _ := r.s.Params.Pace.room(treated, control)
	l := &u.Lanes[i]
	return max(0, min(l.open(r.s.Params.Pace, i < u.Tier), r.s.Params.Pace.capacity(room)-dark))
}

// ShamRoom returns how many more controls are wanted now in a cell and tier.
func (r *Rollout) ShamRoom(cell, tier string) int64 {
	u, _ := r.where(cell)
	if u == nil || u.Halted != "" || u.current() == nil || r.tier(tier) != u.Tier || u.current().Sham == 0 {
		return 0
	}
	return max(0, u.current().shamRoom(r.s.Params.Pace))
}

// A Stage is how far a unit has come in one tier, for people.
type Stage struct {
	Unit, Source, Tier string
	Cells              []string
	Halted             Reason // "" if it is not
	Current            bool   // the tier that is being widened
	Everyone           bool
	Share              int64 // parts per million
	Machines           int64
	Exposed, Pending   int64
	Treated, Control   Tally // matured evidence
	Last               Verdict
}

// Stages lists how far the patch has come.
func (r *Rollout) Stages() (stages []Stage) {
	for _, u := range r.s.Units {
		for i := range u.Lanes {
			l := &u.Lanes[i]
			stages = append(stages, Stage{
				Unit: u.Name, Source: u.Source, Tier: r.s.Tiers[i].Name, Cells: r.cells(u), Halted: u.Halted,
				Current: i == u.Tier, Everyone: l.Share == patch.Everyone, Share: l.Share, Machines: l.Machines,
				Exposed: l.Exposed, Pending: l.Pending, Treated: l.treated(), Control: l.control(), Last: u.Last,
			})
		}
	}
	return stages
}

// Evidence returns what is known now about a unit, and whether there is such a
// unit with a tier to go.
func (r *Rollout) Evidence(unit string) (Evidence, bool) {
	u := r.unit(unit)
	if u == nil || u.current() == nil {
		return Evidence{}, false
	}
	return r.evidence(u), true
}
