// Canonical-livepatch shows and changes how the running kernel is patched. It
// talks to canonical-livepatchd and does nothing by itself.
package main

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"syscall"

	"livepatch/agent/internal/cli"
)

// defaultRunDir is where the daemon's sockets are outside a snap.
const defaultRunDir = "/run/canonical-livepatch"

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, cli.Env{
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		RunDir: cmp.Or(os.Getenv("LIVEPATCH_RUN_DIR"), os.Getenv("SNAP_DATA"), defaultRunDir),
		Snap:   os.Getenv("SNAP") != "",
	}, os.Args[1:])
}
