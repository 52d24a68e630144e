package sandbox

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the sandbox refuses to tell, or changes.
var (
	asRoot = os.Geteuid() == 0
	had    = permitted()
)

func permitted() uint64 {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		panic(err)
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
}

// tries are what the test binary does inside the sandbox when LIVEPATCH_TRY names
// one of them: it is a process of its own, since nobody gets out again.
var tries = map[string]struct {
	try  func(state string) error
	want string // what the process prints: "ok", an errno, or its last words
}{
	"an internet socket":                {func(string) error { return socket(unix.AF_INET) }, "operation not permitted"},
	"an internet socket, version 6":     {func(string) error { return socket(unix.AF_INET6) }, "operation not permitted"},
	"a unix socket":                     {func(string) error { return socket(unix.AF_UNIX) }, "operation not permitted"},
	"a netlink socket":                  {func(string) error { return socket(unix.AF_NETLINK) }, "operation not permitted"},
	"another program in its own place":  {func(string) error { return unix.Exec("/bin/true", []string{"true"}, nil) }, "operation not permitted"},
	"a new process":                     {clone, "SIGSYS: bad system call"},
	"memory that holds code":            {executable, "SIGSYS: bad system call"},
	"making memory executable":          {makeExecutable, "SIGSYS: bad system call"},
	"a system call that is not listed":  {call(unix.SYS_PERSONALITY), "SIGSYS: bad system call"},
	"a module by init_module":           {call(unix.SYS_INIT_MODULE), "SIGSYS: bad system call"},
	"a module that ignores its version": {call(unix.SYS_FINIT_MODULE, ^uintptr(0), 0, unix.MODULE_INIT_IGNORE_VERMAGIC), "SIGSYS: bad system call"},
	"tracing a process":                 {call(unix.SYS_PTRACE), "SIGSYS: bad system call"},
	"reading another process's memory":  {call(unix.SYS_PROCESS_VM_READV), "SIGSYS: bad system call"},
	"a BPF program":                     {call(unix.SYS_BPF), "SIGSYS: bad system call"},
	"mounting":                          {call(unix.SYS_MOUNT), "SIGSYS: bad system call"},
	"io_uring":                          {call(unix.SYS_IO_URING_SETUP), "SIGSYS: bad system call"},
	"being dumpable again":              {call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1), "SIGSYS: bad system call"},
	"another user":                      {call(unix.SYS_SETUID, 1000), "SIGSYS: bad system call"},
	"a device by ioctl":                 {call(unix.SYS_IOCTL, 0, unix.TCGETS), "SIGSYS: bad system call"},
	"reading /etc":                      {func(string) error { _, err := os.ReadFile("/etc/passwd"); return err }, "permission denied"},
	"listing /":                         {func(string) error { _, err := os.ReadDir("/"); return err }, "permission denied"},
	"writing beside its state":          {func(state string) error { return os.WriteFile(state+".beside", nil, 0o600) }, "permission denied"},
	"writing to /dev":                   {func(string) error { return os.WriteFile("/dev/null", []byte("x"), 0) }, "permission denied"},
	"changing a sysctl": {func(string) error {
		_, err := os.OpenFile("/proc/sys/kernel/ftrace_enabled", os.O_WRONLY, 0)
		return err
	}, "permission denied"},
	"a link out of its state":      {func(state string) error { return os.Symlink("/", filepath.Join(state, "link")) }, "SIGSYS: bad system call"},
	"a file of more than 64 MiB":   {big, "file too large"},
	"more than 64 files":           {files, "too many open files"},
	"clearing the kernel's log":    {call(unix.SYS_SYSLOG, unix.SYSLOG_ACTION_CLEAR), "SIGSYS: bad system call"},
	"waiting for the kernel's log": {call(unix.SYS_SYSLOG, unix.SYSLOG_ACTION_READ), "SIGSYS: bad system call"},
	"reading the kernel's log": {func(string) error {
		_, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 4096))
		if had&wish == 0 && errors.Is(err, unix.EPERM) {
			return nil // as outside
		}
		return err
	}, "ok"},
	"reading /proc":              {func(string) error { _, err := os.ReadFile("/proc/1/status"); return err }, "ok"},
	"reading /sys":               {func(string) error { _, err := os.ReadFile("/sys/kernel/notes"); return err }, "ok"},
	"a file in its state":        {func(state string) error { return os.WriteFile(filepath.Join(state, "file"), nil, 0o600) }, "ok"},
	"renaming it":                {rename, "ok"},
	"many threads":               {threads, "ok"},
	"no environment":             {func(string) error { return ifAny(os.Environ()) }, "ok"},
	"what the kernel says of it": {status, "ok"},
}

func TestMain(m *testing.M) {
	name, state := os.Getenv("LIVEPATCH_TRY"), os.Getenv("LIVEPATCH_STATE")
	if name == "" {
		os.Exit(m.Run())
	}
	err := Enter(slog.New(slog.DiscardHandler), "/", state)
	if err == nil {
		err = tries[name].try(state)
	}
	if err == nil {
		err = errors.New("ok")
	}
	fmt.Println(err)
	os.Exit(0)
}

// Kernels of the last years all have Landlock; where there is none, the part
// about files cannot hold, and the unit's own sandbox is what there is.
func TestTheSandboxHolds(t *testing.T) {
	t.Parallel()
	if _, _, err := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); err != 0 {
		t.Fatalf("this kernel has no Landlock: %v", err)
	}
	program := withoutCgo(t)
	for name, tc := range tries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), program)
			cmd.Env = append(os.Environ(), "LIVEPATCH_TRY="+name, "LIVEPATCH_STATE="+filepath.Join(t.TempDir(), "state"))
			out, err := cmd.CombinedOutput()
			first, _, _ := strings.Cut(string(out), "\n")
			if !strings.HasSuffix(first, tc.want) {
				t.Errorf("%s: printed %q (%v), want %q", name, first, err, tc.want)
			}
			if ended := strings.HasPrefix(tc.want, "SIG"); ended != (err != nil) {
				t.Errorf("%s: the process ended with %v", name, err)
			}
		})
	}
}

// withoutCgo returns this test's binary as the loader is built: a process with cgo,
// as the race detector needs it, cannot change all of its threads.
func withoutCgo(t *testing.T) string {
	t.Helper()
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value == "0" {
			return os.Args[0]
		}
	}
	program := filepath.Join(t.TempDir(), "sandbox.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the test without cgo: %v\n%s", err, out)
	}
	return program
}

func socket(family int) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// call returns a try of a system call. Without arguments worth anything, it would
// fail by itself if it were let through.
func call(nr uintptr, args ...uintptr) func(string) error {
	return func(string) error {
		args = append(args, 0, 0, 0)
		_, _, errno := unix.Syscall(nr, args[0], args[1], args[2])
		return errno
	}
}

func clone(string) error {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	if pid == 0 && errno == 0 {
		unix.Exit(0)
	}
	return errno
}

func executable(string) error {
	_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	return err
}

func makeExecutable(string) error {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
}

func big(state string) error {
	f, err := os.Create(filepath.Join(state, "big"))
	if err != nil {
		return err
	}
	for range 64 + 1 {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	return nil
}

func files(string) error {
	var open []*os.File // so that none is closed behind our back
	for range 65 {
		f, err := os.Open("/proc/self/status")
		if err != nil {
			return errors.Unwrap(err)
		}
		open = append(open, f)
	}
	runtime.KeepAlive(open)
	return nil
}

func rename(state string) error {
	a, b := filepath.Join(state, "a"), filepath.Join(state, "b")
	return errors.Join(os.WriteFile(a, nil, 0o600), os.Rename(a, b), os.Remove(b))
}

// threads has the runtime make threads after the fact.
func threads(string) error {
	done := make(chan bool)
	for range 20 {
		go func() {
			runtime.LockOSThread()
			for range 100 {
				runtime.Gosched()
			}
			done <- true
		}()
	}
	for range 20 {
		<-done
	}
	return nil
}

func ifAny(what []string) error {
	if len(what) > 0 {
		return fmt.Errorf("%q", what)
	}
	return nil
}

// status compares what /proc says of each thread.
func status(string) error {
	want := []string{"NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t1", "CapAmb:\t0000000000000000"}
	if asRoot {
		caps := fmt.Sprintf("%016x", keep|wish&had)
		want = append(want, "CapInh:\t0000000000000000", "CapPrm:\t"+caps, "CapEff:\t"+caps)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 2 {
		return fmt.Errorf("%d threads, %w", len(tasks), err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		for _, line := range want {
			if !slices.Contains(lines, line) {
				return fmt.Errorf("%s has no %q", task, line)
			}
		}
	}
	return nil
}

// A call that is listed twice would be decided by the first.
func TestEachCallIsListedOnce(t *testing.T) {
	t.Parallel()
	seen := map[uintptr]bool{}
	all := slices.Concat(calls.Allow, calls.Refuse)
	for _, r := range calls.If {
		all = append(all, r.Call)
	}
	for _, nr := range all {
		if seen[nr] {
			t.Errorf("system call %d is listed twice", nr)
		}
		seen[nr] = true
	}
}
