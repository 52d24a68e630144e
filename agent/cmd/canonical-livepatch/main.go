// Canonical-livepatch shows and changes how the running kernel is patched. It
// talks to canonical-livepatchd and does nothing by itself.
//
// Inside the snap it is also the program of every hook: snapd starts it under the
// hook's name.
package main

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"livepatch/agent/internal/cli"
	"livepatch/agent/internal/hooks"
	"livepatch/agent/internal/snapd"
)

// defaultRunDir is where the daemon's sockets are outside a snap.
const defaultRunDir = "/run/canonical-livepatch"

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	inSnap := os.Getenv("SNAP") != ""
	name := filepath.Base(os.Args[0])
	switch {
	case inSnap && name == hooks.Activator:
		return hooks.Activate(os.Args[1:], os.Environ(), os.Stderr)
	case inSnap && hooks.Is(name):
		return hooks.Main(ctx, hookEnv(), name)
	}
	env := cli.Env{
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		RunDir: cmp.Or(os.Getenv("LIVEPATCH_RUN_DIR"), os.Getenv("SNAP_DATA"), defaultRunDir),
		Snap:   inSnap,
	}
	if cookie := os.Getenv("SNAP_COOKIE"); inSnap && cookie != "" {
		env.Snapd = snapd.New(snapd.Socket, cookie)
	}
	return cli.Main(ctx, env, os.Args[1:])
}

// hookEnv is what snapd says to a hook.
func hookEnv() hooks.Env {
	snap, common := os.Getenv("SNAP"), os.Getenv("SNAP_COMMON")
	return hooks.Env{
		Stderr: os.Stderr,
		Data:   os.Getenv("SNAP_DATA"),
		Common: common,
		Group:  hooks.GroupOf(filepath.Join(common, "agent")),
		Snapd:  snapd.New(snapd.Socket, os.Getenv("SNAP_COOKIE")),
		Loader: hooks.Activation{
			Self:    filepath.Join(snap, "bin", "canonical-livepatch"),
			Folder:  common,
			Program: filepath.Join(snap, "bin", "livepatch-loader"),
			Args:    []string{"-state", filepath.Join(common, "loader"), "-root", filepath.Join(snap, "tuf", "root.json")},
			Environ: os.Environ(),
			Stderr:  os.Stderr,
		},
		Note: hooks.Journal(hooks.JournalSocket, os.Stderr),
	}
}
