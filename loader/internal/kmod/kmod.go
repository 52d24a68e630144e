// Package kmod is the two system calls that put modules into the kernel and
// take them out, and the one that tells what the kernel has said meanwhile.
package kmod

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"livepatch/internal/kernel"
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
		return fmt.Errorf("cannot insert module %q: %w: %w", c.Module().Name, kernel.Meaning(err), err)
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
		return fmt.Errorf("cannot unload module %q: %w: %w", name, kernel.Meaning(err), err)
	}
	return nil
}

// Log returns what the kernel has written to its log lately, "" if it does not let us.
func (Kernel) Log() string {
	b := make([]byte, 1<<20) // a log of 256 KiB is usual; of a longer one this is the end
	n, _ := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	return string(b[:max(n, 0)])
}
