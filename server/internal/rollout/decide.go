package rollout

import (
	"maps"
	"slices"
	"time"
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
		facts := r.facts()
		for i, u := range r.s.Units {
			if u.Halted != "" {
				continue
			}
			if d, isNew := r.judge(i, u, facts); isNew {
				made = append(made, d)
				again, facts = true, r.facts()
			}
		}
	}
	return made
}

// judge decides about a unit. A verdict that says the same as the last one is not new.
func (r *Rollout) judge(i int, u *unit, f facts) (Decision, bool) {
	e := r.evidence(u, f)
	v := r.s.Params.Judge(e)
	if v.Action == Hold && e.Done || r.repeats(u, v) {
		return Decision{}, false
	}
	r.note(u, v)
	r.s.Seq++
	d := Decision{
		Seq: r.s.Seq, At: r.s.Now, Unit: u.Name, Source: u.Source, Cells: r.cells[i], Tier: e.Tier,
		Params: r.s.Params, Evidence: e, Verdict: v,
	}
	r.enact(u, v)
	return d, true
}

// quiet is for how long a unit that holds is not said again to hold for a reason that was given
// already.
const quiet = 10 * time.Minute

// repeats tells whether what is decided about a unit says nothing new. What holds it may
// change with each report of a machine, which must not fill the record of decisions.
func (r *Rollout) repeats(u *unit, v Verdict) bool {
	if v.Action != Hold || u.Last.Action != Hold {
		return false
	}
	at, given := u.Held[v.Reason]
	return v.Reason == u.Last.Reason || given && r.s.Now-at < seconds(quiet)
}

// note remembers a verdict.
func (r *Rollout) note(u *unit, v Verdict) {
	if u.Last = v; v.Action != Hold {
		u.Held = nil
		return
	}
	if u.Held == nil {
		u.Held = map[Reason]int64{}
	}
	u.Held[v.Reason] = r.s.Now
}

// enact makes a verdict so.
func (r *Rollout) enact(u *unit, v Verdict) {
	l := &u.Lanes[u.latest()]
	u.Trusting = u.Trusting || v.Reason == NoEvidence && v.Action != Hold
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

// sweep forgets the machines that had their trial in an earlier stage.
func (r *Rollout) sweep(u *unit) {
	for m := range r.closed[u] {
		if t := r.trials[m]; t != nil && t.is(closed) && r.s.Units[t.Unit] == u {
			r.forget(t)
		}
	}
	delete(r.closed, u)
}

// evidence gathers what is known about a unit.
func (r *Rollout) evidence(u *unit, f facts) Evidence {
	p, src, at := r.s.Params, r.s.Sources[u.Source], u.latest()
	l, tier := &u.Lanes[at], r.s.Tiers[at]
	e := Evidence{
		E: u.E, Alpha: p.Halt.alpha(u.Index), SourceE: src.E, SourceAlpha: p.Halt.alpha(src.Index),
		Trip:        Tally{Failed: float64(u.Dead.Treated), Of: float64(u.Dead.Treated + u.Lived.Treated)},
		TripControl: Tally{Failed: float64(u.Dead.Control), Of: float64(u.Dead.Control + u.Lived.Control)},
		Controls:    src.Controls, TripOff: u.TripOff,
		Seen: l.Seen, Silent: l.Silent, Siblings: r.siblings(u, f),
		Crashes: int64(len(u.Crashed)), Alone: u.accounts() == 1, Tried: u.tried(), Done: u.current() == nil,
		Suspended: r.Suspended(), Waits: string(f.waits(u)), Machines: l.Machines, Tier: tier.Name, Last: at == len(u.Lanes)-1, Late: u.Late,
		Auto: tier.Auto, Told: u.Told, Ramp: tier.Ramp,
		Stage: int64(l.Stage), Age: l.age(r.awake()), Share: l.Share, Wanted: l.Wanted, Came: l.Came.Treated,
		Exposed: l.Exposed, Pending: l.Pending + l.Offered, Soft: l.Soft, Left: l.Left,
	}
	if u.lone(at) {
		e.Lone = Tally{Failed: float64(l.Dead), Of: float64(l.Dead + l.Lived)}
	}
	e.Signature, e.Hits = u.commonest()
	e.Treated, e.Control = r.known(u, at)
	return e
}

// known is the matured evidence for the pace of a unit in a tier. Small and late ones add
// what their siblings have shown, with little weight.
func (r *Rollout) known(u *unit, tier int) (treated, control Tally) {
	carry := r.s.Params.Pace.Carry
	treated, control = u.tallies(tier, carry)
	if !u.Small && !u.Late {
		return treated, control
	}
	for _, o := range r.s.Units {
		if o != u && o.Source == u.Source && r.weighs(o) {
			t, c := o.all()
			treated, control = treated.plus(t, carry), control.plus(c, carry)
		}
	}
	return treated, control
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

// facts are what a decision about a unit has to know of all of them.
type facts struct {
	lead  *unit
	begun bool // some unit is past its first stage
	// halted is how many units of a source are, behind the tier in which the last of its
	// kernels of their own is that [Rollout.weighs].
	halted map[string]int
	behind map[string]int
}

func (r *Rollout) facts() facts {
	f := facts{lead: r.lead(), halted: map[string]int{}, behind: map[string]int{}}
	for _, u := range r.s.Units {
		f.begun = f.begun || u.begun()
		if u.Halted != "" {
			f.halted[u.Source]++
			continue
		}
		if b, ok := f.behind[u.Source]; !u.Small && r.weighs(u) && (!ok || u.Tier < b) {
			f.behind[u.Source] = u.Tier
		}
	}
	return f
}

// siblings is how many siblings of a unit are halted at which no person has looked, and
// not by the word of one account.
func (r *Rollout) siblings(u *unit, f facts) (n int64) {
	if f.halted[u.Source] == 0 {
		return 0
	}
	for _, name := range r.haltedSiblings(u, u.Released) {
		if r.weighs(r.unit(name)) {
			n++
		}
	}
	return n
}

// waits returns why a unit may not begin with its tier, or "". One unit goes
// through its first stage before all others begin, so that a patch that kills
// at once kills one stage and not one of each kernel. Small units come after their siblings.
func (f facts) waits(u *unit) Reason {
	if f.lead != u && !f.begun {
		return WaitsForLead
	}
	if behind, ok := f.behind[u.Source]; ok && u.Small && behind <= u.Tier {
		return WaitsForSiblings
	}
	return ""
}

// begun tells whether a unit is past its first stage.
func (u *unit) begun() bool {
	l := u.current()
	return l == nil || l.Stage > 1 || slices.ContainsFunc(u.Lanes[:u.Tier], func(l lane) bool { return l.Stage > 0 })
}

// lead returns the unit that goes first: the largest in the lowest tier that has
// machines, small units last and after them those of one account, halted ones not at all.
func (r *Rollout) lead() (lead *unit) {
	better := func(a, b *unit) bool {
		if x, y := r.weighs(a), r.weighs(b); x != y {
			return x
		}
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
