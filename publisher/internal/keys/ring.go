package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/sign"
)

// MinPassphrase is the length of the shortest passphrase that a new key takes,
// in bytes.
const MinPassphrase = 8

// ErrScheme reports a key at a place that this program cannot reach.
var ErrScheme = errors.New("place of the key is not known")

// A Prompt asks for the passphrase of a key. For a key that is about to be
// created a person is asked twice.
type Prompt func(ctx context.Context, key string, created bool) ([]byte, error)

// A Backend opens keys that are in a token or an agent.
type Backend interface {
	// Open returns the key at a URI, called name. The error matches
	// [sign.ErrAbsent] if what holds the key is not there now.
	Open(ctx context.Context, name, uri string) (sign.Signer, error)
}

// A Ring finds and opens keys of a [Store], each when it is needed. It tries a
// passphrase on the next key before it asks for another.
type Ring struct {
	store    *Store
	ask      Prompt
	backends map[string]Backend // by the scheme of their URIs
	known    [][]byte           // passphrases that have opened a key
	opened   map[string]sign.Signer
	names    map[string]string // of keys, by ID; nil if they are not read yet
}

// NewRing returns a ring of the keys in store. Backends are those of keys that
// are elsewhere, by the scheme of their URIs ("pkcs11"); there may be none.
func NewRing(store *Store, ask Prompt, backends map[string]Backend) *Ring {
	return &Ring{store: store, ask: ask, backends: backends, opened: make(map[string]sign.Signer)}
}

// Dir is the folder of the keys.
func (r *Ring) Dir() string { return r.store.Dir }

// Ensure returns the key of that name, or creates it. A key that is there
// already is used, so that a command that was interrupted can be repeated and
// keys can be made on another machine before.
//
// A key whose private half can be reached from here is opened, which proves
// that it belongs to the public half that is about to be trusted.
func (r *Ring) Ensure(ctx context.Context, name string) (Public, error) {
	public, err := r.store.Get(name)
	if errors.Is(err, ErrNotFound) {
		return r.create(ctx, name)
	}
	if err != nil || public.Kind == Others {
		return public, err
	}
	_, err = r.open(ctx, public)
	return public, err
}

func (r *Ring) create(ctx context.Context, name string) (Public, error) {
	passphrase, err := r.newPassphrase(ctx, name)
	if err != nil {
		return Public{}, err
	}
	k, err := r.store.Create(name, passphrase)
	if err != nil {
		return Public{}, err
	}
	r.opened[name], r.names = k, nil
	return k.public, nil
}

// newPassphrase returns that of a key which is about to be created: the first
// that is known, or one that is asked for.
func (r *Ring) newPassphrase(ctx context.Context, name string) ([]byte, error) {
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
	return r.known[0], nil
}

// Adopt writes down a key that is at a URI, after it was found there.
func (r *Ring) Adopt(ctx context.Context, name, uri string) (Public, error) {
	s, err := r.reach(ctx, name, uri)
	if err != nil {
		return Public{}, fmt.Errorf("cannot add key %s: %w", name, err)
	}
	r.names = nil
	return r.store.Adopt(name, s.Public(), uri)
}

// Held returns those of ids whose private half can be reached from here, in the
// order of their names. None is opened.
func (r *Ring) Held(_ context.Context, ids []string) ([]string, error) {
	all, err := r.store.List()
	if err != nil {
		return nil, err
	}
	var held []string
	for _, public := range all {
		if public.Kind != Others && slices.Contains(ids, public.ID) && !slices.Contains(held, public.ID) {
			held = append(held, public.ID)
		}
	}
	return held, nil
}

// Signer opens a key that Held named. The error matches [sign.ErrAbsent] if its
// token or agent is not there now.
func (r *Ring) Signer(ctx context.Context, id string) (sign.Signer, error) {
	all, err := r.store.List()
	if err != nil {
		return nil, err
	}
	for _, public := range all {
		if public.ID == id && public.Kind != Others {
			return r.open(ctx, public)
		}
	}
	return nil, fmt.Errorf("cannot open key with ID %s: %w", id, ErrNotFound)
}

// Name returns what the key is called here, or the start of its ID.
func (r *Ring) Name(id string) string {
	if r.names == nil {
		r.names = make(map[string]string)
		all, _ := r.store.List() // a name is a help and no more
		for _, public := range all {
			r.names[public.ID] = public.Name
		}
	}
	if name, ok := r.names[id]; ok {
		return name
	}
	return authority.Short(id)
}

func (r *Ring) open(ctx context.Context, public Public) (sign.Signer, error) {
	if k, ok := r.opened[public.Name]; ok {
		return k, nil
	}
	if public.Kind == Foreign {
		return r.openForeign(ctx, public)
	}
	err := r.unlock(ctx, public.Name, func(passphrase []byte) error {
		k, err := r.store.Open(public.Name, passphrase)
		if err == nil {
			r.opened[public.Name] = k
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.opened[public.Name], nil
}

// unlock calls open with the passphrases that are known, and then with one that
// is asked for, until it does not return [ErrPassphrase].
func (r *Ring) unlock(ctx context.Context, name string, open func(passphrase []byte) error) error {
	for _, passphrase := range r.known {
		if err := open(passphrase); !errors.Is(err, ErrPassphrase) {
			return err
		}
	}
	passphrase, err := r.ask(ctx, name, false)
	if err != nil {
		return fmt.Errorf("cannot open key %s: %w", name, err)
	}
	if err := open(passphrase); err != nil {
		return err
	}
	if !slices.ContainsFunc(r.known, func(p []byte) bool { return bytes.Equal(p, passphrase) }) {
		r.known = append(r.known, passphrase)
	}
	return nil
}

// openForeign opens a key in a token or an agent, which must be the one that
// its file says.
func (r *Ring) openForeign(ctx context.Context, public Public) (sign.Signer, error) {
	s, err := r.reach(ctx, public.Name, public.At)
	if err != nil {
		return nil, fmt.Errorf("cannot open key %s: %w", public.Name, err)
	}
	if !public.Key.Equal(s.Public()) {
		return nil, fmt.Errorf("cannot open key %s: %w: there is another key at %s", public.Name, ErrCorrupt, public.At)
	}
	r.opened[public.Name] = s
	return s, nil
}

func (r *Ring) reach(ctx context.Context, name, uri string) (sign.Signer, error) {
	scheme, _, _ := strings.Cut(uri, ":")
	b, ok := r.backends[scheme]
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrScheme, uri)
	}
	return b.Open(ctx, name, uri)
}
