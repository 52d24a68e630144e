package kernelimage

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"livepatch/internal/patch"
)

const (
	maxNotes   = 1 << 20 // bytes of notes that are looked at
	gnuBuildID = 3       // NT_GNU_BUILD_ID
)

// buildID returns the build-id from the sections of notes or, where a file has
// no sections, from its segments.
func buildID(f *elf.File) (patch.BuildID, error) {
	for _, s := range f.Sections {
		if s.Type == elf.SHT_NOTE && s.Flags&elf.SHF_COMPRESSED == 0 {
			if id, ok := findBuildID(s.Open(), f.ByteOrder); ok {
				return patch.BuildIDFromBytes(id)
			}
		}
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_NOTE {
			if id, ok := findBuildID(p.Open(), f.ByteOrder); ok {
				return patch.BuildIDFromBytes(id)
			}
		}
	}
	return "", fmt.Errorf("%w: there is no note NT_GNU_BUILD_ID in it", ErrNoBuildID)
}

// findBuildID walks over notes: lengths of name and descriptor, type, name,
// descriptor, the latter two padded to 4 bytes.
func findBuildID(r io.Reader, order binary.ByteOrder) ([]byte, bool) {
	b, err := io.ReadAll(io.LimitReader(r, maxNotes))
	if err != nil {
		return nil, false
	}
	for len(b) >= 12 {
		nameLen, descLen, kind := order.Uint32(b), order.Uint32(b[4:]), order.Uint32(b[8:])
		b = b[12:]
		name, rest, ok := padded(b, nameLen)
		if !ok {
			return nil, false
		}
		desc, rest, ok := padded(rest, descLen)
		if !ok {
			return nil, false
		}
		if kind == gnuBuildID && string(name) == "GNU\x00" {
			return desc, true
		}
		b = rest
	}
	return nil, false
}

// padded cuts n bytes from b, and what pads them to a multiple of 4.
func padded(b []byte, n uint32) (field, rest []byte, ok bool) {
	if uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	end := min((uint64(n)+3)&^3, uint64(len(b)))
	return b[:n], b[end:], true
}
