package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/modsig"
)

// ErrKind reports a file that holds no private key of the kind that is wanted.
var ErrKind = errors.New("it is not a private key in PEM, PKCS #8 or PKCS #1, without a passphrase")

// moduleSuffix ends the names of files with keys that sign modules. They are a
// kind of their own, for kernels know no ed25519, and nothing in the metadata
// is signed with them.
const moduleSuffix = ".kmod.json"

// A ModuleKey is the public half of a key that signs kernel modules for the
// kernel's own check.
type ModuleKey struct {
	Name   string
	ID     string // subject key identifier of its certificate, as kernels show it
	Public crypto.PublicKey
	Kind   Kind
	At     string // URI of a Foreign key, "" for others
}

// moduleFile is the content of a key file. It has a secret or a place.
type moduleFile struct {
	Name   string          `json:"name"`
	ID     string          `json:"keyid"`
	Public []byte          `json:"public"`           // PKIX, DER
	Secret json.RawMessage `json:"secret,omitempty"` // PKCS #8, encrypted
	At     string          `json:"at,omitempty"`
}

// A ModuleBackend opens keys that sign modules and are in a token.
type ModuleBackend interface {
	// OpenRSA returns the RSA key at a URI, called name. The error matches
	// [sign.ErrAbsent] if what holds the key is not there now.
	OpenRSA(ctx context.Context, name, uri string) (crypto.Signer, error)
}

// CreateModule makes a key that signs modules and writes its file.
func (s *Store) CreateModule(name string, passphrase []byte) (crypto.Signer, error) {
	if err := patch.CheckWord("the name of a key", name); err != nil {
		return nil, err
	}
	private, err := modsig.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("cannot create key %s: %w", name, err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("cannot encode key %s: %w", name, err)
	}
	defer clear(plain)
	secret, err := s.encrypt(plain, passphrase)
	if err != nil {
		return nil, fmt.Errorf("cannot encrypt key %s: %w", name, err)
	}
	return private, s.writeModule(private.Public(), moduleFile{Name: name, Secret: secret})
}

// AdoptModule writes down a key that signs modules and is at a URI.
func (s *Store) AdoptModule(name string, public crypto.PublicKey, at string) error {
	if err := patch.CheckWord("the name of a key", name); err != nil {
		return err
	}
	return s.writeModule(public, moduleFile{Name: name, At: at})
}

func (s *Store) writeModule(public crypto.PublicKey, f moduleFile) error {
	id, err := modsig.KeyID(public)
	if err == nil {
		f.ID = hex.EncodeToString(id)
		f.Public, err = x509.MarshalPKIXPublicKey(public)
	}
	var b []byte
	if err == nil {
		b, err = json.Marshal(f)
	}
	if err == nil {
		err = s.write(s.modulePath(f.Name), b)
	}
	if err != nil {
		return fmt.Errorf("cannot write key %s: %w", f.Name, err)
	}
	return nil
}

func (s *Store) modulePath(name string) string {
	return strings.TrimSuffix(s.path(name), suffix) + moduleSuffix
}

// Module returns the public half of a key that signs modules. Errors match
// [ErrNotFound], [ErrExposed] or [ErrCorrupt].
func (s *Store) Module(name string) (ModuleKey, error) {
	k, _, err := s.readModule(name)
	return k, err
}

func (s *Store) readModule(name string) (ModuleKey, []byte, error) {
	b, err := s.readFile(name, s.modulePath(name))
	if err != nil {
		return ModuleKey{}, nil, err
	}
	k, secret, err := parseModule(name, b)
	if err != nil {
		return ModuleKey{}, nil, fmt.Errorf("cannot read key %s: %w: %w", name, ErrCorrupt, err)
	}
	return k, secret, nil
}

func parseModule(name string, b []byte) (ModuleKey, []byte, error) {
	var f moduleFile
	if len(b) > maxFile {
		return ModuleKey{}, nil, patch.ErrTooLarge
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return ModuleKey{}, nil, err
	}
	public, err := x509.ParsePKIXPublicKey(f.Public)
	if err != nil {
		return ModuleKey{}, nil, err
	}
	id, err := modsig.KeyID(public)
	switch {
	case err != nil:
		return ModuleKey{}, nil, err
	case f.Name != name || f.ID != hex.EncodeToString(id):
		return ModuleKey{}, nil, fmt.Errorf("it says that it is key %q with ID %q", f.Name, f.ID)
	case (len(f.Secret) > 0) == (f.At != ""):
		return ModuleKey{}, nil, errors.New("it has neither a secret nor a place, or both")
	}
	k := ModuleKey{Name: f.Name, ID: f.ID, Public: public, Kind: Encrypted, At: f.At}
	if f.At != "" {
		k.Kind = Foreign
	}
	return k, f.Secret, nil
}

// OpenModule decrypts a key that signs modules. Errors match [ErrNotFound],
// [ErrExposed], [ErrPassphrase] or [ErrCorrupt].
func (s *Store) OpenModule(name string, passphrase []byte) (crypto.Signer, error) {
	k, secret, err := s.readModule(name)
	if err != nil {
		return nil, err
	}
	if k.Kind != Encrypted {
		return nil, fmt.Errorf("cannot open key %s: %w", name, ErrElsewhere)
	}
	plain, err := encrypted.Decrypt(secret, passphrase)
	if err != nil {
		return nil, fmt.Errorf("cannot open key %s: %w", name, ErrPassphrase)
	}
	defer clear(plain)
	signer, err := parsePrivate(plain)
	if err != nil {
		return nil, fmt.Errorf("cannot open key %s: %w: %w", name, ErrCorrupt, err)
	}
	if !sameKey(signer.Public(), k.Public) {
		return nil, fmt.Errorf("cannot open key %s: %w: its halves do not belong together", name, ErrCorrupt)
	}
	return signer, nil
}

// sameKey compares public keys of the standard library, which all have Equal.
func sameKey(a, b crypto.PublicKey) bool {
	eq, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(b)
}

// parsePrivate reads a private key in DER.
func parsePrivate(der []byte) (crypto.Signer, error) {
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKind, err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: %T", ErrKind, k)
	}
	return signer, nil
}

// OpenPEM reads a private key from a file in PEM without a passphrase, as kbuild
// has its own. Errors match [ErrExposed] or [ErrKind].
func OpenPEM(path string) (crypto.Signer, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read key: %w", err)
	}
	defer clear(b)
	// kbuild's signing_key.pem holds the certificate as well.
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "PRIVATE KEY" || block.Type == "RSA PRIVATE KEY" {
			k, err := parsePrivate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("cannot read key %s: %w", path, err)
			}
			return k, nil
		}
	}
	return nil, fmt.Errorf("cannot read key %s: %w", path, ErrKind)
}

// Modules returns the public halves of all keys that sign modules, by name.
func (s *Store) Modules() ([]ModuleKey, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list keys: %w", err)
	}
	var all []ModuleKey
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), moduleSuffix)
		if !ok {
			continue
		}
		k, err := s.Module(name)
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b ModuleKey) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
