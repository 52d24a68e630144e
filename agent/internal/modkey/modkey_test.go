package modkey_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/modkey"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
)

const (
	ours   = "0bf1a2c3d4e5f60718293a4b5c6d7e8f90a1b2c3"
	debian = "6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1"
)

// makeDER returns the DER of a certificate with a subject key identifier.
func makeDER(t testing.TB, id []byte) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Livepatch modules"}, SubjectKeyId: id,
		NotBefore: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2036, 11, 19, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// shipped returns a certificate of our key, as it was read from a file.
func shipped(t testing.TB) (c modkey.Certificate, tbs []byte) {
	t.Helper()
	id, err := hex.DecodeString(ours)
	if err != nil {
		t.Fatal(err)
	}
	der := makeDER(t, id)
	path := filepath.Join(t.TempDir(), "livepatch-kmod.x509")
	if err := os.WriteFile(path, der, 0o600); err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return modkey.Read(path), cert.RawTBSCertificate
}

func TestJudge(t *testing.T) {
	cert, tbs := shipped(t)
	s256, s384 := sha256.Sum256(tbs), sha512.Sum384(tbs)
	by256, by384 := fmt.Sprintf("tbs:%x", s256), fmt.Sprintf("tbs:%x", s384)
	keys := []string{debian, ours}
	tests := map[string]struct {
		key           string
		keys, revoked []string
		cert          modkey.Certificate
		want          modkey.Verdict
	}{
		"enrolled":                                 {ours, keys, nil, cert, modkey.Enrolled},
		"enrolled, and nothing was shipped":        {ours, keys, nil, modkey.Certificate{}, modkey.Enrolled},
		"not enrolled":                             {ours, []string{debian}, nil, cert, modkey.Missing},
		"no key can be read":                       {ours, nil, nil, cert, modkey.Unknown},
		"no signature":                             {"", keys, nil, cert, modkey.Unsigned},
		"no signature, and no key can be read":     {"", nil, nil, modkey.Certificate{}, modkey.Unsigned},
		"enrolled and revoked by key":              {ours, keys, []string{"key:" + ours}, cert, modkey.Revoked},
		"revoked by hash":                          {ours, keys, []string{by256}, cert, modkey.Revoked},
		"revoked by another hash":                  {ours, []string{debian}, []string{"tbs:00", by384}, cert, modkey.Revoked},
		"revoked by the firmware, with a time":     {ours, keys, []string{by256 + strings.Repeat("0", 32)}, cert, modkey.Revoked},
		"revoked by half a hash":                   {ours, keys, []string{by256[:36]}, cert, modkey.Enrolled},
		"another key is revoked":                   {debian, keys, []string{by256, "key:" + ours}, cert, modkey.Enrolled},
		"revoked by hash, and nothing was shipped": {ours, keys, []string{by256}, modkey.Certificate{}, modkey.Enrolled},
		"a hash of a program":                      {ours, keys, []string{"bin" + by256[3:]}, cert, modkey.Enrolled},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := modkey.Judge(loader.Kernel{ModuleKeys: tc.keys, RevokedKeys: tc.revoked}, tc.key, tc.cert); got != tc.want {
				t.Errorf("Judge = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestCheckSaysWhatToDo(t *testing.T) {
	cert, _ := shipped(t)
	on, off := true, false
	tests := map[string]struct {
		key        string
		secureBoot *bool
		keys       []string
		revoked    []string
		cert       modkey.Certificate
		says, hint string
	}{
		"not enrolled": {
			ours, &on, []string{debian}, nil, cert,
			"does not know the key that signed the patch, " + ours, "enrol it with: sudo mokutil --import " + cert.Path + "; then reboot, and confirm it on the console",
		},
		"not enrolled, where the firmware does not say": {
			ours, nil, []string{debian}, nil, cert,
			"does not know the key", "sudo mokutil --import " + cert.Path,
		},
		"not enrolled, without Secure Boot": {
			ours, &off, []string{debian}, nil, cert,
			"does not know the key", "with Secure Boot only",
		},
		"not enrolled, and the certificate is of another key": {
			debian, &on, []string{"00"}, nil, cert,
			"does not know the key that signed the patch, " + debian, "of another key, " + ours + "; update it with: sudo snap refresh canonical-livepatch",
		},
		"not enrolled, and nothing was shipped": {
			ours, &on, []string{debian}, nil, modkey.Certificate{},
			"does not know the key", "get the certificate of this key from the vendor",
		},
		"revoked": {
			ours, &on, []string{ours}, []string{"key:" + ours}, cert,
			"has revoked the key that signed the patch, " + ours, "wait for a patch that is signed with another key; update it with: ",
		},
		"not signed": {
			"", &on, []string{ours}, nil, cert,
			"takes signed modules only, and the patch is not signed", "tell the vendor",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := modkey.Place{
				Kernel: loader.Kernel{SignatureEnforced: true, SecureBoot: tc.secureBoot, ModuleKeys: tc.keys, RevokedKeys: tc.revoked},
				Cert:   tc.cert, Update: "update it with: sudo snap refresh canonical-livepatch",
			}
			err := p.Check(tc.key)
			var e *modkey.Error
			if !errors.As(err, &e) || !errors.Is(err, patch.ErrModuleSignature) {
				t.Fatalf("Check = %v", err)
			}
			if !strings.Contains(err.Error(), tc.says) || !strings.Contains(e.Hint(), tc.hint) {
				t.Errorf("Check = %q, hint %q; want %q and %q", err, e.Hint(), tc.says, tc.hint)
			}
			if strings.Contains(err.Error()+e.Hint(), "\n") {
				t.Error("it has more than one line")
			}
			p.Kernel.SignatureEnforced = false
			if err := p.Check(tc.key); err != nil {
				t.Errorf("kernel that demands no signature: %v", err)
			}
		})
	}
}

func TestWhatCannotBeToldIsTried(t *testing.T) {
	for name, keys := range map[string][]string{"no key can be read": nil, "enrolled": {ours}} {
		if err := (modkey.Place{Kernel: loader.Kernel{SignatureEnforced: true, ModuleKeys: keys}}).Check(ours); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExplain(t *testing.T) {
	cert, _ := shipped(t)
	cause := &rpcerr.Error{Sentinel: patch.ErrModuleSignature, Reason: "MODULE_SIGNATURE", Text: "kernel does not accept the module's signature: key was rejected by service"}
	tests := map[string]struct {
		keys       []string
		says, hint string
	}{
		"that the kernel has the key":       {[]string{ours}, "this kernel has the key that signed the patch", "sudo dmesg"},
		"that nobody knows":                 {nil, "does not take the signature of the patch, by key " + ours, "mokutil --import"},
		"that the kernel has not, as it is": {[]string{debian}, "does not know the key", "mokutil --import"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			e := modkey.Place{Kernel: loader.Kernel{ModuleKeys: tc.keys}, Cert: cert}.Explain(ours, cause)
			if !strings.Contains(e.Error(), tc.says) || !strings.HasSuffix(e.Error(), cause.Text) || !strings.Contains(e.Hint(), tc.hint) {
				t.Errorf("Explain = %q, hint %q", e, e.Hint())
			}
			if !errors.Is(e, patch.ErrModuleSignature) || !errors.Is(e, error(cause)) {
				t.Error("it matches neither sentinel nor cause")
			}
		})
	}
}

func TestReadOfAFile(t *testing.T) {
	c, _ := shipped(t)
	if c.KeyID != ours || c.Subject != "CN=Livepatch modules" || c.Problem != "" || !c.Known() {
		t.Errorf("Read = %+v", c)
	}
	if c.Expired(time.Date(2036, 11, 18, 0, 0, 0, 0, time.UTC)) || !c.Expired(time.Date(2036, 11, 20, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("expires at another time than %v", c.NotAfter)
	}
	if none := modkey.Read(""); none.Known() || none.Problem != "" || none.Expired(time.Now()) {
		t.Errorf("Read of no path = %+v", none)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"text":               []byte("-----BEGIN CERTIFICATE-----\n"),
		"empty":              {},
		"large":              make([]byte, 70<<10),
		"without identifier": makeDER(t, nil),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if c := modkey.Read(path); c.Known() || c.Path != path || !strings.HasPrefix(c.Problem, "cannot read certificate for modules: ") {
			t.Errorf("%s: Read = %+v", name, c)
		}
	}
	if c := modkey.Read(filepath.Join(dir, "none")); c.Known() || c.Problem == "" {
		t.Errorf("no file: Read = %+v", c)
	}
}

// FuzzParse reads certificates that are anything. What is taken has an identifier
// as metadata writes it.
func FuzzParse(f *testing.F) {
	der := makeDER(f, []byte{1, 2, 3, 4})
	f.Add(der)
	f.Add(der[:len(der)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := modkey.Parse(b)
		if err == nil && (c.KeyID == "" || c.KeyID != strings.ToLower(c.KeyID)) {
			t.Errorf("Parse = %+v", c)
		}
	})
}
