package lab

import (
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An Activator is to the loader what systemd is: it holds the socket, starts the
// loader when somebody connects, and again when somebody connects after that one
// has left or was killed.
type Activator struct {
	t       *testing.T
	socket  *os.File
	command func() *exec.Cmd
	Log     *Transcript

	mu     sync.Mutex
	now    *Process // nil while nobody is connected
	starts int
}

// activate makes a socket at path that belongs to uid and has the mode.
func activate(t *testing.T, path string, uid int, mode os.FileMode, command func() *exec.Cmd) *Activator {
	t.Helper()
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	Must(t, err)
	defer lis.Close()
	lis.SetUnlinkOnClose(false)
	Must(t, os.Chmod(path, mode))
	Must(t, os.Chown(path, uid, -1))
	socket, err := lis.File()
	Must(t, err)
	a := &Activator{t: t, socket: socket, command: command, Log: &Transcript{}}
	showOnFailure(t, LoaderBin, a.Log)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		a.serve(stop)
	}()
	t.Cleanup(func() {
		close(stop)
		a.Kill()
		<-stopped
		socket.Close()
	})
	return a
}

// Serve starts loaders, one after the other.
func (a *Activator) serve(stop <-chan struct{}) {
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
			a.Kill()
			return
		}
		if a.now.err != nil { // somebody may still wait, for a loader that does not start
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (a *Activator) start() {
	a.mu.Lock()
	defer a.mu.Unlock()
	cmd := a.command()
	// LISTEN_PID is the loader's own, which only its shell knows before it runs.
	// The limit is that of the unit.
	cmd.Args = append([]string{"sh", "-c", `ulimit -n 256; export LISTEN_PID=$$; exec "$0" "$@"`}, cmd.Args...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{a.socket}
	p := &Process{name: LoaderBin, cmd: cmd, Log: a.Log, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = a.Log, a.Log
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

// Kill is kill -9 for the loader that runs, if one does, and tells whether one
// did.
func (a *Activator) Kill() bool {
	a.mu.Lock()
	p := a.now
	a.mu.Unlock()
	if p == nil || p.ended() {
		return false
	}
	p.Kill()
	return true
}

// stop asks the loader that runs, if one does, to end, and waits until it has.
func (a *Activator) stop() {
	a.mu.Lock()
	p := a.now
	a.mu.Unlock()
	if p != nil && !p.ended() {
		_ = p.Stop(a.t) // it may have been killed
	}
}

// Running tells whether there is a root process.
func (a *Activator) Running() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now != nil && !a.now.ended()
}

// PID returns the process id of the loader that runs, or ran last; 0 if none has.
func (a *Activator) PID() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.now == nil || a.now.cmd.Process == nil {
		return 0
	}
	return a.now.cmd.Process.Pid
}

// Count returns how many loaders were started.
func (a *Activator) Count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.starts
}
