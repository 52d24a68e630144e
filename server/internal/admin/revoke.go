package admin

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/server/internal/store"
	"livepatch/server/internal/withdraw"
)

// A revocation is the options of the command that revokes.
type revocation struct {
	decision
	percent  float64
	pause    time.Duration
	atOnce   bool
	goOn     bool
	haveMore bool // options that only a new withdrawal has
}

func (a *admin) revokeRolloutCommand() *cobra.Command {
	var r revocation
	cmd := &cobra.Command{
		Use:   "revoke VENDOR VERSION",
		Short: "Take a patch back from the machines, a few at a time, for ever",
		Long: `Take a patch back from the machines, for ever. No further machine gets it. First
1 % of the machines give it up, 10 % after ten minutes, and all of them ten
minutes later. It waits for a person if two machines go down after they gave the
patch up, and more than one in 200; look at them, then use --continue or --at-once.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.haveMore = cmd.Flags().Changed("first-share") || cmd.Flags().Changed("pause")
			if err := r.check(); err != nil {
				return fmt.Errorf("cannot revoke rollout of %s %s: %w", args[0], args[1], err)
			}
			return a.decide(cmd, "revoke", r.decision, args, func(tx store.Tx, d store.Decision) (int64, error) {
				return r.decide(cmd, tx, d)
			})
		},
	}
	r.flags(cmd)
	f := cmd.Flags()
	f.Float64Var(&r.percent, "first-share", float64(withdraw.FirstShare)*100/patch.Everyone, "`percentage` of the machines that give it up first; then ten times as many")
	f.DurationVar(&r.pause, "pause", withdraw.Pause, "how long to wait before the next share")
	f.BoolVar(&r.atOnce, "at-once", false, "have all machines give it up now")
	f.BoolVar(&r.goOn, "continue", false, "go on although machines went down that gave it up")
	return cmd
}

func (r *revocation) check() error {
	switch {
	case r.goOn && (r.atOnce || r.haveMore) || r.atOnce && r.haveMore:
		return errors.New("-continue, -at-once, and -first-share with -pause exclude each other")
	case !(r.percent >= 0.0001 && r.percent <= 100):
		return fmt.Errorf("-first-share is %v, want 0.0001 to 100", r.percent)
	case r.pause < time.Second || r.pause > 30*24*time.Hour:
		return fmt.Errorf("-pause is %v, want 1s to 720h", r.pause)
	}
	return nil
}

func (r *revocation) decide(cmd *cobra.Command, tx store.Tx, d store.Decision) (epoch int64, err error) {
	switch {
	case r.goOn:
		return withdraw.Continue(cmd.Context(), tx, d)
	case r.atOnce:
		return withdraw.Begin(cmd.Context(), tx, d, patch.Everyone, r.pause)
	default:
		return withdraw.Begin(cmd.Context(), tx, d, int64(r.percent*patch.Everyone/100), r.pause)
	}
}
