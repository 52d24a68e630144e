package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/repo"
	"livepatch/publisher/internal/synthetic"
)

// generateCommand is hidden: it fills a repository for measurements.
func (a *app) generateCommand() *cobra.Command {
	var (
		vendor           string
		kernels, patches int
	)
	cmd := &cobra.Command{
		Use:    "generate",
		Short:  "Add made-up livepatches, to measure with",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			additions, err := synthetic.Additions(kernels, patches)
			if err != nil {
				return err
			}
			return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
				start := time.Now()
				if _, err := r.Add(cmd.Context(), ring, vendor, additions); err != nil {
					return err
				}
				fmt.Fprintf(a.Stdout, "Generated %d kernels with %d patches each.\n", kernels, patches)
				a.note("took %v", time.Since(start).Round(time.Millisecond))
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&vendor, "vendor", "debian", "`name` of the vendor")
	flags.IntVar(&kernels, "kernels", 5000, "`number` of kernels")
	flags.IntVar(&patches, "patches", 3, "`number` of patches for each")
	return cmd
}
