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
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
	"livepatch/server/internal/withdraw"
)

var (
	errNoDir   = errors.New("no folder is given")
	errBadTier = errors.New("there is no such tier")
	errBadID   = errors.New("not the ID of a token")
	errReason  = errors.New("not a reason that can be kept")

	errSamePerson  = errors.New("it takes two people, and you have proposed it already")
	errNoLogin     = errors.New("it takes two people, and no login says that you are another one")
	errUnitHalted  = errors.New("it is not halted as a whole, the rule has halted units of it")
	errNoUnit      = errors.New("the rule knows no such unit")
	errFirstTier   = errors.New("every patch begins in the first tier")
	errManyVendors = errors.New("several vendors have that version")
	errRefused     = errors.New("refused")
	errDisagree    = errors.New("not what the evidence says")
	errNotTried    = errors.New("no server has tried to send it")
	errNotSent     = errors.New("not sent")
)

// Command returns the command. dir is the folder of the service unless -dir
// names another; who is the person that decisions are recorded for.
func Command(dir string, who store.Person) *cobra.Command {
	root := &cobra.Command{
		Use:   "livepatch-admin",
		Short: "Administer a livepatch service on this machine",
	}
	a := &admin{who: who}
	root.PersistentFlags().StringVar(&a.dir, "dir", dir, "`folder` of the service (LIVEPATCH_DIR)")
	root.AddCommand(a.tokenCommand(), a.publisherTokenCommand(), a.machineCommand(),
		a.rolloutCommand(), a.patchCommand(), a.webhookCommand(), a.statusCommand(), versionCommand())
	return root
}

// Hint says what the user can do about err.
func Hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}

// hints go from what is particular to what is general.
var hints = []struct {
	err  error
	hint string
}{
	{errNoDir, "name the folder of the service with -dir or LIVEPATCH_DIR"},
	{layout.ErrNoService, "create it with: livepatch-server init -dir DIR"},
	{errBadTier, "the tiers are " + tiers()},
	{errBadID, "see the IDs with: livepatch-admin token list, or publisher-token list"},
	{errReason, "write one line of at most 256 bytes"},
	{errSamePerson, "another administrator has to run the same command; the login counts, not what sudo made of it"},
	{errNoLogin, "log in as yourself, and run the same command from there, with sudo if need be"},
	{errUnitHalted, "see which with: livepatch-admin rollout show VENDOR VERSION; then name one behind the version"},
	{errNoUnit, "see the units with: livepatch-admin rollout show VENDOR VERSION"},
	{errFirstTier, "name the tier that it is to go on to: " + tiers()},
	{errManyVendors, "name one with --vendor"},
	{errRefused, "see how far it has come with: livepatch-admin rollout show VENDOR VERSION"},
	{errDisagree, "somebody has changed the database, or the rule; see: livepatch-admin rollout log --verbose"},
	{errNotTried, "see that the server runs, with --webhook URL --webhook-secret-file FILE"},
	{errNotSent, "the server tries again for a day; see its log, and: livepatch_webhook_failures_total"},
	{withdraw.ErrRevoked, "nothing needs to be done; see: livepatch-admin rollout list"},
	{withdraw.ErrUnderWay, "see how far it is with: livepatch-admin rollout show VENDOR VERSION; have all machines give it up now with --at-once"},
	{withdraw.ErrNotHeld, "see how far it is with: livepatch-admin rollout show VENDOR VERSION"},
	{catalog.ErrRevoked, "publish a new version of the patch"},
	{catalog.ErrUnchanged, "nothing needs to be done; see: livepatch-admin rollout list"},
	{store.ErrNotFound, "see what there is with the list command"},
	{store.ErrUnavailable, "look at the space on the disk and at who else uses the database"},
}

// tiers lists the tiers for people.
func tiers() string {
	last := len(signer.Tiers) - 1
	return strings.Join(signer.Tiers[:last], ", ") + " and " + signer.Tiers[last]
}

// An admin is the state of one run.
type admin struct {
	dir string
	who store.Person
}

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
