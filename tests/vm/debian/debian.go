// Package debian makes disks with a whole Debian system for tests: one that a
// machine of package machine starts, with systemd, from any suite of the archive.
//
// Nothing of it is installed on the host. A disk is bootstrapped with mmdebstrap,
// which needs root, and kept in a cache under a hash of all that went into it: the
// recipe and the versions of the packages.
package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"livepatch/tests/vm/machine"
)

// A Suite is a release of Debian.
type Suite string

// The suites with a snapd that we support.
const (
	Bookworm Suite = "bookworm"
	Trixie   Suite = "trixie"
	Sid      Suite = "sid"
)

// Suites are all of them, the oldest first.
var Suites = []Suite{Bookworm, Trixie, Sid}

// ParseSuite reads the name of a suite.
func ParseSuite(s string) (Suite, error) {
	for _, known := range Suites {
		if s == string(known) {
			return known, nil
		}
	}
	return "", fmt.Errorf("cannot use suite %q: known are %q", s, Suites)
}

// A Recipe says what is on a disk.
type Recipe struct {
	Suite Suite
	// Packages are installed with what they depend on, but not with what they
	// recommend. A kernel and systemd are always there.
	Packages []string
	// Mask are units that are not to run.
	Mask []string
	// Files are put into the system last.
	Files []machine.File
	// Commands are run by the host's shell at the very end, in the root of the
	// bootstrapped system: a relative path names a file in it.
	Commands []string
}

// base are the packages that every disk has.
var base = []string{
	"systemd", "systemd-sysv", "udev", "dbus", "kmod", "util-linux", "iproute2", "procps", "ca-certificates",
	kernelPackage,
}

// kernelPackage is the kernel for virtual machines: the same source and the same
// security settings as of the one for all machines, with a tenth of its drivers.
const kernelPackage = "linux-image-cloud-amd64"

// flavour is the kernel's flavour, as the archive calls it.
const flavour = "cloud-amd64"

// An Image is a disk, and the kernel that was installed on it.
type Image struct {
	Suite Suite
	// Disk is the file with the root file system. Tests change it never; see
	// [machine.Root].
	Disk   string
	Kernel *machine.Kernel
	// Versions are those of the packages on it.
	Versions map[string]string
	hash     string
}

// A Cache is a folder with what was made before.
type Cache struct {
	dir string
}

// NewCache returns the cache in a folder, which is made when it is needed.
func NewCache(dir string) *Cache { return &Cache{dir: filepath.Join(dir, "debian")} }

// entry returns the folder that holds what the parts describe, after making it if
// it is not there. What the cache held before under the same name and another
// hash is removed: it is of no use any more.
func (c *Cache) entry(ctx context.Context, name string, parts any, fill func(ctx context.Context, dir string) error) (dir, hash string, err error) {
	described, err := json.Marshal(parts)
	if err != nil {
		return "", "", err
	}
	sum := sha256.Sum256(described)
	hash = hex.EncodeToString(sum[:8])
	dir = filepath.Join(c.dir, name+"-"+hash)
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", "", err
	}
	unlock, err := lock(filepath.Join(c.dir, name+".lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir, hash, err
	}
	work, err := os.MkdirTemp(c.dir, ".new-"+name)
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(work)
	if err := fill(ctx, work); err != nil {
		return "", "", err
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", "", err
	}
	if err := os.Rename(work, dir); err != nil {
		return "", "", err
	}
	return dir, hash, c.removeOthers(name, dir)
}

// removeOthers removes what has the name of an entry and is not it.
func (c *Cache) removeOthers(name, keep string) error {
	old, err := filepath.Glob(filepath.Join(c.dir, name+"-????????????????"))
	for _, dir := range old {
		if dir != keep {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// lock keeps two processes from making the same thing at once.
func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// command runs a program and returns what it prints on standard output. Errors
// hold the end of what it printed elsewhere.
func command(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Env = append(append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin"), env...)
	if err := cmd.Run(); err != nil {
		said := stderr.String()
		return "", fmt.Errorf("cannot run %s: %w: %s", name, err, said[max(0, len(said)-2000):])
	}
	return stdout.String(), nil
}
