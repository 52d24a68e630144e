// Package sign puts signatures on TUF metadata. It does not know where a key
// lies: a [Signer] may hold it in a file, or ask a token or an agent.
package sign

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// A Signer signs with one ed25519 key.
type Signer interface {
	// Name is what people call the key, "debian-builder".
	Name() string
	// Public is the key that verifies what Sign returns.
	Public() ed25519.PublicKey
	// Sign signs a message. It may take as long as a person needs to touch a
	// token.
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// ErrFaulty reports a signer that returned a signature that does not verify.
var ErrFaulty = errors.New("signature does not verify with the key's public half")

// Key returns the public key as it stands in metadata.
func Key(public ed25519.PublicKey) (*metadata.Key, error) {
	if len(public) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("cannot use %d bytes as a public key, need %d", len(public), ed25519.PublicKeySize)
	}
	return metadata.KeyFromPublicKey(public)
}

// KeyID returns the name that metadata calls a key by: the hash of its
// canonical form.
func KeyID(public ed25519.PublicKey) (string, error) {
	key, err := Key(public)
	if err != nil {
		return "", err
	}
	return key.ID()
}

// Encode signs meta with all signers, in place of the signatures it has, and
// returns it as JSON without white space.
func Encode[T metadata.Roles](ctx context.Context, meta *metadata.Metadata[T], signers []Signer) ([]byte, error) {
	meta.ClearSignatures()
	for _, s := range signers {
		a := &adapter{ctx: ctx, Signer: s}
		if _, err := meta.Sign(a); err != nil {
			return nil, fmt.Errorf("cannot sign with key %s: %w", s.Name(), cmp.Or(a.err, err))
		}
	}
	return meta.ToBytes(false)
}

// adapter makes a Signer usable by go-tuf, whose interface has no place for
// the context.
type adapter struct {
	Signer
	ctx context.Context //nolint:containedctx // lives for one call of Encode
	err error           // why the signer failed, which go-tuf does not tell
}

// PublicKey implements [signature.PublicKeyProvider].
func (a *adapter) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return a.Public(), nil
}

// SignMessage implements [signature.Signer].
func (a *adapter) SignMessage(message io.Reader, _ ...signature.SignOption) (sig []byte, err error) {
	defer func() { a.err = err }()
	b, err := io.ReadAll(message)
	if err != nil {
		return nil, err
	}
	sig, err = a.Sign(a.ctx, b)
	if err != nil {
		return nil, err
	}
	// A signature that nobody accepts must be noticed here and not by a fleet.
	if !ed25519.Verify(a.Public(), b, sig) {
		return nil, ErrFaulty
	}
	return sig, nil
}
