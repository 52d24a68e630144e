package sqlite

import (
	"context"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite/db"
)

// AddToken keeps a new token and returns its ID.
func (d *DB) AddToken(ctx context.Context, h store.Hash, t store.Token) (id int64, err error) {
	err = d.write(ctx, d.durable, func(q *db.Queries) error {
		id, err = q.InsertToken(ctx, db.InsertTokenParams{
			Kind: string(t.Kind), Hash: h[:], Tier: t.Tier, Note: t.Note,
			CreatedAt: t.Created.Unix(), ExpiresAt: seconds(t.Expires),
		})
		return err
	})
	return id, err
}

// Token returns the token with that hash, or [store.ErrNotFound].
func (d *DB) Token(ctx context.Context, h store.Hash) (store.Token, error) {
	r, err := d.read.queries.TokenByHash(ctx, h[:])
	if err != nil {
		return store.Token{}, wrap(err)
	}
	return store.Token{
		ID: r.ID, Kind: store.Kind(r.Kind), Tier: r.Tier, Note: r.Note,
		Created: time.Unix(r.CreatedAt, 0).UTC(), Expires: fromSeconds(r.ExpiresAt), Revoked: fromSeconds(r.RevokedAt),
	}, nil
}

// Tokens lists the tokens of a kind by ID.
func (d *DB) Tokens(ctx context.Context, kind store.Kind) ([]store.Token, error) {
	rows, err := d.read.queries.ListTokens(ctx, string(kind))
	if err != nil {
		return nil, wrap(err)
	}
	tokens := make([]store.Token, len(rows))
	for i, r := range rows {
		tokens[i] = store.Token{
			ID: r.ID, Kind: store.Kind(r.Kind), Tier: r.Tier, Note: r.Note, Machines: r.Machines,
			Created: time.Unix(r.CreatedAt, 0).UTC(), Expires: fromSeconds(r.ExpiresAt), Revoked: fromSeconds(r.RevokedAt),
		}
	}
	return tokens, nil
}

// RevokeToken revokes a token for ever. Revoking it again changes nothing. If
// there is none of that kind and ID, it returns [store.ErrNotFound].
func (d *DB) RevokeToken(ctx context.Context, kind store.Kind, id int64, now time.Time) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err := q.RevokeToken(ctx, db.RevokeTokenParams{RevokedAt: seconds(now), ID: id, Kind: string(kind)})
		return found(n, err)
	})
}

// Enrol keeps a machine under a new token. A token that it had before dies.
func (d *DB) Enrol(ctx context.Context, h store.Hash, m store.Machine) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		return q.UpsertMachine(ctx, db.UpsertMachineParams{
			ID: m.ID, TokenHash: h[:], AuthTokenID: m.AuthToken, Hostname: m.Hostname, AgentVersion: m.Version,
			Arch: m.Facts.Arch, Release: m.Facts.Release, BuildID: string(m.Facts.BuildID),
			KernelVersion: m.Facts.KernelVersion, Distribution: m.Facts.Distribution, BootID: m.Facts.BootID,
			EnrolledAt: m.Enrolled.Unix(), LastSeen: m.LastSeen.Unix(),
		})
	})
}

// Identify returns whose machine token has that hash, or [store.ErrNotFound].
func (d *DB) Identify(ctx context.Context, h store.Hash) (store.Identity, error) {
	r, err := d.read.queries.MachineByToken(ctx, h[:])
	if err != nil {
		return store.Identity{}, wrap(err)
	}
	return store.Identity{Token: h, Machine: r.ID, Tier: r.Tier, Revoked: r.RevokedAt.Valid}, nil
}

// CheckIn keeps a machine's report; of its events, those that it has not yet.
// It returns [store.ErrNotFound] if the machine token died meanwhile.
func (d *DB) CheckIn(ctx context.Context, who store.Identity, r store.Report) error {
	h := d.lazy
	if len(r.Events) > 0 {
		h = d.durable
	}
	return d.write(ctx, h, func(q *db.Queries) error {
		if err := touch(ctx, q, who, r); err != nil {
			return err
		}
		for _, e := range r.Events {
			if err := q.InsertEvent(ctx, db.InsertEventParams{
				MachineID: who.Machine, ID: e.ID, Kind: string(e.Kind), Name: e.Name, Version: e.Version, BootID: e.BootID,
				At: e.At.Unix(), ReceivedAt: r.At.Unix(), Reason: e.Reason, Message: e.Message,
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

func touch(ctx context.Context, q *db.Queries, who store.Identity, r store.Report) error {
	var p service.Patch
	if r.Patch != nil {
		p = *r.Patch
	}
	n, err := q.TouchMachine(ctx, db.TouchMachineParams{
		AgentVersion: r.Version, Arch: r.Arch, Release: r.Release, BuildID: string(r.BuildID),
		KernelVersion: r.KernelVersion, Distribution: r.Distribution, BootID: r.BootID, LastSeen: r.At.Unix(),
		Generation: r.Generation, PatchName: p.Name, PatchVersion: p.Version, PatchSequence: int64(p.Sequence),
		PatchState: p.State, PatchStanding: p.Standing, ID: who.Machine, TokenHash: who.Token[:],
	})
	return found(n, err)
}

// Leave ends a machine's enrolment, or returns [store.ErrNotFound].
func (d *DB) Leave(ctx context.Context, h store.Hash) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err := q.DeleteMachine(ctx, h[:])
		return found(n, err)
	})
}

// Machines lists the enrolled machines by ID.
func (d *DB) Machines(ctx context.Context) ([]store.Machine, error) {
	rows, err := d.read.queries.ListMachines(ctx)
	if err != nil {
		return nil, wrap(err)
	}
	machines := make([]store.Machine, len(rows))
	for i, r := range rows {
		machines[i] = store.Machine{
			ID: r.ID, AuthToken: r.AuthTokenID, Tier: r.Tier, Revoked: r.RevokedAt.Valid,
			Hostname: r.Hostname, Version: r.AgentVersion,
			Facts: service.Facts{
				Kernel:        patch.Kernel{Arch: r.Arch, Release: r.Release, BuildID: patch.BuildID(r.BuildID)},
				KernelVersion: r.KernelVersion, Distribution: r.Distribution, BootID: r.BootID,
			},
			Enrolled: time.Unix(r.EnrolledAt, 0).UTC(), LastSeen: time.Unix(r.LastSeen, 0).UTC(), Generation: r.Generation,
			Patch: service.Patch{
				Name: r.PatchName, Version: r.PatchVersion, Sequence: uint64(r.PatchSequence),
				State: r.PatchState, Standing: r.PatchStanding,
			},
		}
	}
	return machines, nil
}

// Events lists what a machine has reported, oldest first.
func (d *DB) Events(ctx context.Context, machine string) ([]service.Event, error) {
	rows, err := d.read.queries.ListEvents(ctx, machine)
	if err != nil {
		return nil, wrap(err)
	}
	events := make([]service.Event, len(rows))
	for i, r := range rows {
		events[i] = service.Event{
			ID: r.ID, Kind: service.Kind(r.Kind), Name: r.Name, Version: r.Version, BootID: r.BootID,
			At: time.Unix(r.At, 0).UTC(), Reason: r.Reason, Message: r.Message,
		}
	}
	return events, nil
}

// found turns "no row was changed" into [store.ErrNotFound].
func found(n int64, err error) error {
	if err == nil && n == 0 {
		return store.ErrNotFound
	}
	return err
}

// ForgetEvents deletes events received before a time, and returns how many.
func (d *DB) ForgetEvents(ctx context.Context, before time.Time) (n int64, err error) {
	err = d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err = q.DeleteEventsBefore(ctx, before.Unix())
		return err
	})
	return n, err
}
