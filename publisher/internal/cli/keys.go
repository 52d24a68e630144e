package cli

import (
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/keys"
)

// maxKeyFile bounds a file with a public key, in bytes.
const maxKeyFile = 16 << 10

func (a *app) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "keys",
		Short:   "List the keys that are known here, and manage them",
		Example: "  livepatch-publish --repo R keys",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := a.store().List()
			if err != nil {
				return err
			}
			modules, err := a.store().Modules()
			if err != nil {
				return err
			}
			return a.printKeys(all, modules)
		},
	}
	cmd.AddCommand(a.keysCreateCommand(), a.keysAddCommand(), a.keysExportCommand(), a.keysImportCommand())
	return cmd
}

func (a *app) printKeys(all []keys.Public, modules []keys.ModuleKey) error {
	if len(all)+len(modules) == 0 {
		fmt.Fprintf(a.Stdout, "There is no key in %s.\n", a.store().Dir)
		return nil
	}
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tID\tPRIVATE HALF")
	for _, k := range all {
		where := k.Kind.String()
		if k.At != "" {
			where = k.At
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", k.Name, k.ID, where)
	}
	printModuleKeys(w, modules)
	return w.Flush()
}

func (a *app) keysCreateCommand() *cobra.Command {
	var kmod bool
	var f certifyFlags
	cmd := &cobra.Command{
		Use:   "create NAME [--kmod [--cert FILE] [--common-name NAME] [--days N]]",
		Short: "Create a key in an encrypted file",
		Long: `Create a key in an encrypted file. Nothing trusts it yet: it is made for somebody
who signs on this machine, and brought to the repository with "keys export".

With --kmod it is a key that signs modules for the check that kernels make
themselves (see "module"): RSA, with a certificate that machines enrol. It signs
nothing in the repository.`,
		Example: "  livepatch-publish --keys K keys create root-2\n  livepatch-publish --keys K keys create debian-kmod --kmod --cert livepatch-kmod.x509",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kmod {
				return a.createModuleKey(cmd, args[0], f)
			}
			for _, name := range []string{"cert", "common-name", "days"} {
				if cmd.Flags().Changed(name) {
					return fmt.Errorf("%w: --%s is for keys with --kmod", errUsage, name)
				}
			}
			return a.createKey(cmd, args[0])
		},
	}
	cmd.Flags().BoolVar(&kmod, "kmod", false, "make a key that signs modules, and its certificate")
	f.register(cmd)
	return cmd
}

func (a *app) createKey(cmd *cobra.Command, name string) error {
	if _, err := a.store().Get(name); !errors.Is(err, keys.ErrNotFound) {
		return fmt.Errorf("cannot create key %s: %w", name, errors.Join(keys.ErrExists, err))
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	k, err := ring.Ensure(cmd.Context(), name)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "Created key %s with ID %s.\n", k.Name, k.ID)
	return nil
}

func (a *app) keysAddCommand() *cobra.Command {
	var at string
	var kmod bool
	cmd := &cobra.Command{
		Use:   "add NAME --at URI [--kmod]",
		Short: "Write down a key that lies in a token or an agent",
		Long: `Give a name to a key that lies elsewhere, after it was found there. It can be used
then as any other. The URI is one of

  pkcs11:token=T;object=O?module-path=FILE   in a PKCS #11 token (RFC 7512), an
                                             ed25519 key called O in the token T
  ssh-agent:SHA256:…                         in the agent of SSH_AUTH_SOCK, the
                                             ssh-ed25519 key of that fingerprint
                                             (ssh-add -l shows it)

The PIN of a token comes from the file that pin-source=file:FILE in the URI names,
from LIVEPATCH_PIN, or from the terminal; it never stands on the command line.

With --kmod it is an RSA key of a token, which signs modules; "module certify"
makes its certificate.`,
		Example: "  livepatch-publish --repo R keys add root-1 --at 'pkcs11:token=offline;object=root-1?module-path=/usr/lib/softhsm/libsofthsm2.so'\n" +
			"  livepatch-publish --repo R keys add debian-builder --at ssh-agent:SHA256:0mb3…",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kmod {
				return a.addModuleKey(cmd, args[0], at)
			}
			ring, err := a.ring()
			if err != nil {
				return err
			}
			k, err := ring.Adopt(cmd.Context(), args[0], at)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Stdout, "Added key %s with ID %s.\n", k.Name, k.ID)
			return nil
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "`URI` of the key")
	cmd.Flags().BoolVar(&kmod, "kmod", false, "the key signs modules")
	cobra.CheckErr(cmd.MarkFlagRequired("at"))
	return cmd
}

func (a *app) keysExportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "export NAME [--output FILE]",
		Short:   "Write the public half of a key, for others to trust",
		Example: "  livepatch-publish --keys K keys export root-2 --output root-2.pub.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			k, err := a.store().Get(args[0])
			if err != nil {
				return err
			}
			b, err := k.Export()
			if err != nil {
				return err
			}
			if output == "" {
				_, err = a.Stdout.Write(b)
				return err
			}
			return os.WriteFile(output, b, 0o644)
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "`file` to write (default: standard output)")
	return cmd
}

func (a *app) keysImportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Write down the public half of somebody else's key",
		Long: `Write down the public half of a key that somebody else has, as "keys export" wrote
it. Compare the ID that is printed with theirs before the key is trusted.`,
		Example: "  livepatch-publish --repo R keys import root-2.pub.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := readFile(args[0], maxKeyFile)
			if err != nil {
				return fmt.Errorf("cannot read public key: %w", err)
			}
			public, err := keys.ParsePublic(b)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			k, err := a.store().Adopt(public.Name, public.Key, "")
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Stdout, "Added the public half of key %s with ID %s.\n", k.Name, k.ID)
			return nil
		},
	}
}
