package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/tests/vm/guest"
)

// path is the search path of everything the machine runs.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"

// disk is where /var is kept, if the machine has a disk.
const disk = "/dev/vda"

// mountKernelFilesystems mounts what the kernel and memory provide.
func mountKernelFilesystems() error {
	mounts := []struct{ kind, dir, options string }{
		{"devtmpfs", "/dev", ""},
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"securityfs", "/sys/kernel/security", ""},
		{"debugfs", "/sys/kernel/debug", ""},
		{"tracefs", "/sys/kernel/tracing", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// setUp prepares the machine for its units.
func setUp() (guest.Config, error) {
	cfg, err := readConfig()
	if err != nil {
		return cfg, err
	}
	if cfg.Root != "" { // its disk is mounted and its drivers are there
		return cfg, setUpNetwork(cfg.Address)
	}
	if err := loadModules(); err != nil || cfg.Systemd {
		return cfg, err
	}
	if err := mountStores(); err != nil {
		return cfg, err
	}
	if err := mountDisk(); err != nil {
		return cfg, err
	}
	if err := setUpNetwork(cfg.Address); err != nil {
		return cfg, err
	}
	for _, d := range cfg.Dirs {
		if err := makeDir(d); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

func readConfig() (cfg guest.Config, err error) {
	b, err := os.ReadFile(guest.ConfigFile)
	if err != nil {
		return cfg, err
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		return cfg, fmt.Errorf("cannot read %s: %w", guest.ConfigFile, err)
	}
	return cfg, nil
}

// loadModules loads the drivers, in the order that the harness worked out.
func loadModules() error {
	f, err := os.Open(guest.ModulesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if err := loadModule(lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("cannot load %s: %w", file, err)
	}
	return nil
}

// stores are the file systems in which a kernel shows what outlives it. It makes
// their folders if it has them: the variables if UEFI has started it, and what it has
// left of a crash.
var stores = map[string]string{
	"efivarfs": "/sys/firmware/efi/efivars",
	"pstore":   "/sys/fs/pstore",
}

// mountStores mounts those that there are.
func mountStores() error {
	for kind, dir := range stores {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", dir, err)
		}
	}
	return nil
}

// mountDisk mounts the disk at /var, or memory if there is none. The driver may
// still be looking for the disk, so it gets a moment.
func mountDisk() error {
	if err := os.MkdirAll("/var", 0o755); err != nil {
		return err
	}
	if !appears("/sys/bus/virtio/drivers/virtio_blk/virtio*") {
		return unix.Mount("tmpfs", "/var", "tmpfs", 0, "mode=755")
	}
	if !appears(disk) {
		return fmt.Errorf("cannot find %s", disk)
	}
	if err := unix.Mount(disk, "/var", "ext4", 0, ""); err != nil {
		return fmt.Errorf("cannot mount %s: %w", disk, err)
	}
	return nil
}

// appears tells whether a file comes into being within half a second.
func appears(pattern string) bool {
	for range 50 {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// setUpNetwork brings up the loopback and, if address is not empty, eth0. There
// is no route to anywhere else.
func setUpNetwork(address string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setInterface(fd, "lo", netip.MustParsePrefix("127.0.0.1/8")); err != nil {
		return err
	}
	if address == "" {
		return nil
	}
	prefix, err := netip.ParsePrefix(address)
	if err != nil {
		return err
	}
	if !appears("/sys/class/net/eth0") {
		return errors.New("cannot find network card eth0")
	}
	return setInterface(fd, "eth0", prefix)
}

// setInterface gives an interface its address and brings it up.
func setInterface(fd int, name string, prefix netip.Prefix) error {
	addr := prefix.Addr().As4()
	mask := uint32(0xffffffff) << (32 - prefix.Bits())
	maskBytes := []byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}
	steps := []struct {
		request uint
		set     func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(maskBytes) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	}
	for _, step := range steps {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := step.set(r); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, step.request, r); err != nil {
			return fmt.Errorf("cannot configure %s: %w", name, err)
		}
	}
	return nil
}

func makeDir(d guest.Dir) error {
	if err := os.MkdirAll(d.Path, 0o755); err != nil {
		return err
	}
	if err := os.Chown(d.Path, d.UID, d.GID); err != nil {
		return err
	}
	return os.Chmod(d.Path, fs.FileMode(d.Mode))
}

// shutDown ends the machine cleanly: what is on the disk is complete. It returns
// only if the kernel refuses.
func shutDown(how int) error {
	unix.Sync()
	if err := unix.Unmount("/var", 0); err != nil {
		slog.Warn("Cannot unmount disk", "err", err)
		if err := unix.Mount("", "/var", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			slog.Warn("Cannot make disk read-only", "err", err)
		}
	}
	return unix.Reboot(how)
}
