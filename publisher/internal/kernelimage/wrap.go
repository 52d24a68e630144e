package kernelimage

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The x86 setup header, offsets from the start of the file.
const (
	offSetupSects    = 0x1f1 // u8, in units of 512 bytes, 0 means 4
	offMagic         = 0x202 // "HdrS"
	offProtocol      = 0x206 // u16
	offKernelVersion = 0x20e // u16, of a string, less 0x200
	offPayload       = 0x248 // u32, from the end of the set-up code
	offPayloadLength = 0x24c // u32
	endHeader        = 0x250

	minProtocol = 0x0208 // the first with a payload
)

func isBzImage(b []byte) bool {
	return len(b) >= endHeader && string(b[offMagic:offMagic+4]) == "HdrS"
}

// openBzImage returns the decompressed payload and the version string.
func openBzImage(b []byte, limit int64) (kernel []byte, banner string, err error) {
	le := binary.LittleEndian
	if v := le.Uint16(b[offProtocol:]); v < minProtocol {
		return nil, "", fmt.Errorf("%w: boot protocol is %#x, want %#x or later", ErrFormat, v, minProtocol)
	}
	if at := int(le.Uint16(b[offKernelVersion:])); at != 0 && at+0x200 < len(b) {
		banner = text(b[at+0x200:])
	}
	sects := uint64(b[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + uint64(le.Uint32(b[offPayload:]))
	payload, err := slice(b, start, uint64(le.Uint32(b[offPayloadLength:])))
	if err != nil {
		return nil, "", err
	}
	// Not every kernel is compressed.
	if bytes.HasPrefix(payload, []byte("\x7fELF")) {
		return payload, banner, nil
	}
	kernel, err = decompress(payload, limit)
	return kernel, banner, err
}

// isZboot tells whether b is a PE file that decompresses the kernel it carries
// (drivers/firmware/efi/libstub/zboot-header.S).
func isZboot(b []byte) bool {
	return len(b) >= 64 && string(b[:2]) == "MZ" && string(b[4:8]) == "zimg"
}

func openZboot(b []byte, limit int64) ([]byte, error) {
	le := binary.LittleEndian
	payload, err := slice(b, uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:])))
	if err != nil {
		return nil, err
	}
	return decompress(payload, limit)
}

func slice(b []byte, start, length uint64) ([]byte, error) {
	if start > uint64(len(b)) || length > uint64(len(b))-start {
		return nil, fmt.Errorf("%w: the header says that the kernel ends at byte %d, the file at %d", ErrTruncated, start+length, len(b))
	}
	return b[start : start+length], nil
}
