//go:build secureboot

package secureboot

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"livepatch/tests/secureboot/uefi"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// A key signs kernels or modules: a key with a certificate of its own.
type key struct {
	cert    *x509.Certificate
	derFile string   // the certificate, as people enrol it
	sign    []string // how livepatch-publish is told to sign with it
	keyFile string   // PEM
}

// id returns the key's name in /proc/keys and in the signed metadata.
func (k key) id() string { return hex.EncodeToString(k.cert.SubjectKeyId) }

// der returns the certificate's content.
func (k key) der() []byte { return k.cert.Raw }

// newKey makes a key whose certificate is valid for the year before a time.
func newKey(t *testing.T, name string, until time.Time) key {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	id := sha1.Sum(x509.MarshalPKCS1PublicKey(&private.PublicKey))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: until.AddDate(-1, 0, 0), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, SubjectKeyId: id[:],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	k := key{derFile: filepath.Join(dir, "cert.der"), keyFile: filepath.Join(dir, "key.pem")}
	writeFile(t, k.derFile, der)
	writeFile(t, k.keyFile, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}))
	k.sign = []string{"--key", k.keyFile}
	k.cert = readCertificate(t, k.derFile)
	return k
}

// newVendorKey makes a key as a vendor does for the modules that are shipped.
func newVendorKey(t *testing.T) key {
	t.Helper()
	dir := t.TempDir()
	passphrase, cert := filepath.Join(dir, "passphrase"), filepath.Join(dir, "livepatch-kmod.x509")
	writeFile(t, passphrase, []byte("correct horse battery staple\n"))
	keys := []string{"--keys", filepath.Join(dir, "keys"), "--passphrase-file", passphrase}
	publish(t, append(keys, "keys", "create", "debian-kmod", "--kmod", "--common-name", "Livepatch modules of a test", "--cert", cert)...)
	return key{cert: readCertificate(t, cert), derFile: cert, sign: append(keys, "--key", "debian-kmod")}
}

func readCertificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(readFile(t, file))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// publish runs livepatch-publish.
func publish(t *testing.T, args ...string) {
	t.Helper()
	if _, err := here.Output(t.Context(), "livepatch-publish", args...); err != nil {
		t.Fatal(err)
	}
}

// build builds a livepatch that lets /proc/cmdline answer its version.
func build(t *testing.T, version string) lab.Module {
	t.Helper()
	m, err := here.Build(t.Context(), lab.Patch{Source: "answer", Version: version, Answer: "patch " + version})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// signed returns a module with a signature for the kernel.
func (k key) signed(t *testing.T, m lab.Module) lab.Module {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.Base(m.File))
	publish(t, append(k.sign, "module", "sign", m.File, "--cert", k.derFile, "--output", file)...)
	return lab.Module{Name: m.Name, File: file, Content: readFile(t, file), Cert: k.derFile}
}

// nextYear is until when certificates are valid that are to be.
func nextYear() time.Time { return time.Now().AddDate(1, 0, 0) }

// tool runs a program of the unpacked packages.
func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), filepath.Join(unpacked, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("cannot run %s: %v\n%s", name, err, out)
	}
}

// signKernel returns the file of Debian's kernel, signed with a key in place of
// Debian's.
func signKernel(t *testing.T, k key) string {
	t.Helper()
	dir := t.TempDir()
	bare, cert, image := filepath.Join(dir, "bare"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "vmlinuz")
	writeFile(t, bare, readFile(t, here.Kernel.Image))
	writeFile(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.der()}))
	tool(t, "usr/bin/sbattach", "--remove", bare)
	tool(t, "usr/bin/sbsign", "--key", k.keyFile, "--cert", cert, "--output", image, bare)
	return image
}

// keys are what a machine's owner has put into its firmware.
type keys struct {
	owner   key   // PK and KEK, and in db
	allowed []key // in db beside it
	revoked []key // in dbx
}

// firmware returns a firmware with these keys and no others, which starts a kernel
// that the owner has signed.
func (k keys) firmware(t *testing.T) *machine.Firmware {
	t.Helper()
	s, err := uefi.ParseStore(readFile(t, ovmf("OVMF_VARS_4M.fd")))
	if err != nil {
		t.Fatal(err)
	}
	set := func(vendor uefi.GUID, name string, lists ...[]byte) {
		s.Set(uefi.Variable{Name: name, Vendor: vendor, Attributes: uefi.KeyAttributes, Data: slices.Concat(lists...)})
	}
	db := [][]byte{uefi.Certificate(k.owner.cert)}
	for _, a := range k.allowed {
		db = append(db, uefi.Certificate(a.cert))
	}
	var dbx [][]byte
	for _, r := range k.revoked {
		dbx = append(dbx, uefi.Revocation(r.cert))
	}
	set(uefi.Security, "db", db...)
	set(uefi.Security, "dbx", dbx...)
	set(uefi.Global, "KEK", uefi.Certificate(k.owner.cert))
	set(uefi.Global, "PK", uefi.Certificate(k.owner.cert))
	vars, err := s.Image()
	if err != nil {
		t.Fatal(err)
	}
	return &machine.Firmware{Code: ovmf("OVMF_CODE_4M.secboot.fd"), Vars: vars, Image: signKernel(t, k.owner)}
}

// ovmf returns a file of the package ovmf.
func ovmf(name string) string { return filepath.Join(unpacked, "usr/share/OVMF", name) }

func readFile(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
