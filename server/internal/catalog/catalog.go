// Package catalog is what the service has published: signed metadata, the
// targets that it names, and the decisions about rollouts. It takes
// publications, keeps the online roles fresh, and finds files for serving.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/blob"
	"livepatch/server/internal/expiry"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
)

// ErrForeignKeys means that what is published was made for other online keys
// than this server has.
var ErrForeignKeys = errors.New("published root names other online keys")

// database is implemented by package sqlite.
type database interface {
	View(ctx context.Context, fn func(store.Tx) error) error
	Update(ctx context.Context, fn func(store.Tx) error) error
	Counters(ctx context.Context) (store.State, error)
	File(ctx context.Context, role string, version int64) (store.File, error)
	Target(ctx context.Context, path string, d patch.Digest) (store.Target, error)
	AddTarget(ctx context.Context, t store.Target) error
	Kernels(ctx context.Context, arch, flavour, series string) ([]patch.Index, error)
	ForgetFiles(ctx context.Context, before time.Time) (int64, error)
	ForgetTargets(ctx context.Context, before time.Time) (int64, error)
	Named(ctx context.Context, d patch.Digest) (bool, error)
	ForgetEvents(ctx context.Context, before time.Time) (int64, error)
	ForgetSteps(ctx context.Context, before time.Time) (int64, error)
}

// A Catalog is safe for concurrent use.
type Catalog struct {
	log    *slog.Logger
	db     database
	blobs  *blob.Store
	signer *signer.Signer
	soak   time.Duration

	// Now is the clock; Published is called after each publication. They may be
	// replaced before the catalog is used.
	Now       func() time.Time
	Published func()

	refreshing sync.Mutex // held by Refresh, which is not to sign twice what is due once

	view     atomic.Pointer[view]
	failures atomic.Int64 // of signing, since the start

	// uploads is held for reading while a blob is given a name, and for writing
	// while blobs without one are deleted.
	uploads sync.RWMutex
}

// A view is the state of the catalog at one moment, for readers that cannot
// wait for the database. It is never changed, only replaced.
type view struct {
	generation int64
	epoch      int64
	roles      map[string]store.Role
	expiring   []expiry.Role
	// files holds what most machines ask for, by name.
	files map[string]store.File
}

// Open returns the catalog in db and blobs. Patches stay on trial for soak on
// machines. The error matches [ErrForeignKeys] if sign's keys are not those of
// the published root.
func Open(ctx context.Context, log *slog.Logger, db database, blobs *blob.Store, sign *signer.Signer, soak time.Duration) (*Catalog, error) {
	c := &Catalog{log: log, db: db, blobs: blobs, signer: sign, soak: soak, Now: time.Now, Published: func() {}}
	if err := c.reload(ctx); err != nil {
		return nil, fmt.Errorf("cannot open catalog: %w", err)
	}
	if err := c.checkKeys(); err != nil {
		return nil, fmt.Errorf("cannot open catalog: %w", err)
	}
	return c, nil
}

// OpenForNewKeys is [Open] for a service whose online keys were replaced. Until
// a root that names sign's keys is published, it serves what there is, and signs
// nothing; each attempt of [Catalog.Refresh] to sign says why.
func OpenForNewKeys(ctx context.Context, log *slog.Logger, db database, blobs *blob.Store, sign *signer.Signer, soak time.Duration) (*Catalog, error) {
	c := &Catalog{log: log, db: db, blobs: blobs, signer: sign, soak: soak, Now: time.Now, Published: func() {}}
	if err := c.reload(ctx); err != nil {
		return nil, fmt.Errorf("cannot open catalog: %w", err)
	}
	return c, nil
}

// checkKeys compares the keys of the published root with ours.
func (c *Catalog) checkKeys() error {
	v := c.view.Load()
	version := v.roles[metadata.ROOT].Version
	if version == 0 {
		return nil
	}
	root, err := metadata.Root().FromBytes(v.files[nameOf(metadata.ROOT, version)].Body)
	if err != nil {
		return fmt.Errorf("cannot read root version %d: %w", version, err)
	}
	for _, role := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
		id, err := c.signer.Keys().ID(role)
		if err != nil {
			return err
		}
		if !slices.Contains(root.Signed.Roles[role].KeyIDs, id) {
			return fmt.Errorf("%w: root version %d does not list our key of %s, %s", ErrForeignKeys, version, role, id)
		}
	}
	return nil
}

// reload makes what the database holds visible to readers.
func (c *Catalog) reload(ctx context.Context) error {
	v := &view{files: map[string]store.File{}}
	err := c.db.View(ctx, func(tx store.Tx) error {
		state, err := tx.State(ctx)
		if err != nil {
			return err
		}
		v.generation, v.epoch, v.roles = state.Generation, state.SignedEpoch, state.Roles
		if v.expiring, err = expiring(ctx, tx, state.Roles); err != nil {
			return err
		}
		for _, role := range hot(state.Roles) {
			f, err := tx.File(ctx, role, state.Roles[role].Version)
			if err != nil {
				return err
			}
			v.files[nameOf(role, f.Version)] = f
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot read what is published: %w", err)
	}
	c.replace(v)
	return nil
}

// replace makes v the view unless a later one was faster.
func (c *Catalog) replace(v *view) {
	for {
		old := c.view.Load()
		if old != nil && old.generation > v.generation || c.view.CompareAndSwap(old, v) {
			return
		}
	}
}

// hot returns the roles that every machine asks for: the top level and rollout.
func hot(roles map[string]store.Role) []string {
	var names []string
	for name := range roles {
		if reserved(name) {
			names = append(names, name)
		}
	}
	return names
}

// Generation changes whenever signed files have changed.
func (c *Catalog) Generation() int64 { return c.view.Load().generation }

// State tells a publisher what is published.
func (c *Catalog) State() service.PublishState {
	v := c.view.Load()
	s := service.PublishState{
		RootVersion: v.roles[metadata.ROOT].Version,
		Versions:    map[string]int64{},
		OnlineKeys:  c.signer.Keys().Public(),
	}
	for name, role := range v.roles {
		if !online(name) && name != metadata.ROOT {
			s.Versions[name] = role.Version
		}
	}
	return s
}

// Expiring returns the roles that machines need; see the function of that name.
// The caller does not change them.
func (c *Catalog) Expiring() []expiry.Role { return c.view.Load().expiring }

// Check returns an error if machines could not use what is served: an online
// role has expired, which only this server can mend.
func (c *Catalog) Check(now time.Time) error {
	v := c.view.Load()
	for _, name := range signer.Roles {
		if r, ok := v.roles[name]; ok && !r.Expires.After(now) {
			return fmt.Errorf("role %s: %w", name, patch.ErrExpired)
		}
	}
	return nil
}

// Failures counts attempts to sign that failed since the start.
func (c *Catalog) Failures() int64 { return c.failures.Load() }

// offlineRoles are the versions that a snapshot lists, but for rollout's.
func offlineRoles(roles map[string]store.Role) map[string]int64 {
	versions := map[string]int64{}
	for name, role := range maps.All(roles) {
		if !online(name) && name != metadata.ROOT {
			versions[name] = role.Version
		}
	}
	return versions
}
