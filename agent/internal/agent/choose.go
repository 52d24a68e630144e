package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/status"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
)

// A catalog looks up signed targets; [trust.View] is one.
type catalog interface {
	Target(path string) (trust.Target, error)
}

// A chooser decides which patch of an index a machine should have.
type chooser struct {
	catalog   catalog
	vendor    string
	kernel    patch.Kernel
	tier      string
	machineID string
	cfg       config.Config
	now       time.Time
}

// A choice is what a chooser has decided.
type choice struct {
	entry   patch.IndexEntry
	target  trust.Target
	rollout patch.Rollout

	found bool // there is a patch to have; else the rest is empty

	// Newer patches that the configuration holds back.
	blocked   []status.Blocked
	blockedBy []string
	// Newer patches that are not for this machine now, and why, newest first.
	held []held

	// otherBuild is a build-id that the index has patches for, if it has none
	// for the one that runs.
	otherBuild patch.BuildID
}

// A held is a patch that a machine does not get, now.
type held struct {
	entry patch.IndexEntry
	why   problem
}

// choose returns the newest patch of the index that is for this build of the
// kernel, whose rollout has come to this machine, and which the configuration
// does not hold back.
func (c chooser) choose(ix patch.Index) (choice, error) {
	var got choice
	entries := slices.Clone(ix.Patches)
	slices.SortStableFunc(entries, func(a, b patch.IndexEntry) int { return cmp.Compare(b.Sequence, a.Sequence) })
	matched := false
	for _, e := range entries {
		if e.BuildID != c.kernel.BuildID {
			continue
		}
		matched = true
		if key, why := c.heldBack(e, ix); key != "" {
			got.block(e, key)
			got.held = append(got.held, held{e, why})
			continue
		}
		rollout, err := c.admitted(e.Version)
		if errors.Is(err, errNotYet) {
			got.held = append(got.held, held{e, c.notYet(rollout, err)})
			continue
		}
		if err != nil {
			return choice{}, fmt.Errorf("cannot tell who gets patch %s: %w", e.Version, err)
		}
		target, err := c.lookUp(e)
		if err != nil {
			return choice{}, err
		}
		got.entry, got.target, got.rollout, got.found = e, target, rollout, true
		return got, nil
	}
	if !matched && len(entries) > 0 {
		got.otherBuild = entries[0].BuildID
	}
	return got, nil
}

// errNotYet means that a patch is not for this machine, now.
var errNotYet = errors.New("patch is not rolled out to this machine")

// admitted returns the rollout of a version, and an error matching errNotYet if it
// does not let this machine in.
func (c chooser) admitted(version string) (patch.Rollout, error) {
	rollout, err := c.rollout(version)
	switch {
	case errors.Is(err, patch.ErrNotFound):
		return patch.Rollout{}, fmt.Errorf("%w: there is no rollout", errNotYet)
	case err != nil:
		return patch.Rollout{}, err
	}
	if err := rollout.For(c.kernel); err != nil {
		return rollout, fmt.Errorf("%w: %w", errNotYet, err)
	}
	if !rollout.Admits(c.kernel, c.tier, c.machineID) {
		return rollout, errNotYet
	}
	return rollout, nil
}

// rollout returns the rollout of a version; the error matches
// [patch.ErrNotFound] if there is none.
func (c chooser) rollout(version string) (patch.Rollout, error) {
	t, err := c.catalog.Target(patch.RolloutPath(c.vendor, version))
	if err != nil {
		return patch.Rollout{}, err
	}
	return patch.ParseRollout(t.Custom)
}

// lookUp returns the target of an entry. The index and the target are signed by
// the same vendor; where they disagree, one of them is wrong.
func (c chooser) lookUp(e patch.IndexEntry) (trust.Target, error) {
	if vendor, err := patch.VendorOf(e.Target); err != nil || vendor != c.vendor {
		return trust.Target{}, fmt.Errorf("cannot use patch %s: its target is %q: %w", e.Version, e.Target, patch.ErrMalformed)
	}
	t, err := c.catalog.Target(e.Target)
	if err != nil {
		return trust.Target{}, fmt.Errorf("cannot use patch %s: %w", e.Version, err)
	}
	m, err := patch.ParseModule(t.Custom)
	if err != nil {
		return trust.Target{}, fmt.Errorf("cannot use patch %s: %w", e.Version, err)
	}
	if err := m.Kernel.Check(c.kernel); err != nil {
		return trust.Target{}, fmt.Errorf("cannot use patch %s: %w", e.Version, err)
	}
	if m.Name != e.Name || m.Version != e.Version || m.Sequence != e.Sequence {
		return trust.Target{}, fmt.Errorf("cannot use patch %s: index and target disagree: %w", e.Version, patch.ErrMalformed)
	}
	return t, nil
}

// block notes what is missed by holding an entry back.
func (c *choice) block(e patch.IndexEntry, key string) {
	if !slices.Contains(c.blockedBy, key) {
		c.blockedBy = append(c.blockedBy, key)
	}
	published, _ := time.Parse(time.RFC3339, e.Added) // zero if it has no date
	for _, f := range e.Fixes {
		c.blocked = append(c.blocked, status.Blocked{CVE: f.Name, Published: published, Notice: e.Notice})
	}
}
