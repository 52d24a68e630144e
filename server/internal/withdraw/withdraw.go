// Package withdraw takes a revoked patch back from the machines, a few at a time:
// taking a patch out of a running kernel can fail too, and it is done while the
// machines are in trouble already.
//
// While it lasts the rollout is halted, and each loader draws whether it is one of
// the share that gives the patch up now. Every share is ten times the one before; the
// last one is everybody, and there the rollout is revoked.
package withdraw

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/store"
)

const (
	// FirstShare is the share that begins, unless somebody says otherwise.
	FirstShare = patch.Everyone / 100
	// Pause is the time from one share to the next, unless somebody says otherwise.
	Pause = 10 * time.Minute
	// growth is the ratio of two shares that follow each other.
	growth = 10
	// leastCrashed machines that go down after they gave the patch up make it wait for a
	// person, if they are more than one in oneIn of those that gave it up. One may have done so for
	// a reason of its own; and of a large fleet a few in a thousand do within an hour.
	leastCrashed = 2
	oneIn        = 200
	// by is the account of what time decides.
	by = "livepatch-server"
)

// Conditions that callers branch on.
var (
	// ErrRevoked means that the patch is revoked already, and nothing is left to do.
	ErrRevoked = errors.New("patch is revoked already")
	// ErrUnderWay means that machines are giving the patch up already.
	ErrUnderWay = errors.New("patch is being withdrawn already")
	// ErrNotHeld means that no withdrawal waits for a person.
	ErrNotHeld = errors.New("no withdrawal of the patch waits for a person")
)

// A Step is what follows for a withdrawal.
type Step struct {
	// Share, in parts per million, is as it was or the next one.
	Share int64
	// Held says why no further share begins; "" if nothing stands against it.
	Held string
}

// Next decides about a withdrawal that is under way. gone is how many machines gave the
// patch up, and crashed how many went down after they did.
func Next(w store.Withdrawal, gone, crashed int64, now time.Time) Step {
	fresh := crashed - w.Excused
	switch {
	case w.Held != "":
		return Step{w.Share, w.Held}
	case fresh >= leastCrashed && fresh*oneIn > gone:
		return Step{w.Share, fmt.Sprintf("%d machines went down after they gave it up, of %d", crashed, gone)}
	case now.Sub(w.Since) < w.Pause || w.Share >= patch.Everyone:
		return Step{w.Share, ""}
	default:
		return Step{min(growth*w.Share, patch.Everyone), ""}
	}
}

// Advance brings the withdrawal of r as far as it is due at now, and tells whether a
// decision was made that has to be signed. Of a rollout that is not being withdrawn it
// changes nothing.
func Advance(ctx context.Context, tx store.Tx, r store.Rollout, now time.Time) (decided bool, err error) {
	if r.State != patch.Halted || r.Withdrawal.Share == 0 {
		return false, nil
	}
	crashed, err := tx.Crashed(ctx, r.Version, r.Withdrawal.Began)
	if err != nil {
		return false, err
	}
	gone, err := tx.GaveUp(ctx, r.Version, r.Withdrawal.Began)
	if err != nil {
		return false, err
	}
	step := Next(r.Withdrawal, gone, crashed, now)
	switch {
	case step.Share != r.Withdrawal.Share:
		return true, widen(ctx, tx, r, step.Share, gone, now)
	case step.Held != "" && r.Withdrawal.Held == "":
		r.Withdrawal.Held = step.Held
		if err := tx.SetWithdrawal(ctx, r.Vendor, r.Version, r.Withdrawal); err != nil {
			return false, err
		}
		return false, notify.Held(ctx, tx, r, now)
	}
	return false, nil
}

// widen begins with the next share.
func widen(ctx context.Context, tx store.Tx, r store.Rollout, share, gone int64, now time.Time) error {
	r.Withdrawal.Share, r.Withdrawal.Since = share, now
	return decide(ctx, tx, r, store.Decision{
		At: now, By: by, Reason: fmt.Sprintf("%d machines have given it up so far", gone),
	})
}

// Begin has the machines give a patch up, d.By being who wants that: first of them, in
// parts per million, and ten times as many after each pause. With [patch.Everyone] all
// do at once, also if a withdrawal is under way. It returns the epoch of the decision.
func Begin(ctx context.Context, tx store.Tx, d store.Decision, first int64, pause time.Duration) (epoch int64, err error) {
	r, err := tx.Rollout(ctx, d.Vendor, d.Version)
	switch {
	case err != nil:
		return 0, err
	case r.State == patch.Revoked:
		return 0, ErrRevoked
	case r.Withdrawal.Share > 0 && first < patch.Everyone:
		return 0, ErrUnderWay
	}
	w := &r.Withdrawal
	if w.Share == 0 {
		*w = store.Withdrawal{Salt: rand.Text(), Pause: pause, Began: d.At}
	}
	w.Share, w.Since, w.Held = first, d.At, ""
	return put(ctx, tx, r, d)
}

// Continue lets a withdrawal that waits for a person go on: the machines that went down
// so far do not stop it any more. It returns the epoch of the decision.
func Continue(ctx context.Context, tx store.Tx, d store.Decision) (epoch int64, err error) {
	r, err := tx.Rollout(ctx, d.Vendor, d.Version)
	switch {
	case err != nil:
		return 0, err
	case r.State != patch.Halted || r.Withdrawal.Held == "":
		return 0, ErrNotHeld
	}
	r.Withdrawal.Held = ""
	if r.Withdrawal.Excused, err = tx.Crashed(ctx, d.Version, r.Withdrawal.Began); err != nil {
		return 0, err
	}
	return put(ctx, tx, r, d)
}

func decide(ctx context.Context, tx store.Tx, r store.Rollout, d store.Decision) error {
	d.Vendor, d.Version = r.Vendor, r.Version
	_, err := put(ctx, tx, r, d)
	return err
}

// put keeps the withdrawal of r as it is now, and the decision about it.
func put(ctx context.Context, tx store.Tx, r store.Rollout, d store.Decision) (epoch int64, err error) {
	d.State, d.Withdraw = patch.Halted, r.Withdrawal.Share
	if d.Withdraw >= patch.Everyone {
		d.State = patch.Revoked
	}
	if err := tx.SetWithdrawal(ctx, r.Vendor, r.Version, r.Withdrawal); err != nil {
		return 0, err
	}
	if epoch, err = tx.SetRollout(ctx, d); err != nil {
		return 0, err
	}
	return epoch, notify.Decided(ctx, tx, d)
}
