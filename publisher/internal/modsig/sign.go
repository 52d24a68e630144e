package modsig

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/smallstep/pkcs7"
)

// Sign returns a module with a signature, in place of one that it may have. The
// certificate must be that of the key. Errors match [ErrCertificate], or
// [ErrMismatch] if the key returned a signature that does not verify.
func Sign(module []byte, cert *x509.Certificate, key crypto.Signer, hash crypto.Hash) ([]byte, error) {
	body, _, err := Split(module)
	if err != nil {
		return nil, err
	}
	public, ok := key.Public().(*rsa.PublicKey)
	if !ok || !public.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%w: it is of another key", ErrCertificate)
	}
	der, err := encode(body, cert, key, hash)
	if err != nil {
		return nil, err
	}
	s, err := Parse(der)
	if err == nil {
		// One that no kernel accepts must be noticed here and not by a fleet.
		err = s.Verify(body, cert)
	}
	if err != nil {
		return nil, err
	}
	return join(body, der), nil
}

// encode makes the signature as sign-file does: detached, of the content itself
// and not of attributes, without the certificate.
func encode(body []byte, cert *x509.Certificate, key crypto.Signer, hash crypto.Hash) ([]byte, error) {
	sd, err := pkcs7.NewSignedData(body)
	if err != nil {
		return nil, err
	}
	for _, d := range digests {
		if d.hash == hash {
			sd.SetDigestAlgorithm(d.oid)
		}
	}
	// Kernels know the key's algorithm here, and none that names a hash as well.
	sd.SetEncryptionAlgorithm(oidRSA)
	if err := sd.SignWithoutAttr(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, fmt.Errorf("cannot sign module: %w", err)
	}
	sd.Detach()
	data := sd.GetSignedData()
	if len(data.SignerInfos) != 1 {
		return nil, errors.New("cannot sign module: there is more than one signer")
	}
	data.SignerInfos[0].DigestEncryptionAlgorithm.Parameters = asn1.NullRawValue // RFC 3370, section 3.2
	inner, err := asn1.Marshal(*data)                                            // and not Finish, which adds the certificate
	if err != nil {
		return nil, fmt.Errorf("cannot encode signature: %w", err)
	}
	return asn1.Marshal(contentInfo{Type: oidSignedData, Content: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: inner}})
}
