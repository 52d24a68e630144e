package admin

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

func (a *admin) replayCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "replay",
		Short: "Judge every verdict of the rule again from the evidence stored with it",
		Long: `Judge every verdict of the rule again from the evidence and the constants that are
stored with it, and say whether the same comes out. The numbers of the verdicts of
a rollout have no gap either.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				var verdicts []store.StoredVerdict
				err := db.View(cmd.Context(), func(tx store.Tx) (err error) {
					verdicts, err = tx.AllVerdicts(cmd.Context())
					return err
				})
				if err != nil {
					return fmt.Errorf("cannot replay verdicts: %w", err)
				}
				return replay(cmd.OutOrStdout(), verdicts)
			})
		},
	}
}

// replay lists the verdicts that do not follow from their evidence, or are missing.
func replay(w io.Writer, verdicts []store.StoredVerdict) error {
	wrong, seqs := 0, map[store.Key]int64{}
	for _, v := range verdicts {
		key := store.Key{Vendor: v.Vendor, Version: v.Version}
		if want := seqs[key] + 1; v.Seq != want {
			wrong++
			fmt.Fprintf(w, "%s %s: verdict %d is missing, the next one is %d\n", v.Vendor, v.Version, want, v.Seq)
		}
		seqs[key] = v.Seq
		if again := v.Judge(); again != v.Verdict {
			wrong++
			fmt.Fprintf(w, "%s %s: verdict %d on %s is %s (%s), the evidence says %s (%s)\n", v.Vendor, v.Version, v.Seq, v.Unit,
				v.Verdict.Action, v.Verdict.Reason, again.Action, again.Reason)
		}
	}
	if wrong > 0 {
		return fmt.Errorf("cannot confirm the verdicts: %w: %d of %d", errDisagree, wrong, len(verdicts))
	}
	fmt.Fprintf(w, "%d verdicts, and each follows from its evidence\n", len(verdicts))
	return nil
}
