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
	"livepatch/server/internal/explain"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// serverWait is how long a command waits, unless told otherwise, for the server to
// sign a decision or to take a request. A server that runs takes a second.
const serverWait = 5 * time.Second

func (a *admin) rolloutCommand() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the rollouts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error { return listRollouts(cmd, db) })
		},
	}
	return group("rollout", "Rollouts of patches",
		list, a.showCommand(), a.logCommand(), a.replayCommand(),
		a.haltCommand(), a.resumeCommand(), a.releaseCommand(), a.revokeRolloutCommand(),
	)
}

func listRollouts(cmd *cobra.Command, db *sqlite.DB) error {
	rows := [][]string{{"VENDOR", "VERSION", "STATE", "SINCE", "CREATED"}}
	err := db.View(cmd.Context(), func(tx store.Tx) error {
		rollouts, err := tx.Rollouts(cmd.Context())
		if err != nil {
			return err
		}
		for _, r := range rollouts {
			stages, err := stagesOf(cmd.Context(), tx, r.Vendor, r.Version)
			if err != nil {
				return err
			}
			rows = append(rows, []string{r.Vendor, r.Version, stateOf(r, stages.Stages), when(r.Updated, "-"), when(r.Created, "-")})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot list rollouts: %w", err)
	}
	return table(cmd.OutOrStdout(), rows)
}

// stateOf is the state of a rollout in some words: what people decided of all of it,
// and what the rule has halted.
func stateOf(r store.Rollout, stages []store.Stage) string {
	if r.State == patch.Halted && r.Withdrawal.Share > 0 {
		return "withdrawn from " + explain.Share(r.Withdrawal.Share)
	}
	units, halted := map[string]bool{}, 0
	for _, s := range stages {
		if !units[s.Unit] && s.Halted != "" {
			halted++
		}
		units[s.Unit] = true
	}
	switch {
	case r.State != patch.Running || halted == 0:
		return string(r.State)
	case halted == len(units):
		return "halted by the rule"
	}
	return fmt.Sprintf("running, %d of %d units halted", halted, len(units))
}

// A decision is what the commands have in common that decide about all of a rollout.
type decision struct {
	reason string
	wait   time.Duration
}

func (d *decision) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.reason, "reason", "", "why, for the record")
	cmd.Flags().DurationVar(&d.wait, "wait", serverWait, "how long to wait for the server to act on it")
}

// decide runs fn, which makes a decision about a rollout, in one transaction, and says
// whether it is in force. verb is what was to be done, "halt".
func (a *admin) decide(cmd *cobra.Command, verb string, d decision, args []string, fn func(store.Tx, store.Decision) (int64, error)) error {
	cannot := fmt.Sprintf("cannot %s rollout of %s", verb, strings.Join(args, " "))
	if err := checkReason(d.reason); err != nil {
		return fmt.Errorf("%s: %w", cannot, err)
	}
	return a.with(cmd.Context(), func(db *sqlite.DB) error {
		var epoch int64
		err := db.Update(cmd.Context(), func(tx store.Tx) (err error) {
			epoch, err = fn(tx, store.Decision{
				Vendor: args[0], Version: args[1], At: time.Now(), By: a.who.Account, Reason: d.reason,
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", cannot, err)
		}
		return reportSigned(cmd, db, epoch, d.wait)
	})
}

func (a *admin) haltCommand() *cobra.Command {
	var d decision
	cmd := &cobra.Command{
		Use:   "halt VENDOR VERSION",
		Short: "Let no further machine have a patch",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.decide(cmd, "halt", d, args, func(tx store.Tx, decided store.Decision) (int64, error) {
				decided.State = patch.Halted
				return catalog.DecideIn(cmd.Context(), tx, decided)
			})
		},
	}
	d.flags(cmd)
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
	signed, err := await(cmd.Context(), wait, func(ctx context.Context) (bool, error) {
		s, err := db.Counters(ctx)
		return s.SignedEpoch >= epoch, err
	})
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

// await asks ready, again and again for as long as wait, whether what the server does
// is done. It asks at least once, and an end of ctx ends it like an end of wait.
func await(ctx context.Context, wait time.Duration, ready func(context.Context) (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		if done, err := ready(context.WithoutCancel(ctx)); done || err != nil {
			return done && err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}
