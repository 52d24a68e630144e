package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite/db"
)

// tx implements [store.Tx].
type tx struct{ q *db.Queries }

func (t tx) State(ctx context.Context) (store.State, error) {
	s, err := t.q.GetService(ctx)
	if err != nil {
		return store.State{}, err
	}
	rows, err := t.q.ListRoles(ctx)
	if err != nil {
		return store.State{}, err
	}
	roles := make(map[string]store.Role, len(rows))
	for _, r := range rows {
		roles[r.Name] = store.Role{
			Version: r.Version, Published: time.Unix(r.ModifiedAt, 0).UTC(), Expires: time.Unix(r.ExpiresAt, 0).UTC(),
		}
	}
	return store.State{
		Generation: s.Generation, Publication: s.Publication, Epoch: s.Epoch, SignedEpoch: s.SignedEpoch, Roles: roles,
	}, nil
}

func (t tx) File(ctx context.Context, role string, version int64) (store.File, error) {
	r, err := t.q.GetFile(ctx, db.GetFileParams{Role: role, Version: version})
	if err != nil {
		return store.File{}, fmt.Errorf("cannot read version %d of %q: %w", version, role, wrap(err))
	}
	return store.File{
		Role: role, Version: version, Digest: patch.Digest(r.Digest),
		Expires: time.Unix(r.ExpiresAt, 0).UTC(), Modified: time.Unix(r.ModifiedAt, 0).UTC(),
		Body: r.Body, Gzip: r.Gzip,
	}, nil
}

func (t tx) PutFile(ctx context.Context, f store.File) error {
	if err := t.q.InsertFile(ctx, db.InsertFileParams{
		Role: f.Role, Version: f.Version, Digest: f.Digest[:],
		ExpiresAt: f.Expires.Unix(), ModifiedAt: f.Modified.Unix(), Body: f.Body, Gzip: f.Gzip,
	}); err != nil {
		return err
	}
	if err := t.q.SupersedeFiles(ctx, db.SupersedeFilesParams{
		SupersededAt: seconds(f.Modified), Role: f.Role, Version: f.Version,
	}); err != nil {
		return err
	}
	return t.q.SetRole(ctx, db.SetRoleParams{Name: f.Role, Version: f.Version, ExpiresAt: f.Expires.Unix()})
}

func (t tx) PublishTarget(ctx context.Context, target store.Target) error {
	n, err := t.q.PublishTarget(ctx, db.PublishTargetParams{
		Path: target.Path, Digest: target.Digest[:], Length: target.Length,
	})
	return found(n, err)
}

func (t tx) Rollouts(ctx context.Context) ([]store.Rollout, error) {
	rows, err := t.q.ListRollouts(ctx)
	if err != nil {
		return nil, err
	}
	rollouts := make([]store.Rollout, len(rows))
	for i, r := range rows {
		if rollouts[i], err = rollout(r); err != nil {
			return nil, err
		}
	}
	return rollouts, nil
}

func (t tx) Rollout(ctx context.Context, vendor, version string) (store.Rollout, error) {
	r, err := t.q.GetRollout(ctx, db.GetRolloutParams{Vendor: vendor, Version: version})
	if err != nil {
		return store.Rollout{}, wrap(err)
	}
	return rollout(r)
}

func rollout(r db.Rollout) (store.Rollout, error) {
	var spread store.Spread
	if r.Spread != "" {
		if err := json.Unmarshal([]byte(r.Spread), &spread); err != nil {
			return store.Rollout{}, fmt.Errorf("cannot read spread of rollout %s %s: %w", r.Vendor, r.Version, err)
		}
	}
	return store.Rollout{
		Vendor: r.Vendor, Version: r.Version, State: patch.RolloutState(r.State), Salt: r.Salt,
		Soak:    time.Duration(r.SoakSeconds) * time.Second,
		Created: time.Unix(r.CreatedAt, 0).UTC(), Updated: time.Unix(r.UpdatedAt, 0).UTC(),
		Spread: spread, Withdrawal: withdrawal(r),
	}, nil
}

func (t tx) AddRollout(ctx context.Context, r store.Rollout) error {
	_, err := t.q.InsertRollout(ctx, db.InsertRolloutParams{
		Vendor: r.Vendor, Version: r.Version, State: string(r.State), Salt: r.Salt,
		SoakSeconds: int64(r.Soak / time.Second), CreatedAt: r.Created.Unix(), UpdatedAt: r.Updated.Unix(),
	})
	return err
}

func (t tx) SetRollout(ctx context.Context, d store.Decision) (int64, error) {
	if err := t.q.SetRolloutState(ctx, db.SetRolloutStateParams{
		State: string(d.State), UpdatedAt: d.At.Unix(), Vendor: d.Vendor, Version: d.Version,
	}); err != nil {
		return 0, err
	}
	epoch, err := t.q.BumpEpoch(ctx)
	if err != nil {
		return 0, err
	}
	return epoch, t.q.InsertDecision(ctx, db.InsertDecisionParams{
		Epoch: epoch, At: d.At.Unix(), DecidedBy: d.By, Reason: d.Reason,
		Vendor: d.Vendor, Version: d.Version, State: string(d.State), Withdraw: d.Withdraw,
	})
}

func (t tx) Decisions(ctx context.Context, epoch int64) ([]store.Decision, error) {
	rows, err := t.q.ListDecisionsAfter(ctx, epoch)
	if err != nil {
		return nil, err
	}
	decisions := make([]store.Decision, len(rows))
	for i, r := range rows {
		decisions[i] = store.Decision{
			Epoch: r.Epoch, At: time.Unix(r.At, 0).UTC(), By: r.DecidedBy, Reason: r.Reason,
			Vendor: r.Vendor, Version: r.Version, State: patch.RolloutState(r.State), Withdraw: r.Withdraw,
		}
	}
	return decisions, nil
}

func (t tx) KernelsOf(ctx context.Context, role string) (map[string]patch.Digest, error) {
	rows, err := t.q.ListKernelsOfRole(ctx, role)
	if err != nil {
		return nil, err
	}
	kernels := make(map[string]patch.Digest, len(rows))
	for _, r := range rows {
		kernels[r.Path] = patch.Digest(r.Digest)
	}
	return kernels, nil
}

func (t tx) PutKernel(ctx context.Context, k store.Kernel) error {
	if err := t.q.UpsertKernel(ctx, db.UpsertKernelParams{
		Path: k.Path, Role: k.Role, Digest: k.Digest[:], Arch: k.Arch, Release: k.Release, Flavour: k.Flavour,
		Series: k.Series, KernelVersion: k.KernelVersion, FromDay: k.From, UntilDay: k.Until,
	}); err != nil {
		return err
	}
	if err := t.q.DeleteCoverage(ctx, k.Path); err != nil {
		return err
	}
	for _, p := range k.Patches {
		if err := t.q.InsertCoverage(ctx, db.InsertCoverageParams{Path: k.Path, Version: p.Version}); err != nil {
			return err
		}
	}
	return nil
}

func (t tx) DeleteKernel(ctx context.Context, role, path string) error {
	return t.q.DeleteKernel(ctx, db.DeleteKernelParams{Path: path, Role: role})
}

func (t tx) CountPublication(ctx context.Context) error         { return t.q.BumpPublication(ctx) }
func (t tx) CountGeneration(ctx context.Context) (int64, error) { return t.q.BumpGeneration(ctx) }

// File returns one version of a role's metadata, or [store.ErrNotFound].
func (d *DB) File(ctx context.Context, role string, version int64) (store.File, error) {
	return tx{d.read.queries}.File(ctx, role, version)
}

// Counters returns the state without its roles: it is cheap enough to be asked
// for every second.
func (d *DB) Counters(ctx context.Context) (store.State, error) {
	s, err := d.read.queries.GetService(ctx)
	if err != nil {
		return store.State{}, wrap(err)
	}
	return store.State{
		Generation: s.Generation, Publication: s.Publication, Epoch: s.Epoch, SignedEpoch: s.SignedEpoch,
	}, nil
}

// AddTarget keeps the name under which a blob was uploaded.
func (d *DB) AddTarget(ctx context.Context, t store.Target) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		return q.InsertTarget(ctx, db.InsertTargetParams{
			Path: t.Path, Digest: t.Digest[:], Length: t.Length, UploadedAt: t.Uploaded.Unix(),
		})
	})
}

// Target returns an uploaded target, or [store.ErrNotFound].
func (d *DB) Target(ctx context.Context, path string, digest patch.Digest) (store.Target, error) {
	r, err := d.read.queries.GetTarget(ctx, db.GetTargetParams{Path: path, Digest: digest[:]})
	if err != nil {
		return store.Target{}, wrap(err)
	}
	return store.Target{
		Path: path, Digest: digest, Length: r.Length,
		Uploaded: time.Unix(r.UploadedAt, 0).UTC(), Published: r.Published != 0,
	}, nil
}

// Kernels lists the kernels of a series that a vendor has published.
func (d *DB) Kernels(ctx context.Context, arch, flavour, series string) ([]patch.Index, error) {
	rows, err := d.read.queries.ListKernelsOfSeries(ctx, db.ListKernelsOfSeriesParams{
		Arch: arch, Flavour: flavour, Series: series,
	})
	if err != nil {
		return nil, wrap(err)
	}
	kernels := make([]patch.Index, len(rows))
	for i, r := range rows {
		kernels[i] = patch.Index{
			Arch: arch, Flavour: flavour, Release: r.Release, KernelVersion: r.KernelVersion,
			From: r.FromDay, Until: r.UntilDay,
		}
	}
	return kernels, nil
}

// ForgetFiles deletes signed files that were superseded before a time, except
// roots: a machine that was away for years still needs the whole chain.
func (d *DB) ForgetFiles(ctx context.Context, before time.Time) (n int64, err error) {
	err = d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err = q.DeleteFilesBefore(ctx, seconds(before))
		return err
	})
	return n, err
}

// ForgetTargets deletes targets that were uploaded before a time and never
// published, and returns how many.
func (d *DB) ForgetTargets(ctx context.Context, before time.Time) (n int64, err error) {
	err = d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err = q.DeleteForgottenTargets(ctx, before.Unix())
		return err
	})
	return n, err
}

// Named tells whether a target has that content.
func (d *DB) Named(ctx context.Context, digest patch.Digest) (bool, error) {
	n, err := d.read.queries.CountTargetsOfDigest(ctx, digest[:])
	return n > 0, wrap(err)
}
