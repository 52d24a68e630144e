package kmod_test

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
	"livepatch/loader/internal/gate"
	"livepatch/loader/internal/kmod"
)

// TestEveryErrnoHasItsMeaning is the table of docs/reference and of the kernel's
// sources, so that a change of either is noticed.
func TestEveryErrnoHasItsMeaning(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.ENOEXEC: patch.ErrBadFormat, unix.EINVAL: patch.ErrIncompatible, unix.ENOENT: patch.ErrUnknownSymbol,
		unix.EEXIST: patch.ErrNameTaken, unix.EBUSY: patch.ErrFtraceConflict,
		unix.EKEYREJECTED: patch.ErrModuleSignature, unix.ENOKEY: patch.ErrModuleSignature,
		unix.EBADMSG: patch.ErrModuleSignature, unix.ENOPKG: patch.ErrModuleSignature,
		unix.EPERM: patch.ErrNotPermitted, unix.ENODEV: patch.ErrNoLivepatch, unix.ENOSYS: patch.ErrNoLivepatch,
		unix.ENOMEM: patch.ErrNoMemory, unix.ETXTBSY: patch.ErrKernel, unix.Errno(4095): patch.ErrKernel,
	} {
		if got := kmod.Meaning(fmt.Errorf("wrapped: %w", errno)); !errors.Is(got, want) {
			t.Errorf("%v means %v, want %v", errno, got, want)
		}
	}
	if got := kmod.Meaning(errors.New("no errno")); !errors.Is(got, patch.ErrKernel) {
		t.Errorf("an error without errno means %v", got)
	}
}

func TestWhatNobodyClearedIsNotInserted(t *testing.T) {
	for _, c := range []*gate.Cleared{nil, {}} {
		if err := (kmod.Kernel{}).Insert(c); !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("Insert = %v, want %v", err, patch.ErrInvalid)
		}
	}
}

func TestOnlyModuleNamesReachTheKernel(t *testing.T) {
	for _, name := range []string{"", "../x", "a-b", "a b", "a\x00b", "x/y"} {
		if err := (kmod.Kernel{}).Delete(name); !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("Delete(%q) = %v, want %v", name, err, patch.ErrInvalid)
		}
	}
}
