package repo

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/modsig"
	"livepatch/publisher/internal/provenance"
)

// A target is one entry of a bin.
type target struct {
	path string
	role string
	file *metadata.TargetFiles
}

// verifyTargets checks where every target lies, its content and its
// description.
func (r *Repo) verifyTargets(ctx context.Context, rep *Report) error {
	var all []target
	for _, role := range r.Roles() {
		if m := r.loaded[role]; m != nil {
			for path, f := range m.Signed.Targets {
				all = append(all, target{path, role, f})
			}
		}
	}
	problems := make([]string, len(all))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, t := range all {
		g.Go(func() error {
			if err := r.verifyTarget(ctx, t); err != nil {
				problems[i] = fmt.Sprintf("target %s: %v", t.path, err)
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, t := range all {
		switch {
		case strings.HasSuffix(t.path, provenance.Suffix):
			rep.Provenances++
		case t.file.Custom == nil:
			rep.Indexes++
		default:
			rep.Modules++
			rep.countKey(t)
		}
		if problems[i] != "" {
			rep.problem(doRestore, "%s", problems[i])
		}
	}
	slices.SortFunc(rep.Problems, func(a, b Problem) int { return strings.Compare(a.What, b.What) })
	return nil
}

// countKey counts a module with the key that signed it for kernels.
func (rep *Report) countKey(t target) {
	m, err := patch.ParseModule(*t.file.Custom)
	if err != nil || m.SigningKey == "" {
		return // what is wrong with it is told elsewhere
	}
	if rep.SigningKeys == nil {
		rep.SigningKeys = make(map[string]int)
	}
	rep.SigningKeys[m.SigningKey]++
}

func (r *Repo) verifyTarget(ctx context.Context, t target) error {
	vendor := authority.Parent(t.role)
	if v, err := patch.VendorOf(t.path); err != nil || v != vendor {
		return fmt.Errorf("does not belong to role %s", t.role)
	}
	if r.metadataOnly {
		return nil
	}
	b, err := r.content(t.path, t.file)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("its file is missing")
	}
	if err != nil {
		return err
	}
	if strings.HasSuffix(t.path, provenance.Suffix) {
		return r.verifyProvenance(ctx, vendor, t.path, b)
	}
	if t.file.Custom == nil {
		return r.verifyIndex(vendor, t.path, b)
	}
	return r.verifyModule(vendor, t, b)
}

// verifyProvenance checks that a provenance is of the module beside it. Who had
// signed it may not be trusted any more; what it is now is what its bin says.
func (r *Repo) verifyProvenance(ctx context.Context, vendor, path string, b []byte) error {
	module := provenance.Module(path)
	bin, err := r.binOf(vendor, module)
	if err != nil {
		return err
	}
	role := r.loaded[bin]
	if role == nil || role.Signed.Targets[module] == nil {
		return fmt.Errorf("there is no %s beside it", module)
	}
	_, err = provenance.Check(ctx, b, digest(role.Signed.Targets[module]), authority.Authority{})
	return err
}

func (r *Repo) verifyModule(vendor string, t target, content []byte) error {
	m, err := patch.ParseModule(*t.file.Custom)
	if err != nil {
		return err
	}
	if err := verifySigned(m, content); err != nil {
		return err
	}
	if want := patch.ModulePath(vendor, m); want != t.path {
		return fmt.Errorf("describes %s", want)
	}
	ix, err := r.Index(vendor, m.Release, m.Arch)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(ix.Patches, func(e patch.IndexEntry) bool { return e.Target == t.path }) {
		return errors.New("is not in the index of its kernel")
	}
	return nil
}

// verifySigned checks that a module which is said to be signed for kernels is, in
// a form that they take. That the key has signed it was found out with its
// certificate, when it was added.
func verifySigned(m patch.Module, content []byte) error {
	if m.SigningKey == "" {
		return nil
	}
	_, s, err := modsig.Read(content)
	if err == nil && s.Serial == nil && hex.EncodeToString(s.KeyID) != m.SigningKey {
		err = modsig.ErrOtherKey
	}
	if err != nil {
		return fmt.Errorf("is said to be signed with key %s: %w", m.SigningKey, err)
	}
	return nil
}

// verifyIndex checks that what the index lists is there and is what it says.
func (r *Repo) verifyIndex(vendor, path string, b []byte) error {
	ix, err := patch.ParseIndex(b)
	if err != nil {
		return err
	}
	if want := patch.IndexPath(vendor, ix.Release, ix.Arch); want != path {
		return fmt.Errorf("describes %s", want)
	}
	var last uint64
	for _, e := range ix.Patches {
		if e.Sequence <= last {
			return fmt.Errorf("sequence number %d of %s does not grow", e.Sequence, e.Name)
		}
		last = e.Sequence
		if err := r.verifyEntry(vendor, ix, e); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) verifyEntry(vendor string, ix patch.Index, e patch.IndexEntry) error {
	bin, err := r.binOf(vendor, e.Target)
	if err != nil {
		return err
	}
	role := r.loaded[bin]
	if role == nil || role.Signed.Targets[e.Target] == nil || role.Signed.Targets[e.Target].Custom == nil {
		return fmt.Errorf("lists %s, which is not in the repository", e.Target)
	}
	m, err := patch.ParseModule(*role.Signed.Targets[e.Target].Custom)
	if err != nil {
		return err
	}
	if m.Release != ix.Release || m.Arch != ix.Arch || m.Sequence != e.Sequence || m.BuildID != e.BuildID || m.Version != e.Version {
		return fmt.Errorf("lists %s otherwise than it describes itself", e.Target)
	}
	return nil
}
