package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/tests/vm/guest"
)

// stopTime is how long a service may take to end after SIGTERM, as systemd's
// TimeoutStopSec; then it is killed.
const stopTime = 10 * time.Second

// restartDelay is the pause before a service that failed is started again.
const restartDelay = time.Second

// A service runs one unit. Without a socket the process is kept running; with
// one it is started whenever somebody connects.
type service struct {
	unit   guest.Unit
	socket *os.File // listening; nil if the unit has none

	mu   sync.Mutex
	stop chan struct{} // closed to stop; nil while stopped
	done chan struct{} // closed when the last process has ended
}

// newService makes the unit's socket, so that clients can connect before
// anything runs.
func newService(u guest.Unit) (*service, error) {
	s := &service{unit: u}
	if u.Socket == nil {
		return s, nil
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: u.Socket.Path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot make socket of %s: %w", u.Name, err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chown(u.Socket.Path, u.Socket.UID, u.Socket.GID); err != nil {
		return nil, err
	}
	if err := os.Chmod(u.Socket.Path, fs.FileMode(u.Socket.Mode)); err != nil {
		return nil, err
	}
	// A duplicate, not tied to Go's poller: the service will accept on it.
	s.socket, err = l.File()
	return s, err
}

// start starts the service unless it is running or waiting for a connection.
func (s *service) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil && !closed(s.done) {
		return
	}
	s.stop, s.done = make(chan struct{}), make(chan struct{})
	go s.run(s.stop, s.done)
}

// end stops the service and waits until its process is gone.
func (s *service) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return
	}
	close(s.stop)
	<-s.done
	s.stop = nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// run runs the process again and again until stop is closed.
func (s *service) run(stop <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	for {
		if s.socket != nil && !s.waitForConnection(stop) {
			return
		}
		failed := s.once(stop)
		wait := time.Duration(0)
		switch {
		case failed:
			wait = restartDelay
		case s.socket == nil:
			return // ended by itself, and well
		}
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
	}
}

// waitForConnection returns true when somebody has connected, and false when the
// service is to stop. It does not accept: the process does.
func (s *service) waitForConnection(stop <-chan struct{}) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(s.socket.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100)
		if err != nil && err != unix.EINTR {
			slog.Error("Cannot wait on socket", "unit", s.unit.Name, "err", err)
			return false
		}
		select {
		case <-stop:
			return false
		default:
		}
		if n > 0 {
			return true
		}
	}
}

// once runs the process to its end and tells whether it failed.
func (s *service) once(stop <-chan struct{}) (failed bool) {
	cmd := s.command()
	if err := cmd.Start(); err != nil {
		slog.Error("Cannot start unit", "unit", s.unit.Name, "err", err)
		return true
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			slog.Warn("Unit failed", "unit", s.unit.Name, "err", err)
		}
		return err != nil
	case <-stop:
	}
	signal(cmd.Process, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopTime):
		slog.Warn("Unit does not stop and is killed", "unit", s.unit.Name)
		signal(cmd.Process, syscall.SIGKILL)
		<-ended
	}
	return false
}

// command prepares the process as systemd would: its user, a bare environment,
// and the socket as descriptor 3.
func (s *service) command() *exec.Cmd {
	cmd := exec.Command(s.unit.Command[0], s.unit.Command[1:]...)
	cmd.Env = append([]string{"PATH=" + path}, s.unit.Env...)
	if s.socket != nil {
		// LISTEN_PID must name the process itself, whose number only it knows:
		// the shell writes it down and becomes the service.
		cmd = exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, s.unit.Command...)...)
		cmd.Env = append([]string{"PATH=" + path, "LISTEN_FDS=1", "LISTEN_FDNAMES=" + s.unit.Name}, s.unit.Env...)
		cmd.ExtraFiles = []*os.File{s.socket}
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Credential: &syscall.Credential{Uid: s.unit.UID, Gid: s.unit.GID},
	}
	return cmd
}

func signal(p *os.Process, sig syscall.Signal) {
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		slog.Warn("Cannot send signal", "signal", sig, "pid", p.Pid, "err", err)
	}
}

// enabled tells whether the unit is to start at boot.
func enabled(unit string) bool {
	_, err := os.Stat(filepath.Join(guest.DisabledDir, unit))
	return errors.Is(err, fs.ErrNotExist)
}

// runJob runs a command to its end; a failure is only logged.
func runJob(j guest.Job) {
	cmd := exec.Command(j.Command[0], j.Command[1:]...)
	cmd.Env = []string{"PATH=" + path}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	slog.Info("Ran job", "job", j.Name, "took", time.Since(start).Round(time.Millisecond), "err", err)
}
