// Livepatch-admin makes tokens, lists machines and steers rollouts. It works on
// the database of a service on the same machine, whether that runs or not.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"livepatch/server/internal/admin"
	"livepatch/server/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, admin.Command(os.Getenv("LIVEPATCH_DIR")), os.Args[1:], admin.Hint)
}
