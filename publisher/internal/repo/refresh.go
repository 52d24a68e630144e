package repo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/authority"
)

// A Refreshed is a role that was signed anew.
type Refreshed struct {
	Role    string
	Version int64
	Expires time.Time
}

// Refresh signs anew, unchanged but for version and expiry, every role for
// which due says so.
func (r *Repo) Refresh(ctx context.Context, keys Keyring, due func(role string, expires time.Time) bool) ([]Refreshed, error) {
	e := r.edit(keys)
	for _, role := range r.Roles() {
		expires, err := r.expires(role)
		if err != nil {
			return nil, err
		}
		if !due(role, expires) {
			continue
		}
		if role == metadata.ROOT {
			if _, err := e.editRoot(); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := e.role(role); err != nil {
			return nil, err
		}
	}
	done := make([]Refreshed, 0, len(e.roles))
	if len(e.roles) == 0 {
		return done, nil
	}
	if err := e.commit(ctx); err != nil {
		return nil, fmt.Errorf("cannot refresh: %w", err)
	}
	for _, role := range e.roles {
		done = append(done, Refreshed{Role: role, Version: r.versions[role], Expires: r.now.Add(r.lifetime(role))})
	}
	return done, nil
}

// Due returns a rule for Refresh: a third of a role's life or less is left, so
// that bins are due for ten days of each month.
func (r *Repo) Due() func(role string, expires time.Time) bool {
	return func(role string, expires time.Time) bool {
		return expires.Sub(r.now) <= r.lifetime(role)/3
	}
}

// DueWithin returns a rule for Refresh: the role expires in less than d.
func (r *Repo) DueWithin(d time.Duration) func(role string, expires time.Time) bool {
	return func(_ string, expires time.Time) bool { return expires.Sub(r.now) < d }
}

func (r *Repo) expires(role string) (time.Time, error) {
	if role == metadata.ROOT {
		root, err := r.Root()
		if err != nil {
			return time.Time{}, err
		}
		return root.Signed.Expires, nil
	}
	m, err := r.load(role)
	if err != nil {
		return time.Time{}, err
	}
	return m.Signed.Expires, nil
}

// Roles returns the names of all roles, each after the one that delegates to
// it: root, targets, vendors, bins.
func (r *Repo) Roles() []string {
	roles := make([]string, 0, len(r.versions))
	for role := range r.versions {
		roles = append(roles, role)
	}
	slices.SortFunc(roles, authority.Compare)
	return roles
}

// A Published is a module in the repository.
type Published struct {
	Target string       `json:"target"`
	Digest patch.Digest `json:"sha256"`
	Length int64        `json:"length"`
	Role   string       `json:"role"` // the bin
	Module patch.Module `json:"module"`
}

// Modules returns all modules of a vendor, by release, architecture and
// sequence number.
func (r *Repo) Modules(vendor string) ([]Published, error) {
	bins, err := r.bins(vendor)
	if err != nil {
		return nil, err
	}
	var all []Published
	for _, role := range bins.GetRoles() {
		modules, err := r.modulesOf(role)
		if err != nil {
			return nil, err
		}
		all = append(all, modules...)
	}
	slices.SortFunc(all, comparePublished)
	return all, nil
}

func comparePublished(a, b Published) int {
	if c := strings.Compare(a.Module.Release, b.Module.Release); c != 0 {
		return c
	}
	if c := strings.Compare(a.Module.Arch, b.Module.Arch); c != 0 {
		return c
	}
	if a.Module.Sequence < b.Module.Sequence {
		return -1
	}
	return 1
}

// modulesOf returns the modules in one bin.
func (r *Repo) modulesOf(role string) ([]Published, error) {
	m, err := r.load(role)
	if err != nil {
		return nil, err
	}
	var all []Published
	for target, t := range m.Signed.Targets {
		if t.Custom == nil {
			continue // an index
		}
		mod, err := patch.ParseModule(*t.Custom)
		if err != nil {
			return nil, fmt.Errorf("%w: target %s: %w", ErrCorrupt, target, err)
		}
		all = append(all, Published{Target: target, Digest: digest(t), Length: t.Length, Role: role, Module: mod})
	}
	return all, nil
}

// TargetFiles returns where the targets of one version of a role lie, below the
// folder of targets.
func (r *Repo) TargetFiles(role string, version int64) ([]string, error) {
	b, err := r.Metadata(role, version)
	if err != nil {
		return nil, err
	}
	m, err := parseTargets(b)
	if err != nil {
		return nil, fmt.Errorf("%w: role %s: %w", ErrCorrupt, role, err)
	}
	files := make([]string, 0, len(m.Signed.Targets))
	for target, t := range m.Signed.Targets {
		file, err := TargetFile(target, t)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	slices.Sort(files)
	return files, nil
}
