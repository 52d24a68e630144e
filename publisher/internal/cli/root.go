package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func (a *app) rootCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "root", Short: "Manage the root of trust"}
	cmd.AddCommand(
		a.rootShowCommand(),
		a.rotateCommand("root", "It is signed by enough of the keys before and enough of the keys after."),
		a.thresholdCommand("root"),
	)
	return cmd
}

func (a *app) rootShowCommand() *cobra.Command {
	var output string
	var version int64
	cmd := &cobra.Command{
		Use:   "show [--output FILE]",
		Short: "Write the root that machines are shipped with",
		Long: `Write a version of the root as it is signed, by default the newest. It goes into
the package of agent and loader: a machine trusts what this file says, and
follows the chain of newer roots from there.`,
		Example: "  livepatch-publish --repo R root show --output root.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := a.rootFile(version)
			if err != nil {
				return fmt.Errorf("cannot show root: %w", err)
			}
			if output == "" {
				_, err = a.Stdout.Write(b)
				return err
			}
			return os.WriteFile(output, b, 0o644)
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "`file` to write (default: standard output)")
	cmd.Flags().Int64Var(&version, "version", 0, "`number` of the version (default: the newest)")
	return cmd
}

func (a *app) rootFile(version int64) ([]byte, error) {
	r, err := a.open()
	if err != nil {
		return nil, err
	}
	root, err := r.Root()
	if err == nil && version == 0 {
		version = root.Signed.Version
	}
	var b []byte
	if err == nil {
		b, err = r.Metadata("root", version)
	}
	return b, errors.Join(err, r.Close())
}
