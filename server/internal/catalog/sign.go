package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/server/internal/expiry"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
)

const (
	// poll is how often the catalog looks for decisions of livepatch-admin and
	// at the clock. A decision is signed within this time.
	poll = time.Second
	// maxRetry bounds the wait after failures to sign.
	maxRetry = time.Minute
)

// Run keeps the online roles fresh until ctx is done, beginning at once.
//
// It compares expiries with the clock every second instead of sleeping until
// the next one is due: so it sees a clock that jumps, either way.
//
// After each look it warns of roles that run out.
func (c *Catalog) Run(ctx context.Context) {
	wait, watch := poll, expiry.NewWatch(c.log)
	for {
		switch err := c.Refresh(ctx); {
		case err == nil:
			wait = poll
		case ctx.Err() == nil:
			wait = min(2*wait, maxRetry)
			c.failures.Add(1)
			c.log.ErrorContext(ctx, "Cannot keep signed files fresh", "retry_in", wait, "err", err)
		}
		watch.Look(ctx, c.Expiring(), c.Now())
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Refresh signs what is due, and takes over what another process has changed.
func (c *Catalog) Refresh(ctx context.Context) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	s, err := c.db.Counters(ctx)
	if err != nil {
		return err
	}
	if v := c.view.Load(); s.Generation != v.generation {
		if err := c.reload(ctx); err != nil {
			return err
		}
	}
	if s.Epoch == s.SignedEpoch && !c.due(c.Now()) {
		return nil
	}
	// What other keys than the root's sign helps nobody, and hides what does.
	if err := c.checkKeys(); err != nil {
		return err
	}
	var decided []store.Decision
	err = c.db.Update(ctx, func(tx store.Tx) (err error) {
		decided, err = c.sign(ctx, tx, c.Now())
		return err
	})
	if err != nil {
		return err
	}
	if err := c.reload(ctx); err != nil {
		return err
	}
	c.log.InfoContext(ctx, "Signed online roles", "generation", c.Generation())
	c.logDecisions(ctx, decided)
	return nil
}

// logDecisions says who decided what is in force from now on.
func (c *Catalog) logDecisions(ctx context.Context, decided []store.Decision) {
	for _, d := range decided {
		c.log.InfoContext(ctx, "Signed decision about a rollout", "vendor", d.Vendor, "version", d.Version,
			"state", string(d.State), "decided_by", d.By, "reason", d.Reason, "at", d.At, "epoch", d.Epoch, "withdraw", d.Withdraw)
	}
}

// due tells whether an online role has to be signed anew.
func (c *Catalog) due(now time.Time) bool {
	roles := c.view.Load().roles
	for _, name := range signer.Roles {
		if r, ok := roles[name]; ok && signer.Due(name, r.Expires, now) {
			return true
		}
	}
	return false
}

// sign writes what follows from the rest of the database: rollout, then
// snapshot, then timestamp, always all three: their lives are alike, and a
// machine that fetches one of them fetches all. Before the first publication
// nothing follows. It returns the decisions that are signed with this.
func (c *Catalog) sign(ctx context.Context, tx store.Tx, now time.Time) ([]store.Decision, error) {
	state, err := tx.State(ctx)
	if err != nil {
		return nil, err
	}
	if state.Roles[metadata.TARGETS].Version > 0 {
		if err := c.signRoles(ctx, tx, state, now); err != nil {
			return nil, err
		}
	}
	decided, err := tx.Decisions(ctx, state.SignedEpoch)
	if err != nil {
		return nil, err
	}
	_, err = tx.CountGeneration(ctx)
	return decided, err
}

func (c *Catalog) signRoles(ctx context.Context, tx store.Tx, state store.State, now time.Time) error {
	rollout, err := c.signRollout(ctx, tx, state, now)
	if err != nil {
		return err
	}
	versions := offlineRoles(state.Roles)
	versions[patch.RolloutRole] = rollout
	snapshot, err := c.signer.Snapshot(state.Roles[metadata.SNAPSHOT].Version+1, versions, now)
	if err != nil {
		return err
	}
	timestamp, err := c.signer.Timestamp(state.Roles[metadata.TIMESTAMP].Version+1, snapshot, now)
	if err != nil {
		return err
	}
	if timestamp.Modified, err = after(ctx, tx, state, now); err != nil {
		return err
	}
	for _, f := range []store.File{snapshot, timestamp} {
		if err := tx.PutFile(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// signRollout signs rollout anew, and returns its version.
func (c *Catalog) signRollout(ctx context.Context, tx store.Tx, state store.State, now time.Time) (int64, error) {
	rollouts, err := tx.Rollouts(ctx)
	if err != nil {
		return 0, err
	}
	f, err := c.signer.Rollout(state.Roles[patch.RolloutRole].Version+1, rollouts, now)
	if err != nil {
		return 0, err
	}
	return f.Version, tx.PutFile(ctx, f)
}

// after returns when the next timestamp.json was modified: a second later than
// the one before, at least. It is the one file that keeps its name, and
// If-Modified-Since counts in seconds.
func after(ctx context.Context, tx store.Tx, state store.State, now time.Time) (time.Time, error) {
	now = now.UTC().Truncate(time.Second)
	have := state.Roles[metadata.TIMESTAMP].Version
	if have == 0 {
		return now, nil
	}
	last, err := tx.File(ctx, metadata.TIMESTAMP, have)
	if err != nil {
		return time.Time{}, err
	}
	if next := last.Modified.Add(time.Second); next.After(now) {
		return next, nil
	}
	return now, nil
}

// Conditions of [Decide].
var (
	// ErrRevoked means that a rollout was to be resumed that is revoked, or about to
	// be. Machines have given the patch up by then; what comes back is a new version.
	ErrRevoked = errors.New("a revoked patch does not come back")
	// ErrUnchanged means that the rollout is in that state already.
	ErrUnchanged = errors.New("rollout is in that state already")
)

// Decide changes the state of a rollout in db, keeps who decided that, and
// returns the epoch of the decision: it is in force once
// [store.State.SignedEpoch] has reached it. The server that runs on db signs it
// within some seconds.
func Decide(ctx context.Context, db updater, d store.Decision) (epoch int64, err error) {
	err = db.Update(ctx, func(tx store.Tx) error {
		epoch, err = DecideIn(ctx, tx, d)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cannot make rollout of %s %s %s: %w", d.Vendor, d.Version, d.State, err)
	}
	return epoch, nil
}

// DecideIn is [Decide] as a part of a transaction.
func DecideIn(ctx context.Context, tx store.Tx, d store.Decision) (epoch int64, err error) {
	have, err := tx.Rollout(ctx, d.Vendor, d.Version)
	switch {
	case err != nil:
		return 0, err
	case have.State == d.State:
		return 0, ErrUnchanged
	case have.State == patch.Revoked, have.Withdrawal.Share > 0 && d.State == patch.Running:
		return 0, ErrRevoked
	}
	if epoch, err = tx.SetRollout(ctx, d); err != nil {
		return 0, err
	}
	return epoch, notify.Decided(ctx, tx, d)
}

type updater interface {
	Update(ctx context.Context, fn func(store.Tx) error) error
}
