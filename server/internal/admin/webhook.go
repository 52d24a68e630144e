package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livepatch/server/internal/notify"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// webhookWait is how long a test waits for an answer: longer than one attempt.
const webhookWait = 20 * time.Second

func (a *admin) webhookCommand() *cobra.Command {
	var wait time.Duration
	test := &cobra.Command{
		Use:   "test",
		Short: "Have the server send a notice that says nothing, and say what came of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				if err := testWebhook(cmd, db, a.who.Account, wait); err != nil {
					return fmt.Errorf("cannot test webhook: %w", err)
				}
				return nil
			})
		},
	}
	test.Flags().DurationVar(&wait, "wait", webhookWait, "how long to wait for the server to send it")
	return group("webhook", "Notices to people", test)
}

func testWebhook(cmd *cobra.Command, db *sqlite.DB, by string, wait time.Duration) error {
	var n store.Notice
	err := db.Update(cmd.Context(), func(tx store.Tx) (err error) {
		n.ID, err = notify.AddTest(cmd.Context(), tx, by, time.Now())
		return err
	})
	if err != nil {
		return err
	}
	_, err = await(cmd.Context(), wait, func(ctx context.Context) (bool, error) {
		err := db.View(ctx, func(tx store.Tx) (err error) {
			n, err = tx.Notice(ctx, n.ID)
			return err
		})
		return n.Attempts > 0, err
	})
	switch {
	case err != nil:
		return err
	case n.Sent:
		fmt.Fprintln(cmd.OutOrStdout(), "sent as "+n.ID)
		return nil
	case n.Attempts == 0:
		return errNotTried
	}
	return fmt.Errorf("%w: %s", errNotSent, n.Failure)
}
