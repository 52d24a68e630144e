// Command livepatch-loader brings signed livepatches into the kernel. It is the
// only part of the system that runs as root: started by a connection to its
// socket, it leaves when nothing is left to do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

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
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	state, root, kernel     string
	agentUID                uint
	idle                    time.Duration
	boot, shutdown, version bool
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("livepatch-loader", flag.ContinueOnError)
	flags.StringVar(&o.state, "state", "/var/lib/livepatch-loader", "`directory` for trust, journal and accepted modules")
	flags.StringVar(&o.root, "root", "/etc/livepatch/root.json", "`file` with the pinned TUF root")
	flags.StringVar(&o.kernel, "kernel", "/", "`directory` that holds the kernel's proc and sys")
	flags.UintVar(&o.agentUID, "agent-uid", 0, "`uid` allowed to call, besides root")
	flags.DurationVar(&o.idle, "idle", 30*time.Second, "leave after `this long` without a request")
	flags.BoolVar(&o.boot, "boot", false, "apply the accepted patch again and leave")
	flags.BoolVar(&o.shutdown, "shutdown", false, "record that the machine shuts down in good order and leave")
	flags.BoolVar(&o.version, "version", false, "print the version and leave")
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("cannot use argument %q: only flags are taken", flags.Arg(0))
	}
	return o, err
}

// run is main with its inputs as arguments; a test hands it modules of a kernel
// that is made of files.
func run(ctx context.Context, args []string, modules server.Modules) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Println("livepatch-loader", version.String())
		return nil
	}
	pinned, err := os.ReadFile(o.root)
	if err != nil {
		return fmt.Errorf("cannot read pinned root: %w", err)
	}
	activated := os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") == "1"
	if err := sandbox.Enter(); err != nil {
		return err
	}
	journal, err := journal.Open(o.state)
	if err != nil {
		return err
	}
	defer journal.Close()
	facts := func() (kernel.Facts, error) { return kernel.Read(os.DirFS(o.kernel)) }
	running, err := facts()
	if err != nil {
		return err
	}
	if o.shutdown {
		return journal.MarkCleanShutdown(running.BootID)
	}
	srv := &server.Server{
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Gate: &gate.Gate{
			Kernel: running.Kernel, Memory: journal, PinnedRoot: pinned,
			Now: time.Now, NotBefore: version.Date(),
		},
		Modules: modules, Klp: klp.New(o.kernel), Journal: journal,
		Facts: facts, Now: time.Now, Busy: make(chan struct{}, 1),
	}
	if err := srv.Resume(ctx); err != nil {
		return err
	}
	switch {
	case o.boot:
		return srv.Reapply(ctx)
	case !activated:
		return errors.New("cannot serve without a socket: it comes from socket activation (sd_listen_fds(3))")
	}
	return serve(ctx, srv, o)
}

// serve answers requests on the socket that was passed until ctx is done or
// none has come for a while.
func serve(ctx context.Context, srv *server.Server, o options) error {
	const first = 3 // SD_LISTEN_FDS_START
	lis, err := net.FileListener(os.NewFile(first, "socket"))
	if err != nil {
		return fmt.Errorf("cannot use the socket that was passed: %w", err)
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	allow := func(p peercred.Info) bool {
		ok := p.UID == 0 || p.UID == uint32(o.agentUID)
		if !ok {
			srv.Log.Warn("Refused connection", "peer_uid", p.UID, "peer_pid", p.PID)
		}
		return ok
	}
	g := grpc.NewServer(
		grpc.Creds(peercred.Credentials(allow)),
		grpc.StatsHandler(server.NewIdle(o.idle, leave)),
		grpc.MaxRecvMsgSize(8<<20), // an opening; 5 000 kernels make one of 200 KiB
		grpc.MaxConcurrentStreams(8),
		grpc.MaxHeaderListSize(4<<10),
		grpc.ConnectionTimeout(5*time.Second),
	)
	loaderv1.RegisterLoaderServiceServer(g, srv)
	context.AfterFunc(ctx, func() {
		// A peer that holds its connection open is not waited for.
		time.AfterFunc(5*time.Second, g.Stop)
		g.GracefulStop()
	})
	srv.Log.Info("Listening", "socket", lis.Addr().String())
	return g.Serve(lis)
}
