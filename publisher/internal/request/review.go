package request

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/tuf"
	"livepatch/publisher/internal/authority"
)

// A Review is a request whose every part was checked: what is in force by the
// chain of its roots, and of what is to be signed that existing machines would
// follow as soon as its signatures are complete.
type Review struct {
	id     string
	roots  []*file          // in force, oldest first
	before map[string]*file // in force, by role
	after  map[string]*file // the same with the change
	change []*file          // in the order of their delegation
}

// Open checks a request. Errors match [ErrMalformed], [ErrUnverified] (what is
// in force does not verify, or the change could not be followed) or
// [ErrTampered] (a signature is not for what the request holds).
func Open(r Request) (*Review, error) {
	v, err := open(r)
	if err != nil {
		return nil, fmt.Errorf("cannot use request: %w", err)
	}
	return v, nil
}

func open(r Request) (*Review, error) {
	id, err := r.ID()
	if err != nil {
		return nil, err
	}
	v := &Review{id: id, before: make(map[string]*file)}
	if err := v.readInForce(r.InForce); err != nil {
		return nil, err
	}
	v.after = maps.Clone(v.before)
	if err := v.readChange(r.Change); err != nil {
		return nil, err
	}
	if err := v.verifyInForce(); err != nil {
		return nil, err
	}
	for _, f := range v.change {
		if err := v.check(f); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// readInForce parses what is in force: all roots, and one version of each other
// role.
func (v *Review) readInForce(files Files) error {
	for name, body := range files {
		f, err := parseFile(name, body)
		if err != nil {
			return err
		}
		switch {
		case f.root != nil:
			v.roots = append(v.roots, f)
		case v.before[f.role] != nil:
			return fmt.Errorf("%w: two versions of role %s are in force", ErrMalformed, f.role)
		default:
			v.before[f.role] = f
		}
	}
	slices.SortFunc(v.roots, func(a, b *file) int { return int(a.version - b.version) })
	if n := len(v.roots); n > 0 {
		v.before[metadata.ROOT] = v.roots[n-1]
	}
	return nil
}

func (v *Review) readChange(files Files) error {
	if len(files) == 0 {
		return fmt.Errorf("%w: there is nothing to sign", ErrMalformed)
	}
	seen := make(map[string]bool)
	for name, body := range files {
		f, err := parseFile(name, body)
		if err == nil {
			err = onlyKnownFields(f.role, f.payload)
		}
		if err != nil {
			return err
		}
		if seen[f.role] {
			return fmt.Errorf("%w: two versions of role %s are to be signed", ErrMalformed, f.role)
		}
		seen[f.role] = true
		v.after[f.role] = f
		v.change = append(v.change, f)
	}
	slices.SortFunc(v.change, func(a, b *file) int { return authority.Compare(a.role, b.role) })
	return nil
}

// verifyInForce follows the chain of roots, and verifies the rest from the last.
func (v *Review) verifyInForce() error {
	for i, f := range v.roots {
		if f.version != int64(i+1) {
			return fmt.Errorf("%w: root %d is missing", ErrUnverified, i+1)
		}
		if i > 0 {
			if err := v.roots[i-1].verify(f); err != nil {
				return fmt.Errorf("%w: root %d by root %d: %w", ErrUnverified, i+1, i, err)
			}
		}
		if err := f.verify(f); err != nil {
			return fmt.Errorf("%w: root %d: %w", ErrUnverified, i+1, err)
		}
	}
	for role, f := range v.before {
		if role == metadata.ROOT {
			continue
		}
		parent := v.before[authority.Parent(role)]
		if parent == nil {
			return fmt.Errorf("%w: role %s: what delegates to it is missing", ErrUnverified, role)
		}
		if err := parent.verify(f); err != nil {
			return fmt.Errorf("%w: role %s: %w", ErrUnverified, role, err)
		}
	}
	return nil
}

// check returns an error unless machines would follow a file of the change once
// it has all signatures.
func (v *Review) check(f *file) error {
	want := int64(1)
	if before := v.before[f.role]; before != nil {
		want = before.version + 1
	}
	if f.version != want {
		return fmt.Errorf("%w: role %s: version is %d, want %d", ErrUnverified, f.role, f.version, want)
	}
	demands, err := v.demands(f)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnverified, err)
	}
	for _, d := range demands {
		if err := possible(d); err != nil {
			return fmt.Errorf("%w: role %s: %w", ErrUnverified, f.role, err)
		}
	}
	for _, s := range f.signatures {
		if !slices.ContainsFunc(demands, func(d authority.Authority) bool {
			return len(d.Signed(f.payload, []metadata.Signature{s})) == 1
		}) {
			return fmt.Errorf("%w: role %s: signature of key %s is not for this", ErrTampered, f.role, authority.Short(s.KeyID))
		}
	}
	if len(lacks(f, demands)) == 0 {
		return v.rehearse(f)
	}
	return nil
}

// possible returns an error unless enough distinct keys could sign.
func possible(a authority.Authority) error {
	distinct := make(map[string]bool)
	for _, id := range a.IDs {
		if key := a.Key(id); key != nil {
			distinct[string(key)] = true
		}
	}
	if a.Threshold < 1 || a.Threshold > len(distinct) {
		return fmt.Errorf("%d of %d keys have to sign, which cannot be", a.Threshold, len(distinct))
	}
	return nil
}

// rehearse lets go-tuf, and the loader's verifier where it can, look at a file
// that has all signatures.
func (v *Review) rehearse(f *file) error {
	if err := v.after[authority.Parent(f.role)].verify(f); err != nil {
		return fmt.Errorf("%w: role %s: %w", ErrUnverified, f.role, err)
	}
	before := v.before[f.role]
	if f.root == nil || before == nil {
		return nil
	}
	if err := before.verify(f); err != nil {
		return fmt.Errorf("%w: root by root %d: %w", ErrUnverified, before.version, err)
	}
	old, err := before.body()
	if err != nil {
		return err
	}
	next, err := f.body()
	if err != nil {
		return err
	}
	set, err := tuf.New(tuf.Stored{Root: old}, time.Time{})
	if err == nil {
		err = set.Root(next)
	}
	if err != nil {
		return fmt.Errorf("%w: the loader's verifier refuses it: %w", ErrUnverified, err)
	}
	return nil
}

// demands returns whose signatures a file of the change needs.
func (v *Review) demands(f *file) ([]authority.Authority, error) {
	parent := v.after[authority.Parent(f.role)]
	if parent == nil {
		return nil, fmt.Errorf("role %s: %w", f.role, authority.ErrNone)
	}
	own, err := parent.authority(f.role)
	if err != nil {
		return nil, err
	}
	if before := v.before[metadata.ROOT]; f.root != nil && before != nil {
		return authority.Demands(own, before.root)
	}
	return authority.Demands(own, nil)
}

// A Lack is one demand on a role that is not met yet.
type Lack struct {
	Role   string
	Demand authority.Authority
	Signed []string // IDs of the keys that have signed
}

// lacks returns the demands that a file does not meet.
func lacks(f *file, demands []authority.Authority) []Lack {
	var all []Lack
	for _, d := range demands {
		if signed := d.Signed(f.payload, f.signatures); len(signed) < d.Threshold {
			all = append(all, Lack{Role: f.role, Demand: d, Signed: signed})
		}
	}
	return all
}

// Lacks returns what is missing until the change can be made, none if nothing
// is.
func (v *Review) Lacks() ([]Lack, error) {
	var all []Lack
	for _, f := range v.change {
		demands, err := v.demands(f)
		if err != nil {
			return nil, err
		}
		all = append(all, lacks(f, demands)...)
	}
	return all, nil
}

// ID returns the fingerprint of what is to be signed.
func (v *Review) ID() string { return v.id }

// Roots returns the versions of the root in force, oldest first, as they are
// signed.
func (v *Review) Roots() ([][]byte, error) {
	var all [][]byte
	for _, f := range v.roots {
		b, err := f.body()
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// FollowsFrom returns an error matching [ErrUnverified] unless a root that is
// trusted is one of those that the request relies on.
func (v *Review) FollowsFrom(trusted []byte) error {
	m, err := metadata.Root().FromBytes(trusted)
	if err != nil {
		return fmt.Errorf("cannot read trusted root: %w", err)
	}
	want, err := authority.Payload(m)
	if err != nil {
		return fmt.Errorf("cannot read trusted root: %w", err)
	}
	for _, f := range v.roots {
		if bytes.Equal(f.payload, want) {
			return nil
		}
	}
	return fmt.Errorf("%w: it belongs to another repository than the trusted root", ErrUnverified)
}

// Unsigned returns the roles of the change that nobody has signed. A signature
// shows that a role is as its signer has sent it.
func (v *Review) Unsigned() []string {
	var roles []string
	for _, f := range v.change {
		if len(f.signatures) == 0 {
			roles = append(roles, f.role)
		}
	}
	return roles
}

// Take adds the signatures of an answer. If one is not for this change, the
// error matches [ErrOther] or [ErrTampered] and none is added.
func (v *Review) Take(a Answer) error {
	if a.ID != v.id {
		return fmt.Errorf("cannot use answer: %w: %s, want %s", ErrOther, a.ID, v.id)
	}
	had := make(map[*file][]metadata.Signature)
	for _, s := range a.Signatures {
		f := v.after[s.Role]
		if !slices.Contains(v.change, f) {
			return fmt.Errorf("cannot use answer: %w: role %s is not to be signed", ErrTampered, s.Role)
		}
		if slices.ContainsFunc(f.signatures, func(have metadata.Signature) bool { return have.KeyID == s.KeyID }) {
			continue // it was taken before
		}
		if _, ok := had[f]; !ok {
			had[f] = f.signatures
		}
		f.signatures = append(slices.Clone(f.signatures), metadata.Signature{KeyID: s.KeyID, Signature: s.Sig})
	}
	for _, f := range v.change {
		if err := v.check(f); err != nil {
			for f, before := range had {
				f.signatures = before
			}
			return fmt.Errorf("cannot use answer: %w", err)
		}
	}
	return nil
}

// Change returns the metadata files with the signatures that they have by now.
func (v *Review) Change() (Files, error) {
	files := make(Files, len(v.change))
	for _, f := range v.change {
		b, err := f.body()
		if err != nil {
			return nil, err
		}
		files[nameOf(f.role, f.version)] = b
	}
	return files, nil
}
