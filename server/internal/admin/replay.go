package admin

import (
	"fmt"
	"io"
	"math"

	"github.com/spf13/cobra"

	"livepatch/server/internal/rollout"
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
		if again := v.Judge(); !same(again, v.Verdict) {
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

// same tells whether two verdicts say the same. Processors, and versions of the compiler,
// differ in the last digits of a number that was computed, for some of them multiply and
// add in one step.
func same(a, b rollout.Verdict) bool {
	for _, x := range []struct{ a, b *float64 }{
		{&a.LogE, &b.LogE}, {&a.SourceLogE, &b.SourceLogE}, {&a.LLR, &b.LLR}, {&a.P0, &b.P0}, {&a.Upper, &b.Upper},
	} {
		if !near(*x.a, *x.b) {
			return false
		}
		*x.a = *x.b
	}
	return a == b
}

// near allows for more than the last digits differ by after some thousand steps, and for
// less than anybody would change a number by to deceive.
func near(a, b float64) bool {
	return a == b || math.Abs(a-b) <= 1e-9*max(1, math.Abs(a), math.Abs(b))
}
