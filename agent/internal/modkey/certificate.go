package modkey

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// maxCertificate bounds the file of a certificate, in bytes.
const maxCertificate = 64 << 10

// A Certificate is that of the key which signs the vendor's modules, as it was
// shipped for machines to enrol.
//
// The zero Certificate is that of a program that was shipped without one.
type Certificate struct {
	Path      string // as a person has to name it
	KeyID     string // subject key identifier, lower-case hexadecimal
	Subject   string
	NotBefore time.Time
	NotAfter  time.Time

	// Problem is why the file is of no use, in one line; then only Path is known.
	Problem string

	tbs []string // how a blacklist names it, one for each hash that it may use
}

// Read reads the certificate in a file, in DER. What is wrong with it is its
// Problem, for a machine can work without. An empty path is the zero Certificate.
func Read(path string) Certificate {
	if path == "" {
		return Certificate{}
	}
	b, err := readFile(path)
	var c Certificate
	if err == nil {
		c, err = Parse(b)
	}
	c.Path = path
	if err != nil {
		c.Problem = fmt.Sprintf("cannot read certificate for modules: %v", err)
	}
	return c
}

func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxCertificate {
		err = fmt.Errorf("%s has %d bytes, at most %d are read", path, st.Size(), maxCertificate)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// Parse reads a certificate in DER.
func Parse(der []byte) (Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Certificate{}, err
	}
	if len(cert.SubjectKeyId) == 0 {
		return Certificate{}, errors.New("it has no subject key identifier")
	}
	c := Certificate{
		KeyID: hex.EncodeToString(cert.SubjectKeyId), Subject: cert.Subject.String(),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
	}
	// A kernel hashes it as its issuer did; the firmware's list may hold others.
	s256, s384, s512 := sha256.Sum256(cert.RawTBSCertificate), sha512.Sum384(cert.RawTBSCertificate), sha512.Sum512(cert.RawTBSCertificate)
	for _, sum := range [][]byte{s256[:], s384[:], s512[:]} {
		c.tbs = append(c.tbs, "tbs:"+hex.EncodeToString(sum))
	}
	return c, nil
}

// Known tells whether there is a certificate that was read.
func (c Certificate) Known() bool { return c.KeyID != "" }

// Expired tells whether the certificate is out of date. Kernels do not look at
// that.
func (c Certificate) Expired(now time.Time) bool { return c.Known() && now.After(c.NotAfter) }

// isIn tells whether a blacklist names the certificate. Of what the firmware has
// on its own (dbx), kernels take the 16 bytes behind the hash, the time of the
// revocation, for a part of it, and find no certificate again; the owner of the
// machine has revoked it nevertheless.
func (c Certificate) isIn(revoked []string) bool {
	return slices.ContainsFunc(revoked, func(entry string) bool {
		return slices.ContainsFunc(c.tbs, func(tbs string) bool { return strings.HasPrefix(entry, tbs) })
	})
}
