package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/repo"
)

func (a *app) vendorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vendor", Short: "Manage the vendors of livepatches"}
	cmd.AddCommand(
		a.vendorAddCommand(),
		a.rotateCommand("", "Targets, which names the keys of the vendor, is signed, the vendor and all of its bins."),
		a.thresholdCommand(""),
	)
	return cmd
}

func (a *app) vendorAddCommand() *cobra.Command {
	var bits int
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Create a vendor's keys and let them sign its livepatches",
		Long: `Create the keys NAME-builder and NAME-approver, both of which must sign, delegate
NAME/* to them and create the vendor's empty hash bins. Machines find their
vendor as ID in /etc/os-release.`,
		Example: "  livepatch-publish --repo R vendor add debian",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vendor := args[0]
			if err := repo.CheckVendorName(vendor); err != nil {
				return err
			}
			return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
				// A vendor that cannot be added must not leave keys behind.
				if err := r.CheckNewVendor(vendor, bits); err != nil {
					return err
				}
				builder, err := ring.Ensure(cmd.Context(), vendor+"-builder")
				if err != nil {
					return err
				}
				approver, err := ring.Ensure(cmd.Context(), vendor+"-approver")
				if err != nil {
					return err
				}
				if err := r.AddVendor(cmd.Context(), ring, vendor, bits, builder.Key, approver.Key); err != nil {
					return err
				}
				fmt.Fprintf(a.Stdout, "Added vendor %s with %d bins.\n", vendor, 1<<bits)
				return nil
			})
		},
	}
	cmd.Flags().IntVar(&bits, "bits", repo.DefaultBits, "the vendor's targets are spread over 2^`N` bins")
	return cmd
}
