//go:build integration

package integration

import (
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An activator is to the loader what systemd is: it holds the socket, starts the
// loader when somebody connects, and again when somebody connects after that one
// has left or was killed.
type activator struct {
	t       *testing.T
	socket  *os.File
	command func() *exec.Cmd
	log     *transcript

	mu     sync.Mutex
	now    *process // nil while nobody is connected
	starts int
}

// activate makes a socket at path that belongs to uid and has the mode.
func activate(t *testing.T, path string, uid int, mode os.FileMode, command func() *exec.Cmd) *activator {
	t.Helper()
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	defer lis.Close()
	lis.SetUnlinkOnClose(false)
	must(t, os.Chmod(path, mode))
	must(t, os.Chown(path, uid, -1))
	socket, err := lis.File()
	must(t, err)
	a := &activator{t: t, socket: socket, command: command, log: &transcript{}}
	showOnFailure(t, loaderBin, a.log)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		a.serve(stop)
	}()
	t.Cleanup(func() {
		close(stop)
		a.kill()
		<-stopped
		socket.Close()
	})
	return a
}

// serve starts loaders, one after the other.
func (a *activator) serve(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		ready := []unix.PollFd{{Fd: int32(a.socket.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 50); err != nil || n == 0 {
			continue
		}
		a.start()
		select {
		case <-a.now.done:
		case <-stop:
			a.kill()
			return
		}
		if a.now.err != nil { // somebody may still wait, for a loader that does not start
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (a *activator) start() {
	a.mu.Lock()
	defer a.mu.Unlock()
	cmd := a.command()
	// LISTEN_PID is the loader's own, which only its shell knows before it runs.
	cmd.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`}, cmd.Args...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{a.socket}
	p := &process{name: loaderBin, cmd: cmd, log: a.log, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = a.log, a.log
	if err := cmd.Start(); err != nil {
		a.t.Errorf("cannot start loader: %v", err)
		p.err = err
		close(p.done)
	} else {
		go func() {
			p.err = cmd.Wait()
			close(p.done)
		}()
	}
	a.now = p
	a.starts++
}

// kill is kill -9 for the loader that runs, if one does, and tells whether one
// did.
func (a *activator) kill() bool {
	a.mu.Lock()
	p := a.now
	a.mu.Unlock()
	if p == nil || p.ended() {
		return false
	}
	p.kill()
	return true
}

// running tells whether there is a root process.
func (a *activator) running() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now != nil && !a.now.ended()
}

// count returns how many loaders were started.
func (a *activator) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.starts
}
