package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	vocabulary "livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
)

// An operation is something during which the power is cut.
type operation string

// The operations. Apply is most of them.
const (
	applying    operation = "apply"
	settling    operation = "apply, not waiting"
	accepting   operation = "accept"
	removing    operation = "remove"
	revoking    operation = "update that revokes"
	booting     operation = "boot"
	shuttingOff operation = "shutdown"
)

// operations are the rows of the table, each with its weight.
var operations = []struct {
	name   operation
	weight int
}{
	{applying, 10}, {settling, 2}, {accepting, 4}, {removing, 2}, {revoking, 3}, {booting, 5}, {shuttingOff, 2},
}

// An extent is how much an operation takes when it is not cut short.
type extent struct {
	took    time.Duration
	changes int // writes and flushes of the disk
}

// A moment is when the power goes: when the disk is to be changed, counted from
// the beginning of the operation, or a time after the change before that, or, if
// no change is named, a time after the beginning.
type moment struct {
	changes int // of the disk; 0 means none is named
	after   time.Duration
	linger  time.Duration // if the operation was quicker, how long after its end
}

// String says when, for a log.
func (m moment) String() string {
	switch {
	case m.changes == 0:
		return fmt.Sprintf("%v after its beginning", m.after.Round(time.Millisecond))
	case m.after == 0:
		return fmt.Sprintf("at change %d of the disk", m.changes)
	default:
		return fmt.Sprintf("%v after change %d of the disk", m.after.Round(time.Millisecond), m.changes-1)
	}
}

const (
	// maxLinger is how long after an answer the power goes at the latest.
	maxLinger = 500 * time.Millisecond
	// maxPause is how long after a change it goes at the latest: there are some
	// milliseconds between the journal's flush and the kernel's having the module.
	maxPause = 60 * time.Millisecond
)

// moment picks one of an operation. Two in three are told by the disk, because
// between two changes of it all moments are alike to it.
func (v *victim) moment(of operation) moment {
	usual := v.usual[of]
	at := moment{linger: time.Duration(v.random.Int64N(int64(maxLinger)))}
	kind := v.random.IntN(3)
	if kind == 0 || usual.changes == 0 {
		at.after = time.Duration(v.random.Int64N(int64(usual.took*5/4 + 1)))
		return at
	}
	at.changes = 1 + v.random.IntN(usual.changes+1)
	if kind == 1 {
		at.after = time.Duration(v.random.Int64N(int64(maxPause)))
	}
	return at
}

// measure runs an operation that is not cut short.
func (v *victim) measure(of operation, do func() error) error {
	began, changes := time.Now(), v.disk.Changes()
	if err := do(); err != nil {
		return fmt.Errorf("cannot %s: %w", of, err)
	}
	v.usual[of] = extent{time.Since(began), v.disk.Changes() - changes}
	_, err := v.audit()
	return err
}

// calibrate runs every operation once from its beginning to its end. It leaves an
// accepted patch behind, and the machine off.
func (v *victim) calibrate(ctx context.Context) error {
	v.stale = v.offer(v.fresh())
	steps := []struct {
		of operation
		do func() error
	}{
		{applying, func() error { return v.apply(ctx, v.fresh(), 0) }},
		{accepting, func() error { return v.accept(ctx) }},
		{removing, func() error { return v.remove(ctx) }},
		{applying, func() error { return v.apply(ctx, v.fresh(), 0) }},
		{accepting, func() error { return v.accept(ctx) }},
		{revoking, func() error { return v.revoke(ctx) }},
		{settling, func() error { return v.applyAndSettle(ctx, v.fresh()) }},
		{accepting, func() error { return v.accept(ctx) }},
		{shuttingOff, func() error { return v.machine.ShutDown(ctx) }},
	}
	for _, s := range steps {
		if err := v.measure(s.of, s.do); err != nil {
			return err
		}
	}
	v.model.goneDown(quarantined)
	if err := v.measure(booting, func() error { return v.start(ctx, 1) }); err != nil {
		return err
	}
	// Most of a boot is the kernel's, before the disk is touched.
	v.usual[booting] = extent{v.usual[applying].took, v.disk.Changes()}
	return v.machine.ShutDown(ctx)
}

// newest returns the patch that was sent last.
func (v *victim) newest() *patch { return v.model.fates[len(v.model.fates)-1].patch }

// apply brings in a patch and waits for it, or not as long as its transition.
func (v *victim) apply(ctx context.Context, p *patch, wait time.Duration) error {
	o := v.offer(p)
	if wait > 0 {
		o = o.Wait(wait)
	}
	v.model.applying(p, v.meta)
	resp, err := v.agent().Apply(ctx, o)
	if err != nil {
		return err
	}
	if resp.GetOutcome() == loaderv1.Outcome_OUTCOME_ALREADY_APPLIED {
		return fmt.Errorf("patch %s is in force before it was sent", p.version)
	}
	return nil
}

// applyAndSettle brings in a patch without waiting and asks for the status until
// its transition has ended.
func (v *victim) applyAndSettle(ctx context.Context, p *patch) error {
	if err := v.apply(ctx, p, time.Millisecond); err != nil {
		return err
	}
	v.model.applied(p)
	for {
		st, err := v.agent().Status(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(st.GetLivepatches(), func(lp *loaderv1.Livepatch) bool {
			return lp.GetName() == p.Name && lp.GetStanding() == loaderv1.Standing_STANDING_TRIAL
		}) {
			return nil
		}
	}
}

// accept accepts the newest patch.
func (v *victim) accept(ctx context.Context) error {
	v.model.applied(v.newest())
	v.model.accepting(v.newest())
	if _, err := v.agent().Accept(ctx, v.newest().Name); err != nil {
		return err
	}
	v.model.acceptedNow(v.newest())
	return nil
}

// remove takes out the accepted patch.
func (v *victim) remove(ctx context.Context) error {
	p := v.model.inForce()
	v.model.removing(p)
	if _, err := v.agent().Remove(ctx, p.Name); err != nil {
		return err
	}
	v.model.removed(p)
	return nil
}

// revoke sends metadata that revokes the accepted patch.
func (v *victim) revoke(ctx context.Context) error {
	p := v.model.inForce()
	r := v.repo.Copy()
	r.SetRollout(p.version, vocabulary.Revoked)
	metadata, _ := r.Metadata()
	v.meta++
	v.model.learning(v.meta, p)
	if _, err := v.agent().Update(ctx, metadata); err != nil {
		return err
	}
	v.model.learnt(p)
	return nil
}

// run cuts the power n times.
func (v *victim) run(ctx context.Context, n int) error {
	if err := v.calibrate(ctx); err != nil {
		return fmt.Errorf("cannot try out the machine: %w", err)
	}
	// Each round begins with the machine off.
	for i := range n {
		if err := v.round(ctx, v.pick()); err != nil {
			return fmt.Errorf("cannot cut the power for the %d. time: %w", i+1, err)
		}
	}
	if err := v.start(ctx, v.keep()); err != nil {
		return err
	}
	return v.check(ctx)
}

// pick chooses what is cut next.
func (v *victim) pick() operation {
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	n := v.random.IntN(total)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			return o.name
		}
	}
	return applying
}

// keep chooses how likely an unflushed sector reached the disk: drives lose all,
// nothing or some of them.
func (v *victim) keep() float64 { return []float64{0, 0, 0.5, 1}[v.random.IntN(4)] }

// round starts the machine, looks at it, and cuts the power during an operation.
func (v *victim) round(ctx context.Context, of operation) error {
	if of == booting {
		return v.cutBoot(ctx)
	}
	if err := v.start(ctx, v.keep()); err != nil {
		return err
	}
	if err := v.check(ctx); err != nil {
		return err
	}
	do, err := v.prepare(ctx, of)
	if err != nil {
		return err
	}
	var about *patch
	if of == removing || of == revoking {
		about = v.model.inForce()
	}
	at := v.moment(of)
	answered, err := v.cut(at, do)
	if err != nil {
		return fmt.Errorf("during %s: %w", of, err)
	}
	return v.after(of, cmp.Or(about, v.newest()), at, answered)
}

// prepare brings the machine to where an operation begins, and returns the
// operation.
func (v *victim) prepare(ctx context.Context, of operation) (do func() error, err error) {
	switch of {
	case accepting:
		err = v.apply(ctx, v.fresh(), 0)
		return func() error { return v.accept(ctx) }, err
	case removing, revoking:
		if v.model.inForce() == nil {
			if err := v.apply(ctx, v.fresh(), 0); err != nil {
				return nil, err
			}
			if err := v.accept(ctx); err != nil {
				return nil, err
			}
		}
		if of == revoking {
			return func() error { return v.revoke(ctx) }, nil
		}
		return func() error { return v.remove(ctx) }, nil
	case settling:
		return func() error { return v.applyAndSettle(ctx, v.fresh()) }, nil
	case shuttingOff:
		return func() error { return v.machine.ShutDown(ctx) }, nil
	case applying, booting:
	}
	return func() error { return v.apply(ctx, v.fresh(), 0) }, nil
}

// A wound is a cut whose effect the next boot will show.
type wound struct {
	of       operation
	at       moment
	answered bool
	patch    *patch // that it was about
	meta     int    // of the metadata that was sent last
	entered  bool   // whether the kernel had it
	boot     string // boot-id
}

// cutBoot cuts the power during a boot.
func (v *victim) cutBoot(ctx context.Context) error {
	at := v.moment(booting)
	through, err := v.startAndCut(ctx, at, v.keep())
	if err != nil {
		return err
	}
	if through {
		v.model.bootCuts = 0
	} else {
		v.model.bootCut()
	}
	return v.after(booting, v.newest(), at, through)
}

// after notes what is known after a cut.
func (v *victim) after(of operation, about *patch, at moment, answered bool) error {
	names, err := v.audit()
	if err != nil {
		return err
	}
	w := wound{of: of, at: at, answered: answered, patch: about, meta: v.meta, boot: v.machine.BootID()}
	w.entered = len(names) > 0
	if of == applying || of == settling {
		w.entered = slices.Contains(names, w.patch.Name)
		if answered {
			v.model.applied(w.patch)
		} else if w.entered {
			v.model.entered(w.patch)
		}
	}
	switch {
	case of == shuttingOff && answered:
		v.model.goneDown(quarantined)
	case of == shuttingOff:
		v.model.goneDown(quarantined, suspect)
	default:
		v.model.goneDown(suspect)
	}
	v.wounds = append(v.wounds, w)
	return nil
}

// audit reads on in the kernel's log: what it has enabled must be what returns at
// boot or newer than all before.
func (v *victim) audit() (names []string, err error) {
	names, err = v.enteredSince()
	for _, name := range names {
		if name != v.newest().Name && !v.model.mayReturn(name) {
			v.report.violation("kernel has enabled %s, which is neither the newest nor an accepted patch", name)
		}
	}
	return names, err
}

// heal counts the cuts whose effect an observation shows.
func (v *victim) heal(o *observation) {
	for _, w := range v.wounds {
		v.report.cut(w, w.reached(o))
	}
	v.wounds = nil
}

// How far an operation came before the power went.
const (
	reachedNothing  = "nothing"
	reachedMetadata = "metadata"
	reachedJournal  = "journal"
	reachedKernel   = "kernel"
	reachedAnswer   = "answer"
)

// reached tells how far, by what was found afterwards.
func (w wound) reached(o *observation) string {
	standing := o.standings[w.patch.Name]
	isApply := w.of == applying || w.of == settling
	switch {
	case w.answered:
		return reachedAnswer
	case (isApply || w.of == booting) && w.entered:
		return reachedKernel
	case isApply && standing != unknown,
		w.of == accepting && standing == accepted,
		w.of == removing && standing == quarantined,
		w.of == revoking && o.revoked[w.patch.Name],
		w.of == shuttingOff && o.cleanBoot == w.boot:
		return reachedJournal
	case (isApply || w.of == revoking) && o.meta >= w.meta:
		return reachedMetadata
	default:
		return reachedNothing
	}
}
