//go:build cgo

package token

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/miekg/pkcs11"
)

// OpenRSA returns the RSA key that an URI names, which signs kernel modules.
// Errors match those of [Backend.Open].
func (b *Backend) OpenRSA(ctx context.Context, name, uri string) (crypto.Signer, error) {
	o, err := b.find(ctx, name, uri, pkcs11.CKK_RSA)
	if err != nil {
		return nil, err
	}
	got, err := o.attributes(pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, err
	}
	n, e := new(big.Int).SetBytes(got[0]), new(big.Int).SetBytes(got[1])
	if n.Sign() == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
		return nil, fmt.Errorf("%w: its public half is none", ErrNoKey)
	}
	return &rsaSigner{public: &rsa.PublicKey{N: n, E: int(e.Int64())}, object: o}, nil
}

// An rsaSigner is an RSA key in a token.
type rsaSigner struct {
	public *rsa.PublicKey
	object
}

// Public implements [crypto.Signer].
func (s *rsaSigner) Public() crypto.PublicKey { return s.public }

// hashes are the object identifiers of the hashes that it signs.
var hashes = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
	crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// Sign implements [crypto.Signer] with PKCS #1 v1.5. The token is handed the hash
// in a DigestInfo (RFC 8017, section 9.2), so that it need not know the hash and
// is not sent the whole module.
func (s *rsaSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	oid, ok := hashes[opts.HashFunc()]
	if _, pss := opts.(*rsa.PSSOptions); pss || !ok || len(digest) != opts.HashFunc().Size() {
		return nil, errors.New("token is not asked to sign otherwise than with PKCS #1 v1.5 and SHA-2")
	}
	info, err := asn1.Marshal(struct {
		Hash   pkix.AlgorithmIdentifier
		Digest []byte
	}{pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.NullRawValue}, digest})
	if err != nil {
		return nil, err
	}
	return s.sign(pkcs11.CKM_RSA_PKCS, info)
}
