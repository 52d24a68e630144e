// Package authority reads from TUF metadata who may sign a role, and counts
// who has.
//
// Whether a role is trusted is go-tuf's to decide. It says yes or no; people
// who sign together want to know whose signature is there and whose is missing.
package authority

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Root is the metadata of role root.
type Root = metadata.Metadata[metadata.RootType]

// Targets is the metadata of targets, of a vendor or of a bin.
type Targets = metadata.Metadata[metadata.TargetsType]

// Conditions that callers branch on.
var (
	ErrNone = errors.New("no role delegates to it")
	ErrKey  = errors.New("key in the metadata is not valid")
)

// Parent returns the one role that delegates to role in our repositories. Names
// of vendors have no "-", names of bins have one.
func Parent(role string) string {
	switch role {
	case metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP:
		return metadata.ROOT
	}
	if vendor, _, ok := strings.Cut(role, "-"); ok {
		return vendor
	}
	return metadata.TARGETS
}

// Depth tells how far below root a role is: 0 for root, 1 for those root names,
// 2 for vendors, 3 for bins.
func Depth(role string) int {
	depth := 0
	for ; role != metadata.ROOT; role = Parent(role) {
		depth++
	}
	return depth
}

// Compare orders roles so that each comes after the one that delegates to it.
func Compare(a, b string) int {
	if d := Depth(a) - Depth(b); d != 0 {
		return d
	}
	return strings.Compare(a, b)
}

// An Authority says who may sign a role and how many of them must.
//
// The zero Authority is nobody's.
type Authority struct {
	IDs       []string // in the order of the metadata
	Threshold int
	keys      map[string]ed25519.PublicKey
}

// InRoot returns the authority that a root gives over a top-level role.
func InRoot(m *Root, role string) (Authority, error) {
	r, ok := m.Signed.Roles[role]
	if !ok || r == nil {
		return Authority{}, fmt.Errorf("role %s: %w", role, ErrNone)
	}
	return newAuthority(r.KeyIDs, r.Threshold, m.Signed.Keys), nil
}

// InTargets returns the authority that a delegating role gives over another: a
// vendor, or one of its bins.
func InTargets(m *Targets, role string) (Authority, error) {
	d := m.Signed.Delegations
	if d == nil {
		return Authority{}, fmt.Errorf("role %s: %w", role, ErrNone)
	}
	if s := d.SuccinctRoles; s != nil && s.IsDelegatedRole(role) {
		return newAuthority(s.KeyIDs, s.Threshold, d.Keys), nil
	}
	for _, r := range d.Roles {
		if r.Name == role {
			return newAuthority(r.KeyIDs, r.Threshold, d.Keys), nil
		}
	}
	return Authority{}, fmt.Errorf("role %s: %w", role, ErrNone)
}

// newAuthority leaves out what is not an ed25519 key: nothing that it signs
// counts.
func newAuthority(ids []string, threshold int, all map[string]*metadata.Key) Authority {
	a := Authority{IDs: slices.Clone(ids), Threshold: threshold, keys: make(map[string]ed25519.PublicKey)}
	for _, id := range ids {
		key := all[id]
		if key == nil {
			continue
		}
		if public, err := key.ToPublicKey(); err == nil {
			if public, ok := public.(ed25519.PublicKey); ok && len(public) == ed25519.PublicKeySize {
				a.keys[id] = public
			}
		}
	}
	return a
}

// CheckRoot returns an error unless every key of a root is an ed25519 key under
// its own ID. It comes before go-tuf 2.4.2 verifies anything, which panics where
// a key has another length.
func CheckRoot(m *Root) error { return checkKeys(m.Signed.Keys) }

// CheckTargets is [CheckRoot] for a role that delegates.
func CheckTargets(m *Targets) error {
	if m.Signed.Delegations == nil {
		return nil
	}
	return checkKeys(m.Signed.Delegations.Keys)
}

func checkKeys(keys map[string]*metadata.Key) error {
	for id, key := range keys {
		if key == nil || key.Type != metadata.KeyTypeEd25519 || key.Scheme != metadata.KeySchemeEd25519 {
			return fmt.Errorf("%w: %s is not an ed25519 key", ErrKey, Short(id))
		}
		if b, err := hex.DecodeString(key.Value.PublicKey); err != nil || len(b) != ed25519.PublicKeySize {
			return fmt.Errorf("%w: %s has not %d bytes", ErrKey, Short(id), ed25519.PublicKeySize)
		}
		if want, err := key.ID(); err != nil || want != id {
			return fmt.Errorf("%w: %s is another key than its ID says", ErrKey, Short(id))
		}
	}
	return nil
}

// Key returns the public key of an ID, nil if it is not one of the authority's.
func (a Authority) Key(id string) ed25519.PublicKey { return a.keys[id] }

// Equal tells whether both ask the same of the same keys.
func (a Authority) Equal(b Authority) bool {
	x, y := slices.Sorted(slices.Values(a.IDs)), slices.Sorted(slices.Values(b.IDs))
	return a.Threshold == b.Threshold && slices.Equal(x, y)
}

// Signed returns the IDs of the keys whose signature over payload is good, each
// public key once.
func (a Authority) Signed(payload []byte, signatures []metadata.Signature) []string {
	var ids []string
	counted := make(map[string]bool)
	for _, s := range signatures {
		public := a.keys[s.KeyID]
		if public == nil || counted[string(public)] || !ed25519.Verify(public, payload, s.Signature) {
			continue
		}
		counted[string(public)] = true
		ids = append(ids, s.KeyID)
	}
	return ids
}

// Short returns as much of a key ID as a person can compare.
func Short(id string) string { return id[:min(len(id), 12)] }

// Payload returns the bytes of metadata that signatures are made over.
func Payload[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) {
	return cjson.EncodeCanonical(m.Signed)
}

// Demands returns whose signatures a role needs: the keys that its delegator
// names, and for a root the keys of the root before it as well, so that machines
// can follow (TUF 5.3.4). Before is nil for the first root and for other roles.
func Demands(own Authority, before *Root) ([]Authority, error) {
	if before == nil {
		return []Authority{own}, nil
	}
	old, err := InRoot(before, metadata.ROOT)
	if err != nil {
		return nil, err
	}
	if old.Equal(own) {
		return []Authority{own}, nil
	}
	return []Authority{old, own}, nil
}
