package cli

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/modsig"
)

// Bounds on what a certificate is made of. X.520 has no longer names.
const (
	maxCommonName = 64
	maxDays       = 36500
)

var errFileExists = errors.New("there is such a file already")

// check returns an error unless a certificate can be made so, for the key of a
// name, before anything is.
func (f *certifyFlags) check(keyName string) error {
	if f.name == "" {
		f.name = keyName
	}
	if f.days < 1 || f.days > maxDays {
		return fmt.Errorf("%w: --days is %d, want 1 to %d", errUsage, f.days, maxDays)
	}
	if len(f.name) > maxCommonName || plain(f.name) != f.name {
		return fmt.Errorf("%w: --common-name is %q, want up to %d printable characters", errUsage, f.name, maxCommonName)
	}
	if _, err := os.Stat(f.cert); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot make certificate %q: %w", f.cert, errFileExists)
	}
	return nil
}

// certify writes the certificate of a key.
func (a *app) certify(key crypto.Signer, f certifyFlags) error {
	now := a.Now().UTC()
	der, err := modsig.SelfSign(key, f.name, now, now.AddDate(0, 0, f.days))
	if err != nil {
		return err
	}
	cert, err := modsig.ParseCertificate(der) // as everybody else will
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.cert, der, 0o644); err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	fmt.Fprintf(a.Stdout, "Made certificate %s of key %s, valid until %s.\n", f.cert, modsig.HexID(cert), cert.NotAfter.UTC().Format("2006-01-02"))
	return nil
}

// createModuleKey is "keys create --kmod".
func (a *app) createModuleKey(cmd *cobra.Command, name string, f certifyFlags) error {
	if err := f.check(name); err != nil {
		return err
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	key, err := ring.CreateModule(cmd.Context(), name)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "Created key %s, which signs modules.\n", name)
	return a.certify(key, f)
}

// addModuleKey is "keys add --kmod".
func (a *app) addModuleKey(cmd *cobra.Command, name, at string) error {
	ring, err := a.ring()
	if err != nil {
		return err
	}
	key, err := ring.AdoptModule(cmd.Context(), name, at)
	if err != nil {
		return err
	}
	id, err := modsig.KeyID(key.Public())
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "Added key %s with ID %s, which signs modules.\n", name, hex.EncodeToString(id))
	return nil
}

// printModuleKeys adds the keys that sign modules to the table of keys.
func printModuleKeys(w io.Writer, all []keys.ModuleKey) {
	for _, k := range all {
		where := k.Kind.String()
		if k.At != "" {
			where = k.At
		}
		fmt.Fprintf(w, "%s\t%s\t%s (signs modules)\n", k.Name, k.ID, where)
	}
}
