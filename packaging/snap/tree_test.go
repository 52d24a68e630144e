package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// material makes what goes into a snap: a real static program three times, and a
// root, a certificate and an authority that are what they are called.
func material(t *testing.T) sources {
	t.Helper()
	dir := t.TempDir()
	s := sources{filepath.Join(dir, "bin"), filepath.Join(dir, "trust"), filepath.Join(dir, "ca.crt"), filepath.Join(dir, "LICENSE")}
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	source := filepath.Join(dir, "main.go")
	write(source, []byte("package main\nfunc main() {}\n"))
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "program"), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "program"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range programs {
		write(filepath.Join(s.bin, name), program)
	}
	der := certificate(t)
	write(filepath.Join(s.trust, "root.json"), []byte(`{"signed":{"_type":"root"}}`))
	write(filepath.Join(s.trust, "livepatch-kmod.x509"), der)
	write(filepath.Join(s.trust, "metadata/timestamp.json"), []byte(`{"signed":{"_type":"timestamp"}}`))
	write(filepath.Join(s.trust, "metadata/7.snapshot.json"), []byte(`{"signed":{"_type":"snapshot"}}`))
	write(s.cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(s.license, []byte("GPL\n"))
	return s
}

func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func args(s sources, more ...string) []string {
	return append([]string{
		"-recipe", "../../snapcraft.yaml", "-bin", s.bin, "-trust", s.trust, "-certificates", s.cas, "-license", s.license,
		"-version", "1.2", "-date", "1763800000",
	}, more...)
}

func TestTwoPacksAreTheSameFile(t *testing.T) {
	s := material(t)
	var files [2][]byte
	for i := range files {
		out := filepath.Join(t.TempDir(), "x.snap") // another folder each time
		if err := run(args(s, "-out", out)); err != nil {
			t.Fatal(err)
		}
		var err error
		if files[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(out), "*")); len(left) != 1 {
			t.Errorf("left behind: %v", left)
		}
		// Times of files are no part of it.
		if err := os.WriteFile(filepath.Join(s.trust, "root.json"), []byte(`{"signed":{"_type":"root"}}`), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Error("two packs of the same content differ")
	}
}

func TestSnapHasWhatItNeeds(t *testing.T) {
	s := material(t)
	out := filepath.Join(t.TempDir(), "x.snap")
	if err := run(args(s, "-out", out)); err != nil {
		t.Fatal(err)
	}
	list, err := exec.CommandContext(t.Context(), "unsquashfs", "-lln", out).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, list)
	}
	for _, want := range []string{
		"-rwxr-xr-x 0/0 bin/livepatch-loader", "-rwxr-xr-x 0/0 bin/canonical-livepatchd", "-rwxr-xr-x 0/0 bin/canonical-livepatch",
		"lrwxrwxrwx 0/0 meta/hooks/configure -> ../../bin/canonical-livepatch", "lrwxrwxrwx 0/0 meta/hooks/remove -> ../../bin/canonical-livepatch",
		"-rw-r--r-- 0/0 meta/snap.yaml", "-rw-r--r-- 0/0 tuf/root.json", "-rw-r--r-- 0/0 keys/livepatch-kmod.x509",
		"-rw-r--r-- 0/0 tuf/metadata/7.snapshot.json", "-rw-r--r-- 0/0 tuf/metadata/timestamp.json", "-rw-r--r-- 0/0 etc/ssl/certs/ca-certificates.crt",
	} {
		if !contains(string(list), want) {
			t.Errorf("it has no %s:\n%s", want, list)
		}
	}
}

// contains tells whether a listing has a line with the mode, owner and name of
// want, whatever stands between them.
func contains(list, want string) bool {
	mode, rest, _ := strings.Cut(want, " ")
	owner, name, _ := strings.Cut(rest, " ")
	for line := range strings.Lines(list) {
		if strings.HasPrefix(line, mode+" "+owner+" ") && strings.HasSuffix(strings.TrimSpace(line), "/"+name) {
			return true
		}
	}
	return false
}

func TestTreeForSnapcraft(t *testing.T) {
	s, dir := material(t), t.TempDir()
	if err := run(args(s, "-tree", dir)); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "snap/hooks/configure")); err != nil || to != "../../bin/canonical-livepatch" {
		t.Errorf("hook leads to %q, %v", to, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "meta")); err == nil {
		t.Error("meta is snapcraft's to write")
	}
	if err := run(args(s, "-tree", dir)); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestContentThatIsNotWhatItIsCalledIsRefused(t *testing.T) {
	tests := map[string]struct {
		file    func(sources) string
		content string
		want    string
	}{
		"a script as a program":       {func(s sources) string { return s.bin + "/livepatch-loader" }, "#!/bin/sh\n", "it is no program"},
		"half a program":              {func(s sources) string { return s.bin + "/livepatch-loader" }, "\x7fELF\x02\x01\x01", "it is no program"},
		"a timestamp as the root":     {func(s sources) string { return s.trust + "/root.json" }, `{"signed":{"_type":"timestamp"}}`, `need "root"`},
		"no JSON as the root":         {func(s sources) string { return s.trust + "/root.json" }, "root", "no file of a TUF repository"},
		"a root among the metadata":   {func(s sources) string { return s.trust + "/metadata/timestamp.json" }, `{"signed":{"_type":"root"}}`, `need "timestamp"`},
		"PEM instead of DER":          {func(s sources) string { return s.trust + "/livepatch-kmod.x509" }, "-----BEGIN CERTIFICATE-----\n", "DER"},
		"no certificate authorities":  {func(s sources) string { return s.cas }, "", "PEM"},
		"a key among the authorities": {func(s sources) string { return s.cas }, "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "PEM"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := material(t)
			if err := os.WriteFile(tc.file(s), []byte(tc.content), 0o644); err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "x.snap")
			err := run(args(s, "-out", out))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("run = %v, want %q", err, tc.want)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("a snap was made")
			}
		})
	}
}

func TestProgramThatNeedsLibrariesIsRefused(t *testing.T) {
	s := material(t)
	b, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.bin, programs[2]), b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := run(args(s, "-out", filepath.Join(t.TempDir(), "x.snap"))); err == nil || !strings.Contains(err.Error(), "not static") {
		t.Errorf("run = %v", err)
	}
}

func TestMissingFilesAndFlagsAreSaid(t *testing.T) {
	s := material(t)
	for name, list := range map[string][]string{
		"no output":     args(s),
		"no recipe":     append(args(s, "-out", "x"), "-recipe", "none"),
		"no trust":      append(args(s, "-out", filepath.Join(t.TempDir(), "x")), "-trust", "none"),
		"unknown flag":  {"-x"},
		"out of folder": args(s, "-out", filepath.Join(t.TempDir(), "none/x")),
	} {
		if err := run(list); err == nil {
			t.Errorf("%s: nothing was said", name)
		}
	}
}
