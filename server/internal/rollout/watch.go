package rollout

// This file follows single machines through their trials.

// offer notes that a machine was let in and has not said yet that it begins.
func (r *Rollout) offer(e Event) {
	u, i := r.where(e.Cell)
	if u == nil || u.Halted != "" {
		return
	}
	if t := r.trials[e.Machine]; t != nil {
		if t.Arm == Treated && !t.is(missed|closed) {
			return
		}
		r.leave(t, false) // a control that the stage has reached
	}
	t := r.open(e, i, Treated)
	t.Flags = offered
	t.Due = r.s.Now + seconds(r.s.Params.Time.Offer)
	u.Lanes[t.Tier].Offered++
	u.Lanes[t.Tier].Young++
	r.wheel.put(t)
}

// unoffer ends an offer, taken or not.
func (r *Rollout) unoffer(t *Trial) {
	l := &r.s.Units[t.Unit].Lanes[t.Tier]
	l.Offered--
	l.Young--
	r.forget(t)
}

// expose opens the trial of a treated machine.
func (r *Rollout) expose(e Event) {
	u, i := r.where(e.Cell)
	if u == nil {
		return
	}
	t := r.trials[e.Machine]
	again := r.again(t, i, r.tier(e.Tier))
	switch {
	case t == nil:
	case t.is(offered):
		r.unoffer(t)
	case t.Arm == Treated && !t.is(missed|closed):
		r.reopen(u, t)
		return
	default:
		r.leave(t, false)
	}
	t = r.open(e, i, Treated)
	l := &u.Lanes[t.Tier]
	if !again {
		l.Exposed++
		l.Came.Treated++
	}
	l.Pending++
	l.Dark++
	l.Young++
	// Machines that an earlier stage had reached and that come only now are
	// not like the controls, which are drawn from all that check in.
	arm := Assignment{Salt: r.s.Salt, Stage: int64(l.Stage), Share: l.Share}.Arm(e.Machine)
	before := Assignment{Salt: r.s.Salt, Share: l.Before}.Arm(e.Machine)
	r.begin(u, t, r.trusts(u, e.Newcomer), int(t.Tier) == u.Tier && arm == Treated && before != Treated)
}

// again tells whether a machine had a trial in the same stage before, and if so takes back
// how that ended: what a stage has of machines it has once of each, or one that tries again and
// again would use up the stage, and look like many that failed.
func (r *Rollout) again(t *Trial, unit, tier int) bool {
	if t == nil || t.Arm != Treated || !t.is(closed|missed) || int(t.Unit) != unit || int(t.Tier) != tier {
		return false
	}
	u := r.s.Units[unit]
	l := &u.Lanes[tier]
	if t.is(refused) {
		l.Soft--
		u.Soft--
		u.account(t.Account).Soft--
	}
	if t.is(departed) {
		l.Left.add(t.Arm, -1)
	}
	return t.Stage == l.Stage
}

// maxAsks bounds how often a trial is opened anew: a machine that asks for ever must be
// missed at last.
const maxAsks = 7

// reopen opens the trial of a machine anew that asks again before it has given a sign of
// life. The answer was lost or late, so it begins only now: with the first ask
// for its beginning a machine that is well would be missed.
func (r *Rollout) reopen(u *unit, t *Trial) {
	if t.Passed != 0 || t.Opened == r.s.Now || t.Flags&askedAll == maxAsks*asked {
		return
	}
	t.Flags += asked
	t.Opened, t.Due = r.s.Now, r.s.Now+r.s.Params.Time.overdue(0)
	r.wheel.put(t)
	if l := &u.Lanes[t.Tier]; t.dealt() && t.Stage == l.Stage {
		r.unrisk(t)
		t.Batch = r.batch(l)
		r.s.Batches[t.Batch].AtRisk.add(t.Arm, 1)
	}
}

// sham opens the trial of a control, once in each stage.
func (r *Rollout) sham(e Event) {
	u, i := r.where(e.Cell)
	if u == nil || u.Halted != "" || !r.trusts(u, e.Newcomer) || r.tier(e.Tier) != u.Tier {
		return
	}
	l := u.current()
	if r.assignment(l).Arm(e.Machine) != Control || l.shamRoom(r.s.Params.Pace) <= 0 {
		return
	}
	if t := r.trials[e.Machine]; t != nil {
		if !t.is(closed) || t.Unit == int32(i) && int(t.Tier) == u.Tier && t.Stage == l.Stage {
			return
		}
		r.forget(t)
	}
	l.Came.Control++
	r.begin(u, r.open(e, i, Control), true, true)
}

// shamRoom returns how many controls the stage wants now: those of the treated
// machines that came, and of the next one. Were they all taken at once, they would be older
// than the treated machines, and what befalls both would be noticed later in them.
func (l *lane) shamRoom(p PaceParams) int64 {
	return int64(p.Controls*float64(l.Came.Treated+l.Offered+1)) - l.Came.Control
}

func (r *Rollout) open(e Event, unit int, arm Arm) *Trial {
	tier := r.tier(e.Tier)
	t := &Trial{
		Machine: e.Machine, Unit: int32(unit), Account: r.account(e.Account), Opened: r.s.Now,
		Tier: uint8(tier), Stage: r.s.Units[unit].Lanes[tier].Stage, Arm: arm,
	}
	r.trials[e.Machine] = t
	r.watched++
	return t
}

// trusts tells whether a machine may be evidence. A newcomer may where it is no use to
// have chosen an identity, for the hash does not choose among many: in a small unit and
// in the fleet of one account. Elsewhere it may if there is no other evidence to be had.
func (r *Rollout) trusts(u *unit, newcomer bool) bool {
	return !newcomer || u.Small || u.Trusting || u.accounts() == 1 || r.s.Params.Pace.AtOnce
}

// begin puts a trial under watch, as evidence if that is possible: for all tests if it
// was dealt now, and otherwise, in units that have little to go by, for those that need no controls.
func (r *Rollout) begin(u *unit, t *Trial, trusted, dealt bool) {
	if trusted && (dealt || u.Small || u.Late || r.s.Params.Pace.AtOnce) && u.admits(t.Account, r.s.Params.Pace.AccountShare) {
		u.account(t.Account).Dealt++
		u.Dealt++
		t.Flags |= evidence
	}
	if dealt && t.is(evidence) {
		t.Batch = r.batch(&u.Lanes[t.Tier])
		r.s.Batches[t.Batch].AtRisk.add(t.Arm, 1)
	}
	t.Due = t.Opened + r.s.Params.Time.overdue(0)
	r.wheel.put(t)
}

// batch returns the batch of the lane that is open, or a new one.
func (r *Rollout) batch(l *lane) uint32 {
	if l.Batch != 0 && r.s.Now-l.BatchOpened < seconds(r.s.Params.Time.Batch) {
		return l.Batch
	}
	r.endBatch(l)
	r.s.LastBatch++
	l.Batch, l.BatchOpened = r.s.LastBatch, r.s.Now
	r.s.Batches[l.Batch] = &batch{Current: true}
	return l.Batch
}

func (r *Rollout) endBatch(l *lane) {
	if l.Batch != 0 {
		r.s.Batches[l.Batch].Current = false
		r.dropBatch(l.Batch)
	}
	l.Batch = 0
}

func (r *Rollout) dropBatch(id uint32) {
	if b := r.s.Batches[id]; !b.Current && b.AtRisk == (Pair{}) {
		delete(r.s.Batches, id)
	}
}

// alive takes a sign of life.
func (r *Rollout) alive(t *Trial) {
	if t == nil || t.is(offered|closed|down) {
		return
	}
	p, age, passed := r.s.Params.Time, r.s.Now-t.Opened, t.Passed
	for p.expects(int(t.Passed)) && p.satisfied(int(t.Passed), age) {
		r.outlive(t)
	}
	switch {
	case t.is(held):
		r.release(t)
	case t.is(missed): // what has failed stays so
	case !p.expects(int(t.Passed)):
		r.close(t)
	case t.Passed != passed:
		t.Due = t.Opened + p.overdue(int(t.Passed))
		r.wheel.put(t)
	}
}

// outlive takes a trial past its next deadline.
func (r *Rollout) outlive(t *Trial) {
	t.Passed++
	if t.is(missed) {
		return
	}
	u := r.s.Units[t.Unit]
	l, p, passed := &u.Lanes[t.Tier], r.s.Params.Time, int(t.Passed)
	if passed == 1 {
		r.seen(u, t)
		if t.Arm == Treated {
			l.Dark--
		}
	}
	if p.lived(passed) && !p.lived(passed-1) {
		r.survive(u, t)
	}
	if p.deadline(passed-1) >= p.Soak && !t.is(matured) {
		r.mature(u, t)
	}
}

// survive notes that a machine has outlived the early window.
func (r *Rollout) survive(u *unit, t *Trial) {
	if t.Arm == Treated {
		u.Lanes[t.Tier].Young--
		u.Lanes[t.Tier].Lived++
	}
	if t.is(evidence) {
		u.Lived.add(t.Arm, 1)
	}
}

// seen counts evidence of the present stage that has outlived its first deadline, or failed.
func (r *Rollout) seen(u *unit, t *Trial) {
	if l := &u.Lanes[t.Tier]; t.is(evidence) && t.Stage == l.Stage {
		l.Seen.add(t.Arm, 1)
	}
}

func (r *Rollout) mature(u *unit, t *Trial) {
	l := &u.Lanes[t.Tier]
	t.Flags |= matured
	if t.Arm == Treated {
		l.Pending--
	}
	if !t.is(evidence) || !u.countsMature(t.Account, t.Arm, r.s.Params.Pace.AccountShare) {
		return
	}
	t.Flags |= counted
	u.account(t.Account).Mature.add(t.Arm, 1)
	u.Mature.add(t.Arm, 1)
	l.Healthy.add(t.Arm, 1)
	if t.Arm == Control {
		r.s.Sources[u.Source].control(t.Account, r.s.Params.Pace.AccountShare, r.owners[u.Source])
	}
}

// control counts a control that has matured.
func (s *source) control(account uint32, share float64, accounts int64) {
	mine := s.account(account)
	if fits(mine.Mature.Control, s.Controls, leastMature, share, accounts) {
		mine.Mature.Control++
		s.Controls++
	}
}

// leave ends a trial without an outcome. A machine that leaves could not fail
// any more, so it is not at risk beside those that stay.
func (r *Rollout) leave(t *Trial, soft bool) {
	switch {
	case t == nil:
		return
	case t.is(offered):
		r.unoffer(t)
		return
	case t.is(closed):
		return
	case t.is(missed):
		r.forget(t)
		return
	}
	u := r.s.Units[t.Unit]
	l := &u.Lanes[t.Tier]
	r.settle(l, t)
	switch {
	case soft && t.Arm == Treated && u.countsSoft(t.Account, r.s.Params.Pace.AccountShare):
		l.Soft++
		u.Soft++
		u.account(t.Account).Soft++
		t.Flags |= refused
	case !t.is(matured):
		l.Left.add(t.Arm, 1)
		t.Flags |= departed
	}
	r.unrisk(t)
	r.keep(t)
}

// settle takes a trial out of what is pending.
func (r *Rollout) settle(l *lane, t *Trial) {
	if t.Arm != Treated {
		return
	}
	if t.Passed == 0 {
		l.Dark--
	}
	if !r.s.Params.Time.lived(int(t.Passed)) {
		l.Young--
	}
	if !t.is(matured) {
		l.Pending--
	}
}

func (r *Rollout) unrisk(t *Trial) {
	if t.dealt() {
		r.s.Batches[t.Batch].AtRisk.add(t.Arm, -1)
		r.dropBatch(t.Batch)
	}
}

// close ends the watch over a machine that is well.
func (r *Rollout) close(t *Trial) {
	r.unrisk(t)
	if t.Arm == Control {
		r.keep(t)
		return
	}
	r.forget(t)
}

// keep ends the watch over a machine and remembers it until its stage is over.
func (r *Rollout) keep(t *Trial) {
	u := r.s.Units[t.Unit]
	if int(t.Tier) != u.Tier || t.Stage != u.Lanes[t.Tier].Stage {
		r.forget(t)
		return
	}
	t.Due, t.Batch = 0, 0
	t.Flags |= closed
	r.watched--
	r.remember(t)
}

// remember notes a machine for [Rollout.sweep].
func (r *Rollout) remember(t *Trial) {
	u := r.s.Units[t.Unit]
	if r.closed[u] == nil {
		r.closed[u] = map[Machine]bool{}
	}
	r.closed[u][t.Machine] = true
}

// forget drops what is kept of a machine. The wheel may still hold the trial; without
// a Due it passes it over.
func (r *Rollout) forget(t *Trial) {
	t.Due = 0
	delete(r.trials, t.Machine)
	if !t.is(closed | missed) {
		r.watched--
	}
	if t.is(held) {
		r.s.Units[t.Unit].Lanes[t.Tier].Young--
	}
}

// account returns the number of an account.
func (r *Rollout) account(name string) uint32 {
	id, ok := r.accounts[name]
	if !ok {
		id = uint32(len(r.s.Accounts))
		r.s.Accounts = append(r.s.Accounts, name)
		r.accounts[name] = id
	}
	return id
}
