package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/request"
	"livepatch/publisher/internal/sign"
)

// An edit is one change of a repository. Roles are changed in memory, each is
// signed once at the end.
type edit struct {
	r     *Repo
	keys  Keyring
	roles []string                // to sign anew, in the order they were changed
	known map[string]bool         // the same as a set
	blobs map[string][]byte       // targets to write, by their file
	index map[string]*patch.Index // changed indexes, by target
	owner map[string]string       // vendor of each changed index
	files map[string][]byte       // other files to write
}

func (r *Repo) edit(keys Keyring) *edit {
	return &edit{
		r: r, keys: keys,
		known: make(map[string]bool), blobs: make(map[string][]byte),
		index: make(map[string]*patch.Index), owner: make(map[string]string), files: make(map[string][]byte),
	}
}

// role returns a role to be changed and signed anew.
func (e *edit) role(name string) (*authority.Targets, error) {
	m, err := e.r.load(name)
	if err != nil {
		return nil, err
	}
	e.touch(name)
	return m, nil
}

// editRoot is role for the root.
func (e *edit) editRoot() (*authority.Root, error) {
	m, err := e.r.Root()
	if err != nil {
		return nil, err
	}
	e.touch(metadata.ROOT)
	return m, nil
}

func (e *edit) touch(name string) {
	if !e.known[name] {
		e.known[name] = true
		e.roles = append(e.roles, name)
	}
}

// create adds a new role. Its delegation must have been added before.
func (e *edit) create(name string) *authority.Targets {
	m := metadata.Targets()
	e.r.loaded[name] = m
	e.touch(name)
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
//
// A change that machines could not follow is refused. One that lacks signatures
// gives an error matching [sign.ErrMissing], or is kept and gives one that
// matches [ErrDeferred].
func (e *edit) commit(ctx context.Context) error {
	err := e.commitOrDefer(ctx)
	if err != nil {
		e.r.forget()
		return errors.Join(err, os.RemoveAll(filepath.Join(e.r.dir, stagedDir)))
	}
	for _, role := range e.roles {
		e.r.versions[role]++
	}
	return nil
}

func (e *edit) commitOrDefer(ctx context.Context) error {
	if e.r.lock == nil {
		return ErrForeign
	}
	if e.r.isPending() {
		return ErrPending
	}
	for target, ix := range e.index {
		if err := e.putIndex(target, ix); err != nil {
			return err
		}
	}
	review, err := e.review()
	if err != nil {
		return err
	}
	if err := e.checkUnchanged(); err != nil {
		return err
	}
	if _, err := review.Sign(ctx, e.keys); err != nil {
		return err
	}
	lacks, err := review.Lacks()
	if err != nil {
		return err
	}
	missing := missing(lacks, e.keys.Name)
	if missing != nil && !e.r.Defer {
		return missing
	}
	s, err := e.stage(review)
	if err != nil {
		return err
	}
	if missing != nil {
		return s.keep()
	}
	return s.commit()
}

// review puts the change together with what is in force and has it checked as
// somebody would who is asked to sign it.
func (e *edit) review() (*request.Review, error) {
	change := make(request.Files)
	for _, role := range e.roles {
		b, err := e.draft(role)
		if err != nil {
			return nil, fmt.Errorf("cannot write role %s: %w", role, err)
		}
		change[FileName(role, e.r.versions[role]+1)] = b
	}
	inForce, err := e.r.inForce(e.roles)
	if err != nil {
		return nil, err
	}
	return request.Open(request.Request{Change: change, InForce: inForce})
}

// draft returns the next version of a role, without signatures.
func (e *edit) draft(role string) ([]byte, error) {
	version, expires := e.r.versions[role]+1, e.r.now.Add(e.r.lifetime(role))
	if role == metadata.ROOT {
		e.r.root.ClearSignatures()
		e.r.root.Signed.Version, e.r.root.Signed.Expires = version, expires
		return encode(e.r.root, service.MaxRoot)
	}
	m := e.r.loaded[role]
	m.ClearSignatures()
	m.Signed.Version, m.Signed.Expires = version, expires
	return encode(m, service.MaxRole)
}

// signatureSize is about how many bytes a signature has in metadata.
const signatureSize = 256

func encode[T metadata.Roles](m *metadata.Metadata[T], limit int) ([]byte, error) {
	b, err := m.ToBytes(false)
	if err != nil {
		return nil, err
	}
	if len(b)+8*signatureSize > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d with its signatures", patch.ErrTooLarge, len(b), limit)
	}
	return b, nil
}

// checkUnchanged returns an error if the change takes their keys away from roles
// that are not signed anew.
func (e *edit) checkUnchanged() error {
	for role := range e.r.versions {
		if parent := authority.Parent(role); e.known[role] || !e.known[parent] {
			continue
		}
		delete(e.r.loaded, role)
		if _, err := e.r.load(role); err != nil {
			return fmt.Errorf("cannot leave role %s as it is: %w", role, err)
		}
	}
	return nil
}

// stage writes the change beside the repository.
func (e *edit) stage(review *request.Review) (*stage, error) {
	s, err := e.r.newStage()
	if err != nil {
		return nil, err
	}
	for file, b := range e.blobs {
		if err := s.put(filepath.Join("targets", filepath.FromSlash(file)), b); err != nil {
			return nil, err
		}
	}
	for file, b := range e.files {
		if err := s.put(file, b); err != nil {
			return nil, err
		}
	}
	files, err := review.Change()
	if err != nil {
		return nil, err
	}
	for name, b := range files {
		if err := s.put(filepath.Join("metadata", name), b); err != nil {
			return nil, err
		}
	}
	return s, nil
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

// inForce returns the roots, and of the roles and of those that delegate to them
// the newest version.
func (r *Repo) inForce(roles []string) (request.Files, error) {
	files := make(request.Files)
	add := func(role string, version int64) error {
		name := FileName(role, version)
		if version == 0 || files[name] != nil {
			return nil
		}
		b, err := r.Metadata(role, version)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		files[name] = b
		return nil
	}
	for v := int64(1); v <= r.versions[metadata.ROOT]; v++ {
		if err := add(metadata.ROOT, v); err != nil {
			return nil, err
		}
	}
	for _, role := range roles {
		for ; role != metadata.ROOT; role = authority.Parent(role) {
			if err := add(role, r.versions[role]); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// authority returns the keys that may sign a role and how many of them must.
func (r *Repo) authority(role string) (authority.Authority, error) {
	parent := authority.Parent(role)
	if parent == metadata.ROOT {
		root, err := r.Root()
		if err != nil {
			return authority.Authority{}, err
		}
		return authority.InRoot(root, role)
	}
	m, err := r.load(parent)
	if err != nil {
		return authority.Authority{}, err
	}
	return authority.InTargets(m, role)
}

// missing returns an error that says whose signatures are missing, nil if none
// are. It tells of the first role only: the others lack the same, mostly.
func missing(lacks []request.Lack, name func(id string) string) error {
	if len(lacks) == 0 {
		return nil
	}
	var parts []string
	for _, l := range lacks {
		if l.Role == lacks[0].Role {
			parts = append(parts, describeLack(l, name))
		}
	}
	return fmt.Errorf("cannot sign role %s: %w: %s", lacks[0].Role, sign.ErrMissing, strings.Join(parts, "; and "))
}

func describeLack(l request.Lack, name func(id string) string) string {
	var rest []string
	for _, id := range l.Demand.IDs {
		if !slices.Contains(l.Signed, id) {
			rest = append(rest, name(id))
		}
	}
	n := l.Demand.Threshold - len(l.Signed)
	return fmt.Sprintf("%d of %d needed, missing %d of %s", len(l.Signed), l.Demand.Threshold, n, strings.Join(rest, ", "))
}
