package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/status"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
)

// heed sees to it that the loader knows what the rollouts say of its patches, so
// that those that are revoked leave the kernel, and do not come back at boot.
// While nothing is new the loader is left alone.
func (r *round) heed(ctx context.Context, view *trust.View, c chooser) error {
	if r.kernel == nil || !r.consult(c) {
		return nil
	}
	files, err := view.Metadata()
	if err != nil {
		return err
	}
	var was loader.Livepatch
	if l := current(r.kernel); l != nil {
		was = *l
	}
	is := patch.Digest(sha256.Sum256(files.Timestamp))
	if r.rec.Heeded == is && !r.revoked(c) {
		return nil
	}
	roots, err := r.keeper.Roots(ctx, r.svc, r.kernel.RootVersion)
	if err != nil {
		return err
	}
	withdrawn, err := r.loader.Update(ctx, forLoader(files, roots))
	r.doubtRoots(ctx, err)
	r.askLoader(ctx)
	if slices.Contains(withdrawn, was.Name) {
		r.story(ctx, "Revoked livepatch has left the kernel", "patch", was.Name)
		r.note(r.event(eventRemoved, patch.IndexEntry{Name: was.Name, Version: was.Version}))
		r.nothing()
	}
	switch {
	case err == nil:
		r.rec.Heeded = is
	case r.kernel != nil && r.revoked(c):
		r.rec.State, r.retrySoon = status.ApplyFailed, true
		r.rec.PatchError = fmt.Sprintf("cannot remove revoked patch %s: %v", was.Version, err)
		r.rec.PatchHint = r.hint(err)
	default:
		r.log.WarnContext(ctx, "Loader did not take what the rollouts say", "err", err)
	}
	return nil
}

// consult looks up the rollouts of all patches of ours, and tells whether there
// is any. That of one that is gone from the repository says nothing.
func (r *round) consult(c chooser) (any bool) {
	for _, l := range r.kernel.Livepatches {
		if l.Ours() && l.Version != "" {
			_, err := c.rollout(l.Version)
			any = any || err == nil
		}
	}
	return any
}

// revoked tells whether the patch in force has to leave.
func (r *round) revoked(c chooser) bool {
	l := current(r.kernel)
	if l == nil {
		return false
	}
	rollout, err := c.rollout(l.Version)
	return err == nil && errors.Is(rollout.For(c.kernel), patch.ErrRevoked)
}

// doubtRoots has the roots before the pinned one fetched anew, if the loader has found
// fault with what it was sent: it alone can tell whether the first of them is genuine.
func (r *round) doubtRoots(ctx context.Context, err error) {
	if !errors.Is(err, patch.ErrUntrusted) && !errors.Is(err, patch.ErrMalformed) {
		return
	}
	if err := r.keeper.ForgetEarlier(); err != nil {
		r.log.WarnContext(ctx, "Cannot forget roots that the loader refuses", "err", err)
	}
}

// forLoader returns the signed files as the loader takes them.
func forLoader(m trust.Metadata, roots [][]byte) loader.Metadata {
	return loader.Metadata{Roots: roots, Timestamp: m.Timestamp, Snapshot: m.Snapshot, Targets: m.Targets, Rollout: m.Rollout}
}
