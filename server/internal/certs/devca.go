package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Lives of what MakeDev makes. Browsers and others refuse server certificates
// that last longer than 398 days.
const (
	devCALife   = 5 * 365 * 24 * time.Hour
	devCertLife = 397 * 24 * time.Hour
)

// MakeDev makes a certificate for hosts (names and addresses) in dir, signed by
// a development CA that it makes first if dir has none: ca.crt, ca.key,
// server.crt, server.key. An old server certificate is replaced.
func MakeDev(dir string, hosts []string, now time.Time) error {
	if len(hosts) == 0 {
		return errors.New("cannot make certificate: no host is given")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	ca, caKey, err := devCA(dir, now)
	if err != nil {
		return fmt.Errorf("cannot make development CA: %w", err)
	}
	if err := makeDevCert(dir, hosts, ca, caKey, now); err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	return nil
}

// devCA returns the CA in dir. It makes one only if there is no ca.crt: a CA
// whose key is lost may still be what machines trust.
func devCA(dir string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if _, err := os.Stat(filepath.Join(dir, "ca.crt")); errors.Is(err, fs.ErrNotExist) {
		return makeDevCA(dir, now)
	}
	return loadDevCA(dir)
}

func loadDevCA(dir string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certDER, err := readPEM(filepath.Join(dir, "ca.crt"), "CERTIFICATE")
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := readPEM(filepath.Join(dir, "ca.key"), "EC PRIVATE KEY")
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(keyDER)
	return cert, key, err
}

func makeDevCA(dir string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "livepatch development CA"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(devCALife),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	key, der, err := issue(template, template, nil)
	if err != nil {
		return nil, nil, err
	}
	if err := writePair(dir, "ca", der, key); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func makeDevCert(dir string, hosts []string, ca *x509.Certificate, caKey *ecdsa.PrivateKey, now time.Time) error {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: hosts[0]},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(devCertLife),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	key, der, err := issue(template, ca, caKey)
	if err != nil {
		return err
	}
	return writePair(dir, "server", der, key)
}

// issue makes a key (ECDSA P-256: a handshake costs a third of RSA's) and its
// certificate, signed by caKey or, if that is nil, by itself.
func issue(template, parent *x509.Certificate, caKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if caKey == nil {
		caKey = key
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, caKey)
	return key, der, err
}

func writePair(dir, name string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, name+".key"), 0o600, "EC PRIVATE KEY", keyDER); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, name+".crt"), 0o644, "CERTIFICATE", der)
}

// replaceFile writes a file that is never seen half written.
func replaceFile(path string, mode fs.FileMode, kind string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func readPEM(path, kind string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s holds no PEM block %q", path, kind)
	}
	return block.Bytes, nil
}
