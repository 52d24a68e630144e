package patch

import (
	"encoding/hex"
	"fmt"
)

// A BuildID is the GNU build-id of a vmlinux, as found in the note
// NT_GNU_BUILD_ID of /sys/kernel/notes. Two kernels of the same release that
// were built apart have different build-ids, and a livepatch fits one only.
//
// The zero BuildID identifies no kernel.
type BuildID string

// ParseBuildID reads a build-id written as 16 to 64 hexadecimal digits.
func ParseBuildID(s string) (BuildID, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("cannot parse build-id %.100q: %w", s, err)
	}
	return BuildIDFromBytes(b)
}

// BuildIDFromBytes returns the build-id held in b, which must be 8 to 32 bytes
// long (ld writes 20, a SHA-1).
func BuildIDFromBytes(b []byte) (BuildID, error) {
	if len(b) < 8 || len(b) > 32 {
		return "", fmt.Errorf("cannot use %d bytes as a build-id, need 8 to 32", len(b))
	}
	return BuildID(hex.EncodeToString(b)), nil
}

// A Kernel says which kernel a patch was made for, or which one runs.
type Kernel struct {
	Arch    string  `json:"arch"`     // as printed by uname -m, "x86_64"
	Release string  `json:"release"`  // as printed by uname -r, "6.1.0-53-amd64"
	BuildID BuildID `json:"build_id"` // of vmlinux
}

// Cell names the kernels that a rollout treats as one: "<release>/<arch>".
func (k Kernel) Cell() string { return k.Release + "/" + k.Arch }

// A KernelMismatchError reports a patch offered to a kernel it was not built
// for. It matches [ErrWrongKernel].
type KernelMismatchError struct {
	Want, Running Kernel
}

// Error names the first property that differs, the one a person can act on.
func (e *KernelMismatchError) Error() string {
	switch {
	case e.Want.Arch != e.Running.Arch:
		return fmt.Sprintf("patch is for architecture %s, running %s", e.Want.Arch, e.Running.Arch)
	case e.Want.Release != e.Running.Release:
		return fmt.Sprintf("patch is for kernel %s, running %s", e.Want.Release, e.Running.Release)
	default:
		return fmt.Sprintf("patch is for another build of kernel %s (build-id %s, running %s)",
			e.Want.Release, e.Want.BuildID, e.Running.BuildID)
	}
}

// Unwrap returns [ErrWrongKernel].
func (e *KernelMismatchError) Unwrap() error { return ErrWrongKernel }

// Check returns a [KernelMismatchError] unless running is the kernel k,
// compared by architecture, release and build-id.
func (k Kernel) Check(running Kernel) error {
	if k == running && k != (Kernel{}) {
		return nil
	}
	return &KernelMismatchError{Want: k, Running: running}
}
