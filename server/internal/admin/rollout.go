package admin

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// signWait is how long a command waits, unless told otherwise, for the server to
// sign a decision. A server that runs takes a second.
const signWait = 5 * time.Second

func (a *admin) rolloutCommand() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the rollouts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error { return listRollouts(cmd, db) })
		},
	}
	log := &cobra.Command{
		Use:   "log",
		Short: "List who decided what, oldest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error { return listDecisions(cmd, db) })
		},
	}
	return group("rollout", "Rollouts of patches",
		list, log,
		a.decideCommand("halt", patch.Halted, "Let no further machine have a patch"),
		a.decideCommand("resume", patch.Running, "Let a halted patch go on"),
		a.decideCommand("revoke", patch.Revoked, "Take a patch back from all machines, for ever"),
	)
}

func listRollouts(cmd *cobra.Command, db *sqlite.DB) error {
	rows := [][]string{{"VENDOR", "VERSION", "STATE", "SINCE", "CREATED"}}
	err := db.View(cmd.Context(), func(tx store.Tx) error {
		rollouts, err := tx.Rollouts(cmd.Context())
		for _, r := range rollouts {
			rows = append(rows, []string{r.Vendor, r.Version, string(r.State), when(r.Updated, "-"), when(r.Created, "-")})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot list rollouts: %w", err)
	}
	return table(cmd.OutOrStdout(), rows)
}

func listDecisions(cmd *cobra.Command, db *sqlite.DB) error {
	rows := [][]string{{"TIME", "VENDOR", "VERSION", "DECISION", "SIGNED", "BY", "REASON"}}
	err := db.View(cmd.Context(), func(tx store.Tx) error {
		state, err := tx.State(cmd.Context())
		if err != nil {
			return err
		}
		decisions, err := tx.Decisions(cmd.Context(), 0)
		for _, d := range decisions {
			signed := "yes"
			if d.Epoch > state.SignedEpoch {
				signed = "waits"
			}
			rows = append(rows, []string{when(d.At, "-"), d.Vendor, d.Version, string(d.State), signed, d.By, orDash(d.Reason)})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot list decisions: %w", err)
	}
	return table(cmd.OutOrStdout(), rows)
}

func (a *admin) decideCommand(use string, s patch.RolloutState, short string) *cobra.Command {
	var (
		wait   time.Duration
		reason string
	)
	cmd := &cobra.Command{
		Use:   use + " VENDOR VERSION",
		Short: short,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkReason(reason); err != nil {
				return fmt.Errorf("cannot make rollout of %s %s %s: %w", args[0], args[1], s, err)
			}
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				epoch, err := catalog.Decide(cmd.Context(), db, store.Decision{
					Vendor: args[0], Version: args[1], State: s, At: time.Now(), By: a.who, Reason: reason,
				})
				if err != nil {
					return err
				}
				return reportSigned(cmd, db, epoch, wait)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().DurationVar(&wait, "wait", signWait, "how long to wait for the server to sign the decision")
	return cmd
}

// checkReason refuses what would not be one line of a table.
func checkReason(s string) error {
	if len(s) > 256 || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%w: %.40q", errReason, s)
	}
	return nil
}

// reportSigned says whether a decision is in force.
func reportSigned(cmd *cobra.Command, db *sqlite.DB, epoch int64, wait time.Duration) error {
	signed, err := waitSigned(cmd.Context(), db, epoch, wait)
	if err != nil {
		return fmt.Errorf("cannot tell whether the decision is signed: %w", err)
	}
	if signed {
		fmt.Fprintln(cmd.OutOrStdout(), "decided and signed")
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), "decided; it is signed when the server runs")
	}
	return nil
}

func waitSigned(ctx context.Context, db *sqlite.DB, epoch int64, wait time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		s, err := db.Counters(context.WithoutCancel(ctx))
		if err != nil || s.SignedEpoch >= epoch {
			return err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}
