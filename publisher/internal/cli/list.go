package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/repo"
)

func (a *app) listCommand() *cobra.Command {
	var (
		vendor string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list [--vendor NAME]",
		Short:   "List the livepatches in the repository",
		Example: "  livepatch-publish --repo R list",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := a.published(vendor)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(a.Stdout).Encode(all)
			}
			return a.printList(all)
		},
	}
	cmd.Flags().StringVar(&vendor, "vendor", "", "`name` of a vendor (default: all)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

// published returns the modules of one vendor, or of all.
func (a *app) published(vendor string) ([]repo.Published, error) {
	r, err := a.open()
	if err != nil {
		return nil, err
	}
	all, err := publishedBy(r, vendor)
	return all, errors.Join(err, r.Close())
}

func publishedBy(r *repo.Repo, vendor string) ([]repo.Published, error) {
	if vendor != "" {
		return r.Modules(vendor)
	}
	vendors, err := r.Vendors()
	if err != nil {
		return nil, err
	}
	all := []repo.Published{}
	for _, vendor := range vendors {
		modules, err := r.Modules(vendor)
		if err != nil {
			return nil, err
		}
		all = append(all, modules...)
	}
	return all, nil
}

func (a *app) printList(all []repo.Published) error {
	if len(all) == 0 {
		fmt.Fprintln(a.Stdout, "There is no livepatch in the repository.")
		return nil
	}
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KERNEL\tARCH\tSEQUENCE\tVERSION\tNOTICE\tFIXES\tTARGET")
	for _, p := range all {
		m := p.Module
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d\t%s\n", m.Release, m.Arch, m.Sequence, m.Version, m.Notice, len(m.Fixes), p.Target)
	}
	return w.Flush()
}
