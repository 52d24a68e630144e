package controller

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// After how many seconds a machine asks again: one that was not let in, and one that the
// rule has not answered.
const (
	askAgain  = 60
	askAtOnce = 5
)

// A trial is a machine in a rollout.
type trial struct {
	store.Key
	rollout.Machine
}

// A round is one pass over what was reported.
type round struct {
	*lead
	now     time.Time
	taken   int64
	signs   []store.Sign // whose answers are waited for
	answers map[string]store.Answer
	events  map[store.Key][]rollout.Event
	let     map[store.Key]int64   // machines that were let in by this round
	over    map[trial]bool        // that have ended in this round
	begun   map[trial]rollout.Arm // in this round
	heard   map[rollout.Machine]bool

	oldest    time.Time // when the first report in it was received
	outcomes  []outcome // of the requests of people
	decisions []store.StoredVerdict
	stepped   []*process
	withdraws bool // it is time to look at revocations in stages
}

// count tells the rule how large the fleet is, if that may have changed.
func (r *round) count(ctx context.Context) error {
	r.mu.Lock()
	enrols := r.enrols
	r.mu.Unlock()
	due := enrols != r.counted && !time.Now().Before(r.nextCount)
	if !due && !lapsed(r.now, r.countedAt, recount) {
		return nil
	}
	if r.took > quick {
		return r.countAside(ctx, enrols)
	}
	c := r.census(ctx, enrols)
	return r.know(c)
}

// A census is how large the fleet was.
type census struct {
	fleet  []store.Population
	enrols int64     // that it includes
	at     time.Time // by Now
	took   time.Duration
	err    error
}

func (r *round) census(ctx context.Context, enrols int64) census {
	start := time.Now()
	fleet, err := r.DB.Population(ctx, r.now.Add(-lately))
	return census{fleet, enrols, r.now, time.Since(start), err}
}

// countAside counts a fleet that is so large that a round cannot wait for it: a halt
// would come too late. A later round takes the result.
func (r *round) countAside(ctx context.Context, enrols int64) error {
	if r.counting == nil {
		done := make(chan census, 1)
		r.counting = done
		go func() {
			done <- r.census(ctx, enrols)
			r.Poke()
		}()
	}
	select {
	case c := <-r.counting:
		r.counting = nil
		return r.know(c)
	default:
		return nil
	}
}

// know tells the rule of a census.
func (r *round) know(c census) error {
	if c.err != nil {
		return c.err
	}
	r.fleet, r.counted, r.countedAt, r.took = c.fleet, c.enrols, c.at, c.took
	r.nextCount = time.Now().Add(dear * c.took)
	for _, p := range r.processes {
		r.populate(p)
	}
	return nil
}

// populate tells one rollout of the machines that it is for, where their number has
// changed.
func (r *round) populate(p *process) {
	have := map[lane]rollout.Event{}
	for _, n := range r.fleet {
		if p.cells[n.Cell] {
			e := rollout.Event{
				Kind: rollout.Population, Cell: n.Cell, Tier: n.Tier, Source: p.key.Vendor + "/" + p.key.Version,
				Machines: n.Machines, Accounts: n.Accounts,
			}
			if n.Accounts == 1 {
				e.Account = account(n.Account)
			}
			have[lane{n.Cell, n.Tier}] = e
		}
	}
	for k, e := range have {
		if was := p.fleet[k]; was.Machines != e.Machines || was.Accounts != e.Accounts || was.Account != e.Account {
			r.add(p, e)
		}
	}
	for k, e := range p.fleet {
		if _, ok := have[k]; !ok {
			e.Machines, e.Accounts, e.Account = 0, 0, ""
			r.add(p, e)
		}
	}
	p.fleet = have
}

// add tells a rollout of something. What the rule would refuse is left out: one strange
// machine must not hold up the rest.
func (r *round) add(p *process, e rollout.Event) (taken bool) {
	if err := p.rule.Check(e); err != nil {
		r.Log.Warn("Left out what the rule does not take", "vendor", p.key.Vendor, "version", p.key.Version, "err", err)
		return false
	}
	if e.Kind == rollout.Left || e.Kind == rollout.Soft || e.Kind == rollout.Failed {
		r.over[trial{p.key, e.Machine}] = true
	}
	r.events[p.key] = append(r.events[p.key], e)
	return true
}

// take takes the reports that were acknowledged since the last round.
func (r *round) take(ctx context.Context) error {
	r.taken = r.lead.taken
	reports, err := r.DB.Reports(ctx, r.taken, maxReports)
	if err != nil {
		return err
	}
	for _, batch := range reports {
		for _, s := range batch.Signs {
			r.sign(s)
		}
		r.taken = batch.Seq
	}
	if len(reports) == maxReports {
		r.Poke()
	}
	return nil
}

// sign takes what one machine reported.
func (r *round) sign(s store.Sign) {
	m, err := rollout.ParseMachine(s.Machine)
	if err != nil || !slices.ContainsFunc(r.Tiers, func(t rollout.Tier) bool { return t.Name == s.Tier }) {
		return
	}
	if r.oldest.IsZero() {
		r.oldest = s.At
	}
	r.heard[m] = true
	var a store.Answer
	for _, k := range r.order {
		p := r.processes[k]
		if t := (report{round: r, process: p, Sign: s, machine: m}); t.take() {
			a.Go = append(a.Go, k.Version)
		}
	}
	if s.ID != "" {
		r.answers[s.ID] = a
		r.signs = append(r.signs, s)
	}
}

// step tells the rule of everything, and returns what has to be committed.
func (r *round) step() (store.Round, error) {
	out := store.Round{Term: r.term, Taken: r.taken, At: r.now, Spreads: map[store.Key]store.Spread{}, Answers: map[string]store.Answer{}}
	for _, k := range r.order {
		p := r.processes[k]
		p.clock(r.now)
		r.heed(p)
		if len(r.events[k]) == 0 && !p.due(p.now) {
			continue
		}
		if err := r.stepOne(p, &out); err != nil {
			return store.Round{}, err
		}
	}
	for m := range r.heard {
		r.watch(m, r.arm(m))
	}
	for _, s := range r.signs {
		r.plan(s)
		if s.Server != r.name {
			out.Answers[s.ID] = r.answers[s.ID]
		}
	}
	return out, nil
}

// heed tells the rule whether people have halted the rollout.
func (r *round) heed(p *process) {
	switch halted := p.state != patch.Running; {
	case halted == p.rule.Suspended():
	case halted:
		r.add(p, rollout.Event{Kind: rollout.Suspended})
	default:
		r.add(p, rollout.Event{Kind: rollout.Continued})
	}
}

func (r *round) stepOne(p *process, out *store.Round) error {
	now := p.now
	step, decisions, err := p.take(now, r.events[p.key])
	if err != nil {
		return err
	}
	out.Steps = append(out.Steps, step)
	r.stepped = append(r.stepped, p)
	for _, d := range decisions {
		p.decided[d.Unit] = now
		r.decisions = append(r.decisions, store.StoredVerdict{Vendor: p.key.Vendor, Version: p.key.Version, Decision: d})
		body, err := json.Marshal(d)
		if err != nil {
			return err
		}
		out.Verdicts = append(out.Verdicts, store.Verdict{
			Key: p.key, Seq: d.Seq, At: now, Unit: d.Unit, Action: string(d.Verdict.Action), Reason: string(d.Verdict.Reason), Body: body,
		})
	}
	if spread := p.come(); !reflect.DeepEqual(spread, p.spread) {
		out.Spreads[p.key], p.spread = spread, spread
	}
	state, due, err := p.keep()
	if due {
		out.States = append(out.States, state)
	}
	return err
}

// arm is that of the rollouts in which a machine is under watch now.
func (r *round) arm(m rollout.Machine) (arm rollout.Arm) {
	for _, p := range r.processes {
		if a, watched := p.rule.Watched(m); watched {
			arm = max(arm, a)
		}
	}
	return arm
}

// plan decides when a machine is to give its next sign of life.
func (r *round) plan(s store.Sign) {
	a := r.answers[s.ID]
	m, err := rollout.ParseMachine(s.Machine)
	if err != nil {
		return // it was not asked for either
	}
	for _, p := range r.processes {
		if wait, watched := p.rule.Next(m, p.now); watched && (a.Wait == 0 || wait < a.Wait) {
			a.Wait = wait
		}
	}
	for _, e := range s.Events {
		if e.Kind == service.Intent && len(a.Go) == 0 {
			if w := r.again(m); a.Wait == 0 || w < a.Wait {
				a.Wait = w
			}
		}
	}
	r.answers[s.ID] = a
}

// again is after how many seconds a machine asks again that was not let in: at once
// if it has only ended something else in this round.
func (r *round) again(m rollout.Machine) int64 {
	for k := range r.processes {
		if r.over[trial{k, m}] {
			return 1
		}
	}
	return askAgain
}

// idle tells whether there is nothing to commit.
func (r *round) idle(out store.Round) bool {
	return out.Taken == r.lead.taken && len(out.Steps) == 0 && len(r.outcomes) == 0 && !r.withdraws
}

// A report is what one machine reported, for one rollout.
type report struct {
	*round
	*process
	store.Sign
	machine rollout.Machine
}

// take tells the rule what it has to know, and whether the machine may begin.
func (t report) take() (begin bool) {
	arm, watched := t.watched()
	if !watched && !t.cells[t.Cell] {
		return false
	}
	over := false // the trial ends with this
	for _, e := range t.Events {
		switch {
		case e.Kind == service.Intent && e.Version == t.key.Version:
			begin = t.ask(arm)
			over = true // it begins anew, or goes on waiting
		case e.Kind == store.Gone:
			over = true
			t.add(rollout.Left, nil)
		case e.Kind == service.Booted:
			over = over || watched
			t.booted(e, watched)
		case e.Kind == service.Intent && watched && arm == rollout.Treated:
			over = true // it goes on to another patch
			t.add(rollout.Left, nil)
		case e.Version == t.key.Version:
			over = t.outcome(e) || over
		}
	}
	switch {
	case over:
	case watched:
		t.add(rollout.Alive, nil)
	case t.Version != t.key.Version && t.state == patch.Running && !t.over[trial{t.key, t.machine}]:
		t.sham()
	}
	return begin
}

// watched returns the arm of the machine if it is in a trial, or has begun one in this round.
func (t report) watched() (rollout.Arm, bool) {
	if arm, ok := t.begun[trial{t.key, t.machine}]; ok {
		return arm, true
	}
	return t.rule.Watched(t.machine)
}

// add tells the rule of the machine.
func (t report) add(k rollout.Kind, more func(*rollout.Event)) (taken bool) {
	e := rollout.Event{Kind: k, Machine: t.machine}
	if more != nil {
		more(&e)
	}
	return t.round.add(t.process, e)
}

// account is how the rule knows an account.
func account(id int64) string { return strconv.FormatInt(id, 10) }

// whole fills in what the events that begin something have to say.
func (t report) whole(e *rollout.Event) {
	e.Cell, e.Tier, e.Account = t.Cell, t.Tier, account(t.Account)
	e.Newcomer = !t.Enrolled.Before(t.created)
}

// ask decides whether a machine may begin.
func (t report) ask(arm rollout.Arm) bool {
	// What begins comes before what ends at one instant of the rule: a machine that has
	// ended a trial in this round begins with the next one.
	if t.state != patch.Running || t.over[trial{t.key, t.machine}] || t.rule.Assignment(t.Cell, t.Tier).Arm(t.machine) != rollout.Treated {
		return false
	}
	if arm == rollout.Treated { // it was let in before, and asks again: it lives, and begins now
		t.add(rollout.Intent, t.whole)
		t.add(rollout.Alive, nil)
		return true
	}
	if t.rule.Room(t.Cell, t.Tier) <= t.let[t.key] || !t.add(rollout.Intent, t.whole) {
		return false
	}
	t.let[t.key]++
	t.begun[trial{t.key, t.machine}] = rollout.Treated
	return true
}

// sham makes the machine a control if it is drawn.
func (t report) sham() {
	if t.rule.Assignment(t.Cell, t.Tier).Arm(t.machine) == rollout.Control && t.rule.ShamRoom(t.Cell, t.Tier) > 0 && t.add(rollout.Sham, t.whole) {
		t.begun[trial{t.key, t.machine}] = rollout.Control
	}
}

// booted takes that the machine was down. Before it was answered it had inserted nothing.
func (t report) booted(e store.Event, watched bool) {
	_, unanswered := t.begun[trial{t.key, t.machine}]
	switch {
	case !watched:
	case e.Reason == service.ReasonUnclean && !unanswered:
		t.add(rollout.Failed, func(e *rollout.Event) { e.Failure = rollout.UncleanReboot })
	default:
		t.add(rollout.Left, nil)
	}
}

// outcome takes what became of the patch, and tells whether that ends the trial.
func (t report) outcome(e store.Event) bool {
	switch e.Kind {
	case service.Failed:
		if configured(e.Reason) {
			t.add(rollout.Left, nil)
		} else {
			t.add(rollout.Soft, nil)
		}
	case service.Removed:
		t.add(rollout.Left, nil)
	case service.Crashed:
		t.add(rollout.Failed, func(r *rollout.Event) {
			t.whole(r)
			r.Failure, r.Signature = rollout.OpenJournal, ""
			if e.Reason == service.ReasonOops {
				r.Failure, r.Signature = rollout.Oops, e.Signature
			}
		})
	default:
		return false // it lives
	}
	return true
}
