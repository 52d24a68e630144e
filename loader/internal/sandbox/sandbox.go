// Package sandbox gives up what the loader's process does not need.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keep are the capabilities that stay, each for one reason.
const keep = 1<<unix.CAP_SYS_MODULE | // finit_module and delete_module
	1<<unix.CAP_DAC_READ_SEARCH | // /proc/<pid>/task/<tid>/patch_state of other users, to name what blocks a transition
	1<<unix.CAP_SYS_PTRACE // wchan beside it, to name the function that it sleeps in

// Enter drops every other capability in all threads for good, forbids gaining
// any by exec, forbids other processes to read this one's memory, and empties
// the environment. A process that is not root has no capability to drop.
func Enter() error {
	os.Clearenv()
	unix.Umask(0o077)
	err := errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		inAllThreads(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0),
		inAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1))
	if err == nil && os.Geteuid() == 0 {
		err = dropCapabilities()
	}
	if err != nil {
		return fmt.Errorf("cannot enter sandbox: %w", err)
	}
	return nil
}

// dropCapabilities leaves the bounding set alone: it limits what exec could
// gain, which no_new_privs forbids, and inside a snap it cannot be changed.
func dropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: keep, Permitted: keep}} // ambient goes with permitted
	return inAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)))
}

// inAllThreads makes a system call that concerns one thread in each of them.
func inAllThreads(trap, arg1, arg2 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, arg1, arg2, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
