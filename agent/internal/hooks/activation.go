package hooks

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"livepatch/agent/internal/loader"
)

// Activator is the name under which this program becomes the loader. systemd puts
// the process id of a service into its environment (sd_listen_fds(3)); whoever
// starts one without systemd needs a process in between that knows its own.
const Activator = "activate-loader"

// Activate makes this process the program that args name, with the socket that is
// its third descriptor. It returns only if that fails.
func Activate(args, environ []string, stderr io.Writer) int {
	environ = slices.DeleteFunc(slices.Clone(environ), func(v string) bool { return strings.HasPrefix(v, "LISTEN_") })
	environ = append(environ, "LISTEN_PID="+strconv.Itoa(os.Getpid()), "LISTEN_FDS=1")
	err := syscall.Exec(args[0], args, environ)
	fmt.Fprintf(stderr, "cannot start %s: %v\n", args[0], err)
	return 1
}

// An Activation starts the loader while the snap's services are stopped, as they
// are when the snap is removed.
type Activation struct {
	Self    string // this program
	Folder  string // for the socket; root's
	Program string // the loader
	Args    []string
	Environ []string
	Stderr  io.Writer // the loader's log
}

// removeTimeout bounds the removal, in which tasks may be slow to leave the
// patched functions; snapd gives the hook ten minutes.
const removeTimeout = 5 * time.Minute

// RemoveOurs implements [Loader].
func (a Activation) RemoveOurs(ctx context.Context) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	socket, stop, err := a.start()
	if err != nil {
		return nil, fmt.Errorf("cannot start the loader: %w", err)
	}
	defer stop()
	client := loader.New(socket)
	status, err := client.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range status.Livepatches {
		if !l.Ours() || !l.Live() {
			continue
		}
		if _, err := client.Remove(ctx, l.Name); err != nil {
			return names, fmt.Errorf("cannot remove livepatch %s: %w", l.Name, err)
		}
		names = append(names, l.Name)
	}
	if l := status.Returning(); l != nil && len(names) == 0 { // else none returns any more
		if _, err := client.Remove(ctx, l.Name); err != nil {
			return nil, fmt.Errorf("cannot keep livepatch %s from returning at boot: %w", l.Name, err)
		}
	}
	return names, nil
}

// start starts the loader on a socket of its own.
func (a Activation) start() (socket string, stop func(), err error) {
	dir, err := os.MkdirTemp(a.Folder, "remove") // 0700: nobody else connects
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(dir, "loader.sock")
	child, err := a.spawn(socket)
	if err != nil {
		return "", nil, joinRemove(err, dir)
	}
	return socket, func() {
		_ = child.Signal(syscall.SIGTERM)
		_, _ = child.Wait()
		_ = os.RemoveAll(dir)
	}, nil
}

func joinRemove(err error, dir string) error {
	_ = os.RemoveAll(dir)
	return err
}

func (a Activation) spawn(socket string) (*os.Process, error) {
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer lis.Close()
	lis.SetUnlinkOnClose(false)
	f, err := lis.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	log, ok := a.Stderr.(*os.File)
	if !ok {
		log = null
	}
	args := append([]string{Activator, a.Program}, a.Args...)
	return os.StartProcess(a.Self, args, &os.ProcAttr{Env: a.Environ, Files: []*os.File{null, log, log, f}})
}
