//go:build !cgo

package token

import (
	"context"
	"crypto"

	"livepatch/publisher/internal/sign"
)

// library is what a program without cgo has of PKCS #11.
type library struct{}

// Open returns [ErrNoCgo], or [ErrURI] if the URI would not be valid either.
func (b *Backend) Open(_ context.Context, _, uri string) (sign.Signer, error) {
	if _, err := parse(uri); err != nil {
		return nil, err
	}
	return nil, ErrNoCgo
}

// OpenRSA returns the same errors.
func (b *Backend) OpenRSA(_ context.Context, _, uri string) (crypto.Signer, error) {
	if _, err := parse(uri); err != nil {
		return nil, err
	}
	return nil, ErrNoCgo
}

// Close does nothing.
func (b *Backend) Close() error { return nil }
