package cli

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) keysCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "keys",
		Short:   "List the keys that are here, by name and key ID",
		Example: "  livepatch-publish --repo R keys",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := a.store().List()
			if err != nil {
				return err
			}
			if len(all) == 0 {
				fmt.Fprintf(a.Stdout, "There is no key in %s.\n", a.store().Dir)
				return nil
			}
			w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KEY\tID")
			for _, k := range all {
				fmt.Fprintf(w, "%s\t%s\n", k.Name, k.ID)
			}
			return w.Flush()
		},
	}
}
