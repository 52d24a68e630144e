package keys_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/modsig"
	"livepatch/publisher/internal/sign"
)

func moduleFile(s *keys.Store, name string) string { return filepath.Join(s.Dir, name+".kmod.json") }

func createModule(t *testing.T, s *keys.Store, name string) crypto.Signer {
	t.Helper()
	k, err := s.CreateModule(name, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func same(a, b crypto.Signer) bool { return a.Public().(*rsa.PublicKey).Equal(b.Public()) }

func TestAModuleKeySignsAfterItWasStored(t *testing.T) {
	s := store(t)
	created := createModule(t, s, "kmod")
	opened, err := s.OpenModule("kmod", passphrase)
	if err != nil || !same(created, opened) {
		t.Fatalf("OpenModule = %v", err)
	}
	id, err := modsig.KeyID(created.Public())
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.Modules()
	if err != nil || len(all) != 1 || all[0].Name != "kmod" || all[0].ID != hex.EncodeToString(id) || all[0].Kind != keys.Encrypted {
		t.Errorf("Modules = %+v, %v", all, err)
	}
	if others, err := s.List(); err != nil || len(others) != 0 {
		t.Errorf("List = %+v, %v; want nothing that signs metadata", others, err)
	}
	b, err := os.ReadFile(moduleFile(s, "kmod"))
	if err != nil || strings.Contains(string(b), "PRIVATE") {
		t.Errorf("file = %s, %v", b, err)
	}
	if st, err := os.Stat(moduleFile(s, "kmod")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", st, err)
	}
	if _, err := s.CreateModule("kmod", passphrase); !errors.Is(err, keys.ErrExists) {
		t.Errorf("CreateModule over another = %v, want ErrExists", err)
	}
	if _, err := s.CreateModule("../kmod", passphrase); err == nil {
		t.Error("CreateModule took a path as a name")
	}
}

func TestOpenModuleRefuses(t *testing.T) {
	s := store(t)
	createModule(t, s, "kmod")
	second := createModule(t, s, "second")
	whole, err := os.ReadFile(moduleFile(s, "kmod"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := modsig.KeyID(second.Public())
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(moduleFile(s, "second"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		content    []byte
		mode       os.FileMode
		passphrase string
		want       error
	}{
		"a wrong passphrase":       {whole, 0o600, "wrong horse", keys.ErrPassphrase},
		"a file that others read":  {whole, 0o640, "correct horse", keys.ErrExposed},
		"no JSON":                  {[]byte("{"), 0o600, "correct horse", keys.ErrCorrupt},
		"null":                     {[]byte("null"), 0o600, "correct horse", keys.ErrCorrupt},
		"the file of another":      {other, 0o600, "correct horse", keys.ErrCorrupt},
		"another key's identifier": {[]byte(strings.Replace(string(whole), `"keyid":"`, `"keyid":"`+hex.EncodeToString(id), 1)), 0o600, "correct horse", keys.ErrCorrupt},
		"no secret":                {[]byte(strings.Replace(string(whole), `"secret"`, `"none"`, 1)), 0o600, "correct horse", keys.ErrCorrupt},
		"a secret and a place":     {[]byte(strings.Replace(string(whole), `"name"`, `"at":"pkcs11:x","name"`, 1)), 0o600, "correct horse", keys.ErrCorrupt},
		"longer than any is":       {append(append([]byte{}, whole...), make([]byte, 20<<10)...), 0o600, "correct horse", keys.ErrCorrupt},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			path := moduleFile(s, "kmod")
			if err := errors.Join(os.WriteFile(path, tc.content, tc.mode), os.Chmod(path, tc.mode)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.OpenModule("kmod", []byte(tc.passphrase)); !errors.Is(err, tc.want) {
				t.Errorf("OpenModule = %v, want %v", err, tc.want)
			}
		})
	}
	if _, err := s.OpenModule("none", passphrase); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("OpenModule of none = %v, want ErrNotFound", err)
	}
}

// A safe is a backend that holds one RSA key.
type safe struct {
	key crypto.Signer
	err error
}

func (s *safe) Open(context.Context, string, string) (sign.Signer, error) { return nil, keys.ErrScheme }
func (s *safe) OpenRSA(context.Context, string, string) (crypto.Signer, error) {
	return s.key, s.err
}

func generate(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestARingFindsModuleKeys(t *testing.T) {
	s := store(t)
	stored := createModule(t, s, "kmod")
	box := &safe{key: generate(t)}
	ring := keys.NewRing(s, func(context.Context, string, bool) ([]byte, error) { return passphrase, nil },
		map[string]keys.Backend{"safe": box, "drawer": &drawer{}})
	if _, err := ring.AdoptModule(t.Context(), "token", "safe:1"); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		ref  string
		want crypto.Signer
	}{"by name": {"kmod", stored}, "by a name in a token": {"token", box.key}, "by its place": {"safe:1", box.key}} {
		if got, err := ring.Module(t.Context(), tc.ref); err != nil || !same(got, tc.want) {
			t.Errorf("%s: Module = %v", name, err)
		}
	}
	if _, err := ring.Module(t.Context(), "drawer:1"); !errors.Is(err, keys.ErrScheme) {
		t.Errorf("Module in a backend without such keys = %v, want ErrScheme", err)
	}
	if _, err := ring.Module(t.Context(), "none"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("Module of no name = %v, want ErrNotFound", err)
	}
	if _, err := ring.CreateModule(t.Context(), "kmod"); !errors.Is(err, keys.ErrExists) {
		t.Errorf("CreateModule over another = %v, want ErrExists", err)
	}
	if _, err := s.OpenModule("token", passphrase); !errors.Is(err, keys.ErrElsewhere) {
		t.Errorf("OpenModule of a key in a token = %v, want ErrElsewhere", err)
	}
	box.key = generate(t)
	if _, err := ring.Module(t.Context(), "token"); !errors.Is(err, keys.ErrCorrupt) {
		t.Errorf("Module after the token was exchanged = %v, want ErrCorrupt", err)
	}
	box.err = sign.ErrAbsent
	if _, err := ring.Module(t.Context(), "token"); !errors.Is(err, sign.ErrAbsent) {
		t.Errorf("Module without the token = %v, want ErrAbsent", err)
	}
}

func TestOpenPEM(t *testing.T) {
	k := generate(t)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	tests := map[string]struct {
		content []byte
		mode    os.FileMode
		want    error
	}{
		"PKCS #8":                     {block("PRIVATE KEY", pkcs8), 0o600, nil},
		"PKCS #1":                     {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k)), 0o400, nil},
		"after its certificate":       {append(block("CERTIFICATE", []byte("x")), block("PRIVATE KEY", pkcs8)...), 0o600, nil},
		"that others may read":        {block("PRIVATE KEY", pkcs8), 0o644, keys.ErrExposed},
		"with a passphrase":           {block("ENCRYPTED PRIVATE KEY", pkcs8), 0o600, keys.ErrKind},
		"of an elliptic curve, SEC 1": {block("EC PRIVATE KEY", sec1), 0o600, keys.ErrKind},
		"cut off":                     {block("PRIVATE KEY", pkcs8[:100]), 0o600, keys.ErrKind},
		"no PEM":                      {pkcs8, 0o600, keys.ErrKind},
		"empty":                       {nil, 0o600, keys.ErrKind},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key.pem")
			if err := errors.Join(os.WriteFile(path, tc.content, 0o600), os.Chmod(path, tc.mode)); err != nil {
				t.Fatal(err)
			}
			got, err := keys.OpenPEM(path)
			if !errors.Is(err, tc.want) || tc.want == nil && (err != nil || !same(got, k)) {
				t.Errorf("OpenPEM = %v, want %v", err, tc.want)
			}
		})
	}
}

// FuzzModuleFile reads key files that hold anything. What is taken is a public key
// under its own identifier.
func FuzzModuleFile(f *testing.F) {
	s := &keys.Store{Dir: f.TempDir()}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	if err := s.AdoptModule("kmod", k.Public(), "pkcs11:x"); err != nil {
		f.Fatal(err)
	}
	path := moduleFile(s, "kmod")
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(`{"name":"kmod","public":"AA=="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		public, err := s.Module("kmod")
		if err != nil {
			return
		}
		if id, err := modsig.KeyID(public.Public); err != nil || hex.EncodeToString(id) != public.ID || public.Name != "kmod" {
			t.Errorf("Module = %+v, %v", public, err)
		}
	})
}
