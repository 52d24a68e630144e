package repo

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/request"
	"livepatch/publisher/internal/sign"
)

// Conditions of a change of keys.
var (
	ErrKey       = errors.New("key cannot be changed like this")
	ErrThreshold = errors.New("threshold cannot be reached")
)

// A Rotation says how the keys of a role change.
type Rotation struct {
	Remove    []string // IDs of keys
	Add       []ed25519.PublicKey
	Threshold int // 0 leaves it as it is
}

// Keys returns who may sign root, targets or a vendor, and how many must.
func (r *Repo) Keys(role string) (authority.Authority, error) {
	if err := r.checkRotated(role); err != nil {
		return authority.Authority{}, err
	}
	return r.authority(role)
}

// checkRotated returns an error unless the keys of a role can be changed by
// themselves: a bin's are its vendor's, and the server's come from the server.
func (r *Repo) checkRotated(role string) error {
	if role == metadata.ROOT || role == metadata.TARGETS {
		return nil
	}
	vendors, err := r.Vendors()
	if err == nil && !slices.Contains(vendors, role) {
		err = fmt.Errorf("%w: %q", ErrVendor, role)
	}
	return err
}

// Rotate changes the keys of root, of targets or of a vendor, and signs anew
// what they sign:
//
//   - root: by enough of the keys before and enough of the keys after, so that
//     machines follow from one to the other (TUF 5.3.4);
//   - targets: root, which names them, and targets itself;
//   - a vendor: targets, which names its keys, the vendor and all of its bins.
func (r *Repo) Rotate(ctx context.Context, keys Keyring, role string, c Rotation) error {
	if err := r.rotate(ctx, keys, role, c); err != nil {
		return fmt.Errorf("cannot change the keys of %s: %w", role, err)
	}
	return nil
}

func (r *Repo) rotate(ctx context.Context, keys Keyring, role string, c Rotation) (err error) {
	if err := r.checkRotated(role); err != nil {
		return err
	}
	e := r.edit(keys)
	switch role {
	case metadata.ROOT, metadata.TARGETS:
		err = e.rotateTop(role, c)
	default:
		err = e.rotateVendor(role, c)
	}
	if err != nil {
		r.forget() // what was changed in memory so far
		return err
	}
	return e.commit(ctx)
}

// rotateTop changes the keys of a role that root names.
func (e *edit) rotateTop(role string, c Rotation) error {
	if role != metadata.ROOT { // before its keys change: it is verified by them
		if _, err := e.role(role); err != nil {
			return err
		}
	}
	return e.rotateKeysOf(role, c)
}

// rotateVendor changes the keys of a vendor and of its bins, which are the same.
func (e *edit) rotateVendor(name string, c Rotation) error {
	bins, err := e.r.bins(name)
	if err != nil {
		return err
	}
	// All of them before their keys change, which verify them.
	for _, role := range append([]string{name}, bins.GetRoles()...) {
		if _, err := e.role(role); err != nil {
			return err
		}
	}
	targets, err := e.role(metadata.TARGETS)
	if err != nil {
		return err
	}
	d := targets.Signed.Delegations
	i := slices.IndexFunc(d.Roles, func(r metadata.DelegatedRole) bool { return r.Name == name })
	named := &d.Roles[i]
	named.KeyIDs, named.Threshold, err = c.apply(named.KeyIDs, named.Threshold, d.Keys)
	if err != nil {
		return err
	}
	own := e.r.loaded[name].Signed.Delegations
	bins.KeyIDs, bins.Threshold = slices.Clone(named.KeyIDs), named.Threshold
	own.Keys = make(map[string]*metadata.Key)
	for _, id := range bins.KeyIDs {
		own.Keys[id] = d.Keys[id]
	}
	dropUnused(d.Keys, delegated(d))
	return nil
}

// delegated returns the IDs of all keys that delegations name.
func delegated(d *metadata.Delegations) []string {
	var ids []string
	for _, r := range d.Roles {
		ids = append(ids, r.KeyIDs...)
	}
	return ids
}

// dropUnused takes out keys that no role names any more.
func dropUnused(keys map[string]*metadata.Key, used []string) {
	maps.DeleteFunc(keys, func(id string, _ *metadata.Key) bool { return !slices.Contains(used, id) })
}

// apply returns the key IDs and the threshold of a role after the change, and
// adds the new keys to keys.
func (c Rotation) apply(ids []string, threshold int, keys map[string]*metadata.Key) ([]string, int, error) {
	before := threshold
	ids = slices.Clone(ids)
	for _, id := range c.Remove {
		i := slices.Index(ids, id)
		if i < 0 {
			return nil, 0, fmt.Errorf("%w: %s is not one of the role's keys", ErrKey, authority.Short(id))
		}
		ids = slices.Delete(ids, i, i+1)
	}
	for _, public := range c.Add {
		id, err := sign.KeyID(public)
		if err != nil {
			return nil, 0, err
		}
		if slices.Contains(ids, id) || slices.Contains(c.Remove, id) {
			return nil, 0, fmt.Errorf("%w: %s was one of the role's keys before", ErrKey, authority.Short(id))
		}
		if keys[id], err = sign.Key(public); err != nil {
			return nil, 0, err
		}
		ids = append(ids, id)
	}
	if c.Threshold != 0 {
		threshold = c.Threshold
	}
	if threshold < 1 || threshold > len(ids) {
		return nil, 0, fmt.Errorf("%w: %d keys have to sign and there are %d", ErrThreshold, threshold, len(ids))
	}
	if len(c.Remove) == 0 && len(c.Add) == 0 && threshold == before {
		return nil, 0, fmt.Errorf("%w: nothing would change", ErrKey)
	}
	return ids, threshold, nil
}

// ReplaceOnline makes root and targets trust other keys of the server:
// timestamp's and snapshot's stand in root, rollout's in targets. It tells
// whether something changed.
func (r *Repo) ReplaceOnline(ctx context.Context, keys Keyring, online OnlineKeys) (bool, error) {
	e := r.edit(keys)
	if err := e.replaceOnline(online); err != nil {
		r.forget()
		return false, fmt.Errorf("cannot replace online keys: %w", err)
	}
	if len(e.roles) == 0 {
		return false, nil
	}
	if err := e.commit(ctx); err != nil {
		return false, fmt.Errorf("cannot replace online keys: %w", err)
	}
	return true, nil
}

func (e *edit) replaceOnline(online OnlineKeys) error {
	for _, role := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
		if err := e.replaceTop(role, online[role]); err != nil {
			return err
		}
	}
	return e.replaceRollout(online[patch.RolloutRole])
}

func (e *edit) replaceTop(role string, public ed25519.PublicKey) error {
	id, err := sign.KeyID(public)
	if err != nil {
		return err
	}
	have, err := e.r.authority(role)
	if err != nil || slices.Equal(have.IDs, []string{id}) {
		return err
	}
	return e.rotateKeysOf(role, Rotation{Remove: without(have.IDs, id), Add: adding(have.IDs, id, public), Threshold: 1})
}

// rotateKeysOf makes root name other keys for a role.
func (e *edit) rotateKeysOf(role string, c Rotation) error {
	root, err := e.editRoot()
	if err != nil {
		return err
	}
	named := root.Signed.Roles[role]
	if named.KeyIDs, named.Threshold, err = c.apply(named.KeyIDs, named.Threshold, root.Signed.Keys); err != nil {
		return err
	}
	var used []string
	for _, r := range root.Signed.Roles {
		used = append(used, r.KeyIDs...)
	}
	dropUnused(root.Signed.Keys, used)
	return nil
}

func (e *edit) replaceRollout(public ed25519.PublicKey) error {
	id, err := sign.KeyID(public)
	if err != nil {
		return err
	}
	have, err := e.r.authority(patch.RolloutRole)
	if err != nil || slices.Equal(have.IDs, []string{id}) {
		return err
	}
	targets, err := e.role(metadata.TARGETS)
	if err != nil {
		return err
	}
	d := targets.Signed.Delegations
	i := slices.IndexFunc(d.Roles, func(r metadata.DelegatedRole) bool { return r.Name == patch.RolloutRole })
	c := Rotation{Remove: without(have.IDs, id), Add: adding(have.IDs, id, public), Threshold: 1}
	if d.Roles[i].KeyIDs, d.Roles[i].Threshold, err = c.apply(have.IDs, have.Threshold, d.Keys); err != nil {
		return err
	}
	dropUnused(d.Keys, delegated(d))
	return nil
}

func without(ids []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(have string) bool { return have == id })
}

// adding returns the key unless it is among ids.
func adding(ids []string, id string, public ed25519.PublicKey) []ed25519.PublicKey {
	if slices.Contains(ids, id) {
		return nil
	}
	return []ed25519.PublicKey{public}
}

// CheckSigners returns an error matching [sign.ErrMissing] if the keys of a role
// cannot be changed with the keys at hand, whichever come in their place. It
// saves the making of keys that could not be used.
func (r *Repo) CheckSigners(ctx context.Context, keys Keyring, role string) error {
	if err := r.checkRotated(role); err != nil {
		return err
	}
	if r.Defer {
		return nil
	}
	parent := authority.Parent(role)
	who, err := r.authority(parent)
	if err != nil {
		return err
	}
	held, err := keys.Held(ctx, who.IDs)
	if err != nil || len(held) >= who.Threshold {
		return err
	}
	lack := request.Lack{Role: parent, Demand: who, Signed: held}
	return fmt.Errorf("cannot change the keys of %s: %w", role, missing([]request.Lack{lack}, keys.Name))
}
