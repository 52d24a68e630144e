package rollout

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// Version is that of [State]. A state of another version is refused.
const Version = 1

// A State is a [Rollout] as a value. As JSON it is the same bytes whenever it is the
// same state.
type State struct {
	Version  int    `json:"version"`
	Params   Params `json:"params"`
	Salt     string `json:"salt"`
	Tiers    []Tier `json:"tiers"`
	Now      int64  `json:"now"`      // Unix seconds of the last instant
	Patience int64  `json:"patience"` // silence does not count before it
	Seq      int64  `json:"seq"`      // decisions made
	// Suspended is since when the rollout as a whole is halted by people, in Unix seconds; 0: it
	// is not.
	Suspended int64 `json:"suspended,omitempty"`

	Processes int                `json:"processes"` // that share alpha
	LastBatch uint32             `json:"last_batch"`
	Accounts  []string           `json:"accounts"`
	Units     []*unit            `json:"units"`
	Sources   map[string]*source `json:"sources"`
	Cells     map[string]*cell   `json:"cells"`
	Batches   map[uint32]*batch  `json:"batches"`

	// Trials in the order of their machines. A server that keeps them in a
	// table of their own leaves them out here.
	Trials Trials `json:"trials,omitempty"`
}

// State returns the state. What it refers to is the rollout's own until
// it is encoded: encode it before the next Step.
func (r *Rollout) State() State {
	s := r.s
	s.Trials = make([]Trial, 0, len(r.trials))
	for _, t := range r.trials {
		s.Trials = append(s.Trials, *t)
	}
	slices.SortFunc(s.Trials, func(a, b Trial) int { return bytes.Compare(a.Machine[:], b.Machine[:]) })
	return s
}

// Restore returns a rollout that goes on from s, which then belongs to it.
func Restore(s State) (*Rollout, error) {
	if s.Version != Version {
		return nil, fmt.Errorf("cannot restore rollout: version is %d, want %d", s.Version, Version)
	}
	if err := s.Params.Validate(); err != nil {
		return nil, fmt.Errorf("cannot restore rollout: %w", err)
	}
	if err := checkTiers(s.Tiers); err != nil {
		return nil, fmt.Errorf("cannot restore rollout: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("cannot restore rollout: %w", err)
	}
	r := &Rollout{
		s: s, trials: make(map[Machine]*Trial, len(s.Trials)), base: map[uint32]Pair{}, accounts: map[string]uint32{},
		closed: map[*unit]map[Machine]bool{},
		wheel:  wheel{slots: map[int64][]*Trial{}, next: s.Now},
	}
	for i, name := range s.Accounts {
		r.accounts[name] = uint32(i)
	}
	for i := range s.Trials {
		r.watch(&s.Trials[i])
	}
	r.s.Trials = nil
	r.list()
	r.own()
	for _, u := range r.s.Units {
		if u.Signatures == nil {
			u.Signatures = map[string][]reporter{}
		}
	}
	return r, nil
}

// watch takes a trial that was stored.
func (r *Rollout) watch(stored *Trial) {
	t := new(Trial) // of its own, so that it can be freed without the others
	*t = *stored
	r.trials[t.Machine] = t
	if !t.is(closed | missed) {
		r.watched++
	}
	if t.is(closed) {
		r.remember(t)
	}
	if t.Due != 0 {
		r.wheel.put(t)
	}
}

// check refuses a state that would make a Step panic.
func (s *State) check() error {
	for _, u := range s.Units {
		if err := s.checkUnit(u); err != nil {
			return err
		}
	}
	for name, c := range s.Cells {
		if c == nil || c.Unit < -1 || c.Unit >= len(s.Units) || !c.fits(len(s.Tiers)) {
			return fmt.Errorf("cell %.40q does not fit", name)
		}
	}
	if slices.Contains(slices.Collect(maps.Values(s.Batches)), nil) {
		return fmt.Errorf("a batch is missing")
	}
	for name, src := range s.Sources {
		if src == nil || slices.Contains(slices.Collect(maps.Values(src.Accounts)), nil) {
			return fmt.Errorf("source %.40q or an account of it is missing", name)
		}
	}
	seen := make(map[Machine]bool, len(s.Trials))
	for i := range s.Trials {
		if err := s.checkTrial(&s.Trials[i]); err != nil {
			return err
		}
		if seen[s.Trials[i].Machine] {
			return fmt.Errorf("machine %v has two trials", s.Trials[i].Machine)
		}
		seen[s.Trials[i].Machine] = true
	}
	return nil
}

func (s *State) checkUnit(u *unit) error {
	if u == nil || s.Sources[u.Source] == nil || len(u.Lanes) != len(s.Tiers) || u.Tier < 0 || u.Index < 0 {
		return fmt.Errorf("a unit does not fit")
	}
	if u.Accounts == nil || slices.Contains(slices.Collect(maps.Values(u.Accounts)), nil) {
		return fmt.Errorf("accounts of unit %.40q are missing", u.Name)
	}
	for i := range u.Lanes {
		if l := &u.Lanes[i]; l.Batch != 0 && s.Batches[l.Batch] == nil {
			return fmt.Errorf("batch %d of unit %.40q is missing", l.Batch, u.Name)
		}
	}
	return nil
}

func (s *State) checkTrial(t *Trial) error {
	switch {
	case t.Unit < 0 || int(t.Unit) >= len(s.Units),
		int(t.Tier) >= len(s.Tiers),
		t.Batch != 0 && (s.Batches[t.Batch] == nil || !t.is(evidence)),
		t.Arm != Treated && t.Arm != Control,
		int(t.Account) >= len(s.Accounts),
		t.Flags&^allFlags != 0:
		return fmt.Errorf("trial of machine %v does not fit", t.Machine)
	}
	return nil
}
