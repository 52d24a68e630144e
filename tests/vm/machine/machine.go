// Package machine runs Debian kernels in QEMU for tests, and drives them.
//
// A machine is a kernel, an initramfs made here, a disk at /var that outlives
// reboots and power cuts, and a network card whose only way out is to the
// addresses in [Options].Forward. Its first process is tests/vm/init, which runs
// commands for the harness.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/tests/vm/guest"
)

// Options say what a machine is made of.
type Options struct {
	// Dir is an existing folder for the disk, the initramfs and the console's
	// file. Two machines cannot share one.
	Dir    string
	Kernel *Kernel
	// Firmware is what the machine starts from; nil means that QEMU starts the
	// kernel.
	Firmware *Firmware
	// Tools are the programs that every machine needs.
	Tools *Tools
	// Config is what the machine's first process does.
	Config guest.Config
	// Files are added to the initramfs.
	Files []File
	// DiskMB is the size of the disk in MiB; 0 is a machine without one, unless it
	// has Disk.
	DiskMB int
	// Disk is the unix socket of a disk that somebody else keeps, in place of a
	// file; see tests/vm/disk. Empty means there is none.
	Disk string
	// Store gives the machine a store for what its kernel says when it goes down (ACPI
	// ERST), which the system shows in /sys/fs/pstore. It outlives reboots and power
	// cuts.
	Store bool
	// Root is a disk with a whole system, in place of DiskMB and Disk; nil is a
	// machine that runs from its initramfs.
	Root *Root
	// Forward maps addresses in the machine's network ("10.0.2.100:8443") to TCP
	// addresses of the host. Nothing else can be reached.
	Forward map[string]string
	// Append is added to the kernel's command line.
	Append string
	// CPUs is the number of processors; 0 means 2.
	CPUs int
	// MemoryMB is the size of the memory in MiB; 0 means 512.
	MemoryMB int
	// Accel is how QEMU runs the guest's instructions; see [ProbeAccel].
	Accel Accel
}

// Times that no healthy machine exceeds, even where it is emulated on a busy
// host.
const (
	bootTime = 3 * time.Minute
	downTime = 2 * time.Minute
	// firmwareTime is for a start with firmware, and with somebody who answers its
	// questions; and for the start of a whole distribution.
	firmwareTime = 10 * time.Minute
)

// A Machine is a running machine. Its methods may be used by several goroutines,
// except those that end or restart it.
type Machine struct {
	opts    Options
	args    []string
	control *control
	monitor *monitor
	screen  *Terminal     // of a machine with firmware
	done    chan struct{} // closed when QEMU has ended
	waitErr error         // how it ended; read after done
	pid     int
	boot    string        // boot-id
	took    time.Duration // of the last start
}

// A Result is what a command did.
type Result struct {
	Stdout, Stderr string
	Code           int // exit status
}

// Boot makes a machine and starts it. It returns when the machine has started its
// units. The caller must Close it.
func Boot(ctx context.Context, opts Options) (*Machine, error) {
	if opts.CPUs == 0 {
		opts.CPUs = 2
	}
	if opts.MemoryMB == 0 {
		opts.MemoryMB = 512
	}
	if opts.Root != nil {
		opts.Config.Systemd, opts.Config.Root = true, rootDevice
	}
	if err := makeInitramfs(opts); err != nil {
		return nil, err
	}
	if opts.DiskMB > 0 {
		if err := MakeDisk(ctx, filepath.Join(opts.Dir, "disk.img"), opts.DiskMB); err != nil {
			return nil, err
		}
	}
	if opts.Firmware != nil {
		if err := opts.Firmware.prepare(opts); err != nil {
			return nil, err
		}
	}
	m := &Machine{opts: opts}
	m.args = qemuArgs(opts)
	return m, m.PowerOn(ctx)
}

// PowerOn starts a machine whose power is off and waits until it is up. If ctx
// ends before that, the power goes again and the error is its cause.
func (m *Machine) PowerOn(ctx context.Context) error {
	start := time.Now()
	ports := 2
	if m.opts.Firmware != nil {
		ports = 3
	}
	here, there, err := socketPairs(ports)
	if err != nil {
		return err
	}
	m.control = newControl(here[1])
	if m.opts.Firmware != nil {
		m.screen = newTerminal(here[2])
	}
	err = m.startProcess(there)
	// From here QEMU alone has the other ends, so that its end is seen.
	closeAll(there)
	if err != nil {
		closeAll(here)
		return err
	}
	if m.monitor, err = newMonitor(here[0]); err != nil {
		m.kill()
		return fmt.Errorf("cannot start machine: %w%s", err, m.consoleTail())
	}
	return m.waitBoot(ctx, start)
}

// waitBoot waits until the machine is up. One that does not come up is killed.
func (m *Machine) waitBoot(ctx context.Context, start time.Time) error {
	limit := bootTime
	if m.opts.Firmware != nil || m.opts.Root != nil {
		limit = firmwareTime
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not up after %v", limit))
	defer cancel()
	boot, err := m.control.waitBoot(ctx)
	if err != nil {
		m.kill()
		return fmt.Errorf("cannot start machine: %w%s", err, m.consoleTail())
	}
	m.boot, m.took = boot, time.Since(start)
	return nil
}

// BootID identifies the machine's current boot.
func (m *Machine) BootID() string { return m.boot }

// BootTime is how long the last start took, from power-on to all units started.
func (m *Machine) BootTime() time.Duration { return m.took }

// Run runs a shell command as root. Only a machine that cannot run commands is an
// error; a command that fails is a Result.
func (m *Machine) Run(ctx context.Context, command string) (Result, error) {
	return m.RunRequest(ctx, guest.Request{Command: command})
}

// RunAs runs a shell command as another user.
func (m *Machine) RunAs(ctx context.Context, uid, gid uint32, command string) (Result, error) {
	return m.RunRequest(ctx, guest.Request{Command: command, UID: uid, GID: gid})
}

// RunRequest runs the command in req, with its standard input and user.
func (m *Machine) RunRequest(ctx context.Context, req guest.Request) (Result, error) {
	req.Op = guest.OpRun
	resp, err := m.control.call(ctx, req)
	if err != nil {
		return Result{}, fmt.Errorf("cannot run %q in machine: %w", req.Command, err)
	}
	return Result{Stdout: string(resp.Stdout), Stderr: string(resp.Stderr), Code: resp.Code}, nil
}

// WriteFile writes a file in the machine, as root.
func (m *Machine) WriteFile(ctx context.Context, path string, data []byte) error {
	res, err := m.RunRequest(ctx, guest.Request{Command: "cat > " + quote(path), Stdin: data})
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("cannot write %s in machine: %s", path, res.Stderr)
	}
	return err
}

// ReadFile reads a file of the machine, as root.
func (m *Machine) ReadFile(ctx context.Context, path string) ([]byte, error) {
	res, err := m.Run(ctx, "cat "+quote(path))
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("cannot read %s in machine: %s", path, res.Stderr)
	}
	return []byte(res.Stdout), err
}

// quote writes s as one word of a shell command.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Start starts a unit that was stopped.
func (m *Machine) Start(ctx context.Context, unit string) error {
	return m.unit(ctx, guest.OpStart, unit)
}

// Stop stops a unit and waits for its end.
func (m *Machine) Stop(ctx context.Context, unit string) error {
	return m.unit(ctx, guest.OpStop, unit)
}

func (m *Machine) unit(ctx context.Context, op guest.Op, unit string) error {
	if _, err := m.control.call(ctx, guest.Request{Op: op, Unit: unit}); err != nil {
		return fmt.Errorf("cannot %s %s in machine: %w", op, unit, err)
	}
	return nil
}

// Enable lets a unit start at boot, or keeps it from it. It changes nothing now.
func (m *Machine) Enable(ctx context.Context, unit string, on bool) error {
	file := quote(filepath.Join(guest.DisabledDir, unit))
	command := "mkdir -p " + guest.DisabledDir + " && touch " + file
	if on {
		command = "rm -f " + file
	}
	res, err := m.Run(ctx, command+" && sync")
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("cannot enable or disable %s in machine: %s", unit, res.Stderr)
	}
	return err
}

// Network plugs the network cable in or pulls it.
func (m *Machine) Network(up bool) error {
	return m.monitor.execute("set_link", map[string]any{"name": "card", "up": up})
}

// Reboot shuts the machine down cleanly and waits until it is up again.
func (m *Machine) Reboot(ctx context.Context) error {
	start := time.Now()
	if _, err := m.control.send(guest.Request{Op: guest.OpReboot}); err != nil {
		return fmt.Errorf("cannot reboot machine: %w", err)
	}
	return m.waitBoot(ctx, start)
}

// ShutDown shuts the machine down cleanly and waits until its power is off.
func (m *Machine) ShutDown(ctx context.Context) error {
	if _, err := m.control.send(guest.Request{Op: guest.OpPoweroff}); err != nil {
		return fmt.Errorf("cannot shut machine down: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, downTime, fmt.Errorf("not down after %v", downTime))
	defer cancel()
	select {
	case <-m.done:
	case <-ctx.Done():
		return fmt.Errorf("cannot shut machine down: %w", context.Cause(ctx))
	}
	m.kill() // what is left of it
	if m.waitErr != nil {
		return fmt.Errorf("cannot shut machine down: QEMU ended: %w", m.waitErr)
	}
	return nil
}

// Reset presses the reset button: nothing is shut down.
func (m *Machine) Reset(ctx context.Context) error {
	start := time.Now()
	if err := m.monitor.execute("system_reset", nil); err != nil {
		return err
	}
	return m.waitBoot(ctx, start)
}

// WaitBoot waits for a restart that the machine began by itself, after a panic
// for example.
func (m *Machine) WaitBoot(ctx context.Context) error { return m.waitBoot(ctx, time.Now()) }

// PowerCut takes the power away and starts the machine again with the same disk.
// What the machine had not written is lost; what it had handed to the disk is
// not, because the host keeps it.
func (m *Machine) PowerCut(ctx context.Context) error {
	m.PowerOff()
	return m.PowerOn(ctx)
}

// PowerOff takes the power away. Commands that run in the machine end with an
// error, so this may be called while they do.
func (m *Machine) PowerOff() { m.kill() }

// SetAppend replaces what is added to the kernel's command line, from the next
// PowerOn.
func (m *Machine) SetAppend(parameters string) {
	m.opts.Append = parameters
	m.args = qemuArgs(m.opts)
}

// Close takes the power away for good.
func (m *Machine) Close() error {
	m.kill()
	return nil
}

// kill ends QEMU and waits until it is gone.
func (m *Machine) kill() {
	select {
	case <-m.done:
	default:
		_ = unix.Kill(m.pid, unix.SIGKILL)
		<-m.done
	}
	m.control.conn.Close()
	if m.monitor != nil {
		m.monitor.conn.Close()
	}
	if m.screen != nil {
		m.screen.conn.Close()
	}
}

// Terminal returns the terminal of a machine with firmware. It is another one
// after the power was off.
func (m *Machine) Terminal() *Terminal { return m.screen }

// Console returns what the kernel and the services have logged since the machine
// was made.
func (m *Machine) Console() ([]byte, error) {
	return os.ReadFile(filepath.Join(m.opts.Dir, "console.log"))
}

// consoleTail returns the end of the logs, for error messages.
func (m *Machine) consoleTail() string {
	var b strings.Builder
	for _, name := range []string{"qemu.log", "console.log"} {
		text, err := tail(filepath.Join(m.opts.Dir, name), 4096)
		if err == nil && text != "" {
			fmt.Fprintf(&b, "\n--- end of %s ---\n%s", name, text)
		}
	}
	return b.String()
}

// tail returns the last n bytes of a file.
func tail(file string, n int64) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := f.Seek(-n, io.SeekEnd); err != nil && !errors.Is(err, unix.EINVAL) {
		return "", err
	}
	b, err := io.ReadAll(f)
	return string(b), err
}
