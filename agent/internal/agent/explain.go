package agent

import (
	"fmt"
	"slices"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
)

// patchNotices explain what has become of our patches, where the lines about the
// patch in force do not, each with what to do. The caller holds a.mu.
func (a *Agent) patchNotices() (n []status.Notice) {
	if a.live.loader == nil {
		return nil
	}
	in := a.live.current()
	for i := range a.live.loader.Livepatches {
		l := &a.live.loader.Livepatches[i]
		if !l.Ours() || in != nil && l.Sequence < in.Sequence || !a.rec.concerns(l) {
			continue // of interest for its story only
		}
		if w := a.explain(l); w.Message != "" {
			n = append(n, w)
		}
	}
	for _, c := range a.complaints(in) {
		n = append(n, status.Notice{
			Message: fmt.Sprintf("the kernel complained about patch %s: %s", in.Version, c.Message),
			Hint:    "it was reported; see: sudo dmesg; to take the patch out: sudo canonical-livepatch disable --remove",
		})
	}
	return n
}

// explain words what has become of one patch; the zero Notice if there is nothing to
// say.
func (a *Agent) explain(l *loader.Livepatch) status.Notice {
	about := "patch " + l.Version + " "
	switch {
	case l.Standing == loader.Suspect && a.rec.Failure == status.FailureCrash && a.rec.Version == l.Version:
	case l.Standing == loader.Suspect:
		return status.Notice{Message: about + "is suspect: the machine went down while it was on trial, and it is not applied again", Hint: a.suspected(l.Name, l.Rollout == "" || l.Rollout == patch.Running).Hint()}
	case l.State == loader.Disabling:
		return status.Notice{Message: about + "is being taken out: it stays until every task has left it", Hint: "see which have not: canonical-livepatch status --verbose; a reboot ends it too"}
	case l.Live() && l.Rollout == patch.Halted:
		return status.Notice{Message: "the rollout of " + about + "is halted: this machine has it and keeps it, unless it is revoked", Hint: "if this machine is unwell, take it out: sudo canonical-livepatch disable --remove"}
	case l.Rollout == patch.Revoked && l.Live():
		return status.Notice{Message: about + "is revoked and still in the kernel", Hint: "see why with: sudo canonical-livepatch refresh; a reboot takes it out"}
	case l.Rollout == patch.Revoked:
		return status.Notice{Message: about + "is revoked: it was taken out of the kernel and does not come back", Hint: "nothing to do: the service will offer another one"}
	}
	return status.Notice{}
}

// A suspectError is why a patch is not tried again. It matches [patch.ErrSuspect].
type suspectError struct {
	module  string
	offered bool // to this machine, as far as is known; else to forgive it would change nothing
	snap    bool // the loader is in a snap
}

// Error says what happened.
func (*suspectError) Error() string { return patch.ErrSuspect.Error() }

// Unwrap returns [patch.ErrSuspect].
func (*suspectError) Unwrap() error { return patch.ErrSuspect }

// Hint says where to look, and how to have it tried again nevertheless.
func (e *suspectError) Hint() string {
	hint := "it waits for a newer one; see what happened with: journalctl -k -b -1"
	if !e.offered {
		return hint
	}
	loader := "/usr/lib/livepatch/livepatch-loader"
	if e.snap {
		loader = "snap run " + SnapName + ".loader"
	}
	return hint + "; to have this one tried again: sudo " + loader + " -forgive " + e.module + " && sudo canonical-livepatch refresh"
}

// suspected returns why a patch is not tried again, which may be offered to this machine
// nevertheless.
func (a *Agent) suspected(module string, offered bool) *suspectError {
	return &suspectError{module, offered, a.snapd != nil}
}

// complaints returns what the kernel has said in this boot against a patch, which
// may be nil.
func (a *Agent) complaints(l *loader.Livepatch) (all []loader.Complaint) {
	if l == nil || a.live.loader == nil {
		return nil
	}
	for _, c := range a.live.loader.Complaints {
		if c.Name == l.Name && c.BootID == a.live.facts.BootID {
			all = append(all, c)
		}
	}
	return all
}

// offers tells whether the index of the running kernel has a patch: the loader
// remembers those of other kernels, too.
func (r *record) offers(l *loader.Livepatch) bool {
	return slices.Contains(r.Offered, l.Name)
}

// concerns tells whether a person wants to know of a patch. While the index of the
// running kernel is not known, a suspect may be for it, and somebody looks for what
// brought the machine down.
func (r *record) concerns(l *loader.Livepatch) bool {
	return r.offers(l) || r.Offered == nil && l.Standing == loader.Suspect
}

// suspect returns the newest patch for this kernel that the loader suspects, if
// nothing of ours is in the kernel, or nil.
func (r *round) suspect() *loader.Livepatch {
	var newest *loader.Livepatch
	for i, l := range r.kernel.Livepatches {
		if l.Ours() && l.Standing == loader.Suspect && r.rec.offers(&l) && (newest == nil || l.Sequence > newest.Sequence) {
			newest = &r.kernel.Livepatches[i]
		}
	}
	return newest
}
