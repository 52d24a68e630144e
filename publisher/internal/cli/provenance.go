package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"livepatch/publisher/internal/description"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/provenance"
	"livepatch/publisher/internal/repo"
	"livepatch/publisher/internal/sign"
)

var errNoSigner = errors.New("no key of the vendor is here to sign the provenance")

// provenance returns how a module was built: as the file says, or as far as it is
// known here.
func (a *app) provenance(ctx context.Context, r *repo.Repo, ring *keys.Ring, f addFlags, add repo.Addition) ([]byte, error) {
	if f.provenance != "" {
		b, err := readFile(f.provenance, provenance.MaxSize)
		if err != nil {
			return nil, fmt.Errorf("cannot read provenance: %w", err)
		}
		return b, nil
	}
	known := provenance.Facts{Module: add.Module, Digest: sha256.Sum256(add.Content), Builder: f.builder, Now: a.Now()}
	for _, s := range f.sources {
		source, err := provenance.ParseSource(s)
		if err != nil {
			return nil, fmt.Errorf("--source: %w", err)
		}
		known.Sources = append(known.Sources, source)
	}
	b, err := readFile(f.description, description.MaxLength)
	if err != nil {
		return nil, fmt.Errorf("cannot read description: %w", err)
	}
	known.Description = sha256.Sum256(b)
	signer, err := anySigner(ctx, r, ring, f.vendor)
	if err != nil {
		return nil, err
	}
	return provenance.Make(ctx, known, signer)
}

// anySigner opens the first key of a vendor that is at hand.
func anySigner(ctx context.Context, r *repo.Repo, ring *keys.Ring, vendor string) (sign.Signer, error) {
	who, err := r.Keys(vendor)
	if err != nil {
		return nil, err
	}
	held, err := ring.Held(ctx, who.IDs)
	if err != nil {
		return nil, err
	}
	for _, id := range held {
		s, err := ring.Signer(ctx, id)
		if !errors.Is(err, sign.ErrAbsent) {
			return s, err
		}
	}
	return nil, fmt.Errorf("%w in %s", errNoSigner, ring.Dir())
}
