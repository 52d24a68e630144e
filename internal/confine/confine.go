// Package confine takes from the running process what it does not need: in all
// of its threads, and for good. Whoever takes over the process is left with the
// rest.
//
// A process that was built with cgo cannot be confined: Go does not know all of
// its threads.
package confine

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Privileges forbids gaining any by exec, and other processes of the same user to
// read this one's memory (prctl(2)).
func Privileges() error {
	return errors.Join(
		inAllThreads(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0),
		inAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1))
}

// Capabilities drops all but keep, a mask of 1<<unix.CAP_…, which the process must
// have, and wish, of which it keeps what it has. The bounding set is left alone: it limits what exec could
// gain, which [Privileges] forbids, and inside a snap it cannot be changed.
func Capabilities(keep, wish uint64) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	keep |= wish & (uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted))
	low, high := uint32(keep), uint32(keep>>32)
	data = [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}} // ambient goes with permitted
	return inAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)))
}

// ErrNoLandlock means that this kernel cannot restrict access to files: it is
// older than 5.13 or configured without.
var ErrNoLandlock = errors.New("kernel has no Landlock")

// What can be done to files below a folder, as sums of the rights of Landlock.
const (
	Read  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	Write = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	// Create makes and removes files, folders and sockets.
	Create = unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REFER
)

// rights are how many rights each version of Landlock knows, from version 1 on:
// those below one bit (userspace-api/landlock.rst).
var rights = []int{13, 14, 15, 15, 16}

// Files leaves of the file system what allow says, by folder; files that are open
// are not concerned. A folder that does not exist is left out.
func Files(allow map[string]uint64) error {
	version, err := call(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoLandlock, err)
	}
	all := uint64(1)<<rights[min(version, len(rights))-1] - 1
	ruleset := unix.LandlockRulesetAttr{Handled_access_fs: all}
	fd, err := call(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&ruleset)), unsafe.Sizeof(ruleset.Handled_access_fs), 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for path, access := range allow {
		if err := allowBelow(fd, path, access&all); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return inAllThreads(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(fd), 0)
}

func allowBelow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, err = call(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)))
	return errors.Join(err, unix.Close(fd))
}

func call(trap, arg1, arg2, arg3 uintptr) (int, error) {
	r, _, errno := unix.Syscall6(trap, arg1, arg2, arg3, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// inAllThreads makes a system call that concerns one thread in each of them.
func inAllThreads(trap, arg1, arg2 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, arg1, arg2, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
