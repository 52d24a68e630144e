package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/repo"
)

var errUnverified = errors.New("repository does not verify")

func (a *app) verifyCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "verify [--all]",
		Short: "Check the whole repository and explain who signed what",
		Long: `Check with go-tuf what a machine would check: the chain of roots, the signatures
of each role, expiry, the content of each target, and that indexes and modules
agree. No key is needed.`,
		Example: "  livepatch-publish --repo R verify",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.open()
			if err != nil {
				return err
			}
			rep, err := r.Verify(cmd.Context())
			if err := errors.Join(err, r.Close()); err != nil {
				return fmt.Errorf("cannot verify repository: %w", err)
			}
			return a.printReport(rep, all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list every bin")
	return cmd
}

func (a *app) printReport(rep repo.Report, all bool) error {
	names, err := a.keyNames()
	if err != nil {
		a.note("%v", err)
	}
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROLE\tVERSION\tEXPIRES\tNEEDS\tSIGNED BY\tTARGETS")
	for _, row := range rows(rep.Roles, all) {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d of %d\t%s\t%d\n", row.name, row.versions(), row.Expires.Format(time.RFC3339),
			row.Threshold, len(row.Keys), names.join(row.Signed), row.Targets)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "%d modules, %d kernel indexes.\n", rep.Modules, rep.Indexes)
	for _, p := range rep.Problems {
		fmt.Fprintf(a.Stdout, "problem: %s\n", p)
	}
	if n := len(rep.Problems); n > 0 {
		return fmt.Errorf("%w: %d problems", errUnverified, n)
	}
	fmt.Fprintln(a.Stdout, "Everything verifies.")
	return nil
}

// A row is a line of the report: a role, or several bins with the same
// signatures.
type row struct {
	repo.RoleReport
	name         string
	oldest, bins int64
}

func (r row) versions() string {
	if r.oldest == r.Version {
		return fmt.Sprint(r.Version)
	}
	return fmt.Sprintf("%d-%d", r.oldest, r.Version)
}

// rows puts the bins of a vendor into one row for each set of signers, with the
// earliest expiry.
func rows(roles []repo.RoleReport, all bool) []row {
	var rows []row
	merged := make(map[string]int) // vendor and signers → index
	for _, role := range roles {
		vendor, _, bin := strings.Cut(role.Role, "-")
		if !bin || all {
			rows = append(rows, row{RoleReport: role, name: role.Role, oldest: role.Version})
			continue
		}
		key := vendor + " " + strings.Join(role.Signed, " ")
		i, ok := merged[key]
		if !ok {
			i = len(rows)
			merged[key] = i
			rows = append(rows, row{RoleReport: role, oldest: role.Version, bins: 1, name: "1 bin of " + vendor})
			continue
		}
		rows[i].merge(vendor, role)
	}
	return rows
}

func (r *row) merge(vendor string, role repo.RoleReport) {
	r.bins++
	r.name = fmt.Sprintf("%d bins of %s", r.bins, vendor)
	r.oldest, r.Version = min(r.oldest, role.Version), max(r.Version, role.Version)
	r.Targets += role.Targets
	if role.Expires.Before(r.Expires) {
		r.Expires = role.Expires
	}
}

// keyNames maps key IDs to the names of the key files that are here.
type keyNames map[string]string

func (a *app) keyNames() (keyNames, error) {
	all, err := a.store().List()
	names := make(keyNames)
	for _, k := range all {
		names[k.ID] = k.Name
	}
	return names, err
}

// join writes the keys by name, or by the start of their ID.
func (n keyNames) join(ids []string) string {
	words := make([]string, 0, len(ids))
	for _, id := range ids {
		name, ok := n[id]
		if !ok {
			name = id[:min(len(id), 12)]
		}
		words = append(words, name)
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}
