package modsig_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"livepatch/publisher/internal/modsig"
)

// The files of testdata were made with openssl and with the kernel's own
// sign-file (linux-kbuild-6.1): module.ko is what was signed, sha256.ko and
// sha512.ko what came of it, keyid.ko the same with -k. The key is for nothing
// else.
func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func certificate(t testing.TB) *x509.Certificate {
	t.Helper()
	cert, err := modsig.ParseCertificate(file(t, "certificate.x509"))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func key(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(file(t, "key.pem"))
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k.(*rsa.PrivateKey)
}

func TestSignEqualsSignFile(t *testing.T) {
	for name, hash := range map[string]crypto.Hash{"sha256.ko": crypto.SHA256, "sha512.ko": crypto.SHA512} {
		got, err := modsig.Sign(file(t, "module.ko"), certificate(t), key(t), hash)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, file(t, name)) {
			t.Errorf("%s: signature differs from that of sign-file", name)
		}
	}
}

func TestSignReplacesASignature(t *testing.T) {
	got, err := modsig.Sign(file(t, "keyid.ko"), certificate(t), key(t), crypto.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, file(t, "sha512.ko")) {
		t.Error("module that was signed before came out otherwise")
	}
}

func TestVerifyTakesWhatSignFileMade(t *testing.T) {
	tests := map[string]struct {
		file   string
		hash   crypto.Hash
		signer string
	}{
		"sha256":                   {"sha256.ko", crypto.SHA256, "CN=Kernel modules,O=Example, serial "},
		"sha512":                   {"sha512.ko", crypto.SHA512, "CN=Kernel modules,O=Example, serial "},
		"named by key identifiers": {"keyid.ko", crypto.SHA256, "key " + modsig.HexID(certificate(t))},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			body, s, err := modsig.Read(file(t, tc.file))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(body, certificate(t)); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(body, file(t, "module.ko")) {
				t.Error("body is not the module")
			}
			if s.Hash != tc.hash || !strings.HasPrefix(s.Signer(), tc.signer) {
				t.Errorf("signer %q, hash %v, want %q and %v", s.Signer(), s.Hash, tc.signer, tc.hash)
			}
		})
	}
}

// Another reader of CMS has to agree.
func TestLibraryVerifiesWhatSignMade(t *testing.T) {
	signed, err := modsig.Sign(file(t, "module.ko"), certificate(t), key(t), crypto.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	body, der, err := modsig.Split(signed)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Certificates) != 0 || len(p.Content) != 0 {
		t.Errorf("signature holds %d certificates and %d bytes of content", len(p.Certificates), len(p.Content))
	}
	p.Content, p.Certificates = body, []*x509.Certificate{certificate(t)}
	if err := p.Verify(); err != nil {
		t.Error(err)
	}
}

// other returns a key and its certificate.
func other(t testing.TB) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	der, err := modsig.SelfSign(k, "Example modules", from, from.AddDate(10, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := modsig.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return k, cert
}

func TestVerifyRefuses(t *testing.T) {
	_, stranger := other(t)
	twin := *certificate(t)
	twin.PublicKey = stranger.PublicKey
	good := file(t, "sha256.ko")
	changed := bytes.Clone(good)
	changed[500] ^= 1
	tests := map[string]struct {
		module []byte
		cert   *x509.Certificate
		want   error
	}{
		"a module that was changed":                {changed, certificate(t), modsig.ErrMismatch},
		"the certificate of another":               {good, stranger, modsig.ErrOtherKey},
		"the certificate of another, by its key":   {file(t, "keyid.ko"), stranger, modsig.ErrOtherKey},
		"another key under the certificate's name": {good, &twin, modsig.ErrMismatch},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			body, s, err := modsig.Read(tc.module)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(body, tc.cert); !errors.Is(err, tc.want) {
				t.Errorf("Verify = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	const marker = "~Module signature appended~\n"
	good := file(t, "sha256.ko")
	edit := func(at int, b byte) []byte { // counted from the end of the trailer
		c := bytes.Clone(good)
		c[len(c)-len(marker)-12+at] = b
		return c
	}
	body := file(t, "module.ko")
	tests := map[string]struct {
		module []byte
		want   error
	}{
		"unsigned":                    {body, modsig.ErrUnsigned},
		"empty":                       {nil, modsig.ErrUnsigned},
		"a marker without its end":    {good[:len(good)-1], modsig.ErrUnsigned},
		"only a marker":               {[]byte(marker), modsig.ErrMalformed},
		"only a trailer":              {good[len(good)-12-len(marker):], modsig.ErrMalformed},
		"of another type":             {edit(2, 1), modsig.ErrMalformed},
		"with an algorithm":           {edit(0, 1), modsig.ErrMalformed},
		"with padding":                {edit(7, 1), modsig.ErrMalformed},
		"of no length":                {append(bytes.Clone(body), []byte("\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00"+marker)...), modsig.ErrMalformed},
		"longer than the file":        {edit(8, 1), modsig.ErrMalformed},
		"shorter than it says itself": {edit(11, good[len(good)-len(marker)-1]-1), modsig.ErrMalformed},
		"that is no DER":              {append(bytes.Clone(body), []byte("junk\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x04"+marker)...), modsig.ErrMalformed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, _, err := modsig.Read(tc.module); !errors.Is(err, tc.want) {
				t.Errorf("Read = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestParseRefusesWhatKernelsDo(t *testing.T) {
	k, cert := key(t), certificate(t)
	make := func(sign func(*pkcs7.SignedData) error) []byte {
		sd, err := pkcs7.NewSignedData(file(t, "module.ko"))
		if err == nil {
			sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
			err = sign(sd)
		}
		if err != nil {
			t.Fatal(err)
		}
		der, err := sd.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	plain := func(sd *pkcs7.SignedData) error {
		sd.SetEncryptionAlgorithm(pkcs7.OIDEncryptionAlgorithmRSA)
		return sd.SignWithoutAttr(cert, k, pkcs7.SignerInfoConfig{})
	}
	degenerate, err := pkcs7.DegenerateCertificate(cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"signed attributes": make(func(sd *pkcs7.SignedData) error {
			defer sd.Detach()
			return sd.AddSigner(cert, k, pkcs7.SignerInfoConfig{})
		}),
		"the module inside": make(plain),
		"nobody has signed": degenerate,
		"two signers":       make(func(sd *pkcs7.SignedData) error { defer sd.Detach(); return errors.Join(plain(sd), plain(sd)) }),
		"SHA-1": make(func(sd *pkcs7.SignedData) error {
			defer sd.Detach()
			sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA1)
			return plain(sd)
		}),
		"an algorithm that names both": make(func(sd *pkcs7.SignedData) error {
			defer sd.Detach()
			return sd.SignWithoutAttr(cert, k, pkcs7.SignerInfoConfig{})
		}),
	}
	for name, der := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := modsig.Parse(der); !errors.Is(err, modsig.ErrUnsupported) {
				t.Errorf("Parse = %v, want %v", err, modsig.ErrUnsupported)
			}
		})
	}
	if _, err := modsig.Parse(make(func(sd *pkcs7.SignedData) error { defer sd.Detach(); return plain(sd) })); err != nil {
		t.Errorf("with the certificate inside: %v", err)
	}
}

// A faulty signer must be noticed before its work is published.
type faulty struct{ *rsa.PrivateKey }

func (f faulty) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	b, err := f.PrivateKey.Sign(r, digest, o)
	if err == nil {
		b[7] ^= 1
	}
	return b, err
}

func TestSignRefuses(t *testing.T) {
	stranger, _ := other(t)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		key  crypto.Signer
		want error
	}{
		"a certificate of another key":         {stranger, modsig.ErrCertificate},
		"a key of another kind":                {curve, modsig.ErrCertificate},
		"a token that returns a bad signature": {faulty{key(t)}, modsig.ErrMismatch},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := modsig.Sign(file(t, "module.ko"), certificate(t), tc.key, crypto.SHA256); !errors.Is(err, tc.want) {
				t.Errorf("Sign = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestSelfSignedCertificate(t *testing.T) {
	k, cert := other(t)
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		t.Error(err)
	}
	if cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA %v, usage %v", cert.IsCA, cert.KeyUsage)
	}
	if len(cert.ExtKeyUsage) != 1 || len(cert.UnknownExtKeyUsage) != 1 || cert.UnknownExtKeyUsage[0].String() != "1.3.6.1.4.1.2312.16.1.2" {
		t.Errorf("extended usage %v, %v", cert.ExtKeyUsage, cert.UnknownExtKeyUsage)
	}
	if len(cert.SubjectKeyId) != 20 || !bytes.Equal(cert.SubjectKeyId, cert.AuthorityKeyId) {
		t.Errorf("key identifiers %x and %x", cert.SubjectKeyId, cert.AuthorityKeyId)
	}
	signed, err := modsig.Sign(file(t, "module.ko"), cert, k, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	body, s, err := modsig.Read(signed)
	if err == nil {
		err = s.Verify(body, cert)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestParseCertificate(t *testing.T) {
	der := file(t, "certificate.x509")
	inPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	k, _ := other(t)
	self := func(edit func(*x509.Certificate), public crypto.PublicKey, signer crypto.Signer) []byte {
		c := *certificate(t)
		c.RawSubject, c.RawIssuer, c.SignatureAlgorithm, c.PublicKey = nil, nil, x509.UnknownSignatureAlgorithm, public
		edit(&c)
		b, err := x509.CreateCertificate(rand.Reader, &c, &c, public, signer)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rsa := func(edit func(*x509.Certificate)) []byte { return self(edit, k.Public(), k) }
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		b    []byte
		says string // "": it is taken
	}{
		"DER":                        {der, ""},
		"PEM":                        {inPEM, ""},
		"without usages":             {rsa(func(c *x509.Certificate) { c.KeyUsage, c.ExtKeyUsage, c.UnknownExtKeyUsage = 0, nil, nil }), ""},
		"for modules only":           {rsa(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), ""},
		"two of them":                {append(bytes.Clone(inPEM), inPEM...), "nothing after it"},
		"a key":                      {file(t, "key.pem"), "want one block CERTIFICATE"},
		"cut off":                    {der[:len(der)-1], "x509"},
		"empty":                      {nil, "x509"},
		"an elliptic curve":          {self(func(*x509.Certificate) {}, curve.Public(), curve), "want RSA"},
		"without a key identifier":   {rsa(func(c *x509.Certificate) { c.SubjectKeyId = nil }), "no subject key identifier"},
		"with a long key identifier": {rsa(func(c *x509.Certificate) { c.SubjectKeyId = make([]byte, 65) }), "65 bytes"},
		"to encrypt with":            {rsa(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "not to sign"},
		"of a server": {rsa(func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, nil
		}), "neither code signing"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := modsig.ParseCertificate(tc.b)
			if tc.says == "" && err != nil {
				t.Errorf("ParseCertificate = %v", err)
			}
			if tc.says != "" && (!errors.Is(err, modsig.ErrCertificate) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("ParseCertificate = %v, want it to say %q", err, tc.says)
			}
		})
	}
}

func TestShortKeysMakeNoCertificate(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := modsig.SelfSign(curve, "x", time.Now(), time.Now()); !errors.Is(err, modsig.ErrKey) {
		t.Errorf("SelfSign = %v, want %v", err, modsig.ErrKey)
	}
}

func TestHashes(t *testing.T) {
	for _, name := range []string{"sha256", "sha384", "sha512"} {
		h, err := modsig.ParseHash(name)
		if err != nil || modsig.HashName(h) != name {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	for _, name := range []string{"", "sha1", "SHA256", "md5"} {
		if h, err := modsig.ParseHash(name); err == nil {
			t.Errorf("%q is %v", name, h)
		}
	}
}

// FuzzRead reads modules that end in anything. What is taken for signed is a
// body, a signature that names somebody, and their trailer.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"sha256.ko", "keyid.ko", "module.ko"} {
		b := file(f, name)
		f.Add(b[900:])
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte("\x00\x00\x02\x00\x00\x00\x00\x00\xff\xff\xff\xff~Module signature appended~\n"))
	cert := certificate(f)
	f.Fuzz(func(t *testing.T, module []byte) {
		body, s, err := modsig.Read(module)
		if err != nil {
			if strings.Contains(err.Error(), "%!") {
				t.Errorf("%v", err)
			}
			return
		}
		if len(body) == 0 || len(body) >= len(module) || s.Hash == 0 || s.Signer() == "" || (s.Serial == nil) != (len(s.KeyID) > 0) {
			t.Errorf("signature %+v of %d bytes", s, len(body))
		}
		_ = s.Verify(body, cert) // whatever it says, it must come back
	})
}
