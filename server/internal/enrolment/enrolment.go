// Package enrolment knows who may ask: it makes tokens, exchanges auth tokens
// for machine tokens, and takes the reports of machines.
//
// A token is a random secret. Only its SHA-256 is kept, and it is found by that
// hash: what a comparison's time could tell is about the hash of a guess, not
// about the secret.
package enrolment

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"livepatch/internal/service"
	"livepatch/server/internal/store"
)

// Conditions that callers branch on.
var (
	ErrUnknownToken = errors.New("token is not known")
	ErrExpiredToken = errors.New("token has expired")
	ErrRevokedToken = errors.New("token has been revoked")
)

// Sizes of tokens in random bytes. A machine token has the size that tools know
// from the file that holds it: 32 hexadecimal digits.
const (
	machineTokenSize = 16
	humanTokenSize   = 16
)

// database is implemented by package sqlite.
type database interface {
	AddToken(ctx context.Context, h store.Hash, t store.Token) (int64, error)
	Token(ctx context.Context, h store.Hash) (store.Token, error)
	Enrol(ctx context.Context, h store.Hash, m store.Machine) error
	Identify(ctx context.Context, h store.Hash) (store.Identity, error)
	CheckIn(ctx context.Context, who store.Identity, r store.Report) error
	Leave(ctx context.Context, who store.Identity) error
}

// A Desk enrols machines. It is safe for concurrent use.
type Desk struct{ db database }

// New returns a Desk that keeps its books in db.
func New(db database) *Desk { return &Desk{db} }

// newToken returns a secret of size random bytes and its hash.
func newToken(size int) (secret string, h store.Hash) {
	b := make([]byte, size)
	rand.Read(b) // never fails
	secret = hex.EncodeToString(b)
	return secret, hash(secret)
}

func hash(secret string) store.Hash { return sha256.Sum256([]byte(secret)) }

// Issue makes a token of t's kind, tier, note and expiry. The secret is
// returned here and never again.
func (d *Desk) Issue(ctx context.Context, t store.Token, now time.Time) (id int64, secret string, err error) {
	secret, h := newToken(humanTokenSize)
	t.Created = now
	if id, err = d.db.AddToken(ctx, h, t); err != nil {
		return 0, "", fmt.Errorf("cannot create token: %w", err)
	}
	return id, secret, nil
}

// token returns the token of a kind that secret is, if it is in force.
func (d *Desk) token(ctx context.Context, kind store.Kind, secret string, now time.Time) (store.Token, error) {
	t, err := d.db.Token(ctx, hash(secret))
	switch {
	case errors.Is(err, store.ErrNotFound) || err == nil && t.Kind != kind:
		return store.Token{}, ErrUnknownToken
	case err != nil:
		return store.Token{}, err
	case !t.Revoked.IsZero():
		return store.Token{}, ErrRevokedToken
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return store.Token{}, ErrExpiredToken
	}
	return t, nil
}

// Enrol exchanges an auth token for a machine token. A machine that enrols
// again gets a new token, and its old one dies. The error matches one of the
// sentinels of this package, [patch.ErrInvalid] or [store.ErrUnavailable].
func (d *Desk) Enrol(ctx context.Context, secret string, r service.EnrolRequest, now time.Time) (service.Enrolment, error) {
	t, err := d.token(ctx, store.Auth, secret, now)
	if err == nil {
		err = checkEnrol(r)
	}
	if err != nil {
		return service.Enrolment{}, fmt.Errorf("cannot enrol machine: %w", err)
	}
	machine, h := newToken(machineTokenSize)
	if err := d.db.Enrol(ctx, h, store.Machine{
		ID: r.MachineID, AuthToken: t.ID, Hostname: r.Hostname, Version: r.Version, Facts: r.Facts,
		Enrolled: now, LastSeen: now,
	}); err != nil {
		return service.Enrolment{}, fmt.Errorf("cannot enrol machine: %w", err)
	}
	return service.Enrolment{MachineToken: machine, Tier: t.Tier}, nil
}

// Identify returns the machine that a machine token names. The error matches
// [ErrUnknownToken] or [ErrRevokedToken] if there is none, or none any more.
func (d *Desk) Identify(ctx context.Context, secret string) (store.Identity, error) {
	who, err := d.db.Identify(ctx, hash(secret))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return store.Identity{}, ErrUnknownToken
	case err != nil:
		return store.Identity{}, err
	case who.Revoked:
		return store.Identity{}, ErrRevokedToken
	}
	return who, nil
}

// Report returns what is kept of a check-in, or an error matching
// [patch.ErrInvalid].
func Report(r service.CheckIn, now time.Time) (store.Report, error) {
	if err := checkCheckIn(&r); err != nil {
		return store.Report{}, fmt.Errorf("cannot check in: %w", err)
	}
	return store.Report{CheckIn: r, At: now}, nil
}

// CheckIn keeps a machine's report, as [Report] has made it.
func (d *Desk) CheckIn(ctx context.Context, who store.Identity, r store.Report) error {
	err := d.db.CheckIn(ctx, who, r)
	if errors.Is(err, store.ErrNotFound) {
		err = ErrUnknownToken // enrolled again, or left, since it was identified
	}
	if err != nil {
		return fmt.Errorf("cannot check in: %w", err)
	}
	return nil
}

// Leave ends a machine's enrolment. Its token is unknown from then.
func (d *Desk) Leave(ctx context.Context, who store.Identity) error {
	if err := d.db.Leave(ctx, who); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("cannot end enrolment: %w", err)
	}
	return nil
}

// Publisher returns nil if secret is a publisher token in force.
func (d *Desk) Publisher(ctx context.Context, secret string, now time.Time) error {
	_, err := d.token(ctx, store.Publisher, secret, now)
	return err
}
