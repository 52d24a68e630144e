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

// apply is Apply once everything was received.
func (s *Server) apply(ctx context.Context, o *loaderv1.Opening, image *gate.Image, steps *steps) (*loaderv1.ApplyResponse, error) {
	cleared, err := s.Gate.Clear(gate.Submission{
		Target: o.GetTarget(), Roots: o.GetRoots(), Timestamp: o.GetTimestamp(), Snapshot: o.GetSnapshot(),
		Targets: o.GetTargets(), Vendor: o.GetVendor(), Bin: o.GetBin(), Rollout: o.GetRollout(), Image: image,
	})
	if err != nil {
		return nil, err
	}
	steps.done("verify")
	wait := cmp.Or(o.GetWait().AsDuration(), defaultWait)
	resp := &loaderv1.ApplyResponse{}
	resp.Outcome, err = s.bringIn(ctx, cleared, wait, steps)
	if err != nil {
		return nil, err
	}
	if resp.GetOutcome() != loaderv1.Outcome_OUTCOME_TRANSITION_PENDING {
		resp.Unloaded = s.unloadReplaced(ctx, cleared.Module().Name)
		steps.done("unload")
	}
	resp.Steps = steps.list
	resp.Livepatch, err = s.livepatch(cleared.Module().Name)
	return resp, err
}

// bringIn inserts a cleared module, unless the very same one is in force or on
// its way, and follows its transition until wait is over.
func (s *Server) bringIn(ctx context.Context, c *gate.Cleared, wait time.Duration, steps *steps) (loaderv1.Outcome, error) {
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
		outcome, err = loaderv1.Outcome_OUTCOME_APPLIED, s.insert(ctx, c, steps)
	}
	if err == nil {
		state, err = s.follow(ctx, name, wait)
	}
	if err != nil || state.InTransition() {
		return loaderv1.Outcome_OUTCOME_TRANSITION_PENDING, err
	}
	steps.done("transition")
	return outcome, s.record(name, state)
}

// insert puts a cleared module into the kernel. The journal has it before the
// kernel does, so that a crash finds its culprit.
func (s *Server) insert(ctx context.Context, c *gate.Cleared, steps *steps) error {
	m := c.Module()
	before, known := s.Journal.Find(m.Name)
	same := known && before.Digest == c.Digest()
	if same && before.Standing == journal.Suspect {
		return fmt.Errorf("%w: %s", patch.ErrSuspect, m.Name)
	}
	facts, err := s.Facts()
	if err == nil {
		err = facts.Ready()
	}
	if err == nil {
		err = s.noTransition()
	}
	if err == nil {
		err = s.Journal.StoreModule(c.Digest(), c.Reader())
	}
	if err == nil {
		err = s.Journal.Put(journal.Entry{
			Module: m, Digest: c.Digest(), Standing: journal.Inserting,
			BootID: facts.BootID, Inserted: s.Now().UTC(), Proven: same && before.Proven,
		})
	}
	if err != nil {
		return err
	}
	steps.done("journal")
	if err := s.Modules.Insert(c); err != nil {
		// What stood in the journal before still holds.
		if known {
			return errors.Join(s.insertError(err), s.Journal.Put(before))
		}
		return errors.Join(s.insertError(err), s.Journal.Mark(m.Name, journal.Quarantined))
	}
	steps.done("insert")
	s.Log.InfoContext(ctx, "Inserted livepatch", "patch", m.Name, "version", m.Version, "digest", c.Digest())
	return nil
}

// noTransition returns an error matching [patch.ErrBusy] while the kernel moves
// tasks from one livepatch to another.
func (s *Server) noTransition() error {
	if busy := s.Klp.InTransition(); busy != "" {
		return fmt.Errorf("%w: of %s", patch.ErrBusy, busy)
	}
	return nil
}

// insertError tells apart what the kernel reports with one errno: EBUSY for a
// running transition, disabled ftrace and functions that others trace.
func (s *Server) insertError(err error) error {
	facts, ferr := s.Facts()
	switch {
	case !errors.Is(err, patch.ErrFtraceConflict):
		return err
	case ferr == nil && !facts.Ftrace:
		return patch.ErrFtraceDisabled
	}
	return cmp.Or(s.noTransition(), err)
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
			if e.Standing != journal.Accepted { // then it is the last known good
				err = s.Journal.Mark(e.Name, journal.Quarantined)
			}
		}
		if err != nil {
			s.Log.WarnContext(ctx, "Cannot unload replaced livepatch", "patch", e.Name, "err", err)
		}
	}
	return unloaded
}

// remove takes a livepatch out of the kernel and out of the store.
func (s *Server) remove(ctx context.Context, e journal.Entry) error {
	// Written first: if the machine goes down now, it must not come back.
	if err := s.Journal.Mark(e.Name, journal.Quarantined); err != nil {
		return err
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
	if err == nil {
		err = s.Modules.Delete(e.Name)
	}
	if err == nil {
		s.Log.InfoContext(ctx, "Removed livepatch", "patch", e.Name)
		err = s.Journal.Prune()
	}
	return err
}

// accept ends the trial of the patch in force. What was accepted before is not
// needed any more.
func (s *Server) accept(ctx context.Context, e journal.Entry) error {
	state, err := s.Klp.State(e.Name)
	if err == nil && state != klp.Enabled {
		err = fmt.Errorf("%w: it is not in force", patch.ErrStalled)
	}
	if err == nil {
		err = s.Journal.Accept(e.Name)
	}
	if err == nil {
		s.Log.InfoContext(ctx, "Accepted livepatch", "patch", e.Name)
		err = s.Journal.Prune()
	}
	return err
}

// Resume settles what earlier boots, and earlier runs in this one, left open.
// It comes before everything else.
func (s *Server) Resume(ctx context.Context) error {
	facts, err := s.Facts()
	if err != nil {
		return err
	}
	suspects, err := s.Journal.BeginBoot(facts.BootID)
	for _, name := range suspects {
		s.Log.ErrorContext(ctx, "Machine went down during the trial of a livepatch; it will not be applied again", "patch", name)
	}
	if err == nil {
		s.settleOpen(ctx)
		err = s.Journal.Prune()
	}
	return err
}

// Reapply brings the newest accepted patch for the running kernel back from the
// loader's own store. It needs neither network nor agent. Nothing accepted is
// success.
func (s *Server) Reapply(ctx context.Context) error {
	facts, err := s.Facts()
	if err != nil {
		return err
	}
	var newest journal.Entry
	for _, e := range s.Journal.All() {
		if e.Standing == journal.Accepted && e.Check(facts.Kernel) == nil && e.Sequence > newest.Sequence {
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
		_, err = s.bringIn(ctx, cleared, defaultWait, newSteps())
	}
	if err != nil {
		return fmt.Errorf("cannot apply %q again: %w", newest.Name, err)
	}
	return nil
}
