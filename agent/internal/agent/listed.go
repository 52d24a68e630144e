package agent

import (
	"context"
	"slices"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/status"
)

// listed returns a patch that would return at boot although the operator wants it
// skipped, or nil: the loader has a list of its own, of those that were accepted, and
// knows nothing of the agent's configuration. A patch in force is none: skipping takes
// nothing out of the kernel.
//
// Taking a patch off the loader's list empties the list. So it stays where a patch is
// on it that is to be had: one in force, or a newer one for this kernel. That one is
// what returns, and not the other.
func (r *record) listed(s *loader.Status, cfg config.Config) *loader.Livepatch {
	skip := func(l *loader.Livepatch) bool { return slices.Contains(cfg.SkipPatches, l.Version) }
	var found *loader.Livepatch
	for i := range s.Livepatches {
		l := &s.Livepatches[i]
		if l.Returns() && skip(l) && (found == nil || l.Sequence > found.Sequence) {
			found = l
		}
	}
	for i := range s.Livepatches {
		l := &s.Livepatches[i]
		inForce := l.Standing == loader.Accepted && l.Live()
		if inForce || found != nil && l.Returns() && !skip(l) && r.offers(l) && l.Sequence > found.Sequence {
			return nil
		}
	}
	return found
}

// unlist takes a patch that is to be skipped off the loader's list. It needs no service:
// an operator skips a patch when the machine does not get up with it.
func (r *round) unlist(ctx context.Context) {
	if r.kernel == nil {
		return
	}
	l := r.rec.listed(r.kernel, r.cfg)
	if l == nil {
		return
	}
	if _, err := r.loader.Remove(ctx, l.Name); err != nil {
		r.log.WarnContext(ctx, "Cannot keep a skipped livepatch from returning at boot", "patch", l.Name, "err", err)
		r.retrySoon = true
		return // status says it, too
	}
	r.story(ctx, "Skipped livepatch does not return at boot", "patch", l.Name)
	r.askLoader(ctx)
}

// listedNotices say that a patch returns at boot although it is to be skipped: the
// loader could not be asked for anything else yet. The caller holds a.mu.
func (a *Agent) listedNotices() []status.Notice {
	if a.live.loader == nil {
		return nil
	}
	l := a.rec.listed(a.live.loader, a.cfg)
	if l == nil {
		return nil
	}
	return []status.Notice{{
		Message: "patch " + l.Version + " is held back by " + config.SkipPatches + ", but returns at the next boot",
		Hint:    "before you reboot, run: sudo canonical-livepatch refresh",
	}}
}
