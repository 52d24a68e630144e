// Package token signs with keys that lie in PKCS #11 tokens: smart cards,
// hardware security modules, SoftHSM. Metadata is signed with ed25519 keys, kernel
// modules with RSA keys. A key is named by an URI of RFC 7512,
//
//	pkcs11:token=offline;object=root-1?module-path=/usr/lib/softhsm/libsofthsm2.so
//
// Tokens are reached through a library of their maker, so that this needs cgo; a
// program that was built without it has only the error [ErrNoCgo].
package token

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
)

// Scheme is that of the URIs.
const Scheme = "pkcs11"

// Conditions that callers branch on.
var (
	ErrNoCgo = errors.New("this program was built without PKCS #11")
	ErrURI   = errors.New("URI of the key is not valid")
	ErrNoKey = errors.New("token has no such key")
	ErrPIN   = errors.New("token refuses the PIN")
)

// A Backend opens keys in tokens. Keys of one token share a session with it.
// Close ends all of them.
type Backend struct {
	// PIN asks for the PIN of a key's token. It is asked once for each token,
	// and never a second time after the token has said no: three wrong ones can
	// lock it.
	PIN func(ctx context.Context, key string) ([]byte, error)

	library // what cgo is for
}

// An address says which key is meant. Empty fields are not compared.
type address struct {
	module string // path of the library
	token  string // label
	serial string // of the token
	object string // label of the key
	id     []byte // of the key
	pin    string // file that holds the PIN
}

// parse reads an URI.
func parse(uri string) (address, error) {
	u := pkcs11uri.New()
	if err := u.Parse(uri); err != nil {
		return address{}, fmt.Errorf("%w: %w", ErrURI, err)
	}
	if _, ok := u.GetQueryAttribute("pin-value", false); ok {
		return address{}, fmt.Errorf("%w: a PIN does not belong into it", ErrURI)
	}
	get := func(name string) string { v, _ := u.GetPathAttribute(name, false); return v }
	a := address{token: get("token"), serial: get("serial"), object: get("object"), id: []byte(get("id"))}
	a.module, _ = u.GetQueryAttribute("module-path", false)
	a.pin, _ = u.GetQueryAttribute("pin-source", false)
	switch {
	case !filepath.IsAbs(a.module):
		return address{}, fmt.Errorf("%w: it has no module-path, want the library of the token", ErrURI)
	case a.token == "" && a.serial == "":
		return address{}, fmt.Errorf("%w: it has neither token nor serial", ErrURI)
	case a.object == "" && len(a.id) == 0:
		return address{}, fmt.Errorf("%w: it has neither object nor id", ErrURI)
	}
	return a, nil
}

// maxPIN bounds a file with a PIN, in bytes.
const maxPIN = 256

// askPIN takes the PIN from the file that the URI names, or asks for it.
func (b *Backend) askPIN(ctx context.Context, key string, a address) (string, error) {
	if a.pin == "" {
		pin, err := b.PIN(ctx, key)
		return string(pin), err
	}
	name, _ := bytes.CutPrefix([]byte(a.pin), []byte("file:"))
	pin, err := os.ReadFile(string(name))
	if err != nil {
		return "", fmt.Errorf("cannot read PIN: %w", err)
	}
	pin = bytes.TrimRight(pin, "\r\n")
	if len(pin) == 0 || len(pin) > maxPIN {
		return "", fmt.Errorf("cannot read PIN: %s has %d bytes, want 1 to %d", name, len(pin), maxPIN)
	}
	return string(pin), nil
}
