package admin

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"livepatch/server/internal/catalog"
	"livepatch/server/internal/expiry"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

func (a *admin) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the signed roles, when each expires, and what to do about it",
		Long: `Show the signed roles and when each expires: "notice" when half of its life or
less is left, "warning" when a quarter is. A life is counted from when the
service published the version. The bins of a vendor are one line, that of the
one that expires first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error { return showStatus(cmd, db, time.Now()) })
		},
	}
}

func showStatus(cmd *cobra.Command, db *sqlite.DB, now time.Time) error {
	var (
		state store.State
		roles []expiry.Role
	)
	err := db.View(cmd.Context(), func(tx store.Tx) (err error) {
		if state, err = tx.State(cmd.Context()); err != nil {
			return err
		}
		roles, err = catalog.Expiring(cmd.Context(), tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot show status: %w", err)
	}
	return printStatus(cmd.OutOrStdout(), state, roles, now)
}

func printStatus(w io.Writer, state store.State, roles []expiry.Role, now time.Time) error {
	if len(roles) == 0 {
		fmt.Fprintln(w, "nothing is published yet")
		return nil
	}
	fmt.Fprintf(w, "generation: %d\n", state.Generation)
	if waiting := state.Epoch - state.SignedEpoch; waiting > 0 {
		fmt.Fprintf(w, "decisions that wait for the server to sign them: %d\n", waiting)
	}
	if err := table(w, roleRows(roles, now)); err != nil {
		return err
	}
	for _, line := range expiry.Advice(roles, now) {
		fmt.Fprintln(w, "next step:", line)
	}
	return nil
}

func roleRows(roles []expiry.Role, now time.Time) [][]string {
	rows := [][]string{{"ROLE", "VERSION", "EXPIRES", "LEFT", "LEVEL"}}
	for _, r := range roles {
		name := r.Name
		if r.Bins > 0 {
			name = fmt.Sprintf("%s (%d)", name, r.Bins)
		}
		rows = append(rows, []string{
			name, strconv.FormatInt(r.Version, 10), when(r.Expires, "-"), remaining(r, now), r.Level(now).String(),
		})
	}
	return rows
}

// remaining says how long a role has left, and which part of its life that is:
// "12d (40%)". Both are rounded down.
func remaining(r expiry.Role, now time.Time) string {
	left := max(0, r.Left(now))
	text := fmt.Sprintf("%dh", int64(left/time.Hour))
	if left >= 48*time.Hour {
		text = fmt.Sprintf("%dd", int64(left/(24*time.Hour)))
	}
	return fmt.Sprintf("%s (%d%%)", text, int(100*r.Share(now)))
}
