// Command canonical-livepatchd is the agent: it keeps the running kernel at the
// livepatch that the service offers for it. It needs no privilege and refuses
// to have any.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sync/errgroup"

	"livepatch/agent/internal/agent"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/demote"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/localapi"
	"livepatch/agent/internal/modkey"
	"livepatch/agent/internal/snapd"
	"livepatch/agent/internal/trust"
	"livepatch/internal/confine"
	"livepatch/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getuid(), confineTo)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "canonical-livepatchd: error:", err)
	if h := hint(err); h != "" {
		fmt.Fprintln(os.Stderr, "canonical-livepatchd: hint:", h)
	}
	if c := snapdAround(); c != nil {
		// systemd would start it again and again, and nothing would be different.
		tellCannotStart(c, err)
		return
	}
	os.Exit(1)
}

// Why the agent does not start.
var (
	errRoot    = errors.New("cannot run as root: the agent has the network, so it must not have privilege")
	errRunning = errors.New("another agent uses this data folder")
)

// hint says what to do about an error of run.
func hint(err error) string {
	switch {
	case errors.Is(err, errRoot):
		return "start it as a user of its own, for example with: sudo systemctl start canonical-livepatchd"
	case errors.Is(err, errRunning):
		return "ask it with: canonical-livepatch status"
	default:
		return agent.HintFor(err)
	}
}

// options are the flags.
type options struct {
	data, run, loader, root, kernel string
	vendor, kmodCert                string
	metadata, waiting               string
	allow                           []uint32
	user                            int
	check, version                  bool
}

// parse reads the flags. Folders and files that have to be there are.
func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("canonical-livepatchd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.data, "data", "/var/lib/canonical-livepatch", "`folder` of token, configuration and cache")
	flags.StringVar(&o.run, "run", "", "`folder` of the sockets (default that of -data)")
	flags.StringVar(&o.loader, "loader", "/run/livepatch/loader.sock", "`socket` of livepatch-loader")
	flags.StringVar(&o.root, "root", "/usr/share/canonical-livepatch/root.json", "`file` of the TUF root to trust")
	flags.StringVar(&o.kernel, "kernel", "/", "`folder` that has proc/, sys/ and etc/")
	flags.StringVar(&o.vendor, "vendor", "", "`name` of the vendor of this machine's patches (default: found out)")
	flags.StringVar(&o.waiting, "waiting", "", "`folder` in which root leaves changes for the next start (default waiting in that of -data)")
	flags.StringVar(&o.metadata, "metadata", "", "`folder` with signed TUF files that a new machine begins with")
	flags.StringVar(&o.kmodCert, "kmod-cert", "", "`file` of the certificate whose key signs modules for kernels, as people would enrol it (DER)")
	flags.Func("allow-uid", "`uid` that may use the private socket, besides root; may be repeated", func(s string) error {
		n, err := strconv.ParseUint(s, 10, 32)
		o.allow = append(o.allow, uint32(n))
		return err
	})
	flags.IntVar(&o.user, "user", 0, "`uid`, and gid, to become when started as root; folders are made fit for it")
	flags.BoolVar(&o.check, "check", false, "check flags, root and configuration, and leave")
	flags.BoolVar(&o.version, "version", false, "print the version and leave")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("cannot use argument %q: there are only flags", flags.Arg(0))
	}
	if o.run == "" {
		o.run = o.data
	}
	return o, nil
}

// run is main with its inputs as arguments, so that a test can call it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, uid int, enter func(folders ...string) error) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintln(stdout, version.String())
		return nil
	}
	if uid, err = becomeUser(o, uid); err != nil {
		return err
	}
	tuneMemory()
	root, err := os.ReadFile(o.root)
	if err != nil {
		return fmt.Errorf("cannot read TUF root: %w", err)
	}
	if o.check {
		_, err := config.Load(filepath.Join(o.data, agent.ConfigFile))
		return errors.Join(err, trust.CheckRoot(root))
	}
	// Everything made from here on is the agent's own business.
	syscall.Umask(0o077)
	if err := makeFolder(o.data); err != nil {
		return fmt.Errorf("cannot make data folder: %w", err)
	}
	if err := makeFolder(o.run); err != nil {
		return fmt.Errorf("cannot make folder of the sockets: %w", err)
	}
	if err := enter(o.data, o.run, cmp.Or(o.waiting, o.data)); err != nil {
		return err
	}
	level := new(slog.LevelVar)
	text := slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: agent.StoryName})
	w := &worker{options: o, root: root, uid: uid, level: level, log: slog.New(agent.Storyteller{Handler: text}), snapd: snapdAround()}
	if w.snapd != nil {
		return w.stayUp(ctx)
	}
	return w.work(ctx)
}

// A worker is the agent's process once it is who it is to be.
type worker struct {
	options
	root  []byte // pinned
	uid   int
	level *slog.LevelVar
	log   *slog.Logger
	snapd *snapd.Client // nil outside of a snap
}

// work does the agent's work until ctx is done or it cannot go on.
func (w *worker) work(ctx context.Context) error {
	unlock, err := lock(w.data)
	if err != nil {
		return err
	}
	defer unlock()
	o := agent.Options{
		Log:     w.log,
		Level:   w.level,
		Data:    w.data,
		Root:    w.root,
		Kernel:  os.DirFS(w.kernel),
		Loader:  loader.New(w.loader),
		Connect: connector(),
		Version: version.String(),
		Vendor:  w.vendor,
		Kmod:    modkey.Read(w.kmodCert),
		Waiting: w.waiting,
	}
	if w.snapd != nil {
		o.Snapd = w.snapd
	}
	if w.metadata != "" {
		o.Metadata = os.DirFS(w.metadata)
	}
	a, err := agent.New(o)
	if err != nil {
		return err
	}
	return w.serve(ctx, a)
}

// becomeUser gives up root if the process has it, for the user of -user, and
// returns who it is then.
func becomeUser(o options, uid int) (int, error) {
	if uid != 0 {
		return uid, nil
	}
	if o.user <= 0 {
		return 0, errRoot
	}
	// Other programs look for these beside the agent's own folders.
	links := map[string]string{}
	for dir, names := range map[string][]string{
		o.data: {"machine-token", agent.ConfigFile}, o.run: {localapi.PublicSocket, localapi.PrivateSocket},
	} {
		for _, name := range names {
			links[filepath.Join(filepath.Dir(dir), name)] = filepath.Join(filepath.Base(dir), name)
		}
	}
	folders := demote.Folders{Own: []string{o.data, o.run}, Enter: filepath.Dir(o.loader), Share: cmp.Or(o.waiting, filepath.Join(o.data, "waiting")), Links: links}
	if err := demote.Prepare(folders, o.user); err != nil {
		return 0, fmt.Errorf("cannot make folders for user %d: %w", o.user, err)
	}
	return o.user, demote.To(o.user)
}

// serve runs the agent and its sockets until ctx is done or one of them fails.
func (w *worker) serve(ctx context.Context, a *agent.Agent) error {
	listeners, err := localapi.Listen(w.run, w.privateMode())
	if err != nil {
		return err
	}
	w.log.Log(ctx, agent.LevelStory, "Started", "version", version.String(), "run", w.run)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.api(a).Serve(ctx, listeners) })
	group.Go(func() error {
		if err := a.Run(ctx); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
	err = group.Wait()
	w.log.Log(ctx, agent.LevelStory, "Stopped")
	return err
}

// api returns what serves a on the sockets.
func (w *worker) api(a *agent.Agent) *localapi.Server {
	s := &localapi.Server{Log: w.log, Version: version.String(), Allow: append(slices.Clone(w.allow), uint32(w.uid)), Hint: w.hint}
	if a != nil {
		s.Agent = a
	}
	return s
}

// confineTo leaves the process, whoever takes it over, the files that its user may
// read, its own folders to write, and no way to start a program.
func confineTo(folders ...string) error {
	files := map[string]uint64{"/": confine.Read}
	for _, dir := range folders {
		files[dir] = confine.Read | confine.Write | confine.Create
	}
	err := confine.Privileges()
	if err == nil {
		err = confine.Files(files)
	}
	if err != nil && !errors.Is(err, confine.ErrNoLandlock) { // then the unit's sandbox has to do
		return fmt.Errorf("cannot enter sandbox: %w", err)
	}
	return nil
}

// lock takes the data folder. The kernel gives the lock back when the process
// ends, however it ends.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot start with %s: %w", dir, errRunning)
		}
		return nil, fmt.Errorf("cannot lock data folder: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// makeFolder makes a folder if it does not exist. Others may enter: programs look
// for sockets and for whether there is a token, which is no secret.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask is
}

// connector returns what makes clients of the configured service. A proxy that
// is not configured comes from the environment.
func connector() func(config.Config) (agent.Service, error) {
	env := httpproxy.FromEnvironment()
	return func(c config.Config) (agent.Service, error) {
		client, err := fetch.New(fetch.Options{
			Base: c.RemoteServer,
			Proxy: httpproxy.Config{
				HTTPProxy:  cmp.Or(c.HTTPProxy, env.HTTPProxy),
				HTTPSProxy: cmp.Or(c.HTTPSProxy, env.HTTPSProxy),
				NoProxy:    cmp.Or(c.NoProxy, env.NoProxy),
			},
			CACerts:     []byte(c.CACerts),
			DialTimeout: c.DialTimeout,
			UserAgent:   "canonical-livepatchd/" + version.String(),
		})
		if err != nil {
			return nil, err // not a nil *fetch.Client in an interface
		}
		return client, nil
	}
}

// tuneMemory keeps the agent small: it is idle all but a few seconds an hour,
// so collecting garbage often costs nothing that anybody notices.
func tuneMemory() {
	debug.SetGCPercent(25)
	debug.SetMemoryLimit(24 << 20)
}
