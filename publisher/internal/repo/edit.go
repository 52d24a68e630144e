package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/publisher/internal/sign"
)

// An edit is one change of a repository. Roles are changed in memory, each is
// signed once at the end.
type edit struct {
	r     *Repo
	keys  Keyring
	root  bool                     // sign the root anew
	roles []string                 // to sign anew, in the order they were changed
	known map[string]bool          // the same as a set
	blobs map[string][]byte        // targets to write, by their file
	held  map[string][]sign.Signer // signers found already, by their key IDs
	index map[string]*patch.Index  // changed indexes, by target
	owner map[string]string        // vendor of each changed index
	files map[string]func() []byte // other files to write
}

func (r *Repo) edit(keys Keyring) *edit {
	return &edit{
		r: r, keys: keys,
		known: make(map[string]bool), blobs: make(map[string][]byte), held: make(map[string][]sign.Signer),
		index: make(map[string]*patch.Index), owner: make(map[string]string), files: make(map[string]func() []byte),
	}
}

// role returns a role to be changed and signed anew.
func (e *edit) role(name string) (*metadata.Metadata[metadata.TargetsType], error) {
	m, err := e.r.load(name)
	if err != nil {
		return nil, err
	}
	if !e.known[name] {
		e.known[name] = true
		e.roles = append(e.roles, name)
	}
	return m, nil
}

// create adds a new role. Its delegation must have been added before.
func (e *edit) create(name string) *metadata.Metadata[metadata.TargetsType] {
	m := metadata.Targets()
	m.Signed.Version = 0 // signing adds one
	e.r.loaded[name] = m
	e.known[name] = true
	e.roles = append(e.roles, name)
	return m
}

// putTarget makes content the target of that path, in the vendor's bin for it.
// Custom may be nil.
func (e *edit) putTarget(vendor, target string, content []byte, custom any) error {
	t, err := metadata.TargetFile().FromBytes(target, content, "sha256")
	if err != nil {
		return err
	}
	if custom != nil {
		b, err := json.Marshal(custom)
		if err != nil {
			return err
		}
		t.Custom = (*json.RawMessage)(&b)
	}
	t.Path = target
	file, err := TargetFile(target, t)
	if err != nil {
		return err
	}
	bin, err := e.r.binOf(vendor, target)
	if err != nil {
		return err
	}
	m, err := e.role(bin)
	if err != nil {
		return err
	}
	m.Signed.Targets[target] = t
	e.blobs[file] = content
	return nil
}

// commit signs what was changed and makes it the state of the repository. If it
// fails, nothing has changed, or (where the disk fails after the moment of
// commitment) the next Open completes it.
func (e *edit) commit(ctx context.Context) error {
	s, err := e.r.newStage()
	if err == nil {
		err = e.write(ctx, s)
	}
	if err == nil {
		err = s.commit()
	}
	if err != nil {
		e.r.forget()
		return errors.Join(err, os.RemoveAll(filepath.Join(e.r.dir, stagedDir)))
	}
	for _, role := range e.changed() {
		e.r.versions[role]++
	}
	return nil
}

func (e *edit) changed() []string {
	if e.root {
		return append([]string{metadata.ROOT}, e.roles...)
	}
	return e.roles
}

// write puts everything that changed on the stage.
func (e *edit) write(ctx context.Context, s *stage) error {
	for target, ix := range e.index {
		if err := e.putIndex(target, ix); err != nil {
			return err
		}
	}
	for file, b := range e.blobs {
		if err := s.put(filepath.Join("targets", filepath.FromSlash(file)), b); err != nil {
			return err
		}
	}
	for file, content := range e.files {
		if err := s.put(file, content()); err != nil {
			return err
		}
	}
	for _, role := range e.changed() {
		b, err := e.signRole(ctx, role)
		if err != nil {
			return fmt.Errorf("cannot sign role %s: %w", role, err)
		}
		if err := s.put(filepath.Join("metadata", FileName(role, e.r.versions[role]+1)), b); err != nil {
			return err
		}
	}
	return nil
}

func (e *edit) putIndex(target string, ix *patch.Index) error {
	b, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	if len(b) > service.MaxIndex {
		return fmt.Errorf("cannot write index of kernel %s: %w: %d bytes, at most %d", ix.Release, patch.ErrTooLarge, len(b), service.MaxIndex)
	}
	return e.putTarget(e.owner[target], target, b, nil)
}

// signRole returns the next version of a role.
func (e *edit) signRole(ctx context.Context, role string) ([]byte, error) {
	ids, threshold, err := e.r.authority(role)
	if err != nil {
		return nil, err
	}
	signers, err := e.signers(ctx, ids, threshold)
	if err != nil {
		return nil, err
	}
	expires := e.r.now.Add(e.r.lifetime(role))
	if role == metadata.ROOT {
		e.r.root.Signed.Version = e.r.versions[role] + 1
		e.r.root.Signed.Expires = expires
		return encode(ctx, e.r.root, signers, service.MaxRoot)
	}
	m := e.r.loaded[role]
	m.Signed.Version = e.r.versions[role] + 1
	m.Signed.Expires = expires
	return encode(ctx, m, signers, service.MaxRole)
}

func encode[T metadata.Roles](ctx context.Context, m *metadata.Metadata[T], signers []sign.Signer, limit int) ([]byte, error) {
	b, err := sign.Encode(ctx, m, signers)
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", patch.ErrTooLarge, len(b), limit)
	}
	return b, nil
}

// signers asks the keyring once for each set of keys. Exactly as many sign as
// are needed: every further signature would travel to every machine.
func (e *edit) signers(ctx context.Context, ids []string, n int) ([]sign.Signer, error) {
	key := fmt.Sprint(n, ids)
	if s, ok := e.held[key]; ok {
		return s, nil
	}
	s, err := e.keys.Signers(ctx, ids, n)
	if err != nil {
		return nil, err
	}
	e.held[key] = s
	return s, nil
}

// authority returns the keys that may sign a role and how many of them must.
func (r *Repo) authority(role string) (ids []string, threshold int, err error) {
	switch parent := parentOf(role); parent {
	case metadata.ROOT:
		root, err := r.Root()
		if err != nil {
			return nil, 0, err
		}
		return root.Signed.Roles[role].KeyIDs, root.Signed.Roles[role].Threshold, nil
	case metadata.TARGETS:
		targets, err := r.load(metadata.TARGETS)
		if err != nil {
			return nil, 0, err
		}
		roles := targets.Signed.Delegations.Roles
		if i := slices.IndexFunc(roles, func(d metadata.DelegatedRole) bool { return d.Name == role }); i >= 0 {
			return roles[i].KeyIDs, roles[i].Threshold, nil
		}
		return nil, 0, fmt.Errorf("%w: %q", ErrVendor, role)
	default:
		b, err := r.bins(parent)
		if err != nil {
			return nil, 0, err
		}
		return b.KeyIDs, b.Threshold, nil
	}
}
