package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"livepatch/publisher/internal/sign"
)

// MinPassphrase is the length of the shortest passphrase that a new key takes,
// in bytes.
const MinPassphrase = 8

// ErrMissing reports that a role cannot be signed with the keys at hand.
var ErrMissing = errors.New("not enough of its keys are here")

// A Prompt asks for the passphrase of a key. For a key that is about to be
// created a person is asked twice.
type Prompt func(ctx context.Context, key string, created bool) ([]byte, error)

// A Ring finds and opens keys of a [Store], each when it is needed. It tries a
// passphrase on the next key before it asks for another.
type Ring struct {
	store  *Store
	ask    Prompt
	known  [][]byte // passphrases that have opened a key
	opened map[string]*Key
}

// NewRing returns a ring of the keys in store.
func NewRing(store *Store, ask Prompt) *Ring {
	return &Ring{store: store, ask: ask, opened: make(map[string]*Key)}
}

// Ensure opens the key of that name, or creates it. A key that is there already
// is used, so that a command that was interrupted can be repeated and keys can
// be made on another machine before.
func (r *Ring) Ensure(ctx context.Context, name string) (sign.Signer, error) {
	k, err := r.open(ctx, name)
	if !errors.Is(err, ErrNotFound) {
		return k, err
	}
	if len(r.known) == 0 {
		passphrase, err := r.ask(ctx, name, true)
		if err != nil {
			return nil, fmt.Errorf("cannot create key %s: %w", name, err)
		}
		if len(passphrase) < MinPassphrase {
			return nil, fmt.Errorf("cannot create key %s: passphrase has %d characters, want %d or more", name, len(passphrase), MinPassphrase)
		}
		r.known = append(r.known, passphrase)
	}
	k, err = r.store.Create(name, r.known[0])
	if err != nil {
		return nil, err
	}
	r.opened[name] = k
	return k, nil
}

// Signers returns n signers whose keys are among ids, or an error matching
// [ErrMissing].
func (r *Ring) Signers(ctx context.Context, ids []string, n int) ([]sign.Signer, error) {
	all, err := r.store.List()
	if err != nil {
		return nil, err
	}
	var signers []sign.Signer
	for _, public := range all {
		if len(signers) == n {
			break
		}
		if !slices.Contains(ids, public.ID) {
			continue
		}
		k, err := r.open(ctx, public.Name)
		if err != nil {
			return nil, err
		}
		signers = append(signers, k)
	}
	if len(signers) < n {
		return nil, fmt.Errorf("%w: %d of %d needed in %s", ErrMissing, len(signers), n, r.store.Dir)
	}
	return signers, nil
}

func (r *Ring) open(ctx context.Context, name string) (*Key, error) {
	if k, ok := r.opened[name]; ok {
		return k, nil
	}
	// Asking first whether there is such a file spares the question for a
	// passphrase that could not be used.
	if _, _, err := r.store.read(name); err != nil {
		return nil, err
	}
	for _, passphrase := range r.known {
		k, err := r.store.Open(name, passphrase)
		if !errors.Is(err, ErrPassphrase) {
			r.keep(k, nil)
			return k, err
		}
	}
	passphrase, err := r.ask(ctx, name, false)
	if err != nil {
		return nil, fmt.Errorf("cannot open key %s: %w", name, err)
	}
	k, err := r.store.Open(name, passphrase)
	r.keep(k, passphrase)
	return k, err
}

// keep remembers a key that could be opened, and with which passphrase.
func (r *Ring) keep(k *Key, passphrase []byte) {
	if k == nil {
		return
	}
	r.opened[k.Name()] = k
	if passphrase != nil && !slices.ContainsFunc(r.known, func(p []byte) bool { return bytes.Equal(p, passphrase) }) {
		r.known = append(r.known, passphrase)
	}
}
