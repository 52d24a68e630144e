package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/server/internal/explain"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// An entry is a line of the log.
type entry struct {
	At      time.Time `json:"at"`
	Kind    string    `json:"kind"` // "decision" of people, "request", "verdict" of the rule
	Vendor  string    `json:"vendor"`
	Version string    `json:"version"`
	Unit    string    `json:"unit,omitempty"` // "" for all of the rollout
	What    string    `json:"what"`
	Signed  *bool     `json:"signed,omitempty"` // of a decision
	By      []string  `json:"by"`               // accounts; "rule"
	Reason  string    `json:"reason,omitempty"` // a person's own words, or the rule's in words
	Outcome string    `json:"outcome,omitempty"`
	// Verdict is the rule's decision with its evidence.
	Verdict *rollout.Decision `json:"verdict,omitempty"`
}

type logOptions struct{ verbose, json bool }

func (a *admin) logCommand() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "log [VENDOR VERSION]",
		Short: "List who decided what, people and the rule, oldest first",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return fmt.Errorf("cannot list decisions: want a vendor and a version, or neither")
			}
			return cobra.MaximumNArgs(2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				entries, err := timeline(cmd.Context(), db)
				if err != nil {
					return fmt.Errorf("cannot list decisions: %w", err)
				}
				if len(args) == 2 {
					entries = slices.DeleteFunc(entries, func(e entry) bool { return e.Vendor != args[0] || e.Version != args[1] })
				}
				return o.print(cmd.OutOrStdout(), entries)
			})
		},
	}
	cmd.Flags().BoolVar(&o.verbose, "verbose", false, "print the evidence below each verdict of the rule")
	cmd.Flags().BoolVar(&o.json, "json", false, "print a JSON array, with the evidence")
	return cmd
}

func (o logOptions) print(w io.Writer, entries []entry) error {
	if o.json {
		return json.NewEncoder(w).Encode(append([]entry{}, entries...))
	}
	rows := [][]string{{"TIME", "VENDOR", "VERSION", "UNIT", "DECISION", "SIGNED", "BY", "REASON"}}
	for _, e := range entries {
		rows = append(rows, e.row())
	}
	if !o.verbose {
		return table(w, rows)
	}
	// The table is laid out as one, and the evidence put between its lines.
	var text strings.Builder
	if err := table(&text, rows); err != nil {
		return err
	}
	for i, line := range slices.Collect(strings.Lines(text.String())) {
		fmt.Fprint(w, line)
		if i > 0 && entries[i-1].Verdict != nil {
			if err := printEvidence(w, *entries[i-1].Verdict); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e entry) row() []string {
	signed := "-"
	if e.Signed != nil {
		signed = map[bool]string{true: "yes", false: "waits"}[*e.Signed]
	}
	reason := e.Reason
	if e.Outcome != "" {
		reason = strings.TrimPrefix(reason+" → "+e.Outcome, " → ")
	}
	return []string{
		when(e.At, "-"), e.Vendor, e.Version, orDash(e.Unit), e.What, signed, strings.Join(e.By, " and "), orDash(reason),
	}
}

func printEvidence(w io.Writer, d rollout.Decision) error {
	for _, part := range []struct {
		name  string
		value any
	}{{"evidence", d.Evidence}, {"verdict", d.Verdict}, {"kernels", d.Cells}} {
		b, err := json.Marshal(part.value)
		if err != nil {
			return fmt.Errorf("cannot print evidence: %w", err)
		}
		fmt.Fprintf(w, "    %s: %s\n", part.name, b)
	}
	return nil
}

// timeline is everything that was decided and asked for, oldest first.
func timeline(ctx context.Context, db *sqlite.DB) (entries []entry, err error) {
	err = db.View(ctx, func(tx store.Tx) error {
		state, err := tx.State(ctx)
		if err != nil {
			return err
		}
		requests, err := tx.RequestLog(ctx)
		if err != nil {
			return err
		}
		verdicts, err := tx.AllVerdicts(ctx)
		if err != nil {
			return err
		}
		decisions, err := tx.Decisions(ctx, 0)
		if err != nil {
			return err
		}
		// Where the second is the same, a request stands before what came of it.
		for _, r := range requests {
			entries = append(entries, ofRequest(r))
		}
		for _, v := range verdicts {
			entries = append(entries, ofVerdict(v))
		}
		for _, d := range decisions {
			entries = append(entries, ofDecision(d, d.Epoch <= state.SignedEpoch))
		}
		return nil
	})
	slices.SortStableFunc(entries, func(a, b entry) int { return cmp.Compare(a.At.Unix(), b.At.Unix()) })
	return entries, err
}

func ofDecision(d store.Decision, signed bool) entry {
	e := entry{
		At: d.At, Kind: "decision", Vendor: d.Vendor, Version: d.Version, What: string(d.State), Signed: &signed,
		By: []string{d.By}, Reason: d.Reason,
	}
	if d.State == patch.Halted && d.Withdraw > 0 {
		e.What = "withdrawn from " + explain.Share(d.Withdraw)
	}
	return e
}

func ofVerdict(v store.StoredVerdict) entry {
	return entry{
		At: time.Unix(v.At, 0).UTC(), Kind: "verdict", Vendor: v.Vendor, Version: v.Version, Unit: v.Unit,
		What: string(v.Verdict.Action), By: []string{"rule"}, Reason: explain.Verdict(v.Decision), Verdict: &v.Decision,
	}
}

func ofRequest(r store.Request) entry {
	e := entry{
		At: r.At, Kind: "request", Vendor: r.Vendor, Version: r.Version, Unit: r.Unit, What: wish(r),
		By: []string{r.By.Account}, Reason: r.Reason, Outcome: r.Outcome,
	}
	if r.Proposal != 0 {
		e.By = []string{r.First.Account, r.By.Account}
	}
	switch {
	case r.Kind == store.RequestProposal:
	case r.Taken.IsZero():
		e.Outcome = "waits for the server"
	case !r.Done:
		e.Outcome = "refused: " + r.Outcome
	}
	return e
}

// wish says what a request asks for.
func wish(r store.Request) string {
	switch r.Kind {
	case store.RequestPromote:
		return "promote to " + r.Tier
	case store.RequestProposal:
		return "propose to resume"
	case store.RequestResume:
		return "resume"
	case store.RequestRelease:
		return "release"
	}
	return string(r.Kind)
}
