package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

func (a *admin) patchCommand() *cobra.Command {
	var (
		d      decision
		vendor string
	)
	promote := &cobra.Command{
		Use:   "promote VERSION TIER",
		Short: "Let a patch into its next tier, whatever the evidence; a halt stands",
		Long: `Let a patch into its next tier without waiting for evidence. It concerns the
units (kernels) whose tier is the one before TIER. What is halted stays so, and
the tests go on: this overrides the pace and no halt.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := store.Request{
				Kind: store.RequestPromote, Vendor: vendor, Version: args[0], Tier: args[1], Reason: d.reason,
			}
			return a.ask(cmd, fmt.Sprintf("cannot promote %s to %s", args[0], args[1]), r, d.wait)
		},
	}
	d.flags(promote)
	promote.Flags().StringVar(&vendor, "vendor", "", "`vendor` of the patch (default the only one that has this version)")
	return group("patch", "Patches", promote)
}

func (a *admin) releaseCommand() *cobra.Command {
	var d decision
	cmd := &cobra.Command{
		Use:   "release VENDOR VERSION UNIT",
		Short: "Let a unit go on although another one of the same source patch is halted",
		Args:  cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := store.Request{
				Kind: store.RequestRelease, Vendor: args[0], Version: args[1], Unit: args[2], Reason: d.reason,
			}
			return a.ask(cmd, "cannot release "+name(r), r, d.wait)
		},
	}
	d.flags(cmd)
	return cmd
}

// ask hands a request to the rule and says what became of it.
func (a *admin) ask(cmd *cobra.Command, cannot string, r store.Request, wait time.Duration) error {
	if err := checkReason(r.Reason); err != nil {
		return fmt.Errorf("%s: %w", cannot, err)
	}
	r.At, r.By = time.Now(), a.who
	return a.with(cmd.Context(), func(db *sqlite.DB) error {
		var id int64
		err := db.Update(cmd.Context(), func(tx store.Tx) (err error) {
			if r, err = checked(cmd.Context(), tx, r); err != nil {
				return err
			}
			id, err = tx.AddRequest(cmd.Context(), r)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", cannot, err)
		}
		return reportTaken(cmd, db, cannot, id, wait)
	})
}

// checked refuses a request that the rule could only refuse, and fills in the vendor.
func checked(ctx context.Context, tx store.Tx, r store.Request) (_ store.Request, err error) {
	if r.Kind == store.RequestPromote {
		if !slices.Contains(signer.Tiers, r.Tier) {
			return r, fmt.Errorf("%w: %q", errBadTier, r.Tier)
		}
		if r.Tier == signer.Tiers[0] {
			return r, errFirstTier
		}
		if r.Vendor, err = vendorOf(ctx, tx, r); err != nil {
			return r, err
		}
	}
	have, err := tx.Rollout(ctx, r.Vendor, r.Version)
	if err != nil {
		return r, err
	}
	if have.State == patch.Revoked || have.Withdrawal.Share > 0 {
		return r, catalog.ErrRevoked
	}
	if r.Unit == "" {
		return r, nil
	}
	stages, err := stagesOf(ctx, tx, r.Vendor, r.Version)
	if err == nil && !hasUnit(stages, r.Unit) {
		err = fmt.Errorf("%w: %q", errNoUnit, r.Unit)
	}
	return r, err
}

// vendorOf returns the vendor of a request, or the only one that has its version.
func vendorOf(ctx context.Context, tx store.Tx, r store.Request) (string, error) {
	if r.Vendor != "" {
		return r.Vendor, nil
	}
	rollouts, err := tx.Rollouts(ctx)
	if err != nil {
		return "", err
	}
	var vendors []string
	for _, o := range rollouts {
		if o.Version == r.Version {
			vendors = append(vendors, o.Vendor)
		}
	}
	switch len(vendors) {
	case 0:
		return "", store.ErrNotFound
	case 1:
		return vendors[0], nil
	}
	return "", fmt.Errorf("%w: %s", errManyVendors, strings.Join(vendors, ", "))
}

// reportTaken says what became of a request, within some time.
func reportTaken(cmd *cobra.Command, db *sqlite.DB, cannot string, id int64, wait time.Duration) error {
	var r store.Request
	taken, err := await(cmd.Context(), wait, func(ctx context.Context) (bool, error) {
		err := db.View(ctx, func(tx store.Tx) (err error) {
			r, err = tx.Request(ctx, id)
			return err
		})
		return !r.Taken.IsZero(), err
	})
	switch {
	case err != nil:
		return fmt.Errorf("cannot tell what became of request %d: %w", id, err)
	case !taken:
		fmt.Fprintln(cmd.OutOrStdout(), "asked; it is decided when the server runs")
		return nil
	case !r.Done:
		return fmt.Errorf("%s: %w: %s", cannot, errRefused, r.Outcome)
	}
	fmt.Fprintln(cmd.OutOrStdout(), "done: "+r.Outcome)
	return nil
}
