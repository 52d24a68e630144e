package keys

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"livepatch/publisher/internal/modsig"
)

// CreateModule makes a key that signs modules.
func (r *Ring) CreateModule(ctx context.Context, name string) (crypto.Signer, error) {
	if _, err := r.store.Module(name); !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("cannot create key %s: %w", name, errors.Join(ErrExists, err))
	}
	passphrase, err := r.newPassphrase(ctx, name)
	if err != nil {
		return nil, err
	}
	return r.store.CreateModule(name, passphrase)
}

// AdoptModule writes down a key that signs modules and is at a URI, after it was
// found there.
func (r *Ring) AdoptModule(ctx context.Context, name, uri string) (crypto.Signer, error) {
	signer, err := r.reachModule(ctx, name, uri)
	if err != nil {
		return nil, fmt.Errorf("cannot add key %s: %w", name, err)
	}
	if _, err := modsig.KeyID(signer.Public()); err != nil {
		return nil, fmt.Errorf("cannot add key %s: %w", name, err)
	}
	return signer, r.store.AdoptModule(name, signer.Public(), uri)
}

// Module opens a key that signs modules. It is named by what it is called here,
// by the URI of its place, or by a file in PEM.
func (r *Ring) Module(ctx context.Context, ref string) (crypto.Signer, error) {
	if scheme, _, ok := strings.Cut(ref, ":"); ok && r.backends[scheme] != nil {
		return r.reachModule(ctx, ref, ref)
	}
	public, err := r.store.Module(ref)
	if errors.Is(err, ErrNotFound) {
		signer, perr := OpenPEM(ref)
		if errors.Is(perr, fs.ErrNotExist) {
			return nil, err
		}
		return signer, perr
	}
	if err != nil {
		return nil, err
	}
	if public.Kind == Foreign {
		return r.openForeignModule(ctx, public)
	}
	var signer crypto.Signer
	err = r.unlock(ctx, ref, func(passphrase []byte) (err error) {
		signer, err = r.store.OpenModule(ref, passphrase)
		return err
	})
	return signer, err
}

// openForeignModule opens a key in a token, which must be the one that its file
// says.
func (r *Ring) openForeignModule(ctx context.Context, public ModuleKey) (crypto.Signer, error) {
	signer, err := r.reachModule(ctx, public.Name, public.At)
	if err == nil && !sameKey(signer.Public(), public.Public) {
		err = fmt.Errorf("%w: there is another key at %s", ErrCorrupt, public.At)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open key %s: %w", public.Name, err)
	}
	return signer, nil
}

func (r *Ring) reachModule(ctx context.Context, name, uri string) (crypto.Signer, error) {
	scheme, _, _ := strings.Cut(uri, ":")
	b, ok := r.backends[scheme].(ModuleBackend)
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrScheme, uri)
	}
	return b.OpenRSA(ctx, name, uri)
}
