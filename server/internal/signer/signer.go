package signer

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/server/internal/store"
)

// lives is how long a role is valid after it was signed.
var lives = map[string]time.Duration{
	patch.RolloutRole:  24 * time.Hour,
	metadata.SNAPSHOT:  48 * time.Hour,
	metadata.TIMESTAMP: 24 * time.Hour,
}

// A Signer makes the online roles.
type Signer struct {
	keys Keys
}

// New returns a Signer with keys, which must hold one for each of [Roles].
func New(keys Keys) *Signer { return &Signer{keys} }

// Keys returns the keys that it signs with.
func (s *Signer) Keys() Keys { return s.keys }

// Due tells whether a role that expires at a time has to be signed anew: half
// of its life is over, or it lasts longer than it should, because the clock was
// ahead when it was signed.
func Due(role string, expires, now time.Time) bool {
	left := expires.Sub(now)
	// Expiry is in whole seconds.
	return left <= lives[role]/2 || left > lives[role]+time.Second
}

// Rollout makes a version of the rollout role out of all decisions.
func (s *Signer) Rollout(version int64, rollouts []store.Rollout, now time.Time) (store.File, error) {
	m := metadata.Targets(expiry(patch.RolloutRole, now))
	m.Signed.Version = version
	empty := sha256.Sum256(nil)
	for _, r := range rollouts {
		custom, err := json.Marshal(describe(r))
		if err != nil {
			return store.File{}, err
		}
		raw := json.RawMessage(custom)
		m.Signed.Targets[patch.RolloutPath(r.Vendor, r.Version)] = &metadata.TargetFiles{
			Hashes: metadata.Hashes{"sha256": empty[:]}, Custom: &raw,
		}
	}
	return sign(s, patch.RolloutRole, m, version, m.Signed.Expires, now)
}

// describe says of a rollout what agents and loaders must know.
func describe(r store.Rollout) patch.Rollout {
	d := patch.Rollout{
		State: r.State, SoakSeconds: int64(r.Soak / time.Second), Tiers: map[string]patch.Stage{},
		Spreads: r.Spread.Kernels, Kernels: r.Spread.States,
	}
	for _, tier := range Tiers {
		d.Tiers[tier] = patch.Stage{Share: r.Spread.Tiers[tier], Salt: r.Salt}
	}
	if w := r.Withdrawal; r.State == patch.Halted && w.Share > 0 {
		d.Withdraw = &patch.Stage{Share: w.Share, Salt: w.Salt}
	}
	return d
}

// Late is the tier of machines that are not to be canaries.
const Late = "late"

// Tiers are the tiers of a service, in the order in which patches reach them.
var Tiers = []string{"edge", "beta", "candidate", "stable", Late}

// Snapshot makes a version of the snapshot role that lists versions of the
// offline roles and of rollout.
//
// It lists versions only. Hashes of a thousand bins cannot be compressed, and
// would be most of what a machine has to fetch.
func (s *Signer) Snapshot(version int64, roles map[string]int64, now time.Time) (store.File, error) {
	m := metadata.Snapshot(expiry(metadata.SNAPSHOT, now))
	m.Signed.Version = version
	for role, v := range roles {
		m.Signed.Meta[role+".json"] = metadata.MetaFile(v)
	}
	return sign(s, metadata.SNAPSHOT, m, version, m.Signed.Expires, now)
}

// Timestamp makes a version of the timestamp role that names a snapshot.
func (s *Signer) Timestamp(version int64, snapshot store.File, now time.Time) (store.File, error) {
	m := metadata.Timestamp(expiry(metadata.TIMESTAMP, now))
	m.Signed.Version = version
	m.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": {
		Version: snapshot.Version,
		Length:  int64(len(snapshot.Body)),
		Hashes:  metadata.Hashes{"sha256": snapshot.Digest[:]},
	}}
	return sign(s, metadata.TIMESTAMP, m, version, m.Signed.Expires, now)
}

func expiry(role string, now time.Time) time.Time {
	return now.UTC().Truncate(time.Second).Add(lives[role])
}

func sign[T metadata.Roles](s *Signer, role string, m *metadata.Metadata[T], version int64, expires, now time.Time) (store.File, error) {
	signer, err := signature.LoadSigner(s.keys[role], crypto.Hash(0))
	if err != nil {
		return store.File{}, fmt.Errorf("cannot sign %s: %w", role, err)
	}
	if _, err := m.Sign(signer); err != nil {
		return store.File{}, fmt.Errorf("cannot sign %s: %w", role, err)
	}
	body, err := m.ToBytes(false)
	if err != nil {
		return store.File{}, fmt.Errorf("cannot sign %s: %w", role, err)
	}
	return NewFile(role, version, body, expires, now)
}

// NewFile prepares signed metadata for serving: it is compressed once, as well
// as gzip can.
func NewFile(role string, version int64, body []byte, expires, now time.Time) (store.File, error) {
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return store.File{}, err
	}
	if _, err := w.Write(body); err != nil {
		return store.File{}, err
	}
	if err := w.Close(); err != nil {
		return store.File{}, err
	}
	return store.File{
		Role: role, Version: version, Digest: sha256.Sum256(body), Expires: expires,
		Modified: now.UTC().Truncate(time.Second), Body: body, Gzip: packed.Bytes(),
	}, nil
}
