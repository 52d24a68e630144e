package rollout

import (
	"slices"
	"time"
)

// This file follows single machines through their trials.

// offer notes that a machine was let in and has not said yet that it begins.
func (r *Rollout) offer(e Event) {
	u, i := r.where(e.Cell)
	if u == nil || u.Halted != "" {
		return
	}
	if t := r.trials[e.Machine]; t != nil {
		if t.Arm == Treated {
			return
		}
		r.leave(t, false) // a control that the stage has reached
	}
	t := r.open(e, i, Treated)
	t.Flags = offered
	t.Due = r.s.Now + seconds(r.s.Params.Time.Offer)
	u.Lanes[t.Tier].Offered++
	r.wheel.put(t)
}

// expose opens the trial of a treated machine.
func (r *Rollout) expose(e Event) {
	u, i := r.where(e.Cell)
	if u == nil {
		return
	}
	t := r.trials[e.Machine]
	switch {
	case t != nil && t.is(offered):
		u := r.s.Units[t.Unit]
		u.Lanes[t.Tier].Offered--
		r.forget(t)
	case t != nil && t.Arm == Treated:
		return // it said so before
	case t != nil:
		r.leave(t, false)
	}
	t = r.open(e, i, Treated)
	l := &u.Lanes[t.Tier]
	l.Exposed++
	l.Pending++
	l.Dark++
	l.Came.Treated++
	// Machines that an earlier stage had reached and that come only now are
	// not like the controls, which are drawn from all that check in.
	arm := Assignment{Salt: r.s.Salt, Stage: int64(l.Stage), Share: l.Share}.Arm(e.Machine)
	before := Assignment{Salt: r.s.Salt, Share: l.Before}.Arm(e.Machine)
	r.begin(u, t, !e.Newcomer && arm == Treated && before != Treated)
}

// sham opens the trial of a control, once in each stage.
func (r *Rollout) sham(e Event) {
	u, i := r.where(e.Cell)
	if u == nil || u.Halted != "" || e.Newcomer || r.tier(e.Tier) != u.Tier {
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
	r.begin(u, r.open(e, i, Control), true)
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
	return t
}

// begin puts a trial under watch, as evidence if that is possible.
func (r *Rollout) begin(u *unit, t *Trial, evidence bool) {
	l := &u.Lanes[t.Tier]
	if evidence && int(t.Tier) == u.Tier && u.admits(t.Account, r.s.Params.Pace.AccountShare) {
		u.account(t.Account).Dealt++
		u.Dealt++
		t.Batch = r.batch(l)
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
	if t == nil || t.Flags&(offered|closed) != 0 {
		return
	}
	p, age, passed := r.s.Params.Time, r.s.Now-t.Opened, t.Passed
	for p.expects(int(t.Passed)) && p.satisfied(int(t.Passed), age) {
		r.outlive(t)
	}
	switch {
	case !p.expects(int(t.Passed)):
		r.close(t)
	case t.Passed != passed:
		t.Due = t.Opened + p.overdue(int(t.Passed))
		r.wheel.put(t)
	}
}

// Next returns after how many seconds a machine under watch is to give its next sign
// of life, so that it can be told. A machine that is not under watch is not expected to
// give one.
func (r *Rollout) Next(m Machine, at time.Time) (wait int64, watched bool) {
	t := r.trials[m]
	if t == nil || t.Flags&(offered|closed) != 0 {
		return 0, false
	}
	return max(1, t.Opened+seconds(r.s.Params.Time.deadline(int(t.Passed)))-at.Unix()), true
}

// outlive takes a trial past its next deadline.
func (r *Rollout) outlive(t *Trial) {
	u := r.s.Units[t.Unit]
	l, p := &u.Lanes[t.Tier], r.s.Params.Time
	age := p.deadline(int(t.Passed))
	if t.Passed == 0 {
		r.seen(u, t)
		if t.Arm == Treated {
			l.Dark--
		}
	}
	if t.evidence() && !p.lived(int(t.Passed)) && p.lived(int(t.Passed)+1) {
		u.Lived.add(t.Arm, 1)
	}
	t.Passed++
	if age >= p.Soak && !t.is(matured) {
		r.mature(u, t)
	}
}

// seen counts evidence of the present stage that has outlived its first deadline, or failed.
func (r *Rollout) seen(u *unit, t *Trial) {
	if l := &u.Lanes[t.Tier]; t.evidence() && t.Stage == l.Stage {
		l.Seen.add(t.Arm, 1)
	}
}

func (r *Rollout) mature(u *unit, t *Trial) {
	l := &u.Lanes[t.Tier]
	t.Flags |= matured
	if t.Arm == Treated {
		l.Pending--
	}
	if !t.evidence() || !u.countsMature(t.Account, t.Arm, r.s.Params.Pace.AccountShare) {
		return
	}
	t.Flags |= counted
	u.account(t.Account).Mature.add(t.Arm, 1)
	u.Mature.add(t.Arm, 1)
	l.Healthy.add(t.Arm, 1)
	if t.Arm == Control {
		r.s.Sources[u.Source].Controls++
	}
}

// leave ends a trial without an outcome. A machine that leaves could not fail
// any more, so it is not at risk beside those that stay.
func (r *Rollout) leave(t *Trial, soft bool) {
	if t == nil || t.is(closed) {
		if t != nil {
			r.forget(t)
		}
		return
	}
	u := r.s.Units[t.Unit]
	l := &u.Lanes[t.Tier]
	if t.is(offered) {
		l.Offered--
		r.forget(t)
		return
	}
	r.settle(l, t)
	switch {
	case soft && t.Arm == Treated:
		l.Soft++
	case !t.is(matured):
		l.Left.add(t.Arm, 1)
	}
	r.unrisk(t)
	r.forget(t)
}

// settle takes a trial out of what is pending.
func (r *Rollout) settle(l *lane, t *Trial) {
	if t.Arm != Treated {
		return
	}
	if t.Passed == 0 {
		l.Dark--
	}
	if !t.is(matured) {
		l.Pending--
	}
}

func (r *Rollout) unrisk(t *Trial) {
	if t.evidence() {
		r.s.Batches[t.Batch].AtRisk.add(t.Arm, -1)
		r.dropBatch(t.Batch)
	}
}

// close ends the watch over a machine that is well.
func (r *Rollout) close(t *Trial) {
	r.unrisk(t)
	if l := &r.s.Units[t.Unit].Lanes[t.Tier]; t.Arm == Control && t.Stage == l.Stage {
		t.Due, t.Batch = 0, 0
		t.Flags |= closed
		return
	}
	r.forget(t)
}

// forget drops what is kept of a machine. The wheel may still hold the trial; without
// a Due it passes it over.
func (r *Rollout) forget(t *Trial) {
	t.Due = 0
	delete(r.trials, t.Machine)
}

// failed takes the report of a failure.
func (r *Rollout) failed(e Event) {
	t := r.trials[e.Machine]
	if e.Failure == Oops && (t == nil || t.Arm == Treated) && !e.Newcomer {
		r.blame(e, t)
	}
	if t == nil || t.Flags&(offered|closed) != 0 {
		return
	}
	r.fail(t, false)
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
	}
	if u == nil || u.Halted != "" {
		return
	}
	known, mine := u.Signatures[e.Signature], u.account(account)
	alone := u.accounts() == 1 // nobody else could confirm it
	if slices.ContainsFunc(known, func(o reporter) bool {
		return o.Machine == e.Machine || o.Account == account && !alone
	}) || int64(len(known)) >= r.s.Params.Halt.Signatures {
		return
	}
	if len(known) == 0 && mine.Signatures >= maxSignatures {
		return
	}
	mine.Signatures++
	u.Signatures[e.Signature] = append(known, reporter{e.Machine, account})
}

// fail ends a trial by a failure.
func (r *Rollout) fail(t *Trial, silent bool) {
	u := r.s.Units[t.Unit]
	l := &u.Lanes[t.Tier]
	if t.is(offered) {
		l.Offered-- // it never began, so the patch did nothing to it
		r.forget(t)
		return
	}
	if t.evidence() {
		r.count(u, t, silent)
	}
	r.settle(l, t)
	r.forget(t)
}

// count makes a failure evidence.
func (r *Rollout) count(u *unit, t *Trial, silent bool) {
	l, p := &u.Lanes[t.Tier], r.s.Params
	// All failures of an instant are compared with the machines that were at risk
	// before it.
	atRisk, ok := r.base[t.Batch]
	if !ok {
		atRisk = r.s.Batches[t.Batch].AtRisk
		r.base[t.Batch] = atRisk
	}
	r.unrisk(t)
	if t.Passed == 0 {
		r.seen(u, t)
	}
	if t.is(counted) {
		l.Healthy.add(t.Arm, -1)
	}
	if p.Time.lived(int(t.Passed)) {
		u.Lived.add(t.Arm, -1)
	}
	if !u.countsFailure(t.Account, p.Pace.AccountShare) {
		return
	}
	u.account(t.Account).Failed++
	u.Failed.add(t.Arm, 1)
	l.Failed.add(t.Arm, 1)
	if silent && t.Stage == l.Stage && p.Time.deadline(int(t.Passed)) <= p.Time.Early {
		l.Silent.add(t.Arm, 1)
	}
	f := factors(p.Halt.Risks, t.Arm == Treated, atRisk)
	src := r.s.Sources[u.Source]
	for i := range f {
		u.E[i] += f[i]
		src.E[i] += f[i]
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
