package kernel_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// TestEveryErrnoHasItsMeaning is the table of docs/reference and of the kernel's
// sources, so that a change of either is noticed.
func TestEveryErrnoHasItsMeaning(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{
		syscall.ENOEXEC: patch.ErrBadFormat, syscall.EINVAL: patch.ErrIncompatible, syscall.ENOENT: patch.ErrUnknownSymbol,
		syscall.EEXIST: patch.ErrNameTaken, syscall.EBUSY: patch.ErrFtraceConflict,
		syscall.EKEYREJECTED: patch.ErrModuleSignature, syscall.ENOKEY: patch.ErrModuleSignature,
		syscall.EBADMSG: patch.ErrModuleSignature, syscall.ENOPKG: patch.ErrModuleSignature,
		syscall.EPERM: patch.ErrNotPermitted, syscall.ENODEV: patch.ErrNoLivepatch, syscall.ENOSYS: patch.ErrNoLivepatch,
		syscall.ENOMEM: patch.ErrNoMemory, syscall.ETXTBSY: patch.ErrKernel, syscall.Errno(4095): patch.ErrKernel,
	} {
		if got := kernel.Meaning(fmt.Errorf("wrapped: %w", errno)); !errors.Is(got, want) {
			t.Errorf("%v means %v, want %v", errno, got, want)
		}
	}
	if got := kernel.Meaning(errors.New("no errno")); !errors.Is(got, patch.ErrKernel) {
		t.Errorf("an error without errno means %v", got)
	}
}
