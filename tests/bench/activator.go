package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// activate is to a program what systemd is: it holds the unix socket at path,
// starts the program when somebody connects, and again after that one has left.
// It ends with ctx.
func activate(ctx context.Context, path string, uid int, command func() *exec.Cmd) error {
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("cannot hold socket: %w", err)
	}
	defer lis.Close()
	lis.SetUnlinkOnClose(false)
	if err := os.Lchown(path, uid, -1); err != nil {
		return fmt.Errorf("cannot give socket away: %w", err)
	}
	socket, err := lis.File()
	if err != nil {
		return fmt.Errorf("cannot hold socket: %w", err)
	}
	go func() {
		defer socket.Close()
		for ctx.Err() == nil {
			serveOnce(ctx, socket, command)
		}
	}()
	return nil
}

// serveOnce waits a moment for a connection and runs the program for it.
func serveOnce(ctx context.Context, socket *os.File, command func() *exec.Cmd) {
	ready := []unix.PollFd{{Fd: int32(socket.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(ready, 50); n == 0 || err != nil && !errors.Is(err, unix.EINTR) {
		return
	}
	cmd := command()
	// LISTEN_PID is the program's own, which only its shell knows before it runs.
	cmd.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`}, cmd.Args...)
	cmd.Path = "/bin/sh"
	cmd.Env = []string{"LISTEN_FDS=1"}
	cmd.ExtraFiles = []*os.File{socket}
	p, err := start(cmd)
	if err == nil {
		<-p.done
	}
	if err != nil || cmd.ProcessState == nil || !cmd.ProcessState.Success() {
		// Somebody may still wait, for a program that does not start.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
