package modsig

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
)

// A Signature is what a module's signature says. That it is good is for
// [Signature.Verify] to find out.
type Signature struct {
	// Issuer and Serial name the certificate of the key; or, if Serial is nil,
	// KeyID does, by its subject key identifier.
	Issuer string
	Serial *big.Int
	KeyID  []byte
	Hash   crypto.Hash

	issuer    []byte // DER
	algorithm x509.SignatureAlgorithm
	value     []byte
}

// Signer names the certificate of the key in a line.
func (s Signature) Signer() string {
	if s.Serial == nil {
		return "key " + hex.EncodeToString(s.KeyID)
	}
	return fmt.Sprintf("%s, serial %x", s.Issuer, s.Serial)
}

// The types of CMS, as far as a module's signature has them (RFC 5652, section 5).
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,optional,tag:0"`
	}
	signedData struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      contentInfo
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		Revocations  asn1.RawValue `asn1:"optional,tag:1"`
		Signers      []signerInfo  `asn1:"set"`
	}
	signerInfo struct {
		Version    int
		Signer     asn1.RawValue // issuerAndSerial, or [0] with the key identifier
		Digest     pkix.AlgorithmIdentifier
		Signed     asn1.RawValue `asn1:"optional,tag:0"` // attributes
		Encryption pkix.AlgorithmIdentifier
		Signature  []byte
		Unsigned   asn1.RawValue `asn1:"optional,tag:1"` // attributes
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
)

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidSHA384     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	oidSHA512     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}
)

// A digest is a hash that signatures of modules are made with.
type digest struct {
	name string
	hash crypto.Hash
	oid  asn1.ObjectIdentifier
	rsa  x509.SignatureAlgorithm
}

// digests are the hashes that are safe and that kernels know.
var digests = []digest{
	{"sha256", crypto.SHA256, oidSHA256, x509.SHA256WithRSA},
	{"sha384", crypto.SHA384, oidSHA384, x509.SHA384WithRSA},
	{"sha512", crypto.SHA512, oidSHA512, x509.SHA512WithRSA},
}

// ParseHash reads the name of a hash, as sign-file calls it.
func ParseHash(name string) (crypto.Hash, error) {
	for _, d := range digests {
		if d.name == name {
			return d.hash, nil
		}
	}
	return 0, fmt.Errorf("cannot use %.50q as a hash, need sha256, sha384 or sha512", name)
}

// HashName returns the name of a hash, as sign-file calls it.
func HashName(h crypto.Hash) string {
	for _, d := range digests {
		if d.hash == h {
			return d.name
		}
	}
	return h.String()
}

// Parse reads a signature that [Split] has found. Errors match [ErrMalformed],
// or [ErrUnsupported] if a kernel would refuse a signature of this form whatever
// it signs.
func Parse(der []byte) (Signature, error) {
	var outer contentInfo
	var data signedData
	if err := unmarshal(der, &outer); err != nil {
		return Signature{}, err
	}
	if !outer.Type.Equal(oidSignedData) {
		return Signature{}, fmt.Errorf("%w: its type is %v", ErrMalformed, outer.Type)
	}
	if err := unmarshal(outer.Content.Bytes, &data); err != nil {
		return Signature{}, err
	}
	switch {
	case !data.Content.Type.Equal(oidData) || len(data.Content.Content.FullBytes) > 0:
		return Signature{}, fmt.Errorf("%w: it holds a content, want the module before it", ErrUnsupported)
	case len(data.Signers) != 1:
		return Signature{}, fmt.Errorf("%w: it has %d signers, want one", ErrUnsupported, len(data.Signers))
	}
	return data.Signers[0].parse()
}

// unmarshal reads all of der.
func unmarshal(der []byte, to any) error {
	rest, err := asn1.Unmarshal(der, to)
	if err == nil && len(rest) > 0 {
		err = errors.New("something follows it")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

func (i signerInfo) parse() (Signature, error) {
	s := Signature{value: i.Signature}
	if len(i.Signed.FullBytes) > 0 {
		// pkcs7_verify of the kernel: "Invalid module sig (has authattrs)".
		return s, fmt.Errorf("%w: it has signed attributes", ErrUnsupported)
	}
	for _, d := range digests {
		if d.oid.Equal(i.Digest.Algorithm) && i.Encryption.Algorithm.Equal(oidRSA) {
			s.Hash, s.algorithm = d.hash, d.rsa
		}
	}
	if s.Hash == 0 {
		return s, fmt.Errorf("%w: its algorithms are %v and %v, want sha256, sha384 or sha512 and RSA", ErrUnsupported, i.Digest.Algorithm, i.Encryption.Algorithm)
	}
	if i.Signer.Class == asn1.ClassContextSpecific && i.Signer.Tag == 0 && len(i.Signer.Bytes) > 0 {
		s.KeyID = i.Signer.Bytes
		return s, nil
	}
	return s, s.parseIssuer(i.Signer.FullBytes)
}

func (s *Signature) parseIssuer(der []byte) error {
	var by issuerAndSerial
	var names pkix.RDNSequence
	if err := unmarshal(der, &by); err != nil {
		return err
	}
	if err := unmarshal(by.Issuer.FullBytes, &names); err != nil {
		return err
	}
	s.Issuer, s.Serial, s.issuer = names.String(), by.Serial, by.Issuer.FullBytes
	return nil
}

// Names tells whether this is the certificate that a signature names.
func (s Signature) Names(cert *x509.Certificate) bool {
	if s.Serial == nil {
		return len(s.KeyID) > 0 && bytes.Equal(s.KeyID, cert.SubjectKeyId)
	}
	return bytes.Equal(s.issuer, cert.RawIssuer) && s.Serial.Cmp(cert.SerialNumber) == 0
}

// Verify returns an error unless the key of a certificate has signed body, which
// is a module without its signature. The error matches [ErrOtherKey] or
// [ErrMismatch]. The dates of the certificate are not looked at, as little as by
// kernels.
func (s Signature) Verify(body []byte, cert *x509.Certificate) error {
	if !s.Names(cert) {
		return fmt.Errorf("%w: by %s, and the certificate is of %s, serial %x", ErrOtherKey, s.Signer(), cert.Subject, cert.SerialNumber)
	}
	if err := cert.CheckSignature(s.algorithm, body, s.value); err != nil {
		return fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	return nil
}

// Read reads the signature of a module. Errors match [ErrUnsigned] and those of
// [Parse].
func Read(module []byte) (body []byte, s Signature, err error) {
	body, der, err := Split(module)
	if err != nil {
		return nil, s, err
	}
	if der == nil {
		return nil, s, ErrUnsigned
	}
	s, err = Parse(der)
	return body, s, err
}
