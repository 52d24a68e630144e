// Package sign puts signatures on TUF metadata. It does not know where a key
// lies: a [Signer] may hold it in a file, or ask a token or an agent.
package sign

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
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

// Conditions that callers branch on.
var (
	// ErrFaulty reports a signer that returned a signature that does not verify.
	ErrFaulty = errors.New("signature does not verify with the key's public half")
	// ErrMissing reports that a role cannot be signed with the keys at hand.
	ErrMissing = errors.New("not enough of its keys are here")
	// ErrAbsent reports a key in a token or an agent that is not there now.
	// Another key may sign in its place.
	ErrAbsent = errors.New("what holds the key is not there")
)

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
	payload, err := cjson.EncodeCanonical(meta.Signed)
	if err != nil {
		return nil, err
	}
	for _, s := range signers {
		id, err := KeyID(s.Public())
		if err != nil {
			return nil, err
		}
		sig, err := Message(ctx, s, payload)
		if err != nil {
			return nil, fmt.Errorf("cannot sign with key %s: %w", s.Name(), err)
		}
		meta.Signatures = append(meta.Signatures, metadata.Signature{KeyID: id, Signature: sig})
	}
	return meta.ToBytes(false)
}

// Message signs a message and checks the signature: one that nobody accepts must
// be noticed here and not by a fleet.
func Message(ctx context.Context, s Signer, message []byte) ([]byte, error) {
	sig, err := s.Sign(ctx, message)
	if err != nil {
		return nil, err
	}
	if !ed25519.Verify(s.Public(), message, sig) {
		return nil, ErrFaulty
	}
	return sig, nil
}
