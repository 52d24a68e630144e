package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/repo"
)

func (a *app) refreshCommand() *cobra.Command {
	var (
		within time.Duration
		all    bool
	)
	cmd := &cobra.Command{
		Use:   "refresh [--within DURATION | --all]",
		Short: "Sign anew what expires soon",
		Long: `Sign anew, with a new version and a new expiry, every role that has a third of
its life left or less. Bins live 30 days, vendors 90, targets 180, root 365;
repo.json says so and can say otherwise.`,
		Example: "  livepatch-publish --repo R refresh\n  livepatch-publish --repo R refresh --within 480h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
				due := r.Due()
				switch {
				case all:
					due = func(string, time.Time) bool { return true }
				case within > 0:
					due = r.DueWithin(within)
				}
				done, err := r.Refresh(cmd.Context(), ring, due)
				if err != nil {
					return err
				}
				a.printRefreshed(done)
				return nil
			})
		},
	}
	cmd.Flags().DurationVar(&within, "within", 0, "sign what expires in less than this `duration` (720h)")
	cmd.Flags().BoolVar(&all, "all", false, "sign everything")
	cmd.MarkFlagsMutuallyExclusive("within", "all")
	return cmd
}

// printRefreshed names each role but the bins, of which there are too many.
func (a *app) printRefreshed(done []repo.Refreshed) {
	if len(done) == 0 {
		fmt.Fprintln(a.Stdout, "Nothing to do: nothing expires soon.")
		return
	}
	bins := 0
	for _, d := range done {
		if strings.Contains(d.Role, "-") {
			bins++
			continue
		}
		fmt.Fprintf(a.Stdout, "Signed %s: version %d, valid until %s.\n", d.Role, d.Version, d.Expires.Format(time.RFC3339))
	}
	if bins > 0 {
		fmt.Fprintf(a.Stdout, "Signed %d bins, valid until %s.\n", bins, done[len(done)-1].Expires.Format(time.RFC3339))
	}
}
