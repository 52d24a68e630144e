package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/modkey"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
)

const (
	vendorKey = "0102030405060708090a0b0c0d0e0f1011121314"
	otherKey  = "6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1"
)

// certificateFile writes the certificate of vendorKey, which is valid for some
// time from now.
func certificateFile(t *testing.T, valid time.Duration) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := make([]byte, 20)
	for i := range id {
		id[i] = byte(i + 1)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Livepatch modules"}, SubjectKeyId: id,
		NotBefore: time.Now().Add(-time.Hour * 24), NotAfter: time.Now().Add(valid),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "livepatch-kmod.x509")
	if err := os.WriteFile(path, der, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newSecureWorld returns an enabled world with Secure Boot, whose repository has
// version 2.1, signed with a key.
func newSecureWorld(t *testing.T, key string, keys ...string) *world {
	t.Helper()
	w := newWorld(t)
	w.kmodCert = modkey.Read(certificateFile(t, time.Hour*1000))
	m := module2
	m.SigningKey = key
	w.repo.Add(m, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	on := true
	w.fake.Do(func(f *loadertest.Fake) {
		f.Kernel.SignatureEnforced, f.Kernel.Lockdown, f.Kernel.SecureBoot, f.Kernel.ModuleKeys = true, "integrity", &on, keys
	})
	w.enable()
	return w
}

func (w *world) asked() bool {
	return slices.ContainsFunc(w.fake.Made(), func(c string) bool { return strings.HasPrefix(c, "apply ") })
}

func TestSignedPatchIsAppliedWhereItsKeyIsEnrolled(t *testing.T) {
	for name, keys := range map[string][]string{"enrolled": {otherKey, vendorKey}, "keys that cannot be read": nil} {
		t.Run(name, func(t *testing.T) {
			w := newSecureWorld(t, vendorKey, keys...)
			w.mustCheck()
			w.wantPatch(status.Applied, "2.1")
		})
	}
}

func TestPatchThatTheKernelWouldRefuseIsNotFetched(t *testing.T) {
	tests := map[string]struct {
		key    string
		change func(*loadertest.Fake)
		says   string
		event  string
	}{
		"not enrolled": {vendorKey, func(*loadertest.Fake) {}, "does not know the key that signed the patch, " + vendorKey, "failed 2.1 CONFIG_KEY_NOT_ENROLLED"},
		"unsigned":     {"", func(*loadertest.Fake) {}, "the patch is not signed", "failed 2.1 CONFIG_MODULE_UNSIGNED"},
		"revoked": {vendorKey, func(f *loadertest.Fake) {
			f.Kernel.ModuleKeys, f.Kernel.RevokedKeys = append(f.Kernel.ModuleKeys, vendorKey), []string{"key:" + vendorKey}
		}, "has revoked the key that signed the patch, " + vendorKey, "failed 2.1 CONFIG_KEY_REVOKED"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newSecureWorld(t, tc.key, otherKey)
			w.fake.Do(tc.change)
			for range 3 {
				w.mustCheck()
				if w.asked() {
					t.Error("loader was asked")
				}
			}
			p := w.patch()
			if p.State != status.ApplyFailed || p.Failure != status.FailureSignature || !strings.HasPrefix(p.PatchError, "cannot apply patch 2.1: ") ||
				!strings.Contains(p.PatchError, tc.says) || p.PatchHint == "" {
				t.Errorf("patch = %+v", p)
			}
			if w.svc.targets != 1 { // the index
				t.Errorf("%d files were fetched, want the index only", w.svc.targets)
			}
			if got := w.svc.events(); !slices.Equal(got, []string{tc.event}) {
				t.Errorf("events = %q, want %q once", got, tc.event)
			}
			if s, _ := w.Status(false); len(s.Notices) != 0 {
				t.Errorf("notices say it twice: %+v", s.Notices)
			}
		})
	}
}

func TestEnrolledKeyIsNoticedAtTheNextCheck(t *testing.T) {
	w := newSecureWorld(t, vendorKey, otherKey)
	w.mustCheck()
	w.wantPatch(status.ApplyFailed, "2.1")
	if hint := w.patch().PatchHint; !strings.Contains(hint, "sudo mokutil --import "+w.kmodCert.Path) {
		t.Errorf("hint = %q", hint)
	}
	w.fake.Do(func(f *loadertest.Fake) { f.Kernel.ModuleKeys = []string{vendorKey} })
	w.mustCheck()
	w.wantPatch(status.Applied, "2.1")
	if want := []string{"failed 2.1 CONFIG_KEY_NOT_ENROLLED", "intent 2.1", "applied 2.1"}; !slices.Equal(w.svc.events(), want) {
		t.Errorf("events = %q, want %q", w.svc.events(), want)
	}
}

func TestRefusalByTheKernelIsExplained(t *testing.T) {
	for name, refusal := range map[string]error{"enforced": patch.ErrModuleSignature, "locked down": patch.ErrNotPermitted} {
		t.Run(name, func(t *testing.T) { testRefusal(t, refusal) })
	}
}

func testRefusal(t *testing.T, refusal error) {
	w := newSecureWorld(t, vendorKey, vendorKey)
	w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = refusal })
	w.mustCheck()
	p := w.patch()
	if !strings.Contains(p.PatchError, "this kernel has the key that signed the patch") || !strings.Contains(p.PatchHint, "dmesg") || p.Failure != status.FailureSignature {
		t.Errorf("patch = %+v", p)
	}
	if want := []string{"intent 2.1", "failed 2.1 CONFIG_SIGNATURE"}; !slices.Equal(w.svc.events(), want) {
		t.Errorf("events = %q, want %q", w.svc.events(), want)
	}
	w.fake.Made()
	w.mustCheck()
	if w.asked() {
		t.Error("the kernel was asked again in the same boot")
	}
}

func TestBadSignatureIsTheFaultOfThePatchWhereNoneIsDemanded(t *testing.T) {
	w := newSecureWorld(t, vendorKey, vendorKey)
	w.fake.Do(func(f *loadertest.Fake) {
		f.Kernel.SignatureEnforced, f.Kernel.Lockdown, f.ApplyErr = false, "none", patch.ErrModuleSignature
	})
	w.mustCheck()
	if want := []string{"intent 2.1", "failed 2.1 MODULE_SIGNATURE"}; !slices.Equal(w.svc.events(), want) {
		t.Errorf("events = %q, want %q", w.svc.events(), want)
	}
	if p := w.patch(); p.Failure != status.FailureSignature || !strings.Contains(p.PatchHint, "tell the vendor") {
		t.Errorf("patch = %+v", p)
	}
}

func TestRefusalForWantOfAPrivilegeIsNotOneOfASignature(t *testing.T) {
	tests := map[string]func(*world){
		"a plug is missing":   func(w *world) { w.live.snap.missing = []string{"kernel-module-control"} },
		"nothing locked down": func(w *world) { w.fake.Do(func(f *loadertest.Fake) { f.Kernel.Lockdown = "none" }) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			w := newSecureWorld(t, vendorKey, vendorKey)
			w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = patch.ErrNotPermitted })
			change(w)
			w.mustCheck()
			if want := []string{"intent 2.1", "failed 2.1 NOT_PERMITTED"}; !slices.Equal(w.svc.events(), want) {
				t.Errorf("events = %q, want %q", w.svc.events(), want)
			}
		})
	}
}

func TestKeyIsToldOfBeforeThereIsAPatch(t *testing.T) {
	tests := map[string]struct {
		keys    []string
		valid   time.Duration
		state   string
		message string
	}{
		"enrolled":             {[]string{vendorKey}, time.Hour, "enrolled", ""},
		"not enrolled":         {[]string{otherKey}, time.Hour, "not-enrolled", "does not know the key"},
		"not known":            {nil, time.Hour, "unknown", ""},
		"enrolled and expired": {[]string{vendorKey}, -time.Hour, "enrolled", "has expired on "},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newSecureWorld(t, vendorKey, tc.keys...)
			w.kmodCert = modkey.Read(certificateFile(t, tc.valid))
			w.repo.SetIndex(patch.Index{Arch: kernel.Arch, Release: kernel.Release, From: "2026-01-01", Until: "2099-01-01"})
			w.repo.Publish()
			w.mustCheck()
			w.wantPatch(status.NothingToApply, "")
			s, _ := w.Status(false)
			m := s.ModuleSigning
			if m == nil || !m.Demanded || m.Key != vendorKey || m.State != tc.state || m.Subject != "CN=Livepatch modules" || m.NotAfter.IsZero() {
				t.Fatalf("signing = %+v", m)
			}
			if (m.Message == "") != (tc.message == "") || !strings.Contains(m.Message, tc.message) || (m.Hint == "") != (m.Message == "") {
				t.Errorf("message %q, hint %q, want %q", m.Message, m.Hint, tc.message)
			}
			if told := len(s.Notices) == 1 && s.Notices[0].Message == m.Message; told != (m.Message != "") {
				t.Errorf("notices = %+v", s.Notices)
			}
			if s.Security.SecureBoot != status.Enabled {
				t.Errorf("Secure Boot is %q", s.Security.SecureBoot)
			}
		})
	}
}

func TestKernelThatDemandsNothingHearsNothingOfKeys(t *testing.T) {
	w := newWorld(t)
	w.enable()
	w.mustCheck()
	w.wantPatch(status.Applied, "1.1")
	if s, _ := w.Status(false); s.ModuleSigning != nil || len(s.Notices) != 0 {
		t.Errorf("signing = %+v, notices = %+v", s.ModuleSigning, s.Notices)
	}
}

func TestDamagedCertificateIsNoReasonToStayUnpatched(t *testing.T) {
	w := newSecureWorld(t, vendorKey, vendorKey)
	w.kmodCert = modkey.Read(filepath.Join(t.TempDir(), "none"))
	w.mustCheck()
	w.wantPatch(status.Applied, "2.1")
	s, _ := w.Status(false)
	if len(s.Notices) != 1 || !strings.HasPrefix(s.Notices[0].Message, "cannot read certificate for modules: ") || s.Notices[0].Hint == "" {
		t.Errorf("notices = %+v", s.Notices)
	}
}

func TestHintOfASignatureIsItsOwn(t *testing.T) {
	err := modkey.Place{}.Explain("", patch.ErrModuleSignature)
	if Hint(errors.Join(err)) != err.Hint() {
		t.Errorf("Hint = %q, want %q", Hint(err), err.Hint())
	}
}
