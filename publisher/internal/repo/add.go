package repo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/publisher/internal/provenance"
)

// An Addition is a module to be published, with what is known of its kernel.
type Addition struct {
	Module  patch.Module
	Content []byte
	Fixes   []patch.Fix
	Kernel  KernelFacts
	// Provenance is how the module was built, as package provenance reads it,
	// signed by a key of the vendor. It may be empty.
	Provenance []byte
}

// KernelFacts are what an index says of its kernel besides its patches. A zero
// field leaves what the index has.
type KernelFacts struct {
	Version     string // of the distribution
	From, Until string // support window, dates; both or none
	Unpatchable []patch.Unpatchable
}

// An Added says what became of an Addition.
type Added struct {
	Target string
	// Unchanged tells that the same module with the same description was there
	// already.
	Unchanged bool
}

// Add publishes modules of a vendor, and each in the index of its kernel. Each
// bin that changes is signed once. All are published, or none.
func (r *Repo) Add(ctx context.Context, keys Keyring, vendor string, additions []Addition) ([]Added, error) {
	if _, err := r.bins(vendor); err != nil {
		return nil, err
	}
	e := r.edit(keys)
	results := make([]Added, 0, len(additions))
	for _, a := range additions {
		added, err := e.add(ctx, vendor, a)
		if err != nil {
			r.forget()
			return nil, fmt.Errorf("cannot add module %q: %w", a.Module.Name, err)
		}
		results = append(results, added)
	}
	if len(e.roles) == 0 && len(e.index) == 0 {
		return results, nil
	}
	return results, e.commit(ctx)
}

func (e *edit) add(ctx context.Context, vendor string, a Addition) (Added, error) {
	if err := a.Module.Validate(); err != nil {
		return Added{}, err
	}
	if len(a.Content) > service.MaxModule {
		return Added{}, fmt.Errorf("%w: %d bytes, at most %d", patch.ErrTooLarge, len(a.Content), service.MaxModule)
	}
	target := patch.ModulePath(vendor, a.Module)
	if _, err := patch.VendorOf(target); err != nil {
		return Added{}, err
	}
	ix, err := e.indexOf(vendor, a.Module.Kernel, a.Module.Flavour)
	if err != nil {
		return Added{}, err
	}
	same, err := e.isThere(vendor, target, a, ix)
	if err != nil {
		return Added{Target: target}, err
	}
	if same {
		return e.tellKey(vendor, target, a)
	}
	if err := checkNext(ix, a.Module); err != nil {
		return Added{}, err
	}
	if err := a.Kernel.apply(ix); err != nil {
		return Added{}, err
	}
	ix.Patches = append(ix.Patches, entry(target, a, e.r.now))
	e.index[patch.IndexPath(vendor, a.Module.Release, a.Module.Arch)] = ix
	if err := e.putProvenance(ctx, vendor, target, a); err != nil {
		return Added{}, err
	}
	return Added{Target: target}, e.putTarget(vendor, target, a.Content, a.Module)
}

// tellKey publishes which key signed a module that is there already, if nothing
// was said of that before.
func (e *edit) tellKey(vendor, target string, a Addition) (Added, error) {
	t, err := e.r.target(vendor, target)
	if err != nil {
		return Added{}, err
	}
	m, err := patch.ParseModule(*t.Custom)
	if err != nil {
		return Added{}, err
	}
	switch {
	case a.Module.SigningKey == "", a.Module.SigningKey == m.SigningKey:
		return Added{Target: target, Unchanged: true}, nil
	case m.SigningKey != "":
		return Added{}, fmt.Errorf("%w: %s is said to be signed with key %s", ErrTaken, target, m.SigningKey)
	}
	m.SigningKey = a.Module.SigningKey
	return Added{Target: target}, e.putTarget(vendor, target, a.Content, m)
}

// putProvenance publishes how a module was built beside it.
func (e *edit) putProvenance(ctx context.Context, vendor, target string, a Addition) error {
	if len(a.Provenance) == 0 {
		return nil
	}
	who, err := e.r.authority(vendor)
	if err != nil {
		return err
	}
	s, err := provenance.Check(ctx, a.Provenance, sha256.Sum256(a.Content), who)
	if err == nil {
		err = s.Vouched()
	}
	if err != nil {
		return err
	}
	return e.putTarget(vendor, provenance.Path(target), a.Provenance, nil)
}

// Provenance returns what is known of how a module was built, by its path. The
// error matches [ErrNotFound] if nothing is.
func (r *Repo) Provenance(ctx context.Context, module string) (provenance.Summary, error) {
	vendor, err := patch.VendorOf(module)
	if err != nil {
		return provenance.Summary{}, err
	}
	path := provenance.Path(module)
	t, err := r.target(vendor, path)
	if err != nil {
		return provenance.Summary{}, err
	}
	of, err := r.target(vendor, module)
	if err != nil {
		return provenance.Summary{}, err
	}
	b, err := r.content(path, t)
	if err != nil {
		return provenance.Summary{}, err
	}
	who, err := r.authority(vendor)
	if err != nil {
		return provenance.Summary{}, err
	}
	return provenance.Check(ctx, b, digest(of), who)
}

// target returns what a vendor's bins say of a path, or an error matching
// [ErrNotFound].
func (r *Repo) target(vendor, path string) (*metadata.TargetFiles, error) {
	bin, err := r.binOf(vendor, path)
	if err != nil {
		return nil, err
	}
	m, err := r.load(bin)
	if err != nil {
		return nil, err
	}
	t, ok := m.Signed.Targets[path]
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	return t, nil
}

func entry(target string, a Addition, now time.Time) patch.IndexEntry {
	m := a.Module
	return patch.IndexEntry{
		Target: target, Name: m.Name, Version: m.Version, Sequence: m.Sequence, BuildID: m.BuildID, Notice: m.Notice,
		Added: now.Format(time.RFC3339), Fixes: a.Fixes,
	}
}

// indexOf returns the index of a kernel to be changed, an empty one if there is
// none yet.
func (e *edit) indexOf(vendor string, k patch.Kernel, flavour string) (*patch.Index, error) {
	target := patch.IndexPath(vendor, k.Release, k.Arch)
	if ix, ok := e.index[target]; ok {
		return ix, nil
	}
	e.owner[target] = vendor
	ix, err := e.r.Index(vendor, k.Release, k.Arch)
	if errors.Is(err, ErrNotFound) {
		return &patch.Index{Arch: k.Arch, Release: k.Release, Flavour: flavour, Patches: []patch.IndexEntry{}}, nil
	}
	if err != nil {
		return nil, err
	}
	if flavour != "" && flavour != ix.Flavour {
		return nil, fmt.Errorf("%w: kernel %s has flavour %q, not %q", patch.ErrInvalid, k.Release, ix.Flavour, flavour)
	}
	return &ix, nil
}

// isThere tells whether the same was published before. The error matches
// [ErrTaken] if something else was published under that name: a kernel that
// runs it would not notice the difference.
func (e *edit) isThere(vendor, target string, a Addition, ix *patch.Index) (bool, error) {
	bin, err := e.r.binOf(vendor, target)
	if err != nil {
		return false, err
	}
	m, err := e.r.load(bin)
	if err != nil {
		return false, err
	}
	t, ok := m.Signed.Targets[target]
	if !ok {
		return false, nil
	}
	if patch.Digest(sha256.Sum256(a.Content)) != digest(t) {
		return false, fmt.Errorf("%w: %s", ErrTaken, target)
	}
	i := slices.IndexFunc(ix.Patches, func(e patch.IndexEntry) bool { return e.Target == target })
	if i < 0 {
		return false, fmt.Errorf("%w: %s is not in the index of its kernel", ErrCorrupt, target)
	}
	added, err := time.Parse(time.RFC3339, ix.Patches[i].Added)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if !equalEntry(ix.Patches[i], entry(target, a, added)) || !a.Kernel.in(ix) {
		return false, fmt.Errorf("%w: %s has another description", ErrTaken, target)
	}
	return true, nil
}

func equalEntry(a, b patch.IndexEntry) bool {
	fixes := slices.Equal(a.Fixes, b.Fixes)
	return fixes && a.Target == b.Target && a.Name == b.Name && a.Version == b.Version && a.Sequence == b.Sequence &&
		a.BuildID == b.BuildID && a.Notice == b.Notice && a.Added == b.Added
}

func digest(t *metadata.TargetFiles) patch.Digest {
	var d patch.Digest
	copy(d[:], t.Hashes["sha256"])
	return d
}

// checkNext returns an error unless m can follow what the index has.
func checkNext(ix *patch.Index, m patch.Module) error {
	if last := Last(*ix); m.Sequence <= last {
		return fmt.Errorf("%w: it is %d, want %d or more for kernel %s", ErrSequence, m.Sequence, last+1, ix.Release)
	}
	for _, p := range ix.Patches {
		if p.Version == m.Version && p.BuildID == m.BuildID {
			return fmt.Errorf("%w: version %s for kernel %s is %s", ErrTaken, m.Version, ix.Release, p.Name)
		}
	}
	return nil
}

// Last returns the highest sequence number of an index, 0 if it has no patches.
func Last(ix patch.Index) uint64 {
	var last uint64
	for _, p := range ix.Patches {
		last = max(last, p.Sequence)
	}
	return last
}

// in tells whether the index says all of f.
func (f KernelFacts) in(ix *patch.Index) bool {
	return (f.Version == "" || f.Version == ix.KernelVersion) &&
		(f.From == "" || f.From == ix.From && f.Until == ix.Until) &&
		(f.Unpatchable == nil || slices.Equal(f.Unpatchable, ix.Unpatchable))
}

// apply makes the index say all of f.
func (f KernelFacts) apply(ix *patch.Index) error {
	ix.KernelVersion = cmp.Or(f.Version, ix.KernelVersion)
	if f.From != "" {
		ix.From, ix.Until = f.From, f.Until
	}
	if f.Unpatchable != nil {
		ix.Unpatchable = f.Unpatchable
	}
	if ix.From == "" {
		return fmt.Errorf("%w: support window of kernel %s is not known, want support.from and support.until", patch.ErrInvalid, ix.Release)
	}
	return nil
}

// SetKernel changes what the index of a kernel says of it, or makes an index
// without patches. It tells whether something changed.
func (r *Repo) SetKernel(ctx context.Context, keys Keyring, vendor string, k patch.Kernel, flavour string, facts KernelFacts) (bool, error) {
	if _, err := r.bins(vendor); err != nil {
		return false, err
	}
	target := patch.IndexPath(vendor, k.Release, k.Arch)
	if _, err := patch.VendorOf(target); err != nil {
		return false, err
	}
	e := r.edit(keys)
	ix, err := e.indexOf(vendor, k, flavour)
	if err != nil {
		return false, fmt.Errorf("cannot set kernel %s: %w", k.Release, err)
	}
	if ix.Flavour == "" {
		return false, fmt.Errorf("cannot set kernel %s: %w: it is not known yet, want kernel.flavour", k.Release, patch.ErrInvalid)
	}
	if ix.From != "" && facts.in(ix) {
		return false, nil
	}
	if err := facts.apply(ix); err != nil {
		return false, fmt.Errorf("cannot set kernel %s: %w", k.Release, err)
	}
	e.index[target] = ix
	return true, e.commit(ctx)
}
