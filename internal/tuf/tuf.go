// Package tuf is a small verifier for The Update Framework, specification
// 1.0.33, section 5 (client workflow), with hash bins by TAP 15 and ed25519
// keys. It fetches nothing and writes nothing: bytes go in, verdicts come out.
//
// It is the loader's own, and independent of the go-tuf library that the agent
// uses: both have to agree before a module enters a kernel. It accepts less
// than the specification allows wherever our publisher does not need more; what
// it accepts, go-tuf accepts.
//
// Errors match [patch.ErrUntrusted], [patch.ErrExpired], [patch.ErrRollback],
// [patch.ErrMalformed], [patch.ErrTampered], [patch.ErrTooLarge] or
// [patch.ErrNotFound].
package tuf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"livepatch/internal/patch"
)

const (
	maxRoots = 64 // taken in one update (section 5.3.3)
	maxRoles = 32 // visited in one walk through delegations (section 5.6.7.1)
)

// Stored is what a client keeps between updates. All of it was trusted once;
// Timestamp and Snapshot are nil before the first update.
type Stored struct {
	Root      []byte
	Timestamp []byte
	Snapshot  []byte
}

// A Set is one update of the trusted metadata. Its methods are called in the
// order of the specification: Root for every newer root, then Timestamp,
// Snapshot, and Find.
//
// After an error from Root, the roots before it are still trusted, and Stored
// tells so; after any other error, Stored is as before the failed call.
type Set struct {
	now       time.Time // fixed for the whole update (section 5.1)
	stored    Stored
	first     int64 // version of the root that the update began with
	root      *root
	timestamp *listing // of this update
	snapshot  *listing
	roles     map[string]*targets
}

// New begins an update at the time now from what the client has stored. The
// stored root is trusted as it is; it may have expired (section 5.2).
func New(stored Stored, now time.Time) (*Set, error) {
	r, err := readRoot(stored.Root)
	if err == nil {
		err = r.roles[rootRole].verify(rootRole, r.envelope)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use trusted root: %w", err)
	}
	return &Set{now: now, stored: stored, first: r.version, root: r, roles: map[string]*targets{}}, nil
}

// Stored returns what the client has to keep.
func (s *Set) Stored() Stored { return s.stored }

// RootVersion returns the version of the trusted root.
func (s *Set) RootVersion() int64 { return s.root.version }

// ConsistentSnapshot tells whether file names carry versions and hashes.
func (s *Set) ConsistentSnapshot() bool { return s.root.consistent }

// Root takes the root that follows the trusted one: its version is one higher,
// and a threshold of the keys of both signed it (section 5.3).
func (s *Set) Root(b []byte) error {
	next, err := readRoot(b)
	switch {
	case s.timestamp != nil:
		return errors.New("cannot update root after timestamp")
	case err != nil:
		return fmt.Errorf("cannot use root: %w", err)
	case next.version > s.first+maxRoots:
		return malformed("more than %d new roots", maxRoots)
	case next.version <= s.root.version:
		return rollback(rootRole, next.version, s.root.version)
	case next.version > s.root.version+1:
		return malformed("root is version %d, want %d", next.version, s.root.version+1)
	}
	for _, r := range []*root{s.root, next} {
		if err := r.roles[rootRole].verify(rootRole, next.envelope); err != nil {
			return fmt.Errorf("cannot use root %d: %w", next.version, err)
		}
	}
	s.root, s.stored.Root = next, b
	return nil
}

// Timestamp takes timestamp.json (section 5.4). The trusted root must not have
// expired, which is checked here because only the last root counts.
func (s *Set) Timestamp(b []byte) error {
	next, err := s.listing(b, timestampRole, patch.MaxTimestamp, meta{})
	err = cmp.Or(s.root.fresh(rootRole, s.now), err)
	switch {
	case s.snapshot != nil:
		return errors.New("cannot update timestamp after snapshot")
	case err != nil:
		return fmt.Errorf("cannot use timestamp: %w", err)
	case len(next.meta) != 1 || next.meta["snapshot.json"].version == 0:
		return malformed("timestamp does not list snapshot.json alone")
	}
	// A stored timestamp that the root no longer vouches for sets no floor:
	// this is the way back from a fast-forward attack (section 5.3.11).
	if old, err := s.listing(s.stored.Timestamp, timestampRole, patch.MaxTimestamp, meta{}); err == nil {
		if next.version < old.version {
			return rollback(timestampRole, next.version, old.version)
		}
		if was, is := old.meta["snapshot.json"].version, next.meta["snapshot.json"].version; is < was {
			return rollback(snapshotRole, is, was)
		}
		// Two files of one version are one file (section 5.4.3.1): the one
		// that was seen first.
		if next.version == old.version {
			next = old
		}
	}
	if err := next.fresh(timestampRole, s.now); err != nil {
		return fmt.Errorf("cannot use timestamp: %w", err)
	}
	s.timestamp, s.stored.Timestamp = next, next.raw
	return nil
}

// listing reads a timestamp or snapshot that the root vouches for.
func (s *Set) listing(b []byte, role string, limit int, want meta) (*listing, error) {
	l, err := readListing(b, role, limit)
	if err := cmp.Or(want.check(role+".json", b), err); err != nil {
		return nil, err
	}
	return l, s.root.roles[role].verify(role, l.envelope)
}

// SnapshotVersion returns the version of the snapshot that Timestamp announced.
// Before that it is 0.
func (s *Set) SnapshotVersion() int64 {
	return cmp.Or(s.timestamp, &listing{}).meta["snapshot.json"].version
}

// Snapshot takes snapshot.json (section 5.5).
func (s *Set) Snapshot(b []byte) error {
	if s.timestamp == nil || len(s.roles) != 0 {
		return errors.New("cannot update snapshot before timestamp or after targets")
	}
	want := s.timestamp.meta["snapshot.json"]
	next, err := s.listing(b, snapshotRole, patch.MaxSnapshot, want)
	switch {
	case err != nil:
		return fmt.Errorf("cannot use snapshot: %w", err)
	case next.version != want.version:
		return fmt.Errorf("cannot use snapshot: %w: version is %d, timestamp says %d", patch.ErrTampered, next.version, want.version)
	}
	if old, err := s.listing(s.stored.Snapshot, snapshotRole, patch.MaxSnapshot, meta{}); err == nil {
		// As with timestamps, two files of one version are one file.
		if next.version == old.version && !bytes.Equal(next.payload, old.payload) {
			return fmt.Errorf("cannot use snapshot: %w: version %d was another file", patch.ErrTampered, next.version)
		}
		for name, was := range old.meta {
			// An entry that is gone counts as version 0: leaving it out must
			// not be a way to bring an older file back (section 5.5.5).
			if is := next.meta[name].version; is < was.version {
				return rollback(name, is, was.version)
			}
		}
	}
	if err := next.fresh(snapshotRole, s.now); err != nil {
		return fmt.Errorf("cannot use snapshot: %w", err)
	}
	s.snapshot, s.stored.Snapshot = next, b
	return nil
}

func rollback(name string, is, was int64) error {
	return fmt.Errorf("%w: %s is version %d, was %d", patch.ErrRollback, name, is, was)
}

// A Loader returns the metadata file of a role below root, in the version that
// the snapshot lists. The bytes may be anything.
type Loader func(role string, version int64) ([]byte, error)

// Find returns the target with the given path, walking the delegations from the
// top-level targets role in their order, depth first, until the path is found
// or a terminating delegation ends the search (sections 5.6 and 5.7). A target
// that no role lists gives an error matching [patch.ErrNotFound].
func (s *Set) Find(target string, load Loader) (*Target, error) {
	if s.snapshot == nil {
		return nil, errors.New("snapshot comes first")
	}
	stack := []visit{{targetsRole, rootRole, s.root.roles[targetsRole]}}
	visited := map[string]bool{}
	for len(stack) > 0 && len(visited) <= maxRoles {
		v := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if visited[v.role] {
			continue
		}
		visited[v.role] = true
		role, err := s.targets(v, load)
		if err != nil {
			return nil, err
		}
		if found := role.targets[target]; found != nil {
			return found, nil
		}
		children, terminating := role.children(v.role, target)
		if terminating {
			stack = nil
		}
		slices.Reverse(children)
		stack = append(stack, children...)
	}
	return nil, fmt.Errorf("%w in the signed metadata: %.200q", patch.ErrNotFound, target)
}

// A visit is a role to look into, and who vouches for it.
type visit struct {
	role, parent string
	signers      signers
}

// children returns the roles that t makes responsible for the path, in order,
// and whether nobody else may be asked after them.
func (t *targets) children(name, target string) (visits []visit, terminating bool) {
	if t.succinct != nil {
		return []visit{{t.succinct.bin(target), name, t.succinct.signers}}, true
	}
	for _, d := range t.delegations {
		if !d.covers(target) {
			continue
		}
		visits = append(visits, visit{d.name, name, d.signers})
		if d.terminating {
			return visits, true
		}
	}
	return visits, false
}

// targets returns the verified metadata of a role, loading it if need be.
func (s *Set) targets(v visit, load Loader) (*targets, error) {
	if t, ok := s.roles[v.role]; ok {
		// A role belongs to one delegator: verified under one parent it says
		// nothing under another, whose keys may differ.
		if t.parent != v.parent {
			return nil, malformed("role %q is delegated by both %q and %q", v.role, t.parent, v.parent)
		}
		return t, nil
	}
	name := v.role + ".json"
	want, ok := s.snapshot.meta[name]
	if !ok {
		return nil, malformed("snapshot does not list %s", name)
	}
	b, err := load(v.role, want.version)
	if err != nil {
		return nil, err
	}
	t, err := readTargets(b)
	err = cmp.Or(want.check(name, b), err)
	if err == nil {
		err = v.signers.verify(v.role, t.envelope)
	}
	if err == nil && t.version != want.version {
		err = fmt.Errorf("%w: version is %d, snapshot says %d", patch.ErrTampered, t.version, want.version)
	}
	if err == nil {
		err = t.fresh(v.role, s.now)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", name, err)
	}
	t.parent = v.parent
	s.roles[v.role] = t
	return t, nil
}
