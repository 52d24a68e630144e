// Package keys keeps the publisher's keys: one file each, readable by its owner
// only. A file holds the private half, encrypted with a passphrase (scrypt and
// NaCl's secretbox); or it says where the private half lies, in a token or an
// agent; or it is the public half of somebody else's key, to know it by name.
package keys

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/sign"
)

// Conditions that callers branch on.
var (
	ErrNotFound   = errors.New("no such key")
	ErrExists     = errors.New("key exists already")
	ErrExposed    = errors.New("others than the owner have access to it")
	ErrPassphrase = errors.New("wrong passphrase")
	ErrCorrupt    = errors.New("key file is damaged")
	ErrElsewhere  = errors.New("private half of the key is not in its file")
)

const (
	suffix = ".key.json"

	// maxFile bounds a key file, in bytes; the real ones have about 600.
	maxFile = 16 << 10
)

// A Public is the half of a key that everybody may know.
type Public struct {
	Name string
	ID   string // as metadata calls it
	Key  ed25519.PublicKey
	Kind Kind
	At   string // URI of a Foreign key, "" for others
}

// A Kind says where the private half of a key is.
type Kind int

// The kinds of keys.
const (
	Others    Kind = iota // somebody else has it
	Encrypted             // in the file
	Foreign               // in a token or an agent
)

// String returns the kind in words.
func (k Kind) String() string {
	switch k {
	case Encrypted:
		return "encrypted file"
	case Foreign:
		return "token or agent"
	default:
		return "somebody else's"
	}
}

// A Key can sign. It implements [sign.Signer]. Printing it in any way prints
// its public half only.
type Key struct {
	public  Public
	private ed25519.PrivateKey
}

var _ sign.Signer = (*Key)(nil)

// Name implements [sign.Signer].
func (k *Key) Name() string { return k.public.Name }

// Public implements [sign.Signer].
func (k *Key) Public() ed25519.PublicKey { return k.public.Key }

// Sign implements [sign.Signer].
func (k *Key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return ed25519.Sign(k.private, message), nil
}

// Format implements [fmt.Formatter], so that no verb shows the private half.
func (k *Key) Format(w fmt.State, _ rune) {
	_, _ = fmt.Fprintf(w, "key %s (%s)", k.public.Name, k.public.ID)
}

// A Store is a folder of key files.
type Store struct {
	// Dir is made, with mode 0700, when the first key is created.
	Dir string
	// Strength is how hard it is to guess a passphrase of a key that is
	// created; 0 means [encrypted.OWASP].
	Strength encrypted.KDFParameterStrength
}

// file is the content of a key file. It has a secret, or a place, or neither.
type file struct {
	Name   string          `json:"name"`
	ID     string          `json:"keyid"`
	Public string          `json:"public"`           // hexadecimal
	Secret json.RawMessage `json:"secret,omitempty"` // the seed, encrypted
	At     string          `json:"at,omitempty"`     // URI, "pkcs11:token=…"
}

// Create makes a key and writes its file.
func (s *Store) Create(name string, passphrase []byte) (*Key, error) {
	if err := patch.CheckWord("the name of a key", name); err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("cannot create key %s: %w", name, err)
	}
	id, err := sign.KeyID(public)
	if err != nil {
		return nil, fmt.Errorf("cannot create key %s: %w", name, err)
	}
	secret, err := s.encrypt(private.Seed(), passphrase)
	if err != nil {
		return nil, fmt.Errorf("cannot encrypt key %s: %w", name, err)
	}
	b, err := json.Marshal(file{Name: name, ID: id, Public: hex.EncodeToString(public), Secret: secret})
	if err != nil {
		return nil, fmt.Errorf("cannot encode key %s: %w", name, err)
	}
	if err := s.write(s.path(name), b); err != nil {
		return nil, fmt.Errorf("cannot write key %s: %w", name, err)
	}
	return &Key{public: Public{Name: name, ID: id, Key: public, Kind: Encrypted}, private: private}, nil
}

// encrypt makes a passphrase as hard to guess as the store wants it.
func (s *Store) encrypt(secret, passphrase []byte) ([]byte, error) {
	return encrypted.EncryptWithCustomKDFParameters(secret, passphrase, cmp.Or(s.Strength, encrypted.OWASP))
}

// Adopt writes down a key whose private half is elsewhere: at a URI, or, if that
// is empty, with somebody else.
func (s *Store) Adopt(name string, public ed25519.PublicKey, at string) (Public, error) {
	if err := patch.CheckWord("the name of a key", name); err != nil {
		return Public{}, err
	}
	id, err := sign.KeyID(public)
	if err != nil {
		return Public{}, fmt.Errorf("cannot add key %s: %w", name, err)
	}
	b, err := json.Marshal(file{Name: name, ID: id, Public: hex.EncodeToString(public), At: at})
	if err != nil {
		return Public{}, fmt.Errorf("cannot encode key %s: %w", name, err)
	}
	if err := s.write(s.path(name), b); err != nil {
		return Public{}, fmt.Errorf("cannot write key %s: %w", name, err)
	}
	return s.Get(name)
}

// Get returns the public half of a key. Errors match [ErrNotFound],
// [ErrExposed] or [ErrCorrupt].
func (s *Store) Get(name string) (Public, error) {
	public, _, err := s.read(name)
	return public, err
}

// Export returns a key as others may have it: its name and its public half, as
// [ParsePublic] reads it.
func (p Public) Export() ([]byte, error) {
	b, err := json.Marshal(file{Name: p.Name, ID: p.ID, Public: hex.EncodeToString(p.Key)})
	if err != nil {
		return nil, fmt.Errorf("cannot encode key %s: %w", p.Name, err)
	}
	return append(b, '\n'), nil
}

// ParsePublic reads what [Public.Export] wrote, on another machine.
func ParsePublic(b []byte) (Public, error) {
	public, secret, err := parse("", b)
	if err != nil {
		return Public{}, fmt.Errorf("cannot read public key: %w: %w", ErrCorrupt, err)
	}
	if len(secret) > 0 || public.At != "" {
		return Public{}, fmt.Errorf("cannot read public key: %w: it holds more than the public half", ErrCorrupt)
	}
	return public, patch.CheckWord("the name of a key", public.Name)
}

// write creates a file with that content, or leaves nothing behind. It does not
// replace a file: a lost key cannot be made again.
func (s *Store) write(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(s.Dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	tmp, err := os.CreateTemp(s.Dir, ".new-*") // has mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	err = os.Link(tmp.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return ErrExists
	}
	if err != nil {
		return err
	}
	return syncDir(s.Dir)
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open decrypts a key. Errors match [ErrNotFound], [ErrExposed],
// [ErrPassphrase] or [ErrCorrupt].
func (s *Store) Open(name string, passphrase []byte) (*Key, error) {
	public, secret, err := s.read(name)
	if err != nil {
		return nil, err
	}
	if public.Kind != Encrypted {
		return nil, fmt.Errorf("cannot open key %s: %w", name, ErrElsewhere)
	}
	seed, err := encrypted.Decrypt(secret, passphrase)
	if err != nil {
		return nil, fmt.Errorf("cannot open key %s: %w", name, ErrPassphrase)
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("cannot open key %s: %w: it holds %d bytes", name, ErrCorrupt, len(seed))
	}
	private := ed25519.NewKeyFromSeed(seed)
	clear(seed)
	if !public.Key.Equal(private.Public()) {
		return nil, fmt.Errorf("cannot open key %s: %w: its halves do not belong together", name, ErrCorrupt)
	}
	return &Key{public: public, private: private}, nil
}

// List returns the public halves of all keys, by name.
func (s *Store) List() ([]Public, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list keys: %w", err)
	}
	var all []Public
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		public, _, err := s.read(name)
		if err != nil {
			return nil, err
		}
		all = append(all, public)
	}
	slices.SortFunc(all, func(a, b Public) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.Dir, name+suffix) }

// read reads a key file without opening the secret.
func (s *Store) read(name string) (Public, []byte, error) {
	b, err := s.readFile(name, s.path(name))
	if err != nil {
		return Public{}, nil, err
	}
	public, secret, err := parse(name, b)
	if err != nil {
		return Public{}, nil, fmt.Errorf("cannot read key %s: %w: %w", name, ErrCorrupt, err)
	}
	return public, secret, nil
}

// readFile reads the file of a key, which nobody else may have access to.
func (s *Store) readFile(name, path string) ([]byte, error) {
	err := s.checkDir()
	var b []byte
	if err == nil {
		b, err = readPrivate(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w in %s", ErrNotFound, s.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read key %s: %w", name, err)
	}
	return b, nil
}

// readPrivate reads a small file, or returns an error matching [ErrExposed] if
// others than its owner have access to it.
func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// The open file is asked and not its name, so that it cannot be exchanged
	// between question and use.
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w (%s has mode %04o)", ErrExposed, f.Name(), st.Mode().Perm())
	}
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// checkDir returns an error matching [ErrExposed] if others can exchange the
// files in the folder.
func (s *Store) checkDir() error {
	st, err := os.Stat(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no folder %s", ErrNotFound, s.Dir)
	}
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w (%s has mode %04o)", ErrExposed, s.Dir, st.Mode().Perm())
	}
	return nil
}

// parse reads a key file. An empty name stands for any.
func parse(name string, b []byte) (Public, []byte, error) {
	if len(b) > maxFile {
		return Public{}, nil, patch.ErrTooLarge
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return Public{}, nil, err
	}
	public, err := hex.DecodeString(f.Public)
	if err != nil {
		return Public{}, nil, err
	}
	id, err := sign.KeyID(public)
	if err != nil {
		return Public{}, nil, err
	}
	if f.ID != id || name != "" && f.Name != name {
		return Public{}, nil, fmt.Errorf("it says that it is key %q with ID %q", f.Name, f.ID)
	}
	p := Public{Name: f.Name, ID: id, Key: public, At: f.At}
	switch {
	case len(f.Secret) > 0 && f.At != "":
		return Public{}, nil, errors.New("it has a secret and says that this is elsewhere")
	case len(f.Secret) > 0:
		p.Kind = Encrypted
	case f.At != "":
		p.Kind = Foreign
	}
	return p, f.Secret, nil
}
