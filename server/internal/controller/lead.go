package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// recount is how often the fleet is counted although no machine has enrolled; counting
// takes at most one part in dear of the time.
const (
	recount = time.Minute
	dear    = 20
	// quick is how long a round waits for the fleet to be counted.
	quick = 50 * time.Millisecond
)

// A lead is what the process that runs the rule knows. What is in it has been committed,
// or comes from the database.
type lead struct {
	*Controller
	term      int64
	taken     int64       // highest seq of reports that were taken
	seen      store.State // counters of the database when the rollouts were read
	processes map[store.Key]*process
	order     []store.Key // of processes

	withdrew  time.Time // when revocations in stages were looked at
	fleet     []store.Population
	countedAt time.Time     // by Now
	took      time.Duration // to count it
	counting  <-chan census // nil: it is not being counted
	nextCount time.Time     // by the wall clock
}

func newLead(ctx context.Context, c *Controller, term int64) (*lead, error) {
	l := &lead{Controller: c, term: term, processes: map[store.Key]*process{}, seen: store.State{Epoch: -1}}
	var err error
	if l.taken, err = c.DB.Taken(ctx); err != nil {
		return nil, err
	}
	c.counted = -1
	return l, l.refresh(ctx)
}

// round takes what there is, and tells whether some rollout has come further or was stopped.
func (l *lead) round(ctx context.Context) (spread bool, err error) {
	r := &round{
		lead: l, now: l.Now().UTC().Truncate(time.Second), answers: map[string]store.Answer{},
		events: map[store.Key][]rollout.Event{}, let: map[store.Key]int64{}, over: map[trial]bool{}, begun: map[trial]rollout.Arm{},
		heard: map[rollout.Machine]bool{},
	}
	if err := l.refresh(ctx); err != nil {
		return false, err
	}
	if err := r.count(ctx); err != nil {
		return false, err
	}
	if err := r.take(ctx); err != nil {
		return false, err
	}
	if err := r.hear(ctx); err != nil {
		return false, err
	}
	r.withdraws = r.withdrawing()
	out, err := r.step()
	if err != nil {
		return false, err
	}
	if r.idle(out) {
		return false, nil
	}
	widened, err := r.commit(ctx, out)
	if err != nil {
		return false, err
	}
	l.taken = out.Taken
	l.answer(r.answers)
	l.tell(ctx, out)
	r.tellOutcomes(ctx)
	r.measure()
	l.view.Store(l.look())
	return widened, nil
}

// refresh reads the rollouts if the database says that something about them has
// changed.
func (l *lead) refresh(ctx context.Context) error {
	s, err := l.DB.Counters(ctx)
	if err != nil || s.Epoch == l.seen.Epoch && s.Publication == l.seen.Publication {
		return err
	}
	rollouts, err := l.DB.Rollouts(ctx)
	if err != nil {
		return err
	}
	coverage, err := l.DB.Coverage(ctx)
	if err != nil {
		return err
	}
	cells := map[store.Key]map[string]bool{}
	for _, c := range coverage {
		if cells[c.Key] == nil {
			cells[c.Key] = map[string]bool{}
		}
		cells[c.Key][c.Cell] = true
	}
	for _, r := range rollouts {
		if err := l.meet(ctx, r, cells[store.Key{Vendor: r.Vendor, Version: r.Version}]); err != nil {
			return err
		}
	}
	l.seen, l.order = s, l.keys()
	return nil
}

// meet takes over what the database says of a rollout.
func (l *lead) meet(ctx context.Context, r store.Rollout, cells map[string]bool) error {
	k := store.Key{Vendor: r.Vendor, Version: r.Version}
	p := l.processes[k]
	if p == nil {
		var err error
		if p, err = l.open(ctx, k, r); err != nil {
			return fmt.Errorf("cannot open rollout of %s %s: %w", r.Vendor, r.Version, err)
		}
		l.processes[k] = p
	}
	if len(p.cells) != len(cells) {
		l.counted = -1 // their machines count now
	}
	p.state, p.spread, p.cells, p.withdraws = r.State, r.Spread, cells, r.Withdrawal.Share > 0
	return nil
}

// keys returns the rollouts in their order.
func (l *lead) keys() []store.Key {
	keys := make([]store.Key, 0, len(l.processes))
	for k := range l.processes {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b store.Key) int {
		return cmp.Or(cmp.Compare(a.Vendor, b.Vendor), cmp.Compare(a.Version, b.Version))
	})
	return keys
}

// look returns what check-ins need to know.
func (l *lead) look() *view {
	v := &view{leads: true, stages: map[lane][]rollout.Assignment{}}
	for _, p := range l.processes {
		if p.state != patch.Running || !p.rule.Live() {
			continue
		}
		for cell := range p.cells {
			for _, t := range l.Tiers {
				if a := p.rule.Assignment(cell, t.Name); a.Sham > 0 {
					k := lane{cell, t.Name}
					v.stages[k] = append(v.stages[k], a)
				}
			}
		}
	}
	return v
}

// tell logs what was decided.
func (l *lead) tell(ctx context.Context, out store.Round) {
	for _, v := range out.Verdicts {
		level := l.Log.InfoContext
		if v.Action == string(rollout.Halt) {
			level = l.Log.ErrorContext
		}
		level(ctx, "Decided about a rollout", "vendor", v.Vendor, "version", v.Version, "unit", v.Unit,
			"action", v.Action, "reason", v.Reason, "seq", v.Seq)
	}
}
