package modsig

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Bits is the length of the keys that are made here. Kernels take RSA wherever
// they check modules at all; elliptic curves only from 5.13 on and only where
// the distribution has built them in, which Debian has not.
const Bits = 4096

// minBits is the length of the shortest key that is of use.
const minBits = 2048

// oidModuleSigning marks a key that signs kernel modules. shim does not start a
// program that such a key has signed, so that whoever enrols it trusts it with
// modules only.
var oidModuleSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 2312, 16, 1, 2}

// GenerateKey makes a key that can sign kernel modules.
func GenerateKey() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, Bits) }

// KeyID returns the subject key identifier that a certificate of a key gets:
// method 1 of RFC 7093.
func KeyID(public crypto.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20], nil
}

// SelfSign makes the certificate of a key as kernel and shim want it: an end
// entity that signs itself, for modules and nothing else. It is DER.
func SelfSign(key crypto.Signer, name string, from, until time.Time) ([]byte, error) {
	if err := checkKey(key.Public()); err != nil {
		return nil, err
	}
	id, err := KeyID(key.Public())
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.SetBit(serial, 126, 1), // of 16 bytes, and not negative
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    from, NotAfter: until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{oidModuleSigning},
		BasicConstraintsValid: true,
		SubjectKeyId:          id, AuthorityKeyId: id,
		SignatureAlgorithm: x509.SHA256WithRSA,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cannot make certificate: %w", err)
	}
	return der, nil
}

// checkKey returns an error matching [ErrKey] unless kernels take signatures of
// a key.
func checkKey(public crypto.PublicKey) error {
	key, ok := public.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("%w: it is a %T, want RSA", ErrKey, public)
	}
	if n := key.N.BitLen(); n < minBits {
		return fmt.Errorf("%w: it has %d bits, want %d or more", ErrKey, n, minBits)
	}
	return nil
}

// ParseCertificate reads a certificate for kernel modules, in DER or PEM. The
// error matches [ErrCertificate].
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	if block, rest := pem.Decode(b); block != nil {
		if block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("%w: want one block CERTIFICATE and nothing after it", ErrCertificate)
		}
		b = block.Bytes
	}
	cert, err := x509.ParseCertificate(b)
	if err == nil {
		err = checkCertificate(cert)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return cert, nil
}

// checkCertificate returns why a certificate would be of no use: for kernels do
// not look at its usages, but people who enrol it do.
func checkCertificate(cert *x509.Certificate) error {
	if err := checkKey(cert.PublicKey); err != nil {
		return err
	}
	limited := len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0
	forCode := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny)
	forModules := slices.ContainsFunc(cert.UnknownExtKeyUsage, oidModuleSigning.Equal)
	switch {
	case len(cert.SubjectKeyId) == 0:
		return errors.New("it has no subject key identifier, by which kernels show keys")
	case len(cert.SubjectKeyId) > 64:
		return fmt.Errorf("its subject key identifier has %d bytes", len(cert.SubjectKeyId))
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("its usage is not to sign")
	case limited && !forCode && !forModules:
		return errors.New("its extended usage is neither code signing nor module signing")
	}
	return nil
}

// HexID returns the subject key identifier of a certificate as kernels show it
// and as metadata calls the key: in lower-case hexadecimal.
func HexID(cert *x509.Certificate) string { return hex.EncodeToString(cert.SubjectKeyId) }
