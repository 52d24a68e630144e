package machine

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"livepatch/tests/vm/guest"
)

// qemuArgs returns QEMU's command line. Descriptor 3 is the monitor, 4 the
// control port, 5 the terminal of a machine with firmware.
func qemuArgs(o Options) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-name", "livepatch-test",
		"-m", fmt.Sprint(o.MemoryMB), "-smp", fmt.Sprint(o.CPUs),
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
		"-serial", "chardev:console",
		"-chardev", "socket,id=control,fd=4",
		"-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=control,name=" + guest.Port,
	}
	args = append(args, o.accelArgs()...)
	args = append(args, startArgs(o)...)
	switch {
	case o.Root != nil:
		args = append(args, o.Root.args()...)
	case o.Disk != "":
		// The machine is told that the disk has a volatile cache, so it flushes.
		args = append(args,
			"-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path="+comma(o.Disk),
			"-device", "virtio-blk-pci,drive=disk,write-cache=on")
	case o.DiskMB > 0:
		args = append(args,
			"-drive", "if=none,id=disk,format=raw,file="+comma(filepath.Join(o.Dir, "disk.img")),
			"-device", "virtio-blk-pci,drive=disk")
	}
	if o.Store {
		args = append(args,
			"-object", "memory-backend-file,id=store,size=64K,share=on,mem-path="+comma(filepath.Join(o.Dir, "store")),
			"-device", "acpi-erst,memdev=store")
	}
	if o.Config.Address != "" {
		network := "user,id=net,restrict=on"
		for from, to := range o.Forward {
			network += fmt.Sprintf(",guestfwd=tcp:%s-cmd:%s %s", from, comma(o.Tools.forward), to)
		}
		args = append(args, "-netdev", network, "-device", "virtio-net-pci,id=card,netdev=net,romfile=")
	}
	return append(args, o.Firmware.espArgs(o)...)
}

// startArgs returns what the machine starts from, and its console.
func startArgs(o Options) []string {
	log := comma(filepath.Join(o.Dir, "console.log"))
	if o.Firmware != nil {
		return append(o.Firmware.args(o), "-chardev", "socket,id=console,fd=5,logappend=on,logfile="+log)
	}
	return []string{
		"-kernel", o.Kernel.VMLinux, "-initrd", filepath.Join(o.Dir, initramfs), "-append", commandLine(o),
		"-chardev", "file,id=console,append=on,path=" + log,
	}
}

// commandLine returns the kernel's command line.
func commandLine(o Options) string {
	return strings.TrimSpace("console=ttyS0 panic=-1 net.ifnames=0 " + o.Append)
}

// comma writes a path as QEMU's option parser wants it.
func comma(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// startProcess starts QEMU so that it cannot outlive this process, however that
// ends. The kernel ties this to the thread that starts it, so the thread stays
// until QEMU is gone.
func (m *Machine) startProcess(files []*os.File) error {
	stderr, err := os.OpenFile(filepath.Join(m.opts.Dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command("qemu-system-x86_64", m.args...)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started, done := make(chan error), make(chan struct{})
	m.done = done
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer stderr.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			m.waitErr = cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("cannot start QEMU: %w", err)
	}
	m.pid = cmd.Process.Pid
	return nil
}

// socketPairs returns the ends of n pairs of connected sockets: one of each for
// us, the other to hand over.
func socketPairs(n int) (here []net.Conn, there []*os.File, err error) {
	for range n {
		h, t, err := socketPair()
		if err != nil {
			closeAll(here)
			closeAll(there)
			return nil, nil, err
		}
		here, there = append(here, h), append(there, t)
	}
	return here, there, nil
}

// closeAll closes what is only read from, or was handed over.
func closeAll[C io.Closer](list []C) {
	for _, c := range list {
		_ = c.Close()
	}
}

// socketPair returns two connected sockets, one for us and one to hand over.
func socketPair() (here net.Conn, there *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "machine")
	defer f.Close()
	there = os.NewFile(uintptr(fds[1]), "machine")
	if here, err = net.FileConn(f); err != nil {
		there.Close()
		return nil, nil, err
	}
	return here, there, nil
}
