package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"livepatch/publisher/internal/keys"
)

var errNoPassphrase = errors.New("there is no terminal to ask for a passphrase on")

// maxSecret bounds a file that holds a passphrase or a token, in bytes.
const maxSecret = 4 << 10

// ring returns the keys, and where their passphrases come from.
func (a *app) ring() (*keys.Ring, error) {
	ask, err := a.prompt()
	if err != nil {
		return nil, err
	}
	return keys.NewRing(a.store(), ask, a.Backends), nil
}

// prompt takes the passphrase from the file, else from the environment, else
// from the terminal.
func (a *app) prompt() (keys.Prompt, error) {
	if a.passphraseFile != "" {
		secret, err := readSecret(a.passphraseFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read passphrase: %w", err)
		}
		return always(secret), nil
	}
	if a.Passphrase != "" {
		return always([]byte(a.Passphrase)), nil
	}
	return a.askTerminal, nil
}

func always(passphrase []byte) keys.Prompt {
	return func(context.Context, string, bool) ([]byte, error) { return passphrase, nil }
}

func (a *app) askTerminal(ctx context.Context, key string, created bool) ([]byte, error) {
	if a.Ask == nil {
		return nil, errNoPassphrase
	}
	if !created {
		return a.Ask(ctx, "Passphrase of key "+key+": ")
	}
	first, err := a.Ask(ctx, "Passphrase for the new key "+key+": ")
	if err != nil {
		return nil, err
	}
	again, err := a.Ask(ctx, "Again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, again) {
		return nil, errors.New("the two passphrases differ")
	}
	return first, nil
}

// readSecret returns the first line of a file.
func readSecret(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	line, rest, _ := bytes.Cut(b, []byte("\n"))
	if len(b) > maxSecret || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s has more than one line, or more than %d bytes", name, maxSecret)
	}
	if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return line, nil
}
