package cli

import (
	"bytes"
	"crypto/x509"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/modsig"
	"livepatch/publisher/internal/module"
)

// maxCertificate bounds a file with a certificate, in bytes.
const maxCertificate = 64 << 10

const keyHelp = `The key is named by what "keys" calls it, by a file in PEM (PKCS #8 or PKCS #1,
without a passphrase, as kbuild's signing_key.pem), or by its place in a token,
pkcs11:token=T;object=O?module-path=FILE.`

func (a *app) moduleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "module",
		Short: "Sign modules for the check that kernels make themselves, as with Secure Boot",
	}
	cmd.AddCommand(a.moduleSignCommand(), a.moduleVerifyCommand(), a.moduleCertifyCommand())
	return cmd
}

// moduleSignFlags are what "module sign" is told.
type moduleSignFlags struct{ key, cert, hash, output string }

func (a *app) moduleSignCommand() *cobra.Command {
	var f moduleSignFlags
	cmd := &cobra.Command{
		Use:   "sign MODULE.ko --key KEY --cert FILE [--hash sha256|sha384|sha512] [--output FILE]",
		Short: "Sign a module, as the kernel's sign-file does",
		Long: `Sign a module with an RSA key, byte by byte as the kernel's own sign-file does
it. A signature that is there already is replaced. Every kernel that checks modules
has sha256 built in; many have the others as modules, and refuse a livepatch that
comes before these ("module with unsupported crypto").

` + keyHelp,
		Example: "  livepatch-publish --keys K module sign lkp_Debian_6_1_0_53_amd64_113.ko --key debian-kmod --cert livepatch-kmod.x509",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.signModule(cmd, args[0], f); err != nil {
				return fmt.Errorf("cannot sign %q: %w", args[0], err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key", "", "`key` to sign with")
	flags.StringVar(&f.cert, "cert", "", "`file` of the key's certificate (DER or PEM)")
	flags.StringVar(&f.hash, "hash", "sha256", "sha256, sha384 or sha512")
	flags.StringVar(&f.output, "output", "", "`file` to write (default: in place)")
	for _, name := range []string{"key", "cert"} {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
	return cmd
}

func (a *app) signModule(cmd *cobra.Command, name string, f moduleSignFlags) error {
	hash, err := modsig.ParseHash(f.hash)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	cert, err := readCertificate(f.cert)
	if err != nil {
		return err
	}
	content, err := readModule(name)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(content, []byte(elf.ELFMAG)) {
		return module.ErrNotELF // compressed, say: then the kernel would not find the signature
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	key, err := ring.Module(cmd.Context(), f.key)
	if err != nil {
		return err
	}
	signed, err := modsig.Sign(content, cert, key, hash)
	if err != nil {
		return err
	}
	if f.output == "" {
		f.output = name
	}
	return a.saveSigned(content, signed, cert, f)
}

// saveSigned writes a signed module, and says what came of it.
func (a *app) saveSigned(content, signed []byte, cert *x509.Certificate, f moduleSignFlags) error {
	if err := replaceFile(f.output, signed); err != nil {
		return err
	}
	if _, was, err := modsig.Read(content); err == nil {
		a.note("replaced the signature of %s", was.Signer())
	}
	a.noteValidity(cert)
	fmt.Fprintf(a.Stdout, "Signed %s with %s and key %s.\n", f.output, f.hash, modsig.HexID(cert))
	return nil
}

func (a *app) moduleVerifyCommand() *cobra.Command {
	var certFile string
	cmd := &cobra.Command{
		Use:   "verify MODULE.ko --cert FILE",
		Short: "Check the signature of a module against a certificate, and say whose it is",
		Long: `Check that the key of a certificate has signed a module, in a form that kernels
take. Whether a machine's kernel knows the key is for the machine to say: mokutil
--test-key FILE, or canonical-livepatch status --verbose.`,
		Example: "  livepatch-publish module verify lkp_Debian_6_1_0_53_amd64_113.ko --cert livepatch-kmod.x509",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cert, err := readCertificate(certFile)
			if err != nil {
				return fmt.Errorf("cannot verify %q: %w", args[0], err)
			}
			content, err := readModule(args[0])
			if err != nil {
				return fmt.Errorf("cannot verify %q: %w", args[0], err)
			}
			s, err := verifySignature(content, cert)
			if err != nil {
				return fmt.Errorf("cannot verify %q: %w", args[0], err)
			}
			a.noteValidity(cert)
			return a.printSignature(s, cert)
		},
	}
	cmd.Flags().StringVar(&certFile, "cert", "", "`file` of the certificate (DER or PEM)")
	cobra.CheckErr(cmd.MarkFlagRequired("cert"))
	return cmd
}

// verifySignature returns the signature of a module if the key of a certificate
// has made it.
func verifySignature(content []byte, cert *x509.Certificate) (modsig.Signature, error) {
	body, s, err := modsig.Read(content)
	if err == nil {
		err = s.Verify(body, cert)
	}
	return s, err
}

func (a *app) printSignature(s modsig.Signature, cert *x509.Certificate) error {
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"signed by", plain(s.Signer())},
		{"hash", modsig.HashName(s.Hash)},
		{"certificate", plain(cert.Subject.String())},
		{"key", modsig.HexID(cert)},
		{"valid", cert.NotBefore.UTC().Format(time.DateOnly) + " to " + cert.NotAfter.UTC().Format(time.DateOnly)},
	} {
		fmt.Fprintf(w, "%s:\t%s\n", row[0], row[1])
	}
	return w.Flush()
}

// noteValidity tells of a certificate that is not in force now. Kernels do not
// look at that, but people who are to enrol it do.
func (a *app) noteValidity(cert *x509.Certificate) {
	switch now := a.Now(); {
	case now.After(cert.NotAfter):
		a.note("the certificate has expired on %s", cert.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(cert.NotBefore):
		a.note("the certificate is not valid before %s", cert.NotBefore.UTC().Format(time.DateOnly))
	}
}

// certifyFlags are what a certificate is made of.
type certifyFlags struct {
	cert, name string
	days       int
}

func (f *certifyFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.cert, "cert", "livepatch-kmod.x509", "`file` for the certificate (DER)")
	flags.StringVar(&f.name, "common-name", "", "`name` in the certificate, which people see when they enrol it (default: that of the key)")
	flags.IntVar(&f.days, "days", 3650, "how `long` the certificate is valid")
}

func (a *app) moduleCertifyCommand() *cobra.Command {
	var f certifyFlags
	var keyName string
	cmd := &cobra.Command{
		Use:   "certify --key KEY --cert FILE [--common-name NAME] [--days N]",
		Short: "Make the certificate of a key that signs modules, for machines to enrol",
		Long: `Make the certificate of a key that signs kernel modules. It signs itself, for
modules and nothing else: shim starts no program that was signed with such a key.
Machines get to know the key by it: mokutil --import FILE.

` + keyHelp,
		Example: "  livepatch-publish --keys K module certify --key debian-kmod --cert livepatch-kmod.x509",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ring, err := a.ring()
			if err != nil {
				return err
			}
			if err := f.check(keyName); err != nil {
				return err
			}
			key, err := ring.Module(cmd.Context(), keyName)
			if err != nil {
				return err
			}
			return a.certify(key, f)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&keyName, "key", "", "`key` to certify")
	cobra.CheckErr(cmd.MarkFlagRequired("key"))
	return cmd
}

// readCertificate reads a certificate for modules.
func readCertificate(name string) (*x509.Certificate, error) {
	b, err := readFile(name, maxCertificate)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate: %w", err)
	}
	cert, err := modsig.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

// replaceFile writes a file, whole or not at all. It keeps the mode of one that
// is there.
func replaceFile(name string, b []byte) error {
	mode := fs.FileMode(0o644)
	if st, err := os.Stat(name); err == nil {
		mode = st.Mode().Perm()
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}
