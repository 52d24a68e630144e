package lab

import (
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"
)

// ModuleCertificate returns a certificate, in DER form, for a key that signs
// nothing: kernels that demand signatures are tested in tests/secureboot.
func ModuleCertificate() ([]byte, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test of livepatch modules"},
		SubjectKeyId: []byte("a key that signs nothing"), KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	return x509.CreateCertificate(nil, template, template, public, private)
}
