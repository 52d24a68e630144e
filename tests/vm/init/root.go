package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"livepatch/tests/vm/guest"
)

// sysroot is where the root file system is mounted before it becomes the root.
const sysroot = "/sysroot"

// harnessDir is where the harness lies in a machine with a root of its own. It is
// in memory: the disk holds nothing of ours.
const harnessDir = "/run/machine"

// harnessUnit makes the harness a service of the machine's systemd. It starts last
// and is not stopped before everything else has been.
const harnessUnit = `[Unit]
Description=Harness of the tests
DefaultDependencies=no
After=multi-user.target

[Service]
ExecStart=` + harnessDir + `/init manage
`

// enterRoot mounts a disk and makes this process the first one of the system on
// it. It returns only if it cannot.
func enterRoot(device string) error {
	if err := loadModules(); err != nil {
		return err
	}
	if !appears(device) {
		return fmt.Errorf("cannot find %s", device)
	}
	if err := os.MkdirAll(sysroot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, sysroot, "ext4", 0, ""); err != nil {
		return fmt.Errorf("cannot mount %s: %w", device, err)
	}
	if err := putHarness(); err != nil {
		return fmt.Errorf("cannot put the harness into the root: %w", err)
	}
	if err := os.RemoveAll(guest.Overlay); err != nil { // memory is short
		return err
	}
	if err := moveRoot(); err != nil {
		return err
	}
	return fmt.Errorf("cannot start systemd: %w", unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=" + path}))
}

// putHarness writes the harness and its unit into /run, which systemd takes over,
// and the test's files into the root.
func putHarness() error {
	units := "/run/systemd/system"
	wants := units + "/multi-user.target.wants"
	for _, dir := range []string{harnessDir, wants} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(units+"/harness.service", []byte(harnessUnit), 0o644); err != nil {
		return err
	}
	if err := os.Symlink(units+"/harness.service", wants+"/harness.service"); err != nil {
		return err
	}
	return errors.Join(
		copyFile("/init", harnessDir+"/init", 0o755),
		copyFile(guest.ConfigFile, filepath.Join(sysroot, guest.ConfigFile), 0o644),
		copyTree(guest.Overlay, sysroot),
	)
}

// copyTree copies folders, files and symbolic links into a tree. What lies there
// already under one of their names gives way, but for folders.
func copyTree(from, to string) error {
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.MkdirAll(target, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return errors.Join(ifExists(os.Remove(target)), os.Symlink(link, target))
		default:
			return errors.Join(ifExists(os.Remove(target)), copyFile(p, target, info.Mode().Perm()))
		}
	})
}

// ifExists drops the error that there is no such file.
func ifExists(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func copyFile(from, to string, mode fs.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, b, mode); err != nil {
		return err
	}
	return os.Chmod(to, mode) // whatever the umask is
}

// moveRoot makes sysroot the root and takes along what is mounted. securityfs and
// the like hang below /sys and come with it.
func moveRoot() error {
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := unix.Mount(dir, filepath.Join(sysroot, dir), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("cannot move %s into the root: %w", dir, err)
		}
	}
	if err := os.Chdir(sysroot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// leaveSystemd asks systemd to end the machine. It returns only if that fails:
// this process ends with all others.
func leaveSystemd(how int) error {
	verb := "poweroff"
	if how == unix.LINUX_REBOOT_CMD_RESTART {
		verb = "reboot"
	}
	if out, err := exec.Command("systemctl", "--no-block", verb).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot %s: %w: %s", verb, err, out)
	}
	select {}
}
