// Package sshagent signs with ed25519 keys that an ssh-agent holds. A key is
// named by its fingerprint, as "ssh-add -l" shows it:
//
//	ssh-agent:SHA256:0mb3Yq…
//
// An agent signs whatever it is asked to. The signature of an ssh-ed25519 key
// over some bytes is the plain one of RFC 8032 over these bytes (RFC 8709,
// section 6), which TUF wants. That metadata is taken for something of SSH, or
// the other way round, is ruled out by form: what SSH has signed begins with the
// length of a field, four bytes, and canonical JSON with a brace.
package sshagent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"livepatch/publisher/internal/sign"
)

// Scheme is that of the URIs.
const Scheme = "ssh-agent"

// Conditions that callers branch on.
var (
	ErrURI  = errors.New("URI of the key is not valid")
	ErrKind = errors.New("key in the agent is not an ed25519 key")
)

// timeout is how long an agent has for one answer. Some ask a person.
const timeout = 2 * time.Minute

// A Backend opens keys in an agent.
type Backend struct {
	Socket string // path; "" means that no agent runs
}

// Open returns the key whose fingerprint the URI holds. Errors match [ErrURI],
// [ErrKind], or [sign.ErrAbsent] if the agent is not there or has no such key.
func (b *Backend) Open(ctx context.Context, name, uri string) (sign.Signer, error) {
	fingerprint, ok := strings.CutPrefix(uri, Scheme+":")
	if !ok || !strings.HasPrefix(fingerprint, "SHA256:") {
		return nil, fmt.Errorf("%w: want %s:SHA256:…", ErrURI, Scheme)
	}
	var found *signer
	err := b.ask(ctx, func(a agent.ExtendedAgent) error {
		keys, err := a.List()
		if err != nil {
			return err
		}
		found, err = find(keys, fingerprint)
		return err
	})
	if err != nil {
		return nil, err
	}
	found.name, found.backend = name, b
	return found, nil
}

func find(keys []*agent.Key, fingerprint string) (*signer, error) {
	for _, k := range keys {
		key, err := ssh.ParsePublicKey(k.Blob)
		if err != nil || ssh.FingerprintSHA256(key) != fingerprint {
			continue // agents hold kinds of keys that are not known here
		}
		crypto, ok := key.(ssh.CryptoPublicKey)
		if !ok {
			return nil, fmt.Errorf("%w: it is a %s", ErrKind, key.Type())
		}
		public, ok := crypto.CryptoPublicKey().(ed25519.PublicKey)
		if !ok || key.Type() != ssh.KeyAlgoED25519 {
			return nil, fmt.Errorf("%w: it is a %s", ErrKind, key.Type())
		}
		return &signer{key: key, public: public}, nil
	}
	return nil, fmt.Errorf("%w: the agent has no key %s", sign.ErrAbsent, fingerprint)
}

// ask connects to the agent for one question. An agent that does not answer is
// left when the context ends.
func (b *Backend) ask(ctx context.Context, question func(agent.ExtendedAgent) error) error {
	if b.Socket == "" {
		return fmt.Errorf("%w: no ssh-agent runs", sign.ErrAbsent)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", b.Socket)
	if err != nil {
		return fmt.Errorf("%w: %w", sign.ErrAbsent, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := question(agent.NewClient(conn)); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return nil
}

// A signer is a key in an agent.
type signer struct {
	name    string
	public  ed25519.PublicKey
	key     ssh.PublicKey
	backend *Backend
}

// Name implements [sign.Signer].
func (s *signer) Name() string { return s.name }

// Public implements [sign.Signer].
func (s *signer) Public() ed25519.PublicKey { return s.public }

// Sign implements [sign.Signer].
func (s *signer) Sign(ctx context.Context, message []byte) (sig []byte, err error) {
	err = s.backend.ask(ctx, func(a agent.ExtendedAgent) error {
		got, err := a.Sign(s.key, message)
		if err != nil {
			return fmt.Errorf("agent does not sign: %w", err)
		}
		if got.Format != ssh.KeyAlgoED25519 {
			return fmt.Errorf("%w: it signs as %s", ErrKind, got.Format)
		}
		sig = got.Blob
		return nil
	})
	return sig, err
}
