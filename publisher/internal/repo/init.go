package repo

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/sign"
)

// OnlineKeys are the server's public keys, by role: "snapshot", "timestamp" and
// "rollout". The server holds their private halves.
type OnlineKeys map[string]ed25519.PublicKey

// ParseOnlineKeys reads keys written in hexadecimal.
func ParseOnlineKeys(written map[string]string) (OnlineKeys, error) {
	keys := make(OnlineKeys)
	for _, role := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP, patch.RolloutRole} {
		s, ok := written[role]
		if !ok {
			return nil, fmt.Errorf("cannot read online keys: %s is missing, want 64 hexadecimal digits", role)
		}
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("cannot read online keys: %s is %q, want 64 hexadecimal digits", role, s)
		}
		keys[role] = b
	}
	if len(written) != len(keys) {
		return nil, fmt.Errorf("cannot read online keys: there are %d, want snapshot, timestamp and rollout", len(written))
	}
	return keys, nil
}

// Trust says which keys a new repository trusts.
type Trust struct {
	Root      []ed25519.PublicKey
	Targets   []ed25519.PublicKey
	Threshold int // of each
	Online    OnlineKeys
}

// Create makes a repository in dir, with root and targets signed.
func Create(ctx context.Context, dir string, now time.Time, s Trust, keys Keyring) (*Repo, error) {
	r, err := create(ctx, dir, now, s, keys)
	if err != nil {
		return nil, fmt.Errorf("cannot create repository %q: %w", dir, err)
	}
	return r, nil
}

func create(ctx context.Context, dir string, now time.Time, s Trust, keys Keyring) (*Repo, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	r, err := lock(dir, now)
	if err != nil {
		return nil, err
	}
	if err := r.create(ctx, s, keys); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Repo) create(ctx context.Context, s Trust, keys Keyring) error {
	if err := r.free(); err != nil {
		return err
	}
	r.config = defaultConfig()
	r.versions = make(map[string]int64)
	r.forget()

	e := r.edit(keys)
	e.touch(metadata.ROOT)
	r.root = metadata.Root()
	if err := s.trust(r.root); err != nil {
		return err
	}
	targets := e.create(metadata.TARGETS)
	targets.Signed.Delegations = &metadata.Delegations{Keys: make(map[string]*metadata.Key)}
	if err := delegate(targets, patch.RolloutRole, 1, s.Online[patch.RolloutRole]); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r.config, "", "\t")
	if err != nil {
		return err
	}
	e.files[configFile] = append(b, '\n')
	return e.commit(ctx)
}

// free returns an error unless a repository can be made in the folder.
func (r *Repo) free() error {
	for _, name := range []string{configFile, "metadata", "targets"} {
		if _, err := os.Lstat(filepath.Join(r.dir, name)); err == nil {
			return fmt.Errorf("%w: there is a %s", ErrExists, name)
		}
	}
	return nil
}

// Free returns an error matching [ErrExists] if dir holds a repository. It
// saves the making of keys that could not be used.
func Free(dir string, now time.Time) error {
	r, err := lock(dir, now)
	if errors.Is(err, ErrNone) {
		return nil
	}
	if err == nil {
		err = errors.Join(r.free(), r.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot create repository %q: %w", dir, err)
	}
	return nil
}

// trust makes the root say who may sign what.
func (s Trust) trust(root *authority.Root) error {
	add := func(role string, threshold int, keys ...ed25519.PublicKey) error {
		for _, public := range keys {
			key, err := sign.Key(public)
			if err != nil {
				return err
			}
			if err := root.Signed.AddKey(key, role); err != nil {
				return err
			}
		}
		root.Signed.Roles[role].Threshold = threshold
		return nil
	}
	return errors.Join(
		add(metadata.ROOT, s.Threshold, s.Root...),
		add(metadata.TARGETS, s.Threshold, s.Targets...),
		add(metadata.SNAPSHOT, 1, s.Online[metadata.SNAPSHOT]),
		add(metadata.TIMESTAMP, 1, s.Online[metadata.TIMESTAMP]),
	)
}

// delegate appends a role that is alone responsible for the folder of its name.
func delegate(targets *authority.Targets, role string, threshold int, keys ...ed25519.PublicKey) error {
	d := targets.Signed.Delegations
	ids := make([]string, 0, len(keys))
	for _, public := range keys {
		key, err := sign.Key(public)
		if err != nil {
			return err
		}
		id, err := key.ID()
		if err != nil {
			return err
		}
		d.Keys[id] = key
		ids = append(ids, id)
	}
	d.Roles = append(d.Roles, metadata.DelegatedRole{
		Name: role, KeyIDs: ids, Threshold: threshold, Terminating: true, Paths: []string{role + "/*"},
	})
	return nil
}

// Bounds of the number of a vendor's bins, as powers of two.
const (
	MinBits     = 8
	MaxBits     = 12
	DefaultBits = 10
)

var vendorName = regexp.MustCompile(`^[a-z][a-z0-9]{0,31}$`)

// CheckVendorName returns an error unless name can be that of a vendor, and of
// its role.
func CheckVendorName(name string) error {
	switch name {
	case metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP, patch.RolloutRole:
		return fmt.Errorf("cannot use %q as a vendor: %w: it is the name of another role", name, patch.ErrInvalid)
	}
	if !vendorName.MatchString(name) {
		return fmt.Errorf("cannot use %q as a vendor: %w: want lower-case letters and digits", name, patch.ErrInvalid)
	}
	return nil
}

// CheckNewVendor returns an error unless a vendor can be added.
func (r *Repo) CheckNewVendor(name string, bits int) error {
	if err := CheckVendorName(name); err != nil {
		return err
	}
	if bits < MinBits || bits > MaxBits {
		return fmt.Errorf("cannot use %d bits for bins, need %d to %d", bits, MinBits, MaxBits)
	}
	if r.versions[name] != 0 {
		return fmt.Errorf("cannot add vendor %q: it is there already", name)
	}
	return nil
}

// AddVendor delegates the folder of that name to a role which both people sign,
// and makes its 2^bits bins, all empty: a machine that asks for what is not
// there gets a signed answer.
func (r *Repo) AddVendor(ctx context.Context, keys Keyring, name string, bits int, builder, approver ed25519.PublicKey) error {
	if err := r.CheckNewVendor(name, bits); err != nil {
		return err
	}
	e := r.edit(keys)
	targets, err := e.role(metadata.TARGETS)
	if err != nil {
		return err
	}
	if err := delegate(targets, name, 2, builder, approver); err != nil {
		return err
	}
	added := targets.Signed.Delegations.Roles[len(targets.Signed.Delegations.Roles)-1]
	bins := &metadata.SuccinctRoles{KeyIDs: added.KeyIDs, Threshold: added.Threshold, BitLength: bits, NamePrefix: name}
	vendor := e.create(name)
	vendor.Signed.Delegations = &metadata.Delegations{Keys: make(map[string]*metadata.Key), SuccinctRoles: bins}
	for _, id := range added.KeyIDs {
		vendor.Signed.Delegations.Keys[id] = targets.Signed.Delegations.Keys[id]
	}
	for _, bin := range bins.GetRoles() {
		e.create(bin)
	}
	if err := e.commit(ctx); err != nil {
		return fmt.Errorf("cannot add vendor %q: %w", name, err)
	}
	return nil
}
