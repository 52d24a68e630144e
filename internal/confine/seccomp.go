package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Filter says which system calls remain. Any that it does not name ends the
// process, with a trace of who made it (SIGSYS).
type Filter struct {
	Allow  []uintptr
	Refuse []uintptr // answered with EPERM, for code that asks to find out
	If     []Rule
}

// A Rule allows a system call if the bits Mask of the argument number Arg are
// Want.
type Rule struct {
	Call            uintptr
	Arg, Mask, Want uint32
}

// arches are the ways to call that a filter knows (linux/audit.h).
var arches = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "ppc64le": unix.AUDIT_ARCH_PPC64LE, "s390x": unix.AUDIT_ARCH_S390X,
}

// program returns the filter as the kernel takes it: struct seccomp_data goes in,
// what to do comes out (userspace-api/seccomp_filter.rst).
func (f Filter) program() []unix.SockFilter {
	const arch, args = 4, 16 // offsets; the number of the call lies at 0
	low := uint32(0)         // where in an argument its low half lies
	if runtime.GOARCH == "s390x" {
		low = 4
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	equal := func(k uint32, other uint8) unix.SockFilter { // goes on, or past other instructions
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: other, K: k}
	}
	end := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	// The numbers of another architecture mean other calls.
	known := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: arches[runtime.GOARCH]}
	p := []unix.SockFilter{load(arch), known, end(unix.SECCOMP_RET_KILL_PROCESS), load(0)}
	for _, nr := range f.Allow {
		p = append(p, equal(uint32(nr), 1), end(unix.SECCOMP_RET_ALLOW))
	}
	for _, nr := range f.Refuse {
		p = append(p, equal(uint32(nr), 1), end(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
	}
	for _, r := range f.If {
		p = append(p, equal(uint32(r.Call), 4), load(args+8*r.Arg+low),
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: r.Mask}, equal(r.Want, 1), end(unix.SECCOMP_RET_ALLOW))
	}
	return append(p, end(unix.SECCOMP_RET_TRAP))
}

// Syscalls leaves the system calls that f names. It needs [Privileges] first, and
// comes last: what follows is subject to it.
func Syscalls(f Filter) error {
	p := f.program()
	fprog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	thread, err := call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if thread != 0 {
		err = fmt.Errorf("thread %d cannot take the filter", thread)
	}
	return err
}
