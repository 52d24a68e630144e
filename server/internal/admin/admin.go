// Package admin is the command livepatch-admin.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/version"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

var (
	errNoDir   = errors.New("no folder is given")
	errBadTier = errors.New("there is no such tier")
	errBadID   = errors.New("not the ID of a token")
	errReason  = errors.New("not a reason that can be kept")
)

// Command returns the command. dir is the folder of the service unless -dir
// names another; who is the account that decisions are recorded for.
func Command(dir, who string) *cobra.Command {
	root := &cobra.Command{
		Use:   "livepatch-admin",
		Short: "Administer a livepatch service on this machine",
	}
	a := &admin{who: who}
	root.PersistentFlags().StringVar(&a.dir, "dir", dir, "`folder` of the service (LIVEPATCH_DIR)")
	root.AddCommand(a.tokenCommand(), a.publisherTokenCommand(), a.machineCommand(), a.rolloutCommand(), a.statusCommand(), versionCommand())
	return root
}

// Hint says what the user can do about err.
func Hint(err error) string {
	switch {
	case errors.Is(err, errNoDir):
		return "name the folder of the service with -dir or LIVEPATCH_DIR"
	case errors.Is(err, layout.ErrNoService):
		return "create it with: livepatch-server init -dir DIR"
	case errors.Is(err, errBadTier):
		return "the tiers are edge, beta, candidate and stable"
	case errors.Is(err, errBadID):
		return "see the IDs with: livepatch-admin token list, or publisher-token list"
	case errors.Is(err, errReason):
		return "write one line of at most 256 bytes"
	case errors.Is(err, catalog.ErrRevoked):
		return "publish a new version of the patch"
	case errors.Is(err, catalog.ErrUnchanged):
		return "nothing needs to be done; see: livepatch-admin rollout list"
	case errors.Is(err, store.ErrNotFound):
		return "see what there is with the list command"
	case errors.Is(err, store.ErrUnavailable):
		return "look at the space on the disk and at who else uses the database"
	default:
		return ""
	}
}

// An admin is the state of one run.
type admin struct{ dir, who string }

// with runs fn on the open database.
func (a *admin) with(ctx context.Context, fn func(*sqlite.DB) error) (err error) {
	if a.dir == "" {
		return fmt.Errorf("cannot open service: %w", errNoDir)
	}
	db, err := layout.Dir(a.dir).Database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return fn(db)
}

// table writes rows in columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// when writes a time for a table.
func when(t time.Time, zero string) string {
	if t.IsZero() {
		return zero
	}
	return t.UTC().Format("2006-01-02T15:04Z")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short}
	cmd.AddCommand(commands...)
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), version.String())
		},
	}
}
