package repo

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"

	"livepatch/internal/patch"
)

// A RoleReport says who vouches for a role.
type RoleReport struct {
	Role      string
	Version   int64
	Expires   time.Time
	Threshold int
	Keys      []string // IDs of the keys that may sign
	Signed    []string // IDs of those whose signature verifies
	Targets   int
}

// A Report is the result of Verify.
type Report struct {
	Roles   []RoleReport
	Modules int
	Indexes int
	// Problems are what a machine would refuse, or miss. Each is one line.
	Problems []string
}

// Verify checks everything with go-tuf, as a machine would: the chain of roots,
// the signatures of each role, their expiry, the content of each target and
// that indexes and modules agree. The error is for what could not be examined;
// what is wrong stands in the report.
func (r *Repo) Verify(ctx context.Context) (Report, error) {
	var rep Report
	root, err := r.verifyRoots(&rep)
	if err != nil {
		return rep, err
	}
	rep.addRole(r, metadata.ROOT, root.Signed.Version, root.Signed.Expires, root.Signed, root.Signatures, 0)
	for _, role := range r.Roles()[1:] {
		m, err := r.load(role)
		if err != nil {
			rep.problem("%v", err)
			continue
		}
		rep.addRole(r, role, m.Signed.Version, m.Signed.Expires, m.Signed, m.Signatures, len(m.Signed.Targets))
	}
	r.verifyBins(&rep)
	return rep, r.verifyTargets(ctx, &rep)
}

func (rep *Report) problem(format string, args ...any) {
	rep.Problems = append(rep.Problems, fmt.Sprintf(format, args...))
}

// verifyRoots follows the chain from the oldest root that is here: each is
// signed by the one before and by itself.
func (r *Repo) verifyRoots(rep *Report) (*metadata.Metadata[metadata.RootType], error) {
	var last *metadata.Metadata[metadata.RootType]
	for v := int64(1); v <= r.versions[metadata.ROOT]; v++ {
		b, err := r.Metadata(metadata.ROOT, v)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		m, err := metadata.Root().FromBytes(b)
		if err != nil {
			return nil, fmt.Errorf("%w: root %d: %w", ErrCorrupt, v, err)
		}
		if m.Signed.Version != v {
			rep.problem("root %d: file says version %d", v, m.Signed.Version)
		}
		if last != nil {
			if err := last.VerifyDelegate(metadata.ROOT, m); err != nil {
				rep.problem("root %d: not signed by root %d: %v", v, v-1, err)
			}
		}
		if err := m.VerifyDelegate(metadata.ROOT, m); err != nil {
			rep.problem("root %d: %v", v, err)
		}
		last = m
	}
	if last == nil {
		return nil, fmt.Errorf("%w: there is no root", ErrCorrupt)
	}
	return last, nil
}

// addRole reports on a role. Whether it is trusted was decided by go-tuf; who
// exactly signed go-tuf does not tell, so each signature is checked here.
func (rep *Report) addRole(r *Repo, role string, version int64, expires time.Time, signed any, signatures []metadata.Signature, targets int) {
	ids, threshold, err := r.authority(role)
	if err != nil {
		rep.problem("%v", err)
		return
	}
	row := RoleReport{Role: role, Version: version, Expires: expires, Threshold: threshold, Keys: ids, Targets: targets}
	payload, err := cjson.EncodeCanonical(signed)
	if err != nil {
		rep.problem("role %s: %v", role, err)
		return
	}
	known := r.keysOf(role)
	for _, s := range signatures {
		if public, ok := known[s.KeyID]; ok && slices.Contains(ids, s.KeyID) && ed25519.Verify(public, payload, s.Signature) {
			row.Signed = append(row.Signed, s.KeyID)
		}
	}
	if len(row.Signed) < threshold {
		rep.problem("role %s: signed by %d keys, want %d", role, len(row.Signed), threshold)
	}
	if expires.Before(r.now) {
		rep.problem("role %s: expired on %s", role, expires.Format(time.RFC3339))
	}
	rep.Roles = append(rep.Roles, row)
}

// keysOf returns the public keys that the role above knows, by ID.
func (r *Repo) keysOf(role string) map[string]ed25519.PublicKey {
	var keys map[string]*metadata.Key
	if parent := parentOf(role); parent == metadata.ROOT {
		keys = r.root.Signed.Keys
	} else if m := r.loaded[parent]; m != nil {
		keys = m.Signed.Delegations.Keys
	}
	public := make(map[string]ed25519.PublicKey)
	for id, k := range keys {
		if p, err := k.ToPublicKey(); err == nil {
			if p, ok := p.(ed25519.PublicKey); ok {
				public[id] = p
			}
		}
	}
	return public
}

// verifyBins checks that every bin exists and that there is no role besides.
func (r *Repo) verifyBins(rep *Report) {
	want := map[string]bool{metadata.ROOT: true, metadata.TARGETS: true}
	vendors, err := r.Vendors()
	if err != nil {
		rep.problem("%v", err)
		return
	}
	for _, vendor := range vendors {
		want[vendor] = true
		bins, err := r.bins(vendor)
		if err != nil {
			rep.problem("%v", err)
			continue
		}
		for _, bin := range bins.GetRoles() {
			want[bin] = true
			if r.versions[bin] == 0 {
				rep.problem("role %s: missing", bin)
			}
		}
	}
	for _, role := range r.Roles() {
		if !want[role] {
			rep.problem("role %s: nothing delegates to it", role)
		}
	}
}

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
			if err := r.verifyTarget(t); err != nil {
				problems[i] = fmt.Sprintf("target %s: %v", t.path, err)
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, t := range all {
		if t.file.Custom == nil {
			rep.Indexes++
		} else {
			rep.Modules++
		}
		if problems[i] != "" {
			rep.Problems = append(rep.Problems, problems[i])
		}
	}
	slices.Sort(rep.Problems)
	return nil
}

func (r *Repo) verifyTarget(t target) error {
	vendor := parentOf(t.role)
	if v, err := patch.VendorOf(t.path); err != nil || v != vendor {
		return fmt.Errorf("does not belong to role %s", t.role)
	}
	b, err := r.content(t.path, t.file)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("its file is missing")
	}
	if err != nil {
		return err
	}
	if t.file.Custom == nil {
		return r.verifyIndex(vendor, t.path, b)
	}
	return r.verifyModule(vendor, t)
}

func (r *Repo) verifyModule(vendor string, t target) error {
	m, err := patch.ParseModule(*t.file.Custom)
	if err != nil {
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
