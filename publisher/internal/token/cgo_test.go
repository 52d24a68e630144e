//go:build cgo

package token

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"livepatch/publisher/internal/modsig"
	"livepatch/publisher/internal/sign"
)

const (
	pin    = "2468"
	softPK = "/usr/lib/softhsm/libsofthsm2.so" // of Debian's libsofthsm2
)

// curve is the OID of ed25519 (RFC 8410) as PKCS #11 wants it in CKA_EC_PARAMS,
// and curveName the older form by name, which SoftHSM 2.6 knows as well.
var curve = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}

// softHSM makes a token with two ed25519 keys, root-1 and root-2, and a key of
// another kind. It returns their URIs by name.
func softHSM(t *testing.T) map[string]string {
	t.Helper()
	if _, err := os.Stat(softPK); err != nil {
		t.Skip("SoftHSM is not installed; scripts/setup.sh does it")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	must(t, os.Mkdir(filepath.Join(dir, "tokens"), 0o700))
	must(t, os.WriteFile(conf, []byte("directories.tokendir = "+dir+"/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	t.Setenv("SOFTHSM2_CONF", conf)
	p := pkcs11.New(softPK)
	must(t, p.Initialize())
	defer p.Destroy()
	defer p.Finalize()
	slots, err := p.GetSlotList(false)
	must(t, err)
	must(t, p.InitToken(slots[0], "1234", "offline"))
	slots, err = p.GetSlotList(true)
	must(t, err)
	s, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(t, err)
	must(t, p.Login(s, pkcs11.CKU_SO, "1234"))
	must(t, p.InitPIN(s, pin))
	must(t, p.Logout(s))
	must(t, p.Login(s, pkcs11.CKU_USER, pin))
	uris := make(map[string]string)
	for n, name := range []string{"root-1", "root-2", "twice", "twice"} {
		generate(t, p, s, name, byte(n+1))
		uris[name] = uri("offline", "object="+name)
	}
	generateRSA(t, p, s, "modules", 9)
	uris["modules"] = uri("offline", "object=modules")
	return uris
}

// generateRSA makes the kind of key that signs kernel modules.
func generateRSA(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle, name string, id byte) {
	t.Helper()
	common := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, name),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{id}),
	}
	public := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true), pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 2048),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
	}, common...)
	private := append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true)}, common...)
	_, _, err := p.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}, public, private)
	must(t, err)
}

func TestAnRSAKeyInATokenSignsModules(t *testing.T) {
	uris := softHSM(t)
	b, _ := backend(t, pin)
	key, err := b.OpenRSA(t.Context(), "modules", uris["modules"])
	must(t, err)
	now := time.Now()
	der, err := modsig.SelfSign(key, "Example modules", now, now.AddDate(1, 0, 0))
	must(t, err)
	cert, err := modsig.ParseCertificate(der)
	must(t, err)
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		// Sign itself verifies what the token returns.
		signed, err := modsig.Sign([]byte("a module"), cert, key, hash)
		must(t, err)
		body, s, err := modsig.Read(signed)
		must(t, err)
		must(t, s.Verify(body, cert))
	}
	digest := make([]byte, 32)
	for name, opts := range map[string]crypto.SignerOpts{
		"PSS":                      &rsa.PSSOptions{Hash: crypto.SHA256},
		"SHA-1":                    crypto.SHA1,
		"a hash of another length": crypto.SHA512,
	} {
		if _, err := key.Sign(nil, digest, opts); err == nil {
			t.Errorf("token signs with %s", name)
		}
	}
}

func TestAKeyOfAnotherKindIsNotFound(t *testing.T) {
	uris := softHSM(t)
	b, _ := backend(t, pin)
	if _, err := b.OpenRSA(t.Context(), "root-1", uris["root-1"]); !errors.Is(err, ErrNoKey) {
		t.Errorf("OpenRSA of an ed25519 key = %v, want ErrNoKey", err)
	}
	if _, err := b.Open(t.Context(), "modules", uris["modules"]); !errors.Is(err, ErrNoKey) {
		t.Errorf("Open of an RSA key = %v, want ErrNoKey", err)
	}
}

func uri(token, key string) string {
	return "pkcs11:token=" + url.PathEscape(token) + ";" + key + "?module-path=" + softPK
}

func generate(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle, name string, id byte) {
	t.Helper()
	common := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, name),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{id}),
	}
	public := append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, curve)}, common...)
	private := append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true)}, common...)
	_, _, err := p.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanismGenerate, nil)}, public, private)
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// backend returns a backend whose person types a PIN, and how often.
func backend(t *testing.T, pin string) (b *Backend, asked *int) {
	t.Helper()
	asked = new(int)
	b = &Backend{PIN: func(context.Context, string) ([]byte, error) { *asked++; return []byte(pin), nil }}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, asked
}

func TestAKeyInATokenSigns(t *testing.T) {
	uris := softHSM(t)
	b, asked := backend(t, pin)
	var publics []ed25519.PublicKey
	for _, name := range []string{"root-1", "root-2", "root-1"} {
		s, err := b.Open(t.Context(), name, uris[name])
		must(t, err)
		for n := range 3 {
			message := fmt.Appendf(nil, "message %d", n)
			sig, err := sign.Message(t.Context(), s, message)
			if err != nil || !ed25519.Verify(s.Public(), message, sig) {
				t.Errorf("%s: Message = %x, %v", name, sig, err)
			}
		}
		if s.Name() != name {
			t.Errorf("name = %q", s.Name())
		}
		publics = append(publics, s.Public())
	}
	if publics[0].Equal(publics[1]) || !publics[0].Equal(publics[2]) {
		t.Errorf("public keys = %x, want the first and the third alike", publics)
	}
	if *asked != 1 {
		t.Errorf("asked %d times for the PIN of one token, want once", *asked)
	}
	byID, err := b.Open(t.Context(), "root-2", uri("offline", "id=%02"))
	must(t, err)
	if !byID.Public().Equal(publics[1]) {
		t.Error("the key found by its id is another than that found by its label")
	}
}

func TestThePINMayLieInAFile(t *testing.T) {
	uris := softHSM(t)
	b, asked := backend(t, "wrong")
	file := filepath.Join(t.TempDir(), "pin")
	must(t, os.WriteFile(file, []byte(pin+"\n"), 0o600))
	if _, err := b.Open(t.Context(), "root-1", uris["root-1"]+"&pin-source=file:"+file); err != nil || *asked != 0 {
		t.Errorf("Open = %v, asked %d times", err, *asked)
	}
}

func TestOpenRefuses(t *testing.T) {
	uris := softHSM(t)
	tests := map[string]struct {
		uri, pin string
		want     error
	}{
		"a token that is not there":            {uri("another", "object=root-1"), pin, sign.ErrAbsent},
		"a library that is not there":          {strings.ReplaceAll(uris["root-1"], "softhsm2", "none"), pin, sign.ErrAbsent},
		"a library that is none":               {strings.ReplaceAll(uris["root-1"], softPK, "/etc/passwd"), pin, ErrURI},
		"a key that is not there":              {uri("offline", "object=root-3"), pin, ErrNoKey},
		"two keys of one name":                 {uris["twice"], pin, ErrNoKey},
		"a wrong PIN":                          {uris["root-1"], "1357", ErrPIN},
		"a PIN in the URI, right as it may be": {uris["root-1"] + "&pin-value=" + pin, pin, ErrURI},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b, _ := backend(t, tc.pin)
			if _, err := b.Open(t.Context(), "root-1", tc.uri); !errors.Is(err, tc.want) {
				t.Errorf("Open = %v, want %v", err, tc.want)
			}
		})
	}
}

// Three wrong PINs can lock a token for good.
func TestAWrongPINIsTriedOnce(t *testing.T) {
	uris := softHSM(t)
	b, asked := backend(t, "1357")
	for _, name := range []string{"root-1", "root-2"} {
		if _, err := b.Open(t.Context(), name, uris[name]); !errors.Is(err, ErrPIN) {
			t.Errorf("Open = %v, want ErrPIN", err)
		}
	}
	if *asked != 1 {
		t.Errorf("asked %d times, want once", *asked)
	}
}

func TestPoint(t *testing.T) {
	raw := make([]byte, 32)
	raw[0] = 7
	tests := map[string]struct {
		b  []byte
		ok bool
	}{
		"as PKCS #11 3.0 has it": {raw, true},
		"as an OCTET STRING":     {append([]byte{4, 32}, raw...), true},
		"of another curve":       {append([]byte{4, 65}, make([]byte, 65)...), false},
		"empty":                  {nil, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := point(tc.b)
			if (err == nil) != tc.ok || tc.ok && !got.Equal(ed25519.PublicKey(raw)) {
				t.Errorf("point = %x, %v", got, err)
			}
		})
	}
}
