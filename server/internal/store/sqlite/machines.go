package sqlite

import (
	"context"
	"slices"
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
// there is none of that kind and ID, it returns [store.ErrNotFound]. The rule is told: the
// machines that enrolled with it are not answered any more, and have not fallen silent.
func (d *DB) RevokeToken(ctx context.Context, kind store.Kind, id int64, now time.Time) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err := q.RevokeToken(ctx, db.RevokeTokenParams{RevokedAt: seconds(now), ID: id, Kind: string(kind)})
		if err := found(n, err); err != nil {
			return err
		}
		return keepGone(ctx, q, id)
	})
}

// keepGone tells the rule that the machines of a token have left.
func keepGone(ctx context.Context, q *db.Queries, token int64) error {
	machines, err := q.ListMachinesOfToken(ctx, token)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(machines, maxBatch) {
		var signs []store.Sign
		for _, m := range some {
			signs = append(signs, gone(store.Identity{
				Machine: m.ID, AuthToken: token, Tier: m.Tier, Enrolled: time.Unix(m.EnrolledAt, 0).UTC(),
			}))
		}
		if err := keepSigns(q, signs); err != nil {
			return err
		}
	}
	return nil
}

// gone is what the rule is told of a machine whose enrolment has ended.
func gone(who store.Identity) store.Sign {
	return store.Sign{
		Machine: who.Machine, Account: who.AuthToken, Tier: who.Tier, Enrolled: who.Enrolled,
		Events: []store.Event{{Kind: store.Gone}},
	}
}

// Enrol keeps a machine under a new token. A token that it had before dies.
func (d *DB) Enrol(ctx context.Context, h store.Hash, m store.Machine) error {
	return d.EnrolAll(ctx, []store.Enrolled{{Token: h, Machine: m}})
}

// EnrolAll is [DB.Enrol] for many machines in one transaction.
func (d *DB) EnrolAll(ctx context.Context, machines []store.Enrolled) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		for _, m := range machines {
			if err := q.UpsertMachine(ctx, db.UpsertMachineParams{
				ID: m.ID, TokenHash: m.Token[:], AuthTokenID: m.AuthToken, Hostname: m.Hostname, AgentVersion: m.Version,
				Arch: m.Facts.Arch, Release: m.Facts.Release, BuildID: string(m.Facts.BuildID),
				KernelVersion: m.Facts.KernelVersion, Distribution: m.Facts.Distribution, BootID: m.Facts.BootID,
				EnrolledAt: m.Enrolled.Unix(), LastSeen: m.LastSeen.Unix(),
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Identify returns whose machine token has that hash, or [store.ErrNotFound].
func (d *DB) Identify(ctx context.Context, h store.Hash) (store.Identity, error) {
	r, err := d.read.queries.MachineByToken(ctx, h[:])
	if err != nil {
		return store.Identity{}, wrap(err)
	}
	return store.Identity{
		Token: h, Machine: r.ID, AuthToken: r.AuthTokenID, Tier: r.Tier,
		Enrolled: time.Unix(r.EnrolledAt, 0).UTC(), Revoked: r.RevokedAt.Valid,
	}, nil
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

// Leave ends a machine's enrolment, or returns [store.ErrNotFound]. The rule is told: a
// machine that has left is not one that fell silent.
func (d *DB) Leave(ctx context.Context, who store.Identity) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err := q.DeleteMachine(ctx, who.Token[:])
		if err := found(n, err); err != nil {
			return err
		}
		return keepSigns(q, []store.Sign{gone(who)})
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
			At: time.Unix(r.At, 0).UTC(), Reason: r.Reason, Message: r.Message, Signature: r.Signature,
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
