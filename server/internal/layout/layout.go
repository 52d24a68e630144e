// Package layout says where a service keeps its things below its folder, and
// makes and opens them.
package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"livepatch/server/internal/blob"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store/sqlite"
)

// ErrNoService means that a folder holds no service.
var ErrNoService = errors.New("folder holds no service")

// A Dir is the folder of a service.
type Dir string

// Where things lie.
func (d Dir) database() string { return filepath.Join(string(d), "livepatch.db") }
func (d Dir) blobs() string    { return filepath.Join(string(d), "blobs") }
func (d Dir) keys() string     { return filepath.Join(string(d), "keys") }

func (d Dir) publicKeys() string { return filepath.Join(string(d), "online-keys.json") }

// TLS is the folder of certificates.
func (d Dir) TLS() string { return filepath.Join(string(d), "tls") }

// Cert is the certificate that a server uses unless it is told another one.
func (d Dir) Cert() string { return filepath.Join(d.TLS(), "server.crt") }

// Key is the key of [Dir.Cert].
func (d Dir) Key() string { return filepath.Join(d.TLS(), "server.key") }

// CA is the certificate of the development CA.
func (d Dir) CA() string { return filepath.Join(d.TLS(), "ca.crt") }

// A Part is a piece of a service and its place.
type Part struct{ What, Path string }

// Create makes what the folder lacks of a service: database, blob folder,
// online keys. What is there is left as it is. It returns all parts.
func (d Dir) Create(ctx context.Context) ([]Part, error) {
	if err := os.MkdirAll(string(d), 0o711); err != nil {
		return nil, fmt.Errorf("cannot create service: %w", err)
	}
	err := errors.Join(
		sqlite.Create(ctx, d.database()),
		blob.Create(d.blobs()),
		signer.CreateKeys(d.keys()),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot create service: %w", err)
	}
	if err := d.writePublicKeys(); err != nil {
		return nil, fmt.Errorf("cannot create service: %w", err)
	}
	return []Part{
		{"database", d.database()}, {"files", d.blobs()}, {"online keys", d.keys()},
		{"public keys, for livepatch-publish init", d.publicKeys()},
	}, nil
}

// writePublicKeys writes the public halves of the online keys for a publisher
// to put into root: an object of roles and hexadecimal keys.
func (d Dir) writePublicKeys() error {
	keys, err := d.Keys()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(keys.Public(), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(d.publicKeys(), append(b, '\n'), 0o644)
}

// Database opens the database. The caller closes it. The error matches
// [ErrNoService] if there is none.
func (d Dir) Database(ctx context.Context) (*sqlite.DB, error) {
	db, err := sqlite.Open(ctx, d.database())
	return db, d.missing(err)
}

// Blobs opens the blob folder.
func (d Dir) Blobs() (*blob.Store, error) {
	s, err := blob.Open(d.blobs())
	return s, d.missing(err)
}

// Keys loads the online keys.
func (d Dir) Keys() (signer.Keys, error) {
	k, err := signer.LoadKeys(d.keys())
	return k, d.missing(err)
}

func (d Dir) missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot use %q: %w: %w", string(d), ErrNoService, err)
	}
	return err
}
