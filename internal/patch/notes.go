package patch

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// BuildIDFromNotes finds the build-id of vmlinux in b, the content of
// /sys/kernel/notes: ELF notes in the byte order of the machine, each with the
// lengths of name and descriptor, a type, and both padded to 4 bytes (elf(5)).
func BuildIDFromNotes(b []byte) (BuildID, error) {
	const noteGNUBuildID = 3 // NT_GNU_BUILD_ID of include/uapi/linux/elf.h
	for len(b) >= 12 {
		nameLen := uint64(binary.NativeEndian.Uint32(b))
		descLen := uint64(binary.NativeEndian.Uint32(b[4:]))
		typ := binary.NativeEndian.Uint32(b[8:])
		desc := 12 + (nameLen+3)&^3
		end := desc + (descLen+3)&^3
		if end > uint64(len(b)) {
			break
		}
		if typ == noteGNUBuildID && bytes.Equal(b[12:12+nameLen], []byte("GNU\x00")) {
			return BuildIDFromBytes(b[desc : desc+descLen])
		}
		b = b[end:]
	}
	return "", fmt.Errorf("cannot find a build-id in the kernel's notes: %w", ErrMalformed)
}
