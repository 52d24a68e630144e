package kernel

import (
	"errors"
	"syscall"

	"livepatch/internal/patch"
)

// meanings tells what finit_module(2) means by an errno when the module is a
// livepatch: kernel/module/main.c, kernel/module/signing.c and
// kernel/livepatch/core.c of the kernel tree.
var meanings = map[syscall.Errno]error{
	syscall.ENOEXEC:      patch.ErrBadFormat,       // vermagic or ELF
	syscall.EINVAL:       patch.ErrIncompatible,    // livepatch metadata, a symbol missing or ambiguous, klp_state
	syscall.ENOENT:       patch.ErrUnknownSymbol,   // unresolved symbol
	syscall.EEXIST:       patch.ErrNameTaken,       // module of that name is live
	syscall.EBUSY:        patch.ErrFtraceConflict,  // see Server.insert for its other meaning
	syscall.EKEYREJECTED: patch.ErrModuleSignature, // signature is bad
	syscall.ENOKEY:       patch.ErrModuleSignature, // unsigned, or key not known
	syscall.EBADMSG:      patch.ErrModuleSignature, // signature is malformed
	syscall.ENOPKG:       patch.ErrModuleSignature, // algorithm not supported
	syscall.EPERM:        patch.ErrNotPermitted,    // lockdown, no capability, modules_disabled
	syscall.ENODEV:       patch.ErrNoLivepatch,     // livepatch core not initialised
	syscall.ENOSYS:       patch.ErrNoLivepatch,     // kernel takes no modules
	syscall.ENOMEM:       patch.ErrNoMemory,
}

// Meaning returns the condition that an errno stands for, [patch.ErrKernel] for
// one that it does not know.
func Meaning(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && meanings[errno] != nil {
		return meanings[errno]
	}
	return patch.ErrKernel
}
