// Command init is the first process of a test machine. It does what a
// distribution's start-up and systemd would do for our services, and nothing
// that a test could mistake for them: it mounts, loads drivers, sets the network
// up, owns the loader's socket, starts units, and serves the harness.
//
// Where systemd is to do that, it is one of systemd's services and only serves the
// harness; see guest.Config.
//
// Two processes run it. The first adopts orphans and reaps them, which a program
// that also waits for its own children cannot do without losing some; the second,
// "init manage", does the rest.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "manage" {
		slog.Error("Manager ends", "err", manage())
		os.Exit(1)
	}
	err := first()
	slog.Error("Machine stops", "err", err)
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		slog.Error("Cannot power off", "err", err)
	}
}

// first mounts what every program needs, starts the manager and reaps until the
// manager is gone, which ends the machine.
func first() error {
	if err := mountKernelFilesystems(); err != nil {
		return err
	}
	if err := useConsole(); err != nil {
		return err
	}
	if cfg, err := readConfig(); err != nil || cfg.Root != "" {
		return errors.Join(err, enterRoot(cfg.Root))
	}
	cmd := exec.Command("/proc/self/exe", "manage")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=" + path, "HOME=/root"}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start manager: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("cannot wait for processes: %w", err)
		case pid == cmd.Process.Pid:
			return fmt.Errorf("manager ended with status %#x", int(status))
		}
	}
}

// useConsole makes the first serial port standard output and error, so that what
// the services log stands in the harness's console file between the kernel's
// lines.
func useConsole() error {
	f, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("cannot open console: %w", err)
	}
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("cannot use console: %w", err)
		}
	}
	return nil
}
