package rollout

import "slices"

// This file is about machines that fail.

// failed takes the report of a failure.
func (r *Rollout) failed(e Event) {
	t := r.trials[e.Machine]
	if t != nil && t.is(missed) && !t.is(held) && t.Due <= r.s.Now {
		r.forget(t)
		t = nil
	}
	switch {
	case t != nil && t.Arm == Control: // it has no module of ours
	case e.Failure == Oops:
		r.blame(e, t)
	case e.Failure == OpenJournal && t != nil && !t.is(offered|closed) && r.s.Params.Time.fresh(int(t.Passed)):
		r.accuse(r.s.Units[t.Unit], e.Machine, t.Account)
	}
	switch {
	case t == nil || t.is(offered|closed):
	case t.is(missed) && e.Failure == UncleanReboot:
		t.Flags |= down // why, it may say later
	case t.is(missed):
		r.forget(t)
	default:
		r.fail(t, e.Failure)
	}
}

// maxSignatures bounds how many oopses of an account are told apart, so that one
// account cannot fill the memory or hide a true one.
const maxSignatures = 4

// blame notes an oops that names our module.
func (r *Rollout) blame(e Event, t *Trial) {
	u, _ := r.where(e.Cell)
	account := r.account(e.Account)
	if t != nil {
		u, account = r.s.Units[t.Unit], t.Account
	} else if !r.has(u, e.Tier) {
		return
	}
	if u == nil || u.Halted != "" || !r.trusts(u, e.Newcomer) {
		return
	}
	r.accuse(u, e.Machine, account)
	known, mine := u.Signatures[e.Signature], u.account(account)
	if u.confirmed(known, e.Machine, account) || int64(len(known)) >= r.s.Params.Halt.Signatures {
		return
	}
	if len(known) == 0 && mine.Signatures >= maxSignatures {
		return
	}
	mine.Signatures++
	u.Signatures[e.Signature] = append(known, reporter{e.Machine, account})
}

// has tells whether some machine of a tier may have the patch.
func (r *Rollout) has(u *unit, tier string) bool {
	i := r.tier(tier)
	return u != nil && i >= 0 && u.Lanes[i].Share > 0
}

// confirmed tells whether what reporters say is known from a machine already, or from
// others of its account. Where all machines are one account's, nobody else could say it.
func (u *unit) confirmed(known []reporter, m Machine, account uint32) bool {
	alone := u.accounts() == 1
	return slices.ContainsFunc(known, func(o reporter) bool {
		return o.Machine == m || o.Account == account && !alone
	})
}

// accuse notes a crash that is the patch's, for test D.
func (r *Rollout) accuse(u *unit, m Machine, account uint32) {
	if u.Small && len(u.Crashed) < 2 && !u.confirmed(u.Crashed, m, account) {
		u.Crashed = append(u.Crashed, reporter{m, account})
	}
}

// silence is the failure that is not reported.
const silence Failure = ""

// fail ends a trial by a failure.
func (r *Rollout) fail(t *Trial, f Failure) {
	switch {
	case t.is(offered):
		r.unoffer(t) // it never began, so the patch did nothing to it
		return
	case t.is(held):
		r.release(t)
		return
	case t.is(missed):
		r.forget(t) // and never came back
		return
	}
	u := r.s.Units[t.Unit]
	if t.Arm == Treated && (f != silence || !r.s.Params.Time.lived(int(t.Passed))) {
		u.Lanes[t.Tier].Dead++
	}
	if t.is(evidence) {
		r.count(u, t, f == silence)
	}
	r.settle(&u.Lanes[t.Tier], t)
	if u.Small && t.Arm == Treated && (f == silence || f == UncleanReboot) {
		r.miss(t, f)
		return
	}
	r.keep(t)
}

// miss keeps what is known of a machine of a small unit that failed, nobody knows why: one
// that crashes falls silent first, and says that it was on trial when it is up again. Until it
// would have outlived the early window no other machine begins in its place.
func (r *Rollout) miss(t *Trial, f Failure) {
	t.Flags, t.Batch = missed|held, 0
	if f == UncleanReboot {
		t.Flags |= down
	}
	r.s.Units[t.Unit].Lanes[t.Tier].Young++
	r.watched--
	if t.Due = t.Opened + seconds(r.s.Params.Time.Early); t.Due <= r.s.Now {
		r.release(t)
		return
	}
	r.wheel.put(t)
}

// release lets another machine begin in the place of one that was missed.
func (r *Rollout) release(t *Trial) {
	t.Flags &^= held
	r.s.Units[t.Unit].Lanes[t.Tier].Young--
	t.Due = r.s.Now + seconds(r.s.Params.Time.Blame)
	r.wheel.put(t)
}

// count makes a failure evidence.
func (r *Rollout) count(u *unit, t *Trial, silent bool) {
	l, p := &u.Lanes[t.Tier], r.s.Params
	atRisk := r.atRisk(t)
	r.unrisk(t)
	if t.Passed == 0 {
		r.seen(u, t)
	}
	if t.is(counted) {
		l.Healthy.add(t.Arm, -1)
	}
	lived := p.Time.lived(int(t.Passed))
	if lived && !silent {
		u.Lived.add(t.Arm, -1)
	}
	if !u.countsFailure(t.Account, p.Pace.AccountShare) {
		return
	}
	u.account(t.Account).Failed++
	u.Failed.add(t.Arm, 1)
	l.Failed.add(t.Arm, 1)
	if !lived || !silent {
		u.Dead.add(t.Arm, 1)
	}
	if silent && t.Stage == l.Stage && p.Time.deadline(int(t.Passed)) <= p.Time.Early {
		l.Silent.add(t.Arm, 1)
	}
	r.multiply(u, t, atRisk)
}

// atRisk returns the machines that were dealt with one that fails, from before all
// failures of this instant.
func (r *Rollout) atRisk(t *Trial) Pair {
	if !t.dealt() {
		return Pair{}
	}
	before, ok := r.base[t.Batch]
	if !ok {
		before = r.s.Batches[t.Batch].AtRisk
		r.base[t.Batch] = before
	}
	return before
}

// multiply takes a failure into test A: that of its unit, and that of the source if its
// account has no more than its share of that as well.
func (r *Rollout) multiply(u *unit, t *Trial, atRisk Pair) {
	f := factors(r.s.Params.Halt.Risks, t.Arm == Treated, atRisk)
	u.E.times(f)
	src := r.s.Sources[u.Source]
	mine := src.account(t.Account)
	if !fits(mine.Failed, src.Failed, leastFailed, r.s.Params.Pace.AccountShare, r.owners[u.Source]) {
		return
	}
	mine.Failed++
	src.Failed++
	src.E.times(f)
}
