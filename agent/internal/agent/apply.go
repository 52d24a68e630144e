package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/modkey"
	"livepatch/agent/internal/status"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/service"
)

// nothing writes down that there is no patch for this machine.
func (r *round) nothing() {
	r.rec.State, r.rec.Version, r.rec.Fixes = status.NothingToApply, "", nil
	r.clearError()
}

// keep writes down that the patch in the kernel is the one to have.
func (r *round) keep() {
	r.clearError()
	l := current(r.kernel)
	r.rec.Version = l.Version
	for _, e := range r.ix.Patches {
		if e.Name == l.Name && e.Sequence == l.Sequence {
			r.rec.Fixes = e.Fixes
			return
		}
	}
}

func (r *round) clearError() {
	r.rec.Failure, r.rec.PatchError, r.rec.PatchHint = "", "", ""
}

// apply has the loader bring the chosen patch into the kernel.
func (r *round) apply(ctx context.Context, view *trust.View, got choice) {
	r.rec.Version, r.rec.Fixes = got.entry.Version, got.entry.Fixes
	r.clearError()
	if f := r.rec.Failed; f != nil && f.Digest == got.target.Digest && f.BootID == r.facts.BootID && !r.again {
		r.rec.State, r.rec.Failure, r.rec.PatchError, r.rec.PatchHint = status.ApplyFailed, f.Failure, f.Error, f.Hint
		return
	}
	r.rec.Failed = nil
	if !r.mayInsert(got) {
		return
	}
	if err := r.preflight(got); err != nil {
		r.refused(got, err)
		r.fail(got, err)
		return
	}
	req, err := r.request(ctx, view, got)
	if err != nil {
		r.fail(got, err)
		return
	}
	defer req.module.Close()
	was := r.rec.Watch
	if !r.mayInsertNow(got) || !r.ask(ctx, got) {
		return
	}
	start := time.Now()
	result, err := r.loader.Apply(ctx, req.Request)
	r.doubtRoots(ctx, err)
	if ctx.Err() != nil && err != nil {
		// The loader goes on. What becomes of it, the next look will tell: the
		// event that is pending stays so.
		return
	}
	// What is in the kernel now, whatever the answer: the loader may have inserted the
	// patch and lost it again, or inserted it and died before it could say so.
	r.askLoader(ctx)
	if l := r.findDigest(got.target.Digest); err != nil && l != nil && l.Live() {
		r.log.WarnContext(ctx, "Loader has inserted the patch, and failed afterwards", "patch", l.Name, "err", err)
		result, err = loader.Result{Livepatch: *l, Pending: l.State == loader.Enabling}, nil
	}
	if err != nil {
		r.notApplied(got, was, err)
		return
	}
	r.rec.Heeded = sha256.Sum256(req.Timestamp)
	r.applied(got, result)
	r.story(ctx, "Applied livepatch", "patch", got.entry.Name, "version", got.entry.Version, "pending", result.Pending, "took", time.Since(start).Round(time.Millisecond))
}

// preflight returns why the loader would refuse, as far as that can be known
// before a module is fetched.
func (r *round) preflight(got choice) error {
	k := r.kernel.Kernel
	if k.Kernel != r.facts.Kernel {
		return fmt.Errorf("agent and loader see different kernels: %w", k.Kernel.Check(r.facts.Kernel))
	}
	switch {
	case !k.LivepatchSupported:
		return patch.ErrNoLivepatch
	case k.ModulesDisabled:
		return patch.ErrModulesDisabled
	case !k.FtraceEnabled:
		return patch.ErrFtraceDisabled
	}
	for _, l := range r.kernel.Livepatches {
		switch {
		case l.Digest == got.target.Digest && l.Standing == loader.Suspect:
			return r.suspected(l.Name, true)
		case l.State == loader.Enabling || l.State == loader.Disabling:
			return fmt.Errorf("%w: %s", patch.ErrBusy, l.Name)
		}
	}
	return r.checkSignature(got)
}

// A request is a loader.Request and what has to be closed after it.
type request struct {
	loader.Request
	module interface{ Close() error }
}

// request gathers what the loader needs to see.
func (r *round) request(ctx context.Context, view *trust.View, got choice) (request, error) {
	files, err := view.Files(got.entry.Target)
	if err != nil {
		return request{}, err
	}
	roots, err := r.keeper.Roots(ctx, r.svc, r.kernel.RootVersion)
	if err != nil {
		return request{}, err
	}
	module, err := r.file(ctx, got.target)
	if err != nil {
		return request{}, err
	}
	return request{
		Request: loader.Request{
			Metadata: forLoader(files.Metadata, roots),
			Target:   got.entry.Target, Vendor: files.Vendor, Bin: files.Bin,
			Module: module,
		},
		module: module,
	}, nil
}

// hold writes down that a patch is not brought in yet, which is nobody's failure.
func (r *round) hold(e patch.IndexEntry, why problem) {
	r.rec.Holds = append(r.rec.Holds, held{e, why}.words())
	if current(r.kernel) != nil {
		r.keep()
		return
	}
	r.rec.State = status.Unapplied
}

// event returns a new event about a patch.
func (r *round) event(kind service.Kind, e patch.IndexEntry) service.Event {
	return service.Event{ID: newEventID(), Kind: kind, Version: e.Version, Name: e.Name, BootID: r.facts.BootID, At: time.Now().UTC()}
}

// save makes what the round has found out so far visible and durable.
func (r *round) save(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Agent.token != r.token {
		return
	}
	r.Agent.rec = r.rec.clone()
	if err := r.saveRecord(); err != nil {
		r.log.ErrorContext(ctx, "Cannot save state", "err", err)
	}
}

// applied writes down that the loader has inserted the patch.
func (r *round) applied(got choice, result loader.Result) {
	r.mu.Lock()
	r.live.begun = begun{got.target.Digest, time.Now()}
	r.mu.Unlock()
	if result.Pending {
		r.rec.State = status.Applying
		return
	}
	e := *r.rec.Pending
	r.rec.Pending = nil
	e.At, r.rec.Watch.Seen = time.Now().UTC(), true
	r.note(e)
	r.rec.State = status.Applied
}

// notApplied writes down why the loader has not inserted the patch; was is the watch of
// the one that is still in force, or nil.
func (r *round) notApplied(got choice, was *watch, err error) {
	if r.kernel == nil {
		// Nobody can tell what is in the kernel. The event that is pending stays so, and
		// the next look will tell.
		r.fail(got, err)
		r.retrySoon = true
		return
	}
	err = r.explain(got, err)
	e := r.event(eventFailed, got.entry)
	e.Reason, e.Message = reason(err), err.Error()
	r.rec.Pending, r.rec.Watch = nil, was
	r.note(e)
	r.fail(got, err)
}

// findDigest returns the livepatch of ours with that content, or nil.
func (r *round) findDigest(d patch.Digest) *loader.Livepatch {
	if r.kernel == nil {
		return nil
	}
	i := slices.IndexFunc(r.kernel.Livepatches, func(l loader.Livepatch) bool { return l.Ours() && l.Digest == d })
	if i < 0 {
		return nil
	}
	return &r.kernel.Livepatches[i]
}

// fail writes down why the chosen patch, or whatever comes next, is not in the
// kernel.
func (r *round) fail(got choice, err error) {
	r.rec.State, r.patchErr = status.ApplyFailed, err
	if rpcerr.Reason(err) == "" {
		// Not a word about the patch: it could not be fetched, or nobody was
		// there to insert it.
		r.rec.State = status.Unapplied
	}
	if got.found {
		r.rec.Version, r.rec.Fixes = got.entry.Version, got.entry.Fixes
		err = fmt.Errorf("cannot apply patch %s: %w", got.entry.Version, err)
	}
	r.rec.Failure, r.rec.PatchError, r.rec.PatchHint = failureOf(err), err.Error(), r.hint(err)
	if errors.Is(err, patch.ErrTampered) && got.found {
		// Whichever side is right, other bytes are needed.
		if derr := r.store.Drop(got.target.Digest); derr != nil {
			r.log.Warn("Cannot drop file from the cache", "digest", got.target.Digest, "err", derr)
		}
	}
	switch {
	case r.snapd != nil && errors.Is(err, patch.ErrNotPermitted) && !errors.As(err, new(*modkey.Error)):
		// A loader that ran before the plug was connected still has its old limits.
		r.retrySoon = true
	case isLasting(err):
		r.rec.Failed = &failed{got.target.Digest, r.facts.BootID, r.rec.Failure, r.rec.PatchError, r.rec.PatchHint}
	case errors.Is(err, loader.ErrAway), errors.Is(err, patch.ErrBusy), errors.Is(err, patch.ErrNoMemory), isAway(err):
		r.retrySoon = true
	}
}

// isLasting tells whether the same patch would be refused again in this boot,
// so that trying it at every check would only fill logs.
func isLasting(err error) bool {
	var s *modkey.Error
	if errors.As(err, &s) && s.Cause == nil {
		return false // the kernel was not asked: to look again costs nothing
	}
	for _, lasting := range []error{
		patch.ErrWrongKernel, patch.ErrNotLivepatch, patch.ErrNameTaken, patch.ErrSuspect, patch.ErrIncompatible, patch.ErrUnknownSymbol,
		patch.ErrBadFormat, patch.ErrModuleSignature, patch.ErrNotPermitted, patch.ErrKernel, patch.ErrTransitionFailed,
	} {
		if errors.Is(err, lasting) {
			return true
		}
	}
	return false
}

// failureOf sorts an error into the failures that status knows.
func failureOf(err error) status.Failure {
	for _, row := range []struct {
		err     error
		failure status.Failure
	}{
		{patch.ErrSuspect, status.FailureCrash},
		{patch.ErrModuleSignature, status.FailureSignature},
		{patch.ErrUntrusted, status.FailureSignature},
		{patch.ErrTampered, status.FailureSignature},
		{patch.ErrNotLivepatch, status.FailureExtract},
		{patch.ErrBadFormat, status.FailureExtract},
		{patch.ErrMalformed, status.FailureExtract},
		{patch.ErrTransitionFailed, status.FailureUnconfirmed},
	} {
		if errors.Is(err, row.err) {
			return row.failure
		}
	}
	return ""
}

// withdrawn tells whether the patch that was in force has left because it is revoked.
func (r *round) withdrawn() bool {
	return r.rec.State == status.Applied && slices.ContainsFunc(r.kernel.Livepatches, func(l loader.Livepatch) bool {
		return l.Ours() && l.Version == r.rec.Version && l.Rollout == patch.Revoked
	})
}

// describe brings the state in the record in line with the kernel.
func (r *round) describe() {
	if r.kernel == nil {
		return
	}
	l := current(r.kernel)
	switch back := leaving(r.kernel); {
	case back != nil:
		r.rec.State, r.rec.Version = status.Applying, back.Version
	case l == nil && (r.rec.Leaving || r.withdrawn()):
		r.nothing()
	case l == nil && (r.rec.State == status.Applied || r.rec.State == status.Applying && r.rec.Pending == nil):
		r.rec.State = status.Unapplied
	case l != nil && l.State == loader.Enabling:
		r.rec.State, r.rec.Version = status.Applying, l.Version
	case l != nil && r.rec.PatchError == "":
		r.rec.State, r.rec.Version = status.Applied, l.Version
	}
	r.rec.Leaving = leaving(r.kernel) != nil
}
