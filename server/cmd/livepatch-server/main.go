// Livepatch-server is the service: it enrols machines, takes publications, and
// serves signed files over HTTPS.
package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"livepatch/server/internal/catalog"
	"livepatch/server/internal/cli"
	"livepatch/server/internal/daemon"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/signer"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, command(), os.Args[1:], hint)
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "livepatch-server",
		Short: "The livepatch service",
	}
	root.AddCommand(initCommand(), devCACommand(), serveCommand(), versionCommand())
	return root
}

// dirFlag adds -dir. Its default comes from the environment.
func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", os.Getenv("LIVEPATCH_DIR"), "`folder` of the service (LIVEPATCH_DIR)")
}

var errNoDir = errors.New("no folder is given")

// hint says what the user can do about err.
func hint(err error) string {
	switch {
	case errors.Is(err, errNoDir):
		return "name the folder of the service with -dir or LIVEPATCH_DIR"
	case errors.Is(err, daemon.ErrNoCertificate):
		return "the service speaks HTTPS only; give -cert and -key, or make a development certificate with: livepatch-server dev-ca -dir DIR -host NAME"
	case errors.Is(err, layout.ErrNoService):
		return "create it with: livepatch-server init -dir DIR"
	case errors.Is(err, signer.ErrOpenKey):
		return "if nobody else has read it: chmod 600 the file; otherwise have the offline keys sign a root with new online keys"
	case errors.Is(err, catalog.ErrForeignKeys):
		return "restore the keys folder that belongs to this database; if the keys were replaced, start with -new-keys and publish a root that names them: livepatch-publish online rotate"
	case errors.Is(err, notify.ErrSecret):
		return "make one with: (umask 077; echo whsec_$(openssl rand -base64 32) > FILE), and give the other side the same"
	case errors.Is(err, notify.ErrOpenSecret):
		return "if nobody else has read it: chmod 600 the file; otherwise make a new one"
	case errors.Is(err, notify.ErrURL):
		return "give an https address; http only for a program on this machine"
	case errors.Is(err, syscall.EADDRINUSE):
		return "another program listens there; choose another address with -listen and -ops-listen"
	case errors.Is(err, fs.ErrPermission):
		return "run it as the user who owns the folder"
	default:
		return ""
	}
}
