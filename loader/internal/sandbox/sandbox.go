// Package sandbox says what the loader's process keeps, and gives up the rest.
package sandbox

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"livepatch/internal/confine"
	"livepatch/internal/patch"
)

// keep are the capabilities that stay, each for one reason.
const keep = 1<<unix.CAP_SYS_MODULE | // finit_module and delete_module
	1<<unix.CAP_DAC_READ_SEARCH // /proc/<pid>/task/<tid>/patch_state of other users, to name what blocks a transition

// wish is one more, without which the loader works and does not hear the kernel:
// syslog(2), where kernel.dmesg_restrict is set.
const wish = 1 << unix.CAP_SYSLOG

// limits bound what a client could make us use.
var limits = map[int]uint64{
	unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: patch.MaxModule, unix.RLIMIT_NOFILE: 64, unix.RLIMIT_DATA: 512 << 20,
}

// calls are the system calls that the loader and Go's runtime make. A recorded
// run has to show each of them, or the test that compares says why not.
var calls = confine.Filter{
	Allow: []uintptr{
		// Files: state, sysfs, procfs, the memfd.
		unix.SYS_OPENAT, unix.SYS_CLOSE, unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_WRITE, unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_GETDENTS64,
		unix.SYS_FCNTL, unix.SYS_FLOCK, unix.SYS_FSYNC, unix.SYS_FCHMOD, unix.SYS_RENAMEAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_MEMFD_CREATE,
		// The socket, which others made.
		unix.SYS_ACCEPT4, unix.SYS_GETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
		// What it is for; finit_module is below.
		unix.SYS_DELETE_MODULE,
		// Go's runtime: scheduler, timers, netpoll, signals, memory.
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_CLOCK_GETTIME, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT,
		unix.SYS_EVENTFD2, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_TGKILL, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	},
	Refuse: []uintptr{unix.SYS_SOCKET, unix.SYS_EXECVE, unix.SYS_EXECVEAT},
	If: []confine.Rule{
		{Call: unix.SYS_CLONE, Mask: unix.CLONE_THREAD, Want: unix.CLONE_THREAD},     // no process
		{Call: unix.SYS_FINIT_MODULE, Arg: 2, Mask: ^uint32(0)},                      // neither version nor vermagic ignored
		{Call: unix.SYS_SYSLOG, Mask: ^uint32(0), Want: unix.SYSLOG_ACTION_READ_ALL}, // which changes nothing
		{Call: unix.SYS_MMAP, Arg: 2, Mask: unix.PROT_EXEC},                          // no code that was not there at the start
		{Call: unix.SYS_MPROTECT, Arg: 2, Mask: unix.PROT_EXEC},
		{Call: unix.SYS_PRCTL, Mask: ^uint32(0), Want: unix.PR_SET_VMA}, // the runtime names its memory
	},
}

// Enter empties the environment, limits resources, drops capabilities, leaves of
// the file system the kernel's files below tree to read, and /sys/kernel/livepatch
// and the folder state, which it makes if need be, to write, and few system calls.
// A process that is not root has no capability to drop.
func Enter(log *slog.Logger, tree, state string) error {
	os.Clearenv()
	unix.Umask(0o077)
	err := os.MkdirAll(state, 0o700)
	for resource, limit := range limits {
		err = errors.Join(err, unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}))
	}
	err = errors.Join(err, confine.Privileges())
	if os.Geteuid() == 0 {
		err = errors.Join(err, confine.Capabilities(keep, wish))
	}
	files := confine.Files(map[string]uint64{
		filepath.Join(tree, "proc"):                 confine.Read,
		filepath.Join(tree, "sys"):                  confine.Read,
		filepath.Join(tree, "sys/kernel/livepatch"): confine.Read | confine.Write,
		state: confine.Read | confine.Write | confine.Create,
	})
	if errors.Is(files, confine.ErrNoLandlock) { // then the unit's sandbox has to do
		log.Warn("Files are not out of reach", "err", files)
		files = nil
	}
	if err = errors.Join(err, files, confine.Syscalls(calls)); err != nil {
		return fmt.Errorf("cannot enter sandbox: %w", err)
	}
	return nil
}
