// Package kmod is the two system calls that put modules into the kernel and
// take them out.
package kmod

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
	"livepatch/loader/internal/gate"
)

// Kernel is the running kernel.
type Kernel struct{}

// Insert loads a module that package gate let through. The kernel begins the
// livepatch's transition before Insert returns.
func (Kernel) Insert(c *gate.Cleared) error {
	file := c.File()
	if file == nil {
		return fmt.Errorf("cannot insert module: %w: it was not cleared", patch.ErrInvalid)
	}
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil {
		return fmt.Errorf("cannot insert module %q: %w: %w", c.Module().Name, Meaning(err), err)
	}
	return nil
}

// Delete unloads a module, which nothing may use any more.
func (Kernel) Delete(name string) error {
	if err := patch.CheckModuleName(name); err != nil {
		return err
	}
	// Without O_NONBLOCK the call could wait for ever.
	switch err := unix.DeleteModule(name, unix.O_NONBLOCK); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("cannot unload module %q: %w: it is still in use: %w", name, patch.ErrStalled, err)
	case err != nil:
		return fmt.Errorf("cannot unload module %q: %w: %w", name, Meaning(err), err)
	}
	return nil
}

// meanings tells what finit_module(2) means by an errno when the module is a
// livepatch: kernel/module/main.c, kernel/module/signing.c and
// kernel/livepatch/core.c of the kernel tree.
var meanings = map[unix.Errno]error{
	unix.ENOEXEC:      patch.ErrBadFormat,       // vermagic or ELF
	unix.EINVAL:       patch.ErrIncompatible,    // livepatch metadata, a symbol missing or ambiguous, klp_state
	unix.ENOENT:       patch.ErrUnknownSymbol,   // unresolved symbol
	unix.EEXIST:       patch.ErrNameTaken,       // module of that name is live
	unix.EBUSY:        patch.ErrFtraceConflict,  // see Server.insert for its other meaning
	unix.EKEYREJECTED: patch.ErrModuleSignature, // signature is bad
	unix.ENOKEY:       patch.ErrModuleSignature, // unsigned, or key not known
	unix.EBADMSG:      patch.ErrModuleSignature, // signature is malformed
	unix.ENOPKG:       patch.ErrModuleSignature, // algorithm not supported
	unix.EPERM:        patch.ErrNotPermitted,    // lockdown, no capability, modules_disabled
	unix.ENODEV:       patch.ErrNoLivepatch,     // livepatch core not initialised
	unix.ENOSYS:       patch.ErrNoLivepatch,     // kernel takes no modules
	unix.ENOMEM:       patch.ErrNoMemory,
}

// Meaning returns the condition that an errno stands for, [patch.ErrKernel] for
// one that it does not know.
func Meaning(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) && meanings[errno] != nil {
		return meanings[errno]
	}
	return patch.ErrKernel
}
