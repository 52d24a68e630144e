// Package signer holds the online keys and makes the three roles that they
// sign: snapshot, timestamp and rollout. It has no key that could make a module
// valid.
package signer

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
)

// Roles are the online roles, in the order in which they are signed.
var Roles = []string{patch.RolloutRole, metadata.SNAPSHOT, metadata.TIMESTAMP}

// ErrOpenKey means that others than the owner of a key file can read it.
var ErrOpenKey = errors.New("key file is open to others")

// pemType heads a key file: PKCS #8, as openssl reads it.
const pemType = "PRIVATE KEY"

// Keys are the private online keys by role.
type Keys map[string]ed25519.PrivateKey

// CreateKeys makes the keys that dir lacks. A key that is there is not touched.
func CreateKeys(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot create key folder: %w", err)
	}
	for _, role := range Roles {
		if err := createKey(keyPath(dir, role)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cannot create key of %s: %w", role, err)
		}
	}
	return nil
}

func keyPath(dir, role string) string { return filepath.Join(dir, role+".key") }

func createKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return fs.ErrExist
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writeNew(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
}

// writeNew writes a file that only its owner can read and that is complete as
// soon as it has its name. It does not replace one.
func writeNew(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// LoadKeys reads the keys in dir. The error matches [fs.ErrNotExist] if one is
// missing and [ErrOpenKey] if somebody else could have read it.
func LoadKeys(dir string) (Keys, error) {
	keys := Keys{}
	for _, role := range Roles {
		key, err := loadKey(keyPath(dir, role))
		if err != nil {
			return nil, fmt.Errorf("cannot load key of %s: %w", role, err)
		}
		keys[role] = key
	}
	return keys, nil
}

func loadKey(path string) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// The mode is that of the file that was opened, not of what the name
	// stands for a moment later.
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, need 0600", ErrOpenKey, path, mode)
	}
	b := make([]byte, 4<<10)
	n, err := f.Read(b)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return parseKey(b[:n])
}

func parseKey(b []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return nil, errors.New("file holds no PEM private key")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key is a %T, need ed25519", k)
	}
	return key, nil
}

// Public returns the public keys by role, in hexadecimal.
func (k Keys) Public() map[string]string {
	public := make(map[string]string, len(k))
	for role, key := range k {
		public[role] = hex.EncodeToString(key.Public().(ed25519.PublicKey))
	}
	return public
}

// ID returns the TUF key ID of a role's key.
func (k Keys) ID(role string) (string, error) {
	key, err := metadata.KeyFromPublicKey(k[role].Public())
	if err != nil {
		return "", fmt.Errorf("cannot name key of %s: %w", role, err)
	}
	return key.ID()
}
