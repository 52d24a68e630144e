package sign_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/publisher/internal/sign"
)

// A fakeSigner signs with a key of its own, or answers as it is told.
type fakeSigner struct {
	private ed25519.PrivateKey
	sig     []byte
	err     error
}

func newSigner(seed byte) *fakeSigner {
	b := make([]byte, ed25519.SeedSize)
	b[0] = seed
	return &fakeSigner{private: ed25519.NewKeyFromSeed(b)}
}

func (s *fakeSigner) Name() string              { return "fake" }
func (s *fakeSigner) Public() ed25519.PublicKey { return s.private.Public().(ed25519.PublicKey) }
func (s *fakeSigner) Sign(ctx context.Context, message []byte) ([]byte, error) {
	if s.err != nil || s.sig != nil {
		return s.sig, s.err
	}
	return ed25519.Sign(s.private, message), ctx.Err()
}

// root returns a root that two of the signers must sign.
func root(t *testing.T, signers ...*fakeSigner) *metadata.Metadata[metadata.RootType] {
	t.Helper()
	m := metadata.Root(time.Date(2027, 11, 22, 3, 0, 0, 0, time.UTC))
	for _, s := range signers {
		key, err := sign.Key(s.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Signed.AddKey(key, metadata.ROOT); err != nil {
			t.Fatal(err)
		}
	}
	m.Signed.Roles[metadata.ROOT].Threshold = 2
	return m
}

func TestEncode(t *testing.T) {
	a, b := newSigner(1), newSigner(2)
	m := root(t, a, b)
	// Signatures that it had before do not stay.
	if _, err := sign.Encode(t.Context(), m, []sign.Signer{newSigner(3)}); err != nil {
		t.Fatal(err)
	}
	out, err := sign.Encode(t.Context(), m, []sign.Signer{a, b})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := metadata.Root().FromBytes(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(signed.Signatures) != 2 {
		t.Errorf("%d signatures, want 2", len(signed.Signatures))
	}
	if err := signed.VerifyDelegate(metadata.ROOT, signed); err != nil {
		t.Errorf("go-tuf does not accept it: %v", err)
	}
	var compact json.RawMessage
	if err := json.Unmarshal(out, &compact); err != nil || len(compact) != len(out) {
		t.Errorf("encoding is not compact: %v", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	key := newSigner(1).private
	errBroken := errors.New("token was pulled out")
	tests := map[string]struct {
		signer *fakeSigner
		want   error
	}{
		"a signer that fails":           {&fakeSigner{private: key, err: errBroken}, errBroken},
		"a signature of another key":    {&fakeSigner{private: key, sig: ed25519.Sign(newSigner(2).private, []byte("x"))}, sign.ErrFaulty},
		"a signature that is too short": {&fakeSigner{private: key, sig: []byte("x")}, sign.ErrFaulty},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := sign.Encode(t.Context(), root(t, newSigner(1)), []sign.Signer{tc.signer}); !errors.Is(err, tc.want) {
				t.Errorf("Encode = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestEncodeStopsWhenAsked(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sign.Encode(ctx, root(t, newSigner(1)), []sign.Signer{newSigner(1)}); !errors.Is(err, context.Canceled) {
		t.Errorf("Encode with a context that is done = %v, want it to say so", err)
	}
}

func TestKeyID(t *testing.T) {
	id, err := sign.KeyID(newSigner(1).Public())
	if err != nil || len(id) != 64 {
		t.Errorf("KeyID = %q, %v", id, err)
	}
	if _, err := sign.KeyID([]byte("short")); err == nil {
		t.Error("KeyID of 5 bytes: no error")
	}
}
