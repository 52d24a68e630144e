package catalog

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"

	"livepatch/internal/patch"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
)

type (
	rootMeta    = metadata.Metadata[metadata.RootType]
	targetsMeta = metadata.Metadata[metadata.TargetsType]
)

// A proposal is a repository as it would be after a publication: the files that
// the publication brings, before those that the service has.
//
// What is verified is the whole of it and not the files alone: a new root that
// takes a key away must not leave a file behind that this key had signed.
type proposal struct {
	c     *Catalog
	now   time.Time
	tx    store.Tx // the repository as it is
	state store.State

	roots []offline
	new   map[string]offline // roles but root

	mu     sync.Mutex // guards change while bins are verified
	change *change
	probes map[string]string // a path in each bin that was verified
}

// verify checks files against what is published and returns what to write. All
// it reads is of one moment, which change.base names.
func (c *Catalog) verify(ctx context.Context, files []offline) (ch *change, err error) {
	err = c.db.View(ctx, func(tx store.Tx) error {
		state, err := tx.State(ctx)
		if err != nil {
			return err
		}
		p := &proposal{
			c: c, now: c.Now(), tx: tx, state: state, new: map[string]offline{},
			change: &change{base: state.Publication, versions: map[version]bool{}}, probes: map[string]string{},
		}
		if err := p.admit(ctx, files); err != nil {
			return err
		}
		ch = p.change
		if len(p.roots) == 0 && len(p.new) == 0 {
			return nil
		}
		return p.verify(ctx)
	})
	return ch, err
}

// admit takes the files that are newer than what the service has. A file that
// it has already is passed over; another of the same version, or an older one,
// is a conflict.
func (p *proposal) admit(ctx context.Context, files []offline) error {
	for _, f := range files {
		have := p.state.Roles[f.role].Version
		switch {
		case f.version > have && f.role == metadata.ROOT:
			p.roots = append(p.roots, f)
		case f.version > have:
			p.new[f.role] = f
		default:
			old, err := p.tx.File(ctx, f.role, f.version)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if err != nil || old.Digest != f.digest() {
				return fmt.Errorf("%w: the service has version %d of %q, got another version %d",
					store.ErrConflict, have, f.role, f.version)
			}
		}
	}
	return nil
}

func (p *proposal) verify(ctx context.Context) error {
	root, err := p.verifyRoots(ctx)
	if err != nil {
		return err
	}
	targets, err := p.verifyTargets(ctx, root)
	if err != nil {
		return err
	}
	used := map[string]bool{metadata.TARGETS: true}
	for _, d := range targets.Signed.Delegations.Roles {
		if d.Name == patch.RolloutRole {
			continue
		}
		bins, err := p.verifyVendor(ctx, targets, d.Name)
		if err != nil {
			return err
		}
		for _, name := range append(bins, d.Name) {
			if used[name] {
				return refuse(name, "two delegations lead to it")
			}
			used[name] = true
		}
	}
	for role := range p.new {
		if !used[role] {
			return refuse(role, "no role delegates to it")
		}
	}
	return p.rehearse(ctx)
}

// verifyRoots walks the chain of new roots and returns the last root.
func (p *proposal) verifyRoots(ctx context.Context) (*rootMeta, error) {
	have := p.state.Roles[metadata.ROOT].Version
	var last *rootMeta
	if have > 0 {
		f, err := p.tx.File(ctx, metadata.ROOT, have)
		if err != nil {
			return nil, err
		}
		if last, err = metadata.Root().FromBytes(f.Body); err != nil {
			return nil, fmt.Errorf("cannot read root version %d: %w", have, err)
		}
	}
	for _, f := range p.roots {
		next, err := parse[metadata.RootType](f)
		if err != nil {
			return nil, err
		}
		if f.version != have+1 {
			return nil, fmt.Errorf("%w: %w: root version %d follows version %d", ErrUntrusted, patch.ErrRollback, f.version, have)
		}
		if err := p.checkRoot(last, next); err != nil {
			return nil, err
		}
		if err := p.take(f, next.Signed.Expires); err != nil {
			return nil, err
		}
		last, have = next, f.version
	}
	if last == nil {
		return nil, refuse(metadata.ROOT, "the first publication needs 1.root.json")
	}
	// Only the last root has to name our keys: those before it are a machine's
	// way to it, and may be from the time of other keys.
	for _, name := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
		role := last.Signed.Roles[name]
		if err := p.checkOurs(metadata.ROOT, name, role.KeyIDs, role.Threshold); err != nil {
			return nil, err
		}
	}
	return last, p.fresh(metadata.ROOT, last.Signed.Expires)
}

// checkRoot verifies a root by the one before it, nil for the first, and by
// itself.
func (p *proposal) checkRoot(last, next *rootMeta) error {
	// Before signatures: go-tuf 2.4.2 panics at an ed25519 key of another length.
	if err := checkKeys(metadata.ROOT, next.Signed.Keys); err != nil {
		return err
	}
	if last != nil {
		if err := last.VerifyDelegate(metadata.ROOT, next); err != nil {
			return refuse(metadata.ROOT, "%v", err)
		}
	}
	if err := next.VerifyDelegate(metadata.ROOT, next); err != nil {
		return refuse(metadata.ROOT, "%v", err)
	}
	if !next.Signed.ConsistentSnapshot {
		return refuse(metadata.ROOT, "consistent snapshots are off")
	}
	if len(next.Signed.Roles) != len(metadata.TOP_LEVEL_ROLE_NAMES) {
		return refuse(metadata.ROOT, "it has other roles than root, targets, snapshot and timestamp")
	}
	for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
		role, ok := next.Signed.Roles[name]
		if !ok {
			return refuse(metadata.ROOT, "it has no role %q", name)
		}
		if err := checkThreshold(metadata.ROOT, name, role.KeyIDs, role.Threshold); err != nil {
			return err
		}
	}
	return nil
}

// checkOurs refuses a delegation that this server could not sign for.
func (p *proposal) checkOurs(by, name string, keyIDs []string, threshold int) error {
	id, err := p.c.signer.Keys().ID(name)
	if err != nil {
		return err
	}
	if threshold != 1 || !slices.Equal(keyIDs, []string{id}) {
		return refuse(by, "the key of %q is not the one of this server, %s", name, id)
	}
	return nil
}

// verifyTargets returns the top-level targets, which only delegates.
func (p *proposal) verifyTargets(ctx context.Context, root *rootMeta) (*targetsMeta, error) {
	m, isNew, err := p.targets(ctx, metadata.TARGETS)
	if err != nil {
		return nil, err
	}
	if isNew || len(p.roots) > 0 {
		if err := root.VerifyDelegate(metadata.TARGETS, m); err != nil {
			return nil, refuse(metadata.TARGETS, "%v", err)
		}
		if err := p.checkTargets(m); err != nil {
			return nil, err
		}
	}
	return m, p.fresh(metadata.TARGETS, m.Signed.Expires)
}

func (p *proposal) checkTargets(m *targetsMeta) error {
	d := m.Signed.Delegations
	switch {
	case len(m.Signed.Targets) > 0:
		return refuse(metadata.TARGETS, "it has targets of its own")
	case d == nil || d.SuccinctRoles != nil || len(d.Roles) == 0:
		return refuse(metadata.TARGETS, "it delegates to no role")
	case d.Roles[0].Name != patch.RolloutRole:
		return refuse(metadata.TARGETS, "its first delegation is %q, need %q", d.Roles[0].Name, patch.RolloutRole)
	}
	if err := checkKeys(metadata.TARGETS, d.Keys); err != nil {
		return err
	}
	for i, r := range d.Roles {
		if err := checkDelegation(r); err != nil {
			return err
		}
		if i == 0 {
			if err := p.checkOurs(metadata.TARGETS, r.Name, r.KeyIDs, r.Threshold); err != nil {
				return err
			}
		} else if reserved(r.Name) {
			return refuse(metadata.TARGETS, "%q cannot be a vendor", r.Name)
		}
	}
	return nil
}

// checkDelegation refuses a delegation that reaches beyond the folder that has
// its role's name: exactly one role is to be responsible for a path.
func checkDelegation(r metadata.DelegatedRole) error {
	switch {
	case patch.CheckWord("a vendor", r.Name) != nil:
		return refuse(metadata.TARGETS, "%q cannot be the name of a role", r.Name)
	case !r.Terminating:
		return refuse(metadata.TARGETS, "the delegation to %q is not terminating", r.Name)
	case len(r.PathHashPrefixes) > 0 || !slices.Equal(r.Paths, []string{r.Name + "/*"}):
		return refuse(metadata.TARGETS, "the delegation to %q is not for the paths %q", r.Name, r.Name+"/*")
	}
	return checkThreshold(metadata.TARGETS, r.Name, r.KeyIDs, r.Threshold)
}

// verifyVendor verifies a vendor's role and its bins, and returns their names.
func (p *proposal) verifyVendor(ctx context.Context, targets *targetsMeta, vendor string) ([]string, error) {
	m, isNew, err := p.targets(ctx, vendor)
	if err != nil {
		return nil, err
	}
	_, newTargets := p.new[metadata.TARGETS]
	if isNew || newTargets {
		if err := targets.VerifyDelegate(vendor, m); err != nil {
			return nil, refuse(vendor, "%v", err)
		}
		if err := checkVendor(vendor, m); err != nil {
			return nil, err
		}
	}
	bins := m.Signed.Delegations.SuccinctRoles.GetRoles()
	check, err := p.binsToCheck(ctx, vendor, m, bins, isNew)
	if err != nil {
		return nil, err
	}
	if isNew || len(check) > 0 {
		if err := p.fresh(vendor, m.Signed.Expires); err != nil {
			return nil, err
		}
	}
	maps.Copy(p.probes, probesFor(vendor, m.Signed.Delegations.SuccinctRoles, check))
	return bins, p.verifyBins(ctx, vendor, m, check)
}

func checkVendor(vendor string, m *targetsMeta) error {
	d := m.Signed.Delegations
	if len(m.Signed.Targets) > 0 {
		return refuse(vendor, "it has targets of its own")
	}
	if d == nil || d.SuccinctRoles == nil || len(d.Roles) > 0 {
		return refuse(vendor, "it does not delegate to hash bins")
	}
	s := d.SuccinctRoles
	if s.NamePrefix != vendor {
		return refuse(vendor, "its bins are named %q, need %q", s.NamePrefix, vendor)
	}
	if s.BitLength < 1 || s.BitLength > 12 {
		return refuse(vendor, "its bit_length is %d, need 1 to 12", s.BitLength)
	}
	if err := checkKeys(vendor, d.Keys); err != nil {
		return err
	}
	return checkThreshold(vendor, s.NamePrefix, s.KeyIDs, s.Threshold)
}

// binsToCheck returns the bins that need to be verified: those that are new, or
// all of them if the delegation has changed.
func (p *proposal) binsToCheck(ctx context.Context, vendor string, m *targetsMeta, bins []string, isNew bool) ([]string, error) {
	changed := false
	if have := p.state.Roles[vendor].Version; isNew && have > 0 {
		f, err := p.tx.File(ctx, vendor, have)
		if err != nil {
			return nil, err
		}
		old, err := metadata.Targets().FromBytes(f.Body)
		if err != nil {
			return nil, fmt.Errorf("cannot read version %d of %q: %w", have, vendor, err)
		}
		changed = !sameBins(old, m)
	}
	var check []string
	for _, bin := range bins {
		if _, ok := p.new[bin]; ok || changed {
			check = append(check, bin)
		} else if p.state.Roles[bin].Version == 0 {
			return nil, refuse(bin, "it is missing, and %q delegates to it", vendor)
		}
	}
	return check, nil
}

// sameBins tells whether what is signed for one delegation is signed for the
// other as well.
func sameBins(a, b *targetsMeta) bool {
	x, y := a.Signed.Delegations.SuccinctRoles, b.Signed.Delegations.SuccinctRoles
	return x.BitLength == y.BitLength && x.Threshold == y.Threshold && slices.Equal(x.KeyIDs, y.KeyIDs)
}

func (p *proposal) verifyBins(ctx context.Context, vendor string, m *targetsMeta, bins []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, bin := range bins {
		g.Go(func() error { return p.verifyBin(ctx, vendor, m, bin) })
	}
	return g.Wait()
}

func (p *proposal) verifyBin(ctx context.Context, vendor string, m *targetsMeta, bin string) error {
	b, isNew, err := p.targets(ctx, bin)
	if err != nil {
		return err
	}
	if err := m.VerifyDelegate(bin, b); err != nil {
		return refuse(bin, "%v", err)
	}
	if !isNew {
		return nil
	}
	if b.Signed.Delegations != nil {
		return refuse(bin, "it delegates further")
	}
	listing, err := p.c.list(vendor, bin, m.Signed.Delegations.SuccinctRoles, b)
	if err != nil {
		return err
	}
	return p.addListing(ctx, bin, listing)
}

// addListing adds what a bin lists to the change.
func (p *proposal) addListing(ctx context.Context, bin string, l listing) error {
	p.mu.Lock()
	have, err := p.tx.KernelsOf(ctx, bin)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	var kernels, gone []store.Kernel
	for path, t := range l.indexes {
		if have[path] != t.Digest {
			k, err := p.c.readIndex(bin, t)
			if err != nil {
				return err
			}
			kernels = append(kernels, k)
		}
	}
	for path := range have {
		if _, ok := l.indexes[path]; !ok {
			gone = append(gone, store.Kernel{Role: bin, Path: path})
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.change.targets = append(p.change.targets, l.targets...)
	p.change.kernels = append(p.change.kernels, kernels...)
	p.change.gone = append(p.change.gone, gone...)
	for _, v := range l.versions {
		p.change.versions[v] = true
	}
	return nil
}

// targets returns a role's metadata: from the publication, and then noted as a
// part of the change, or as the service has it.
func (p *proposal) targets(ctx context.Context, role string) (m *targetsMeta, isNew bool, err error) {
	if f, ok := p.new[role]; ok {
		if m, err = parse[metadata.TargetsType](f); err != nil {
			return nil, false, err
		}
		if err := p.fresh(role, m.Signed.Expires); err != nil {
			return nil, false, err
		}
		return m, true, p.take(f, m.Signed.Expires)
	}
	have := p.state.Roles[role].Version
	if have == 0 {
		return nil, false, refuse(role, "it is missing")
	}
	p.mu.Lock()
	f, err := p.tx.File(ctx, role, have)
	p.mu.Unlock()
	if err != nil {
		return nil, false, err
	}
	if m, err = metadata.Targets().FromBytes(f.Body); err != nil {
		return nil, false, fmt.Errorf("cannot read version %d of %q: %w", have, role, err)
	}
	return m, false, nil
}

// take makes a file a part of the change.
func (p *proposal) take(f offline, expires time.Time) error {
	file, err := signer.NewFile(f.role, f.version, f.body, expires, p.now)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.change.files = append(p.change.files, file)
	return nil
}

// fresh refuses a role that has expired.
func (p *proposal) fresh(role string, expires time.Time) error {
	if !expires.After(p.now) {
		return fmt.Errorf("%w: %w: %q ended %s", ErrUntrusted, patch.ErrExpired, role, expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// parse reads a metadata file and checks that it is of the version that its
// name says.
func parse[T metadata.Roles](f offline) (m *metadata.Metadata[T], err error) {
	defer func() { // go-tuf 2.4.2 panics on null in the place of an object
		if recover() != nil {
			m, err = nil, fmt.Errorf("%w: %w: %q holds null in the place of an object", ErrUntrusted, patch.ErrMalformed, nameOf(f.role, f.version))
		}
	}()
	m, err = new(metadata.Metadata[T]).FromBytes(f.body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: %q: %w", ErrUntrusted, patch.ErrMalformed, nameOf(f.role, f.version), err)
	}
	var version int64
	switch s := any(&m.Signed).(type) {
	case *metadata.RootType:
		version = s.Version
	case *metadata.TargetsType:
		version = s.Version
	}
	if version != f.version {
		return nil, refuse(f.role, "file %q holds version %d", nameOf(f.role, f.version), version)
	}
	return m, nil
}

// checkKeys refuses keys that the loader's verifier would refuse.
func checkKeys(by string, keys map[string]*metadata.Key) error {
	for id, key := range keys {
		if key == nil || key.Type != metadata.KeyTypeEd25519 || key.Scheme != metadata.KeySchemeEd25519 {
			return refuse(by, "key %s is not an ed25519 key", id)
		}
		if b, err := hex.DecodeString(key.Value.PublicKey); err != nil || len(b) != 32 {
			return refuse(by, "key %s is not 32 bytes in hexadecimal", id)
		}
		if want, err := key.ID(); err != nil || want != id {
			return refuse(by, "key %s has the wrong ID, need %s", id, want)
		}
	}
	return nil
}

// checkThreshold refuses a role that nobody could sign for, or that needs
// nobody's signature. Key IDs are hashes of the keys, which checkKeys has seen
// to, so that distinct IDs are distinct keys.
func checkThreshold(by, name string, keyIDs []string, threshold int) error {
	distinct := slices.Compact(slices.Sorted(slices.Values(keyIDs)))
	if len(distinct) != len(keyIDs) {
		return refuse(by, "it lists a key of %q twice", name)
	}
	if threshold < 1 || threshold > len(keyIDs) {
		return refuse(by, "the threshold of %q is %d with %d keys", name, threshold, len(keyIDs))
	}
	return nil
}

// refuse says why a role of a publication does not verify.
func refuse(role, format string, args ...any) error {
	return fmt.Errorf("%w: role %q: %s", ErrUntrusted, role, strings.TrimSpace(fmt.Sprintf(format, args...)))
}
