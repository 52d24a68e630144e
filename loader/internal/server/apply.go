package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"livepatch/internal/patch"
	"livepatch/loader/internal/gate"
	"livepatch/loader/internal/journal"
	"livepatch/loader/internal/klp"
	loaderv1 "livepatch/proto/loader/v1"
)

// inOrder does one thing after the other until one fails.
func inOrder(things ...func() error) error {
	for _, do := range things {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func metadata(m *loaderv1.Metadata) gate.Metadata {
	return gate.Metadata{Roots: m.GetRoots(), Timestamp: m.GetTimestamp(), Snapshot: m.GetSnapshot(), Targets: m.GetTargets(), Rollout: m.GetRollout()}
}

// apply is Apply once everything was received.
func (s *Server) apply(ctx context.Context, o *loaderv1.Opening, image *gate.Image) (*loaderv1.ApplyResponse, error) {
	cleared, err := s.Gate.Clear(gate.Submission{
		Metadata: metadata(o.GetMetadata()), Target: o.GetTarget(), Vendor: o.GetVendor(), Bin: o.GetBin(), Image: image,
	})
	if err != nil {
		return nil, err
	}
	resp, name := &loaderv1.ApplyResponse{}, cleared.Module().Name
	resp.Outcome, err = s.bringIn(ctx, cleared, cmp.Or(o.GetWait().AsDuration(), defaultWait))
	if err != nil {
		return nil, err
	}
	if resp.GetOutcome() != loaderv1.Outcome_OUTCOME_TRANSITION_PENDING {
		resp.Unloaded = s.unloadReplaced(ctx, name)
	}
	resp.Livepatch, err = s.livepatch(name)
	return resp, err
}

// bringIn inserts a cleared module, unless the very same one is in force or on
// its way, and follows its transition until wait is over.
func (s *Server) bringIn(ctx context.Context, c *gate.Cleared, wait time.Duration) (loaderv1.Outcome, error) {
	name := c.Module().Name
	state, err := s.Klp.State(name)
	entry, known := s.Journal.Find(name)
	outcome := loaderv1.Outcome_OUTCOME_ALREADY_APPLIED
	switch {
	case err != nil:
	case state != klp.Absent && (!known || entry.Digest != c.Digest()):
		err = fmt.Errorf("%w: %s", patch.ErrNameTaken, name)
	case state == klp.Disabling:
		err = fmt.Errorf("%w: %s is being disabled", patch.ErrBusy, name)
	case state == klp.Disabled: // by somebody else; it cannot be enabled again, only inserted again
		if err = s.Modules.Delete(name); err != nil {
			break
		}
		fallthrough
	case state == klp.Absent:
		outcome, err = loaderv1.Outcome_OUTCOME_APPLIED, s.insert(ctx, c)
	}
	if err == nil {
		state, err = s.follow(ctx, name, wait)
	}
	if err != nil || state.InTransition() {
		return loaderv1.Outcome_OUTCOME_TRANSITION_PENDING, err
	}
	return outcome, s.record(name, state)
}

// insert puts a cleared module into the kernel. The journal has it before the
// kernel does, so that a crash finds its culprit.
func (s *Server) insert(ctx context.Context, c *gate.Cleared) error {
	facts, err := s.Facts()
	if err != nil {
		return err
	}
	before, known := s.Journal.Find(c.Module().Name)
	same := known && before.Digest == c.Digest()
	if same && before.Standing == journal.Suspect {
		return fmt.Errorf("%w: %s", patch.ErrSuspect, before.Name)
	}
	e := journal.Entry{
		Module: c.Module(), Vendor: c.Vendor(), Digest: c.Digest(), Standing: journal.Inserting,
		BootID: facts.BootID, Inserted: s.Now().UTC(), Proven: same && before.Proven, Cut: before.Cut,
		ID: cmp.Or(before.ID, facts.Random), Rollout: cmp.Or(before.Rollout, patch.Running),
	}
	if err := inOrder(facts.Ready,
		func() error { return facts.TakesFrom(e.Vendor) },
		func() error { return s.Klp.Settled("") },
		func() error { return s.Journal.StoreModule(e.Digest, c.Reader()) },
		func() error { return s.Journal.Put(e) }); err != nil {
		return err
	}
	if err := s.Modules.Insert(c); err != nil {
		e.Standing = journal.Quarantined
		if known { // what stood in the journal before still holds
			e = before
		}
		if errors.Is(err, patch.ErrFtraceConflict) { // EBUSY, which a transition is answered with, too
			err = cmp.Or(s.Klp.Settled(""), err)
		}
		return errors.Join(err, s.Journal.Put(e))
	}
	s.Log.InfoContext(ctx, "Inserted livepatch", "patch", e.Name, "version", e.Version, "digest", e.Digest)
	return nil
}

// follow returns the state of a livepatch once its transition has ended, or
// after wait.
func (s *Server) follow(ctx context.Context, name string, wait time.Duration) (klp.State, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		state, err := s.Klp.State(name)
		if err != nil || !state.InTransition() {
			return state, err
		}
		select {
		case <-ctx.Done():
			return state, nil
		case <-time.After(pause):
		}
	}
}

// record settles the entry of a livepatch whose transition has ended in state.
func (s *Server) record(name string, state klp.State) error {
	e, known := s.Journal.Find(name)
	switch {
	case !known || e.Standing != journal.Inserting:
		return nil
	case state == klp.Absent && e.Proven: // an earlier run ended before the kernel had it
		return s.Journal.Mark(name, journal.Accepted)
	case state != klp.Enabled:
		return errors.Join(fmt.Errorf("%w: %s", patch.ErrTransitionFailed, name), s.Journal.Mark(name, journal.Quarantined))
	case e.Proven:
		return s.Journal.Mark(name, journal.Accepted)
	default:
		return s.Journal.Mark(name, journal.Trial)
	}
}

// settleOpen records the end of transitions that nobody was waiting for, and
// unloads what they replaced.
func (s *Server) settleOpen(ctx context.Context) {
	for _, e := range s.Journal.All() {
		state, err := s.Klp.State(e.Name)
		if err == nil && !state.InTransition() {
			err = s.record(e.Name, state)
		}
		if err != nil {
			s.Log.WarnContext(ctx, "Insertion was cut short", "patch", e.Name, "err", err)
		}
		if state == klp.Enabled {
			s.unloadReplaced(ctx, e.Name)
		}
	}
}

// unloadReplaced unloads patches of ours that the one in force has replaced,
// and returns their names. A livepatch is cumulative, so they do nothing. One
// that fails is no failure of the patch in force: it stays until the next call.
func (s *Server) unloadReplaced(ctx context.Context, inForce string) (unloaded []string) {
	for _, e := range s.Journal.All() {
		state, err := s.Klp.State(e.Name)
		if e.Name == inForce || err != nil || state != klp.Disabled {
			continue
		}
		if err = s.Modules.Delete(e.Name); err == nil {
			unloaded = append(unloaded, e.Name)
			if e.Standing != journal.Accepted || e.Rollout == patch.Revoked { // else it is the last known good
				err = s.Journal.Mark(e.Name, journal.Quarantined)
			}
		}
		if err != nil {
			s.Log.WarnContext(ctx, "Cannot unload replaced livepatch", "patch", e.Name, "err", err)
		}
	}
	return unloaded
}

// withdraw takes revoked livepatches out of the kernel and returns their names.
// The newest accepted one takes the place of a revoked one if it can.
func (s *Server) withdraw(ctx context.Context) (names []string, err error) {
	for _, e := range s.Journal.All() {
		state, serr := s.Klp.State(e.Name)
		if e.Rollout != patch.Revoked || serr != nil || state != klp.Enabled && state != klp.Enabling {
			continue
		}
		s.Log.WarnContext(ctx, "Livepatch was revoked", "patch", e.Name)
		if rerr := s.Reapply(ctx); rerr != nil {
			s.Log.WarnContext(ctx, "Cannot go back to the livepatch before", "err", rerr)
		}
		serr = s.Klp.Settled(e.Name)
		if serr == nil {
			serr = s.remove(ctx, e, false)
		}
		if serr == nil {
			names = append(names, e.Name)
		}
		err = errors.Join(err, serr)
	}
	return names, err
}

// remove takes a livepatch out of the kernel and out of the store, and with it, if
// forGood, those that would return at boot. A suspect stays one: else who may remove
// could have it inserted again.
func (s *Server) remove(ctx context.Context, e journal.Entry, forGood bool) error {
	for _, other := range s.Journal.All() {
		if other.Standing == journal.Suspect || other.Name != e.Name && (!forGood || other.Standing != journal.Accepted) {
			continue
		}
		// Written first: if the machine goes down now, it must not come back.
		if err := s.Journal.Mark(other.Name, journal.Quarantined); err != nil {
			return err
		}
	}
	state, err := s.Klp.State(e.Name)
	if err == nil && (state == klp.Enabled || state == klp.Enabling) {
		err = s.Klp.Disable(e.Name)
	}
	if err == nil {
		state, err = s.follow(ctx, e.Name, defaultWait)
	}
	if err == nil && state.InTransition() {
		err = fmt.Errorf("%w after %v and goes on", patch.ErrStalled, defaultWait)
	}
	if err != nil {
		return err
	}
	s.Log.InfoContext(ctx, "Removed livepatch", "patch", e.Name)
	return inOrder(func() error { return s.Modules.Delete(e.Name) }, s.Journal.Prune)
}

// accept ends the trial of the patch in force. One that was halted or revoked
// since has not proven itself.
func (s *Server) accept(ctx context.Context, e journal.Entry) error {
	state, err := s.Klp.State(e.Name)
	switch {
	case err != nil:
		return err
	case state != klp.Enabled:
		return fmt.Errorf("%w: it is not in force", patch.ErrStalled)
	case e.Rollout != "" && e.Rollout != patch.Running:
		return e.Rollout.Err()
	}
	s.Log.InfoContext(ctx, "Accepting livepatch", "patch", e.Name)
	return inOrder(func() error { return s.Journal.Accept(e) }, s.Journal.Prune)
}

// Resume settles what earlier boots, and earlier runs in this one, left open.
// It comes before everything else.
func (s *Server) Resume(ctx context.Context) error {
	facts, err := s.Facts()
	if err != nil {
		return err
	}
	suspects, err := s.Journal.BeginBoot(facts.BootID)
	s.cleanBoot = s.Journal.CleanBoot
	for _, name := range suspects {
		s.Log.ErrorContext(ctx, "Machine went down during the trial of a livepatch; it will not be applied again", "patch", name)
	}
	if err == nil {
		s.settleOpen(ctx)
		if _, err := s.withdraw(ctx); err != nil { // an earlier run did not finish it
			s.Log.WarnContext(ctx, "Cannot take out revoked livepatch", "err", err)
		}
		err = s.Journal.Prune()
	}
	return err
}

// Reapply brings the newest accepted patch for the running kernel back from the
// loader's own store, unless a newer one is in force. It needs neither network nor
// agent. Nothing accepted is success.
func (s *Server) Reapply(ctx context.Context) error {
	var newest journal.Entry
	for _, e := range s.Journal.All() {
		state, err := s.Klp.State(e.Name)
		stays := e.Standing == journal.Accepted || err == nil && (state == klp.Enabled || state == klp.Enabling)
		if stays && e.Rollout != patch.Revoked && e.Check(s.Gate.Kernel) == nil && e.Sequence > newest.Sequence {
			newest = e
		}
	}
	if newest.Name == "" {
		return nil
	}
	image, err := gate.NewImage()
	if err != nil {
		return err
	}
	defer image.Close()
	var cleared *gate.Cleared
	if err = s.Journal.LoadModule(newest.Digest, image); err == nil {
		cleared, err = s.Gate.ClearStored(newest, image)
	}
	if err == nil {
		// A transition that outlasts the wait ends by itself, and the next run
		// of the loader settles it.
		_, err = s.bringIn(ctx, cleared, defaultWait)
	}
	if err != nil {
		return fmt.Errorf("cannot apply %q again: %w", newest.Name, err)
	}
	s.unloadReplaced(ctx, newest.Name)
	return nil
}
