// Package store says what the service keeps, in words that fit any database.
// Package sqlite keeps it in one file; a server with many replicas would add a
// second implementation beside it.
package store

import (
	"context"
	"errors"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// Conditions that callers branch on.
var (
	// ErrNotFound means that there is no such row.
	ErrNotFound = errors.New("no such record")
	// ErrConflict means that somebody else changed what the caller had read.
	ErrConflict = errors.New("changed by somebody else meanwhile")
	// ErrUnavailable means that the store cannot answer or cannot write now:
	// full or failing disk, locked database. Nothing was changed.
	ErrUnavailable = errors.New("storage is not available")
)

// A Kind says what a token is good for.
type Kind string

// The kinds of tokens.
const (
	Auth      Kind = "auth"      // enrols machines
	Publisher Kind = "publisher" // publishes
)

// A Hash is the SHA-256 of a token. Only hashes are kept.
type Hash [32]byte

// A Token is what is known of a token whose secret is not kept.
type Token struct {
	ID       int64
	Kind     Kind
	Tier     string
	Note     string
	Created  time.Time
	Expires  time.Time // zero: never
	Revoked  time.Time // zero: in force
	Machines int64     // enrolled with it; filled in by lists only
}

// A Machine is an enrolled machine with its last report.
type Machine struct {
	ID         string
	AuthToken  int64 // ID of the token that enrolled it
	Tier       string
	Revoked    bool // its auth token was revoked
	Hostname   string
	Version    string // of its agent
	Facts      service.Facts
	Enrolled   time.Time
	LastSeen   time.Time
	Generation int64
	Patch      service.Patch // zero: none in force
}

// An Enrolled is a machine with the hash of its token.
type Enrolled struct {
	Token Hash
	Machine
}

// An Identity is the machine that a machine token names.
type Identity struct {
	Token     Hash
	Machine   string
	AuthToken int64 // ID of the token that enrolled it
	Tier      string
	Enrolled  time.Time
	Revoked   bool // its auth token was revoked
}

// A Report is one check-in to be kept.
type Report struct {
	service.CheckIn
	At time.Time
	// Sign is what the rule is to be told of it; nil for nothing.
	Sign *Sign
}

// A File is one version of a role's signed metadata.
type File struct {
	Role     string
	Version  int64
	Digest   patch.Digest // of Body
	Expires  time.Time
	Modified time.Time // whole seconds; grows with every version of a role
	Body     []byte
	Gzip     []byte // Body, compressed
}

// A Role is the current version of a role.
type Role struct {
	Version   int64
	Published time.Time // by this service
	Expires   time.Time
}

// A State is what has to be known before signing or publishing.
type State struct {
	Generation  int64 // grows whenever signed files change
	Publication int64 // grows with each publication
	Epoch       int64 // grows with each decision about a rollout
	SignedEpoch int64 // last epoch that was signed
	Roles       map[string]Role
}

// A Target is a name under which a blob was uploaded.
type Target struct {
	Path      string
	Digest    patch.Digest
	Length    int64
	Uploaded  time.Time
	Published bool // named by a signed file, and so served
}

// A Kernel is what a published kernel index says of support.
type Kernel struct {
	Path   string       // of the index
	Role   string       // bin that lists it
	Digest patch.Digest // of the index
	Series string       // "6.1"
	patch.Index
}

// A Rollout is the state of a vendor's patch version.
type Rollout struct {
	Vendor, Version string
	State           patch.RolloutState
	Salt            string
	Soak            time.Duration
	Created         time.Time
	Updated         time.Time
	Spread          Spread
	Withdrawal      Withdrawal
}

// A Decision is what somebody decided about a rollout.
type Decision struct {
	Epoch           int64 // that it counted; filled in by the store
	At              time.Time
	By              string // the account
	Reason          string // in that person's words; may be empty
	Vendor, Version string
	State           patch.RolloutState
	// Withdraw is the share, in parts per million, to which machines give the patch up
	// from this decision on; 0 if it is not part of a revocation in stages.
	Withdraw int64
}

// A Tx is one transaction over what is published. It sees its own writes.
type Tx interface {
	People

	State(ctx context.Context) (State, error)
	File(ctx context.Context, role string, version int64) (File, error)
	Rollouts(ctx context.Context) ([]Rollout, error)
	Rollout(ctx context.Context, vendor, version string) (Rollout, error)

	// PutFile makes f the current version of its role.
	PutFile(ctx context.Context, f File) error
	// PublishTarget makes an uploaded target served. It returns ErrNotFound if
	// path, digest and length were not uploaded together.
	PublishTarget(ctx context.Context, t Target) error
	// AddRollout adds a rollout unless there is one of that vendor and version.
	AddRollout(ctx context.Context, r Rollout) error
	// SetRollout changes the state of a rollout, counts an epoch, and keeps the
	// decision under that epoch.
	SetRollout(ctx context.Context, d Decision) (epoch int64, err error)
	// Decisions returns the decisions of epochs above one, in their order.
	Decisions(ctx context.Context, epoch int64) ([]Decision, error)
	// KernelsOf maps the paths of a bin's kernel indexes to their digests.
	KernelsOf(ctx context.Context, role string) (map[string]patch.Digest, error)
	PutKernel(ctx context.Context, k Kernel) error
	DeleteKernel(ctx context.Context, role, path string) error
	// PutRound keeps all that the rule has made of a round. The error matches
	// [ErrConflict] if somebody else leads by now.
	PutRound(ctx context.Context, r Round) error
	// CountPublication marks the transaction as a publication.
	CountPublication(ctx context.Context) error
	// CountGeneration marks signed files as changed and every decision about a
	// rollout so far as signed.
	CountGeneration(ctx context.Context) (generation int64, err error)
}
