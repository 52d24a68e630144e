package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// proposalLife is how long a proposal waits for a second person.
const proposalLife = 24 * time.Hour

func (a *admin) resumeCommand() *cobra.Command {
	var d decision
	cmd := &cobra.Command{
		Use:   "resume VENDOR VERSION [UNIT]",
		Short: "Let a halted patch go on; it takes two people",
		Long: `Let a halted patch go on: all of it, if people halted it, or a unit (a kernel)
that the rule halted. It takes two people: the first one proposes it, and the
second one runs the same command within 24 hours. Who logged in counts, not what
sudo or su made of them. Where no login led to the command (cron, the shell of a
container) the user counts, and does not second who has logged in, nor the reverse.`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := store.Request{
				At: time.Now(), Kind: store.RequestProposal, Vendor: args[0], Version: args[1], By: a.who, Reason: d.reason,
			}
			if len(args) == 3 {
				r.Unit = args[2]
			}
			return a.with(cmd.Context(), func(db *sqlite.DB) error { return resume(cmd, db, r, d.wait) })
		},
	}
	d.flags(cmd)
	return cmd
}

// A resumption is what became of a word to resume: a proposal, a decision, or a
// request to the rule.
type resumption struct {
	proposed bool
	epoch    int64 // of a decision
	request  int64 // to the rule
}

func resume(cmd *cobra.Command, db *sqlite.DB, r store.Request, wait time.Duration) error {
	cannot := "cannot resume rollout of " + name(r)
	if err := checkReason(r.Reason); err != nil {
		return fmt.Errorf("%s: %w", cannot, err)
	}
	var done resumption
	err := db.Update(cmd.Context(), func(tx store.Tx) (err error) {
		done, err = proposeOrSecond(cmd.Context(), tx, r)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", cannot, err)
	case done.proposed:
		fmt.Fprintf(cmd.OutOrStdout(), "resume proposed by %s; another administrator has to run the same command by %s\n",
			r.By.Account, when(r.At.Add(proposalLife), "-"))
		return nil
	case done.request != 0:
		return reportTaken(cmd, db, cannot, done.request, wait)
	default:
		return reportSigned(cmd, db, done.epoch, wait)
	}
}

// name is what a request is about, as it was written.
func name(r store.Request) string {
	return strings.TrimSpace(strings.Join([]string{r.Vendor, r.Version, r.Unit}, " "))
}

// proposeOrSecond resumes what somebody else has proposed to resume, or proposes it.
func proposeOrSecond(ctx context.Context, tx store.Tx, r store.Request) (resumption, error) {
	since, err := haltedSince(ctx, tx, r)
	if err != nil {
		return resumption{}, err
	}
	proposals, err := tx.Proposals(ctx, r.Vendor, r.Version, r.Unit)
	if err != nil {
		return resumption{}, err
	}
	// What was proposed before it was halted again was proposed about something else.
	proposals = slices.DeleteFunc(proposals, func(p store.Request) bool {
		return p.At.Before(since) || r.At.Sub(p.At) >= proposalLife
	})
	if other := slices.IndexFunc(proposals, func(p store.Request) bool { return others(p.By, r.By) }); other >= 0 {
		return second(ctx, tx, r, proposals[other])
	}
	for _, p := range proposals {
		switch {
		case p.By.ID == r.By.ID:
			return resumption{}, fmt.Errorf("%w: %s did so at %s", errSamePerson, p.By.Account, when(p.At, "-"))
		case !loggedIn(r.By):
			return resumption{}, fmt.Errorf("%w: %s proposed it at %s", errNoLogin, p.By.Account, when(p.At, "-"))
		}
	}
	if _, err := tx.AddRequest(ctx, r); err != nil {
		return resumption{}, err
	}
	return resumption{proposed: true}, notify.Requested(ctx, tx, r)
}

// haltedSince returns when what is to be resumed was halted, or why it cannot be
// resumed. Times are kept in whole seconds.
func haltedSince(ctx context.Context, tx store.Tx, r store.Request) (time.Time, error) {
	have, err := tx.Rollout(ctx, r.Vendor, r.Version)
	switch {
	case err != nil:
		return time.Time{}, err
	case have.State == patch.Revoked || have.Withdrawal.Share > 0:
		return time.Time{}, catalog.ErrRevoked
	case r.Unit == "" && have.State == patch.Halted:
		return have.Updated, nil
	}
	stages, err := stagesOf(ctx, tx, r.Vendor, r.Version)
	if err != nil {
		return time.Time{}, err
	}
	for _, s := range stages.Stages {
		switch {
		case s.Halted != "" && r.Unit == "":
			return time.Time{}, errUnitHalted
		case s.Halted != "" && s.Unit == r.Unit:
			// A halted unit gets no further verdict: its last one halted it.
			return s.VerdictAt.Truncate(time.Second), nil
		}
	}
	if r.Unit != "" && !hasUnit(stages, r.Unit) {
		return time.Time{}, fmt.Errorf("%w: %q", errNoUnit, r.Unit)
	}
	return time.Time{}, catalog.ErrUnchanged
}

// stagesOf returns how far the rule has come; nowhere, if it has not looked yet.
func stagesOf(ctx context.Context, tx store.Tx, vendor, version string) (store.Stages, error) {
	s, err := tx.Stages(ctx, vendor, version)
	if errors.Is(err, store.ErrNotFound) {
		return store.Stages{Vendor: vendor, Version: version}, nil
	}
	return s, err
}

func hasUnit(s store.Stages, unit string) bool {
	return slices.ContainsFunc(s.Stages, func(s store.Stage) bool { return s.Unit == unit })
}

// second makes a proposal so: a decision about all of a rollout at once, and a request
// to the rule about a unit.
func second(ctx context.Context, tx store.Tx, r, proposal store.Request) (done resumption, err error) {
	r.Kind, r.Proposal, r.First = store.RequestResume, proposal.ID, proposal.By
	if r.Unit == "" {
		done.epoch, err = catalog.DecideIn(ctx, tx, store.Decision{
			Vendor: r.Vendor, Version: r.Version, State: patch.Running, At: r.At, By: r.Who(),
			Reason: bothReasons(proposal.Reason, r.Reason),
		})
		if err != nil {
			return resumption{}, err
		}
		r.Taken, r.Done, r.Outcome = r.At, true, "decided"
		_, err = tx.AddRequest(ctx, r)
		return done, err
	}
	done.request, err = tx.AddRequest(ctx, r)
	return done, err
}

func bothReasons(first, second string) string {
	switch {
	case first == "" || first == second:
		return second
	case second == "":
		return first
	}
	return first + "; " + second
}
