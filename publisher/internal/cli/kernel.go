package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/description"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/repo"
)

func (a *app) kernelCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "kernel", Short: "Manage what is said about a kernel"}
	cmd.AddCommand(a.kernelSetCommand())
	return cmd
}

func (a *app) kernelSetCommand() *cobra.Command {
	var vendor string
	cmd := &cobra.Command{
		Use:   "set FILE --vendor NAME",
		Short: "Set a kernel's support window and what no livepatch can fix",
		Long: `Change the index of a kernel, or make one for a kernel that has no patches yet.
FILE is a description as for "add" with kernel, support and unpatchable; what it
does not have stays as it is.`,
		Example: "  livepatch-publish --repo R kernel set kernel.yaml --vendor debian",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := readDescription(args[0], (*description.Description).ForKernel)
			if err != nil {
				return err
			}
			kernel := patch.Kernel{Release: d.Kernel.Release, Arch: d.Kernel.Arch}
			return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
				changed, err := r.SetKernel(cmd.Context(), ring, vendor, kernel, d.Kernel.Flavour, facts(d))
				if err != nil {
					return err
				}
				if !changed {
					fmt.Fprintf(a.Stdout, "Nothing to do: the index of kernel %s (%s) says this already.\n", kernel.Release, kernel.Arch)
					return nil
				}
				fmt.Fprintf(a.Stdout, "Changed the index of kernel %s (%s).\n", kernel.Release, kernel.Arch)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&vendor, "vendor", "", "`name` of the vendor")
	cobra.CheckErr(cmd.MarkFlagRequired("vendor"))
	return cmd
}
