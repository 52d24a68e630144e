package catalog

import (
	"context"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/server/internal/expiry"
	"livepatch/server/internal/store"
)

// Expiring returns the roles that machines need, from root down, the bins of a
// vendor as one. It is empty before the first publication.
//
// A vendor that targets no longer delegates to, and bins from before a vendor
// changed their number, are not among them: nobody has to sign those again.
func Expiring(ctx context.Context, tx store.Tx) ([]expiry.Role, error) {
	state, err := tx.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot tell when roles expire: %w", err)
	}
	roles, err := expiring(ctx, tx, state.Roles)
	if err != nil {
		return nil, fmt.Errorf("cannot tell when roles expire: %w", err)
	}
	return roles, nil
}

func expiring(ctx context.Context, tx store.Tx, have map[string]store.Role) ([]expiry.Role, error) {
	if have[metadata.TARGETS].Version == 0 {
		return nil, nil
	}
	var roles []expiry.Role
	add := func(names ...string) {
		for _, name := range names {
			roles = append(roles, expiringRole(name, have[name]))
		}
	}
	add(metadata.ROOT, metadata.TARGETS)
	top, err := delegationsOf(ctx, tx, metadata.TARGETS, have)
	if err != nil {
		return nil, err
	}
	for _, d := range top.Roles {
		if d.Name == patch.RolloutRole {
			continue
		}
		add(d.Name)
		below, err := delegationsOf(ctx, tx, d.Name, have)
		if err != nil {
			return nil, err
		}
		if below.SuccinctRoles != nil {
			roles = append(roles, first(d.Name, below.SuccinctRoles.GetRoles(), have))
		}
	}
	add(patch.RolloutRole, metadata.SNAPSHOT, metadata.TIMESTAMP)
	return roles, nil
}

// delegationsOf returns to which roles the current version of a role delegates.
func delegationsOf(ctx context.Context, tx store.Tx, role string, have map[string]store.Role) (metadata.Delegations, error) {
	f, err := tx.File(ctx, role, have[role].Version)
	if err != nil {
		return metadata.Delegations{}, err
	}
	m, err := metadata.Targets().FromBytes(f.Body)
	if err != nil {
		return metadata.Delegations{}, fmt.Errorf("cannot read version %d of %q: %w", f.Version, role, err)
	}
	if m.Signed.Delegations == nil {
		return metadata.Delegations{}, nil
	}
	return *m.Signed.Delegations, nil
}

// first makes one of a vendor's bins: the one that expires first.
func first(vendor string, bins []string, have map[string]store.Role) expiry.Role {
	var earliest store.Role
	for _, name := range bins {
		if b := have[name]; earliest.Version == 0 || b.Expires.Before(earliest.Expires) {
			earliest = b
		}
	}
	r := expiringRole(vendor+"-*", earliest)
	r.Bins = len(bins)
	return r
}

func expiringRole(name string, r store.Role) expiry.Role {
	return expiry.Role{Name: name, Version: r.Version, Online: online(name), Published: r.Published, Expires: r.Expires}
}
