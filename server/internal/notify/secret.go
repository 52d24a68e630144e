package notify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Conditions that callers branch on.
var (
	// ErrSecret means that a file holds no secret of a webhook.
	ErrSecret = errors.New("not a secret of a webhook")
	// ErrOpenSecret means that others than its owner may read the file of a secret.
	ErrOpenSecret = errors.New("secret is readable for others")
	// ErrURL means that notices are not sent to such an address.
	ErrURL = errors.New("not an address for a webhook")
)

// Limits on a secret, of the Standard Webhooks specification, and on how many a file
// may hold: the new one and those that are being replaced.
const (
	minSecret   = 24
	maxSecret   = 64
	maxSecrets  = 4
	maxFile     = 1024
	secretBegin = "whsec_"
)

// LoadSecrets reads the secrets in the file at path.
func LoadSecrets(path string) ([][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read secret of webhook: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read secret of webhook: %w", err)
	}
	if info.Mode()&0o077 != 0 && info.Mode().Type() != fs.ModeNamedPipe {
		return nil, fmt.Errorf("cannot read secret of webhook %q: %w", path, ErrOpenSecret)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read secret of webhook: %w", err)
	}
	secrets, err := ParseSecrets(b)
	if err != nil {
		return nil, fmt.Errorf("cannot read secret of webhook %q: %w", path, err)
	}
	return secrets, nil
}

// ParseSecrets reads secrets, one a line, each written as "whsec_" and 24 to 64 bytes
// in base64. With several, every notice is signed by each, so that the other side
// can go from one to the next. The error matches [ErrSecret] and does not quote them.
func ParseSecrets(b []byte) (secrets [][]byte, err error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrSecret, maxFile)
	}
	for line := range bytes.Lines(b) {
		text, ok := strings.CutPrefix(strings.TrimSpace(string(line)), secretBegin)
		secret, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil || len(secret) < minSecret || len(secret) > maxSecret {
			return nil, fmt.Errorf("%w: want %s and %d to %d bytes in base64", ErrSecret, secretBegin, minSecret, maxSecret)
		}
		secrets = append(secrets, secret)
	}
	if len(secrets) == 0 || len(secrets) > maxSecrets {
		return nil, fmt.Errorf("%w: %d secrets, want 1 to %d", ErrSecret, len(secrets), maxSecrets)
	}
	return secrets, nil
}
