package rollout

import (
	"math"
	"slices"
	"time"

	"livepatch/internal/patch"
)

// This file answers questions. None of them changes what a Step does.

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

// Room returns how many more machines of a cell and tier may have the patch
// now, of those that are treated by [Rollout.Assignment].
func (r *Rollout) Room(cell, tier string) int64 {
	u, _ := r.where(cell)
	i := r.tier(tier)
	if u == nil || i < 0 || u.Halted != "" || u.Lanes[i].Share == 0 {
		return 0
	}
	if u.Last.Action == Hold && u.Last.Reason == Failing && u.lone(i) {
		return 0
	}
	if r.s.Params.Pace.AtOnce {
		return math.MaxInt32
	}
	open := u.open(&u.Lanes[i], r.s.Params.Pace, r.earned(u, i))
	if open <= 0 {
		return 0
	}
	return max(0, min(open, r.unlit(u)))
}

// earned is N′ of what is known by now for a tier of a unit.
func (r *Rollout) earned(u *unit, tier int) int64 {
	treated, control := u.all()
	if u.current() != nil {
		treated, control = r.known(u, tier)
	}
	room, _ := r.s.Params.Pace.room(treated, control)
	return room
}

// unlit is how many machines of all units together may go into the dark now, for one of them.
func (r *Rollout) unlit(u *unit) int64 {
	var dark int64
	var treated, control Tally
	for _, o := range r.s.Units {
		for j := range o.Lanes {
			dark += o.Lanes[j].Dark + o.Lanes[j].Offered
		}
		if o == u || r.weighs(o) {
			t, c := o.all()
			treated, control = treated.plus(t, 1), control.plus(c, 1)
		}
	}
	room, _ := r.s.Params.Pace.room(treated, control)
	return r.s.Params.Pace.capacity(room) - dark
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
	Soft               int64 // soft failures
	Treated, Control   Tally // matured evidence
	Last               Verdict
}

// Stages lists how far the patch has come.
func (r *Rollout) Stages() []Stage {
	stages := make([]Stage, 0, len(r.s.Units)*len(r.s.Tiers))
	for n, u := range r.s.Units {
		for i := range u.Lanes {
			l := &u.Lanes[i]
			stages = append(stages, Stage{
				Unit: u.Name, Source: u.Source, Tier: r.s.Tiers[i].Name, Cells: r.cells[n], Halted: u.Halted,
				Current: i == u.Tier, Everyone: l.Share == patch.Everyone, Share: l.Share, Machines: l.Machines,
				Exposed: l.Exposed, Pending: l.Pending, Soft: l.Soft, Treated: l.treated(), Control: l.control(), Last: u.Last,
			})
		}
	}
	return stages
}

// Evidence returns what is known now about a unit, and whether there is such a unit.
func (r *Rollout) Evidence(unit string) (Evidence, bool) {
	u := r.unit(unit)
	if u == nil {
		return Evidence{}, false
	}
	return r.evidence(u, r.facts()), true
}

// Live tells whether something may follow from the mere passing of time: a unit has a tier
// to go, or a machine is under watch. A rollout that is not live need not be given a Step
// until there is an event.
func (r *Rollout) Live() bool {
	return r.watched > 0 || slices.ContainsFunc(r.s.Units, func(u *unit) bool { return u.Halted == "" && u.current() != nil })
}

// Overdue tells whether a Step at an instant, and none before it, would miss a sign of
// life.
func (r *Rollout) Overdue(at time.Time) bool {
	now := at.Unix()
	if now < r.s.Patience || r.gap(now) {
		return false
	}
	return r.wheel.overdue(now)
}

// Newcomers tells whether machines that enrolled after the salt was drawn are evidence in a
// cell, and so may be controls as well.
func (r *Rollout) Newcomers(cell string) bool {
	u, _ := r.where(cell)
	return u != nil && r.trusts(u, true)
}

// Watched returns the arm of a machine that is in a trial.
func (r *Rollout) Watched(m Machine) (Arm, bool) {
	t := r.trials[m]
	if t == nil || t.is(idle) {
		return Outside, false
	}
	return t.Arm, true
}

// Next returns after how many seconds a machine under watch is to give its next sign
// of life, so that it can be told. A machine that is not under watch is not expected to
// give one.
func (r *Rollout) Next(m Machine, at time.Time) (wait int64, watched bool) {
	t := r.trials[m]
	if t == nil || t.is(idle) {
		return 0, false
	}
	return max(1, t.Opened+seconds(r.s.Params.Time.deadline(int(t.Passed)))-at.Unix()), true
}
