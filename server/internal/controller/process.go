package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"livepatch/internal/patch"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

const (
	// tick is how often the rule is told that time passes; its Gap is twice that.
	tick = time.Minute
	// keepAfter is after how many events, and stepsAfter after how many steps, the state
	// is kept, so that it need not be made of all steps since the beginning.
	keepAfter  = 50_000
	stepsAfter = 2_000
	// many are the machines under watch whose state takes too long to write in a round.
	many = 20_000
	// showEvery is how often people are shown numbers while nothing is decided.
	showEvery = 10 * time.Second
)

// A process is a rollout in memory.
type process struct {
	key     store.Key
	rule    *rollout.Rollout
	created time.Time
	step    int64
	at      time.Time // of the last step
	now     time.Time // for the rule: see clock
	ahead   time.Duration
	events  int // since the state was kept
	steps   int
	rests   time.Time     // before that the state is not kept again, by the wall clock
	packing <-chan packed // nil: no state is being written

	decided map[string]time.Time // when the last verdict on each unit was made

	state     patch.RolloutState // that people decided
	withdraws bool               // it is being revoked in stages
	shown     time.Time          // when people were last shown how far it has come
	spread    store.Spread
	cells     map[string]bool        // kernels that there is a patch for
	fleet     map[lane]rollout.Event // machines that the rule knows of
}

// open reads the state of a rollout, or makes that of a new one.
func (l *lead) open(ctx context.Context, k store.Key, r store.Rollout) (*process, error) {
	p := &process{key: k, created: r.Created, decided: map[string]time.Time{}}
	kept, steps, err := l.DB.RuleState(ctx, k)
	if errors.Is(err, store.ErrNotFound) {
		p.events = keepAfter // it is kept with the first step
		p.rule, err = rollout.New(l.Params, r.Salt, l.Tiers)
		return p, err
	}
	if err != nil {
		return nil, err
	}
	if p.rule, err = unpack(kept.Body); err != nil {
		return nil, err
	}
	p.step = kept.Step
	if err := p.recall(ctx, l.DB); err != nil {
		return nil, err
	}
	for _, s := range steps {
		if err := p.replay(s); err != nil {
			return nil, fmt.Errorf("cannot take step %d again: %w", s.Step, err)
		}
	}
	l.resume(p)
	return p, nil
}

// resume takes from the state of a rollout what rounds want to know of it.
func (l *lead) resume(p *process) {
	s := p.rule.State()
	p.at = time.Unix(s.Now, 0).UTC()
	p.now, p.fleet = p.at, fleet(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range s.Trials {
		if arm, watched := p.rule.Watched(t.Machine); watched {
			l.watched[t.Machine] = max(l.watched[t.Machine], arm) // of all rollouts
		}
	}
}

// fleet returns the machines that the rule knows of.
func fleet(s rollout.State) map[lane]rollout.Event {
	have := map[lane]rollout.Event{}
	for name, c := range s.Cells {
		for i, n := range c.Machines {
			if n == 0 {
				continue
			}
			e := rollout.Event{
				Kind: rollout.Population, Cell: name, Tier: s.Tiers[i].Name, Source: c.Source, Machines: n, Accounts: c.Accounts[i],
			}
			if c.Owners != nil {
				e.Account = c.Owners[i]
			}
			have[lane{name, e.Tier}] = e
		}
	}
	return have
}

// recall finds when verdicts were made. The state of the rule does not say; what people
// are shown of it does.
func (p *process) recall(ctx context.Context, db database) error {
	return db.View(ctx, func(tx store.Tx) error {
		shown, err := tx.Stages(ctx, p.key.Vendor, p.key.Version)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		for _, s := range shown.Stages {
			p.decided[s.Unit] = s.VerdictAt
		}
		return err
	})
}

// replay takes a step that was committed. What it decides was decided before.
func (p *process) replay(s store.Step) error {
	var events []rollout.Event
	if err := json.Unmarshal(s.Events, &events); err != nil {
		return err
	}
	decisions, err := p.rule.Step(s.At, events)
	for _, d := range decisions {
		p.decided[d.Unit] = s.At
	}
	p.step, p.at = s.Step, s.At
	p.events += len(events)
	p.steps++
	return err
}

// clock brings the time of the rule to that of the service. Where that was set back, it
// goes on from where it was, ahead of the service by as much: a rule whose time stands still
// would take a machine that gives all its signs of life for one that is silent.
func (p *process) clock(now time.Time) {
	p.ahead = max(p.ahead, p.now.Sub(now))
	p.now = now.Add(p.ahead)
}

// lapsed tells whether a time has passed since an instant. It has if the clock was set
// back since.
func lapsed(now, since time.Time, d time.Duration) bool {
	return now.Before(since) || now.Sub(since) >= d
}

// due tells whether the rule has to be told that it is now, although nothing happened.
func (p *process) due(now time.Time) bool {
	return p.rule.Overdue(now) || p.rule.Live() && now.Sub(p.at) >= tick
}

// take tells the rule of events, and returns the step for the database.
func (p *process) take(now time.Time, events []rollout.Event) (store.Step, []rollout.Decision, error) {
	if events == nil {
		events = []rollout.Event{}
	}
	body, err := json.Marshal(events)
	if err != nil {
		return store.Step{}, nil, err
	}
	decisions, err := p.rule.Step(now, events)
	if err != nil {
		return store.Step{}, nil, fmt.Errorf("rollout of %s %s: %w", p.key.Vendor, p.key.Version, err)
	}
	p.step++
	p.steps++
	p.at, p.events = now, p.events+len(events)
	return store.Step{Key: p.key, Step: p.step, At: now, Events: body}, decisions, nil
}

// keep returns the state for the database if it is time to keep it.
func (p *process) keep() (s store.RuleState, due bool, err error) {
	if p.packing != nil {
		return p.packed()
	}
	start := time.Now()
	if p.events < keepAfter && p.steps < stepsAfter || start.Before(p.rests) {
		return store.RuleState{}, false, nil
	}
	p.events, p.steps = 0, 0
	state := p.rule.State()
	if len(state.Trials) >= many {
		p.packing, err = p.packAside(state)
		return store.RuleState{}, false, err
	}
	body, err := pack(state)
	p.rests = start.Add(dear * time.Since(start))
	return store.RuleState{Key: p.key, Step: p.step, Body: body}, true, err
}

// A packed is a state that was written aside.
type packed struct {
	store.RuleState
	took time.Duration
	err  error
}

// packAside writes a state that is so large that a round cannot wait for it: a halt would
// come too late. A later round keeps it, as the state after this step. The first state of a
// rollout, without which no step is of use, is never large: nobody has begun.
func (p *process) packAside(s rollout.State) (<-chan packed, error) {
	start, k, done := time.Now(), store.RuleState{Key: p.key, Step: p.step}, make(chan packed, 1)
	trials := s.Trials // copies; the rest belongs to the rule
	s.Trials = nil
	rest, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("cannot write state of rollout: %w", err)
	}
	go func() {
		var s rollout.State
		err := json.Unmarshal(rest, &s)
		if err == nil {
			s.Trials = trials
			k.Body, err = pack(s)
		}
		done <- packed{k, time.Since(start), err}
	}()
	return done, nil
}

// packed returns the state that was written aside, if it is.
func (p *process) packed() (s store.RuleState, due bool, err error) {
	select {
	case k := <-p.packing:
		p.packing, p.rests = nil, time.Now().Add(dear*k.took)
		return k.RuleState, k.err == nil, k.err
	default:
		return store.RuleState{}, false, nil
	}
}

// pack writes a state.
func pack(s rollout.State) ([]byte, error) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(json.NewEncoder(w).Encode(s), w.Close()); err != nil {
		return nil, fmt.Errorf("cannot write state of rollout: %w", err)
	}
	return b.Bytes(), nil
}

// unpack reads a state that pack wrote.
func unpack(b []byte) (*rollout.Rollout, error) {
	r, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("cannot read state of rollout: %w", err)
	}
	var s rollout.State
	if err := json.Unmarshal(plain, &s); err != nil {
		return nil, fmt.Errorf("cannot read state of rollout: %w", err)
	}
	return rollout.Restore(s)
}

// come returns how far the rule lets the rollout come.
func (p *process) come() store.Spread {
	shares, states := map[string]map[string]int64{}, map[string]patch.RolloutState{}
	everyone := map[string]int64{} // shares of a rollout that is complete
	done := true
	for _, s := range p.rule.Stages() {
		everyone[s.Tier] = patch.Everyone
		done = done && s.Everyone && s.Halted == ""
		for _, cell := range s.Cells {
			if shares[cell] == nil {
				shares[cell] = map[string]int64{}
			}
			if s.Share > 0 {
				shares[cell][s.Tier] = s.Share
			}
			if s.Halted != "" {
				states[cell] = patch.Halted
			}
		}
	}
	switch {
	case len(shares) == 0: // no machine has checked in yet
		return store.Spread{}
	case done:
		return store.Spread{Tiers: everyone}
	}
	if len(states) == 0 {
		states = nil // as it comes back from the database, with which it is compared
	}
	return store.Spread{Kernels: group(shares), States: states}
}

// group puts kernels with the same shares together.
func group(shares map[string]map[string]int64) []patch.Spread {
	var groups []patch.Spread
	for _, cell := range slices.Sorted(maps.Keys(shares)) {
		i := slices.IndexFunc(groups, func(g patch.Spread) bool { return maps.Equal(g.Shares, shares[cell]) })
		if i < 0 {
			i = len(groups)
			groups = append(groups, patch.Spread{Shares: shares[cell]})
		}
		groups[i].Kernels = append(groups[i].Kernels, cell)
	}
	return groups
}
