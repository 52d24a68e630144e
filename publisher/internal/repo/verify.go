package repo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/publisher/internal/authority"
)

// A RoleReport says who vouches for a role, and for how long.
type RoleReport struct {
	Role      string
	Version   int64
	Expires   time.Time
	Life      time.Duration // that such a role has when it is signed
	Threshold int
	Keys      []string // IDs of the keys that may sign
	Signed    []string // IDs of those whose signature verifies
	Targets   int
}

// Left returns how much of its life a role has left, from 0 to 1.
func (r RoleReport) Left(now time.Time) float64 {
	return min(1, max(0, float64(r.Expires.Sub(now))/float64(r.Life)))
}

// A Problem is something that a machine would refuse, or miss.
type Problem struct {
	What string `json:"problem"` // one line
	Do   string `json:"do"`      // what helps
}

// String returns what is wrong.
func (p Problem) String() string { return p.What }

// A Report is the result of Verify.
type Report struct {
	Roles       []RoleReport
	Modules     int
	SigningKeys map[string]int // how many modules are signed for kernels with a key
	Provenances int            // of modules
	Indexes     int
	Problems    []Problem
}

// What helps.
const (
	doRefresh = "sign it anew with: livepatch-publish refresh, and push"
	doServer  = "see on the server why it does not sign: livepatch-admin status"
	doSign    = "have its other keys sign, see: livepatch-publish refresh --help, --request"
	doRestore = "take the files from a backup or from the service; do not push them"
	doRemove  = "remove the file, or take the folder from a backup"
	doRoot    = "machines cannot get past this root: ship them a newer one, or publish the right file again"
)

// Verify checks everything with go-tuf, as a machine would: the chain of roots,
// the signatures of each role, their expiry, the content of each target and
// that indexes and modules agree; in a copy of what a service serves, what it
// signs itself, too. The error is for what could not be examined; what is wrong
// stands in the report.
func (r *Repo) Verify(ctx context.Context) (Report, error) {
	var rep Report
	root, err := r.verifyRoots(&rep)
	if err != nil {
		return rep, err
	}
	addRole(&rep, r, metadata.ROOT, root, root.Signed.Version, root.Signed.Expires, 0)
	lost := make(map[string]bool) // roles of which nothing more can be said
	for _, role := range r.Roles() {
		if role == metadata.ROOT || lost[authority.Parent(role)] {
			lost[role] = role != metadata.ROOT
			continue
		}
		m, err := r.load(role)
		if err != nil {
			lost[role] = true
			rep.problem(doRestore, "%s", strings.TrimPrefix(err.Error(), ErrCorrupt.Error()+": "))
			continue
		}
		addRole(&rep, r, role, m, m.Signed.Version, m.Signed.Expires, len(m.Signed.Targets))
	}
	r.verifyBins(&rep, lost)
	r.verifyOnline(&rep)
	return rep, r.verifyTargets(ctx, &rep)
}

func (rep *Report) problem(do, format string, args ...any) {
	rep.Problems = append(rep.Problems, Problem{What: fmt.Sprintf(format, args...), Do: do})
}

// verifyRoots follows the chain from the oldest root that is here: each is
// signed by the one before and by itself.
func (r *Repo) verifyRoots(rep *Report) (*authority.Root, error) {
	var last *authority.Root
	for v := r.oldestRoot(); v <= r.versions[metadata.ROOT]; v++ {
		b, err := r.Metadata(metadata.ROOT, v)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		m, err := parseRoot(b)
		if err != nil {
			return nil, fmt.Errorf("%w: root %d: %w", ErrCorrupt, v, err)
		}
		if m.Signed.Version != v {
			rep.problem(doRoot, "root %d: file says version %d", v, m.Signed.Version)
		}
		if last != nil {
			if err := last.VerifyDelegate(metadata.ROOT, m); err != nil {
				rep.problem(doRoot, "root %d: not signed by root %d: %v", v, v-1, err)
			}
		}
		if err := m.VerifyDelegate(metadata.ROOT, m); err != nil {
			rep.problem(doRoot, "root %d: %v", v, err)
		}
		last = m
	}
	if last == nil {
		return nil, fmt.Errorf("%w: there is no root", ErrCorrupt)
	}
	return last, nil
}

// oldestRoot returns the first version of the root that is here: 1, but for a
// mirror that keeps no more than it needs.
func (r *Repo) oldestRoot() int64 {
	newest := r.versions[metadata.ROOT]
	for v := newest; v > 1; v-- {
		if _, err := r.Metadata(metadata.ROOT, v-1); err != nil {
			return v
		}
	}
	return 1
}

// addRole reports on a role. Whether it is trusted was decided by go-tuf; who
// exactly signed go-tuf does not tell, so each signature is checked here.
func addRole[T metadata.Roles](rep *Report, r *Repo, role string, m *metadata.Metadata[T], version int64, expires time.Time, targets int) {
	who, err := r.authority(role)
	if err != nil {
		rep.problem(doRemove, "%v", err)
		return
	}
	payload, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		rep.problem(doRestore, "role %s: %v", role, err)
		return
	}
	row := RoleReport{
		Role: role, Version: version, Expires: expires, Life: r.lifetime(role), Threshold: who.Threshold, Keys: who.IDs,
		Signed: who.Signed(payload, m.Signatures), Targets: targets,
	}
	if len(row.Signed) < who.Threshold {
		rep.problem(doSign, "role %s: signed by %d keys, want %d", role, len(row.Signed), who.Threshold)
	}
	if !expires.After(r.now) {
		do := doRefresh
		if isOnline(role) {
			do = doServer
		}
		rep.problem(do, "role %s: expired on %s", role, expires.Format(time.RFC3339))
	}
	rep.Roles = append(rep.Roles, row)
}

// verifyBins checks that every bin exists and that there is no role besides.
// Of roles that are lost something was said already.
func (r *Repo) verifyBins(rep *Report, lost map[string]bool) {
	if lost[metadata.TARGETS] {
		return
	}
	want := map[string]bool{metadata.ROOT: true, metadata.TARGETS: true}
	vendors, err := r.Vendors()
	if err != nil {
		rep.problem(doRestore, "%v", err)
		return
	}
	for _, vendor := range vendors {
		want[vendor] = true
		if lost[vendor] {
			continue
		}
		bins, err := r.bins(vendor)
		if err != nil {
			lost[vendor] = true
			rep.problem(doRestore, "%s", strings.TrimPrefix(err.Error(), ErrCorrupt.Error()+": "))
			continue
		}
		for _, bin := range bins.GetRoles() {
			want[bin] = true
			if r.versions[bin] == 0 {
				rep.problem(doRestore, "role %s: missing", bin)
			}
		}
	}
	for _, role := range r.Roles() {
		if !want[role] && !lost[role] && !lost[authority.Parent(role)] {
			rep.problem(doRemove, "role %s: nothing delegates to it", role)
		}
	}
}
