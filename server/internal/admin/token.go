package admin

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

func (a *admin) tokenCommand() *cobra.Command {
	tier := "stable"
	create := a.createCommand(store.Auth, "Create a token that enrols machines, and print it", &tier)
	create.Flags().StringVar(&tier, "tier", tier, "`tier` of the machines: "+tiers())
	create.Flags().BoolFunc("no-canary", "have the machines get every patch last; the same as -tier late", func(v string) error {
		on, err := strconv.ParseBool(v)
		if on {
			tier = signer.Late
		}
		return err
	})
	create.MarkFlagsMutuallyExclusive("tier", "no-canary")
	return group("token", "Auth tokens, which enrol machines",
		create, a.listCommand(store.Auth), a.revokeCommand(store.Auth, "Revoke a token, and with it the machines it enrolled"))
}

func (a *admin) publisherTokenCommand() *cobra.Command {
	var none string
	return group("publisher-token", "Publisher tokens, which publish",
		a.createCommand(store.Publisher, "Create a token that publishes, and print it", &none),
		a.listCommand(store.Publisher), a.revokeCommand(store.Publisher, "Revoke a token"))
}

// createCommand prints the token, and only that, on stdout: it is shown once,
// and often caught by a script.
func (a *admin) createCommand(kind store.Kind, short string, tier *string) *cobra.Command {
	var (
		expires time.Duration
		note    string
	)
	cmd := &cobra.Command{
		Use:   "create",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kind == store.Auth && !slices.Contains(signer.Tiers, *tier) {
				return fmt.Errorf("cannot create token: %w: %q", errBadTier, *tier)
			}
			if expires < 0 || len(note) > 256 {
				return fmt.Errorf("cannot create token: -expires must not be negative and -note at most 256 bytes long")
			}
			now := time.Now()
			t := store.Token{Kind: kind, Tier: *tier, Note: note}
			if expires > 0 {
				t.Expires = now.Add(expires)
			}
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				id, secret, err := enrolment.New(db).Issue(cmd.Context(), t, now)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Token %d, expires %s. It is not shown again:\n", id, when(t.Expires, "never"))
				fmt.Fprintln(cmd.OutOrStdout(), secret)
				return nil
			})
		},
	}
	cmd.Flags().DurationVar(&expires, "expires", 0, "how long it can be used, \"24h\" (default for ever)")
	cmd.Flags().StringVar(&note, "note", "", "what it is for")
	return cmd
}

func (a *admin) listCommand(kind store.Kind) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List tokens, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				tokens, err := db.Tokens(cmd.Context(), kind)
				if err != nil {
					return fmt.Errorf("cannot list tokens: %w", err)
				}
				return table(cmd.OutOrStdout(), tokenRows(kind, tokens, time.Now()))
			})
		},
	}
}

func tokenRows(kind store.Kind, tokens []store.Token, now time.Time) [][]string {
	rows := [][]string{{"ID", "STATE", "TIER", "MACHINES", "CREATED", "EXPIRES", "NOTE"}}
	for _, t := range tokens {
		rows = append(rows, []string{
			strconv.FormatInt(t.ID, 10), tokenState(t, now), t.Tier, strconv.FormatInt(t.Machines, 10),
			when(t.Created, "-"), when(t.Expires, "never"), orDash(t.Note),
		})
	}
	if kind == store.Publisher { // they have neither tier nor machines
		for i, row := range rows {
			rows[i] = slices.Delete(row, 2, 4)
		}
	}
	return rows
}

func tokenState(t store.Token, now time.Time) string {
	switch {
	case !t.Revoked.IsZero():
		return "revoked"
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return "expired"
	default:
		return "valid"
	}
}

func (a *admin) revokeCommand(kind store.Kind, short string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return fmt.Errorf("cannot revoke token: %w: %q", errBadID, args[0])
			}
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				if err := db.RevokeToken(cmd.Context(), kind, id, time.Now()); err != nil {
					return fmt.Errorf("cannot revoke token %d: %w", id, err)
				}
				return nil
			})
		},
	}
}
