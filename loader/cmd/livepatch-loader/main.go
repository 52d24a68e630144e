// Command livepatch-loader brings signed livepatches into the kernel. It is the
// only part of the system that runs as root: started by a connection to its
// socket, it leaves when nothing is left to do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"livepatch/internal/kernel"
	"livepatch/internal/peercred"
	"livepatch/internal/version"
	"livepatch/loader/internal/gate"
	"livepatch/loader/internal/journal"
	"livepatch/loader/internal/klp"
	"livepatch/loader/internal/kmod"
	"livepatch/loader/internal/sandbox"
	"livepatch/loader/internal/server"
	loaderv1 "livepatch/proto/loader/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], kmod.Kernel{}); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "livepatch-loader: error:", err)
		if errors.Is(err, fs.ErrPermission) {
			fmt.Fprintln(os.Stderr, "livepatch-loader: hint: run it as root; in a snap, connect the plugs that snap connections lists")
		}
		if !slices.Contains(os.Args, "-boot") { // which does not undo a refresh of the snap
			os.Exit(1)
		}
	}
}

// run is main with its inputs as arguments; a test hands it modules of a kernel
// that is made of files.
func run(ctx context.Context, args []string, modules server.Modules) error {
	flags := flag.NewFlagSet("livepatch-loader", flag.ContinueOnError)
	state := flags.String("state", "/var/lib/livepatch-loader", "`directory` for trust, journal and accepted modules")
	root := flags.String("root", "/etc/livepatch/root.json", "`file` with the pinned TUF root")
	tree := flags.String("kernel", "/", "`directory` that holds the kernel's proc and sys")
	agentUID := flags.Uint("agent-uid", 0, "`uid` allowed to call, besides root")
	idle := flags.Duration("idle", 30*time.Second, "leave after `this long` without a request")
	boot := flags.Bool("boot", false, "apply the accepted patch again and leave")
	shutdown := flags.Bool("shutdown", false, "record that the machine shuts down in good order and leave")
	forgive := flags.String("forgive", "", "let the agent try the suspect patch of this `name` again and leave")
	about := flags.Bool("version", false, "print the version and leave")
	switch err := flags.Parse(args); {
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("cannot use argument %q: only flags are taken", flags.Arg(0))
	case *about:
		return version.Print(os.Stdout, "livepatch-loader")
	}
	pinned, err := os.ReadFile(*root)
	if err != nil {
		return fmt.Errorf("cannot read pinned root: %w", err)
	}
	activated := os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") == "1"
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := sandbox.Enter(log, *tree, *state); err != nil {
		return err
	}
	journal, err := journal.Open(*state)
	if err != nil {
		return err
	}
	defer journal.Close()
	facts := kernel.Reader(os.DirFS(*tree), os.DirFS(*state))
	running, err := facts()
	if err != nil {
		return err
	}
	if *shutdown {
		return journal.MarkCleanShutdown(running.BootID)
	}
	srv := &server.Server{
		Log:     log,
		Gate:    &gate.Gate{Kernel: running.Kernel, Memory: journal, PinnedRoot: pinned, Now: time.Now, NotBefore: version.Date()},
		Modules: modules, Klp: klp.New(*tree), Root: os.DirFS(*tree), Journal: journal,
		Facts: facts, Now: time.Now, Busy: make(chan struct{}, 1),
	}
	if err := srv.Resume(ctx); err != nil {
		return err
	}
	switch {
	case *boot:
		return srv.Reapply(ctx)
	case *forgive != "":
		return journal.Forgive(*forgive)
	case !activated:
		return errors.New("cannot serve without a socket: it comes from socket activation (sd_listen_fds(3))")
	}
	return serve(ctx, srv, uint32(*agentUID), *idle)
}

// serve answers requests on the socket that was passed until ctx is done or
// none has come for a while.
func serve(ctx context.Context, srv *server.Server, agentUID uint32, idle time.Duration) error {
	lis, err := net.FileListener(os.NewFile(3, "socket")) // SD_LISTEN_FDS_START
	if err != nil {
		return fmt.Errorf("cannot use the socket that was passed: %w", err)
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	busy := srv.Idle(idle, leave)
	allow := func(p peercred.Info) bool {
		if p.UID == 0 || p.UID == agentUID {
			busy()
			return true
		}
		srv.Log.Warn("Refused connection", "peer_uid", p.UID, "peer_pid", p.PID)
		return false
	}
	g := grpc.NewServer(
		// The agent needs one connection at a time; those that do nothing give way.
		grpc.Creds(peercred.Credentials(4, allow)),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Second}),
		// An opening of a repository of 5 000 kernels has 200 KiB.
		grpc.MaxRecvMsgSize(8<<20),
		// A module of the usual size comes without a pause.
		grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(1<<20),
		grpc.MaxConcurrentStreams(2), grpc.MaxHeaderListSize(4<<10), grpc.ConnectionTimeout(5*time.Second),
	)
	loaderv1.RegisterLoaderServiceServer(g, srv)
	context.AfterFunc(ctx, func() {
		// A peer that holds its connection open is not waited for.
		time.AfterFunc(5*time.Second, g.Stop)
		g.GracefulStop()
	})
	srv.Log.Info("Listening", "socket", lis.Addr().String())
	return g.Serve(peercred.Limit(lis, 16))
}
